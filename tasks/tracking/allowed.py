"""What may be written to MLflow besides the public plan: the list a reviewer of privacy reads.

Everything here is derived from released aggregates (openings that t of n sites decrypted, which are differentially
private), from ledger events, or from clocks and sizes of the coordinator. No loss, clip rate, row count or norm of a
single site's update exists at the coordinator, and none may appear by accident: an unknown name is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from schemas.errors import OperationError

ROUND_METRICS = frozenset({"step_norm", "distance_from_last", "distance_from_start", "weights_norm"})
EVALUATION_METRICS = frozenset(
    f"{name}{suffix}" for name in ("auc", "brier", "mean_error") for suffix in ("", "_low", "_high")
)
ROUND_ARTIFACTS = frozenset({"instruction.json", "record.json", "opening.json"})
_RATES = tuple(f"membership_tpr_at_fpr_{rate}" for rate in ("0_1pct", "1pct"))
# Measured on public or simulated patients, never on a site's: `tasks.attacks.report`.
ATTACK_METRICS = frozenset(
    {
        *("membership_auc", "membership_auc_unprotected"),
        *(f"{rate}{suffix}" for rate in _RATES for suffix in ("", "_low", "_high", "_bound")),
        *(f"{rate}_unprotected{suffix}" for rate in _RATES for suffix in ("", "_low", "_high")),
        *(f"property_{name}" for name in ("unprotected", "protected", "site_patients", "trials")),
        *(f"inversion_{name}" for name in ("unprotected", "protected", "guess", "patients")),
        *(f"canary_{name}" for name in ("measured_mu", "claimed_mu", "studies")),
    }
)
STUDY_ARTIFACTS = frozenset({"plan.json", "contract.json", "release.json", "public-keys.json", "attacks.json"})
_STEP_NAME = re.compile(r"^[a-z][a-z_]{0,39}$")


def verify_names(names: Iterable[str], allowed: frozenset[str], what: str) -> None:
    """Refuses names that are not on the list.

    Raises:
        OperationError: `not-on-allow-list`, naming them.
    """
    unknown = sorted(set(names) - allowed)
    if unknown:
        raise OperationError(
            "not-on-allow-list",
            f"Expected {what} from the allow-list, got {', '.join(unknown)}.",
            "Record released aggregates only, or extend tasks/tracking/allowed.py after a privacy review.",
        )


def verify_step_names(names: Iterable[str]) -> None:
    """Refuses step names that are not plain lower-case words (a free text could carry anything).

    Raises:
        OperationError: `not-on-allow-list`.
    """
    if any(not _STEP_NAME.match(name) for name in names):
        raise OperationError("not-on-allow-list", "Expected step names of lower-case letters and underscores.")
