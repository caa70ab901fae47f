"""Names that MLflow shows: models, aliases, tags. Pure; the audit derives the same tags from the evidence and compares.

docs/mlflow.md explains every name of `TAGS`; a test holds them together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from schemas.messages import EpsilonReport, LogPosition, ModelRelease
from schemas.plan import StudyPlan

CANDIDATE = "candidate"
RELEASED = "released"
REVIEW_STATE = "consilium.review_state"
# What a person may write in MLflow's pages. It is noticed and shown, and it releases nothing.
WISH = "consilium.review"
_MAILBOX = "consilium.review."

# Tag of a model version -> what it says. A name that ends in a dot stands for all names that begin with it.
TAGS: dict[str, str] = {
    "consilium.study": "study id, the plan's digest",
    "consilium.plan_digest": "the same, under the name that the audit uses",
    "consilium.release": "envelope digest of `release.json`",
    "consilium.weights": "SHA-256 of `weights.safetensors`",
    "consilium.model_state": "digest of the model and optimizer state that was released",
    "consilium.rounds": "training rounds in the model",
    "consilium.complete": "`yes` if every planned round was opened",
    "consilium.unit": "privacy unit and neighbouring relation",
    "consilium.delta": "δ of the plan",
    "consilium.epsilon_limit": "largest ε that the plan allows per site over the whole study",
    "consilium.epsilon_collusion": "largest ε of a site's training patients if the plan's number of sites collude",
    "consilium.epsilon_outsider": "the same against outsiders",
    "consilium.epsilon_fallback": "the same if the encryption were broken",
    "consilium.evaluation_epsilon_collusion": "largest ε of a site's held-out patients, under collusion",
    "consilium.evaluation_epsilon_outsider": "the same against outsiders",
    "consilium.evaluation_epsilon_fallback": "the same if the encryption were broken",
    "consilium.auc": "AUC on held-out patients; `_low` and `_high` are its 95 % interval",
    "consilium.auc_low": "lower end of the interval",
    "consilium.auc_high": "upper end of the interval",
    "consilium.brier": "Brier score; `_low` and `_high` as above",
    "consilium.brier_low": "lower end of the interval",
    "consilium.brier_high": "upper end of the interval",
    "consilium.mean_error": "mean of prediction minus outcome; `_low` and `_high` as above",
    "consilium.mean_error_low": "lower end of the interval",
    "consilium.mean_error_high": "upper end of the interval",
    "consilium.ledger.": "checkpointed size and Merkle root of a party's log",
    _MAILBOX: "a reviewer's signed decision; believed only if its signature verifies",
    REVIEW_STATE: "what the release gate says; the evidence is the study log",
    WISH: "what a person wrote here without a signature; noticed, never enough",
}
# Not derived from evidence.
FREE_TAGS = (_MAILBOX, REVIEW_STATE, WISH)


def model_name(plan: StudyPlan) -> str:
    """Returns the registered model's name: studies on the same contract and model kind become versions of one model."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', plan.contract.name)}-{plan.model.kind}"


def mailbox_tag(reviewer: str) -> str:
    """Returns the version tag in which a reviewer's signed decision travels."""
    return f"{_MAILBOX}{reviewer}"


def is_known_tag(name: str) -> bool:
    """Tells whether a tag is in the vocabulary."""
    return name in TAGS or any(name.startswith(known) for known in TAGS if known.endswith("."))


def release_tags(
    plan: StudyPlan, release: ModelRelease, roots: Mapping[str, LogPosition], release_digest: str
) -> dict[str, str]:
    """Returns the version tags that follow from the evidence.

    Args:
        plan: The study plan.
        release: What is released.
        roots: Log owner (coordinator or site) to its checkpointed position.
        release_digest: Envelope digest of ``release.json``.
    """
    tags = {
        "consilium.study": plan.study,
        "consilium.plan_digest": plan.study,
        "consilium.release": release_digest,
        "consilium.weights": release.weights,
        "consilium.model_state": release.model,
        "consilium.rounds": str(release.rounds),
        "consilium.complete": "yes" if release.complete else "no",
        "consilium.unit": f"{plan.mechanism.unit}, {plan.mechanism.neighboring_relation}",
        "consilium.delta": plan.budget.delta,
        "consilium.epsilon_limit": plan.budget.epsilon,
    }
    tags |= _epsilon_tags("epsilon", release.epsilon) | _epsilon_tags("evaluation_epsilon", release.evaluation_epsilon)
    tags |= {f"consilium.{name}": value for name, value in release.metrics}
    tags |= {f"consilium.ledger.{owner}": f"{at.size}:{at.root}" for owner, at in sorted(roots.items())}
    return tags


# What the audit compares MLflow with.
expected_tags = release_tags


def _epsilon_tags(prefix: str, reports: Sequence[EpsilonReport]) -> dict[str, str]:
    """Returns the largest value over sites in each reading; the ledgers hold the rest."""
    readings = ("collusion", "outsider", "fallback")
    if not reports:
        return {}
    return {f"consilium.{prefix}_{r}": max((str(getattr(x, r)) for x in reports), key=float) for r in readings}
