"""Membership inference against a released model with this site's own patients: read only, and nothing leaves.

Invariants: the model is the one whose release this site itself verified; no entry, message or file is written; the
result is returned to whoever runs the command, and no sender takes it. That is why nothing is charged.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from schemas.errors import OperationError, PeerError, PlanError, SiteDataError
from schemas.layout import plan_key, release_key
from schemas.ledger import ModelReleased
from schemas.messages import ModelRelease
from schemas.plan import StudyPlan
from schemas.statistics import parse_agreement
from site_agents.cohort.checking import check_cohort
from site_agents.cohort.reader import LocalData, read_table
from site_agents.home import SiteHome, open_home
from site_agents.policy import verify_model_allowed, verify_plan_bytes
from tasks.attacks.figures import ReleasedMembership
from tasks.ledger.store import LedgerStore
from tasks.rounds import read_opening, read_record
from tasks.server_step import parse_weights
from tasks.storage.base import Store
from tasks.storage.mailbox import read_blob, read_signed
from tasks.storage.names import LARGEST_READ
from tasks.storage.opening import open_store

NOTICE = (
    "Exact figures of this hospital's own patients, without noise: keep them here. Nothing was charged, because "
    "nothing was written or sent; whoever passes them on releases something that no budget has paid for."
)


def attack_released_model(
    folder: Path, study: str = "", progress: Callable[[str], None] = lambda _: None
) -> ReleasedMembership:
    """Measures how well the released model's loss tells this site's training patients from its held-out ones.

    Args:
        folder: The site's home; an agent may be running on it.
        study: The first 8 or more digits of the plan's digest; "" for the only one released here.
        progress: Called with the name of each step before it runs.

    Raises:
        OperationError: `no-ledger`, `release-not-verified`, `no-such-study`, `not-charged`,
            `attack-too-small`.
        PeerError: store and signed release disagree; names the coordinator.
        PlanError: `attack-not-a-member`, `model-not-allowed`.
        SiteDataError: the table breaks the contract or cannot be read; `attack-no-held-out`.
    """
    from tasks.attacks.membership import area_bound
    from tasks.attacks.released import measure_losses, patient_losses
    from tasks.contract.encoder import encode_features

    home = open_home(folder)
    progress("release")
    found, given = _verified_release(home, study)
    store = open_store(home.settings.store, f"sites/{home.settings.name}", home.settings.s3)
    plan = _read_plan(home, store, found)
    weights = parse_weights(plan, _read_weights(store, plan, given))
    rounds_in = _rounds_in(store, plan, given, home.settings.name)
    progress("rows")
    local = LocalData(home.settings.data, home.settings.mapping)
    check_cohort(local, plan.contract)
    cohort = encode_features(plan.contract, read_table(local, plan.contract))
    if not cohort.held_out.any():
        raise SiteDataError(
            "attack-no-held-out",
            "Expected held-out patients: without any, nobody is known not to be a member.",
            "Attack the plan on a public table instead: consilium attack run.",
        )
    progress("losses")
    epsilon, delta = _epsilon_of(given, home.settings.name), float(plan.budget.delta)
    members, others = (patient_losses(plan, part, weights) for part in (cohort.training, cohort.evaluation))
    figures = measure_losses(members, others, epsilon, delta)
    return ReleasedMembership(
        study=found,
        site=home.settings.name,
        rounds_in=rounds_in,
        rounds=given.rounds,
        members=len(members),
        others=len(others),
        auc=figures.auc,
        auc_bound=area_bound(epsilon, delta),
        rates=figures.rates,
        epsilon=epsilon,
        delta=delta,
        notice=NOTICE,
    )


def _verified_release(home: SiteHome, study: str) -> tuple[str, ModelRelease]:
    """Finds the release that this site's agent verified and entered in the ledger, whose signatures are checked."""
    if not home.ledger_path.is_file():
        raise OperationError(
            "no-ledger", f"{home.settings.name} has not taken part in a study.", "Run its agent first."
        )
    ledger = LedgerStore(home.ledger_path, home.settings.name, home.identity.signing)
    chosen = [s for s in home.settings.studies if not study or (len(study) >= 8 and s.startswith(study))]
    if not chosen:
        raise OperationError(
            "no-such-study", "Expected the first 8 or more digits of an approved study.", "See consilium site status."
        )
    released = [
        (s, entry.body.release)
        for s in chosen
        for entry in ledger.find(s, "model-released")
        if isinstance(entry.body, ModelReleased)
    ]
    if len(released) > 1:
        raise OperationError("no-such-study", "More than one study was released here.", "Name one with --study.")
    if not released:
        raise OperationError(
            "release-not-verified",
            "This site has not verified the release of a model.",
            "Run its agent until the study is released.",
        )
    return released[0]


def _read_plan(home: SiteHome, store: Store, study: str) -> StudyPlan:
    data = store.get(plan_key(study))
    if data is None:
        raise OperationError("no-such-plan", f"There is no plan {study[:12]} in the store.", "Ask the coordinator.")
    verify_plan_bytes(data, study, home.settings.studies)
    plan = parse_agreement(data, "the plan")
    if not isinstance(plan, StudyPlan):
        raise PlanError("wrong-kind", "Expected a study that trained a model.", "Name another study.")
    verify_model_allowed(plan, home.settings.models)
    return plan


def _read_weights(store: Store, plan: StudyPlan, given: ModelRelease) -> bytes:
    coordinator, key = plan.coordinator, release_key(plan.study, "release.json")
    signed = read_signed(store, key, ModelRelease, plan.study, coordinator.identity_key, coordinator.name)
    if signed is None:
        raise PeerError("release-missing", coordinator.name, "there is no signed release.")
    if signed.predicate != given:
        raise PeerError("wrong-release", coordinator.name, "the signed release is not the one that this site verified.")
    # A model has any size; the coordinator could have had this site release another one instead.
    place = release_key(plan.study, "weights.safetensors")
    return read_blob(store, place, given.weights, coordinator.name, LARGEST_READ)


def _rounds_in(store: Store, plan: StudyPlan, given: ModelRelease, site: str) -> int:
    """Counts the opened training rounds with this site's update; who trained in none has no members to find."""
    count = 0
    for number in range(1, plan.mechanism.rounds + 1):
        opening, record = read_opening(store, plan, number), read_record(store, plan, number)
        if opening is not None and record is not None and opening.predicate.record == record.digest:
            count += site in dict(record.predicate.contributions)
    if count == 0:
        raise PlanError(
            "attack-not-a-member",
            "No update of this site is in the released model: none of its patients is a member.",
            "Nothing is to be measured here.",
        )
    return count


def _epsilon_of(given: ModelRelease, site: str) -> float:
    """Returns what the release says this site's patients were charged.

    Raises:
        OperationError: `not-charged`.
    """
    for report in given.epsilon:
        if report.site == site:
            return float(report.collusion)
    raise OperationError(
        "not-charged", f"The release states no epsilon for {site}.", "Ask the coordinator why: the audit names it too."
    )
