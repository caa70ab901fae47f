"""The accuracy studies: which data, which numbers, how many runs, and what they are measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.studies.study_file import StudyFile, choose_numbers, derive_parts, read_study
from schemas.contract import DataContract
from schemas.errors import OperationError
from schemas.threshold import Threshold, default_threshold


@dataclass(frozen=True)
class Target:
    """What the mean over all seeds of one epsilon is held against.

    Attributes:
        difference: Least mean paired difference of exact held-out AUC to central DP on the same splits.
        auc: Least mean AUC.
        auc_required: Whether missing `auc` fails the study; otherwise it is aimed at.
    """

    difference: float
    auc: float
    auc_required: bool


@dataclass(frozen=True)
class WrittenStudy:
    """A study file, its contract and the folder where both lie."""

    file: StudyFile
    contract: DataContract
    folder: Path


@dataclass(frozen=True)
class StudyDefinition:
    """One accuracy study.

    Attributes:
        data: Name in `infra.datasets`.
        rounds: Encrypted training rounds; the evaluation is one more.
        threshold: The plan's numbers.
        committee: How many sites hold a share of the key: the first in name order; all if None.
        targets: Epsilon, as in the plan -> target.
        written: The files that it was read from; contract, mechanism, optimizer and mappings are theirs.
    """

    name: str
    title: str
    purpose: str
    data: str
    rounds: int
    delta: str
    threshold: Threshold
    committee: int | None
    targets: Mapping[str, Target]
    written: WrittenStudy | None = None

    @property
    def most_rounds(self) -> int:
        """Largest number of encrypted rounds that the study may take, evaluation included."""
        return 20


STUDIES: Mapping[str, StudyDefinition] = {
    "heart": StudyDefinition(
        name="heart",
        title="Is a coronary artery narrowed?",
        purpose="Accuracy under encryption and local noise shares, beside a trusted party with all rows.",
        data="uci-heart",
        rounds=10,
        delta="1e-5",
        threshold=default_threshold(4),
        committee=None,
        targets={
            "1": Target(difference=-0.006, auc=0.88, auc_required=True),
            "3": Target(difference=-0.006, auc=0.89, auc_required=True),
        },
    ),
    "eicu": StudyDefinition(
        name="eicu",
        title="Will this patient die in hospital?",
        purpose="Accuracy over 186 hospitals with repeated stays, per patient, if half of the hospitals are honest.",
        data="eicu-demo",
        rounds=8,
        delta="1e-5",
        # Half of the 186 hospitals may collude; six may be silent in a round, so that 87 honest shares always remain.
        threshold=Threshold(
            t=9,
            certificate_quorum=13,
            k_min=180,
            colluding_key_holders=8,
            colluding_contributors=93,
            honest_noise_shares=87,
            tolerated_dropouts=3,
        ),
        committee=16,
        targets={
            "1": Target(difference=-0.025, auc=0.775, auc_required=False),
            "3": Target(difference=-0.015, auc=0.80, auc_required=False),
        },
    ),
}


def find_study(name: str) -> StudyDefinition:
    """Returns the study called `name`, or the accuracy study that the study file `name` describes.

    Raises:
        OperationError: `unknown-study`, `no-accuracy`.
        PlanError: the file does not fit.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return read_definition(Path(name))
    if name not in STUDIES:
        raise OperationError("unknown-study", f"Expected one of {', '.join(STUDIES)}.", "Choose a study.")
    return STUDIES[name]


def read_definition(path: Path) -> StudyDefinition:
    """Reads an accuracy study from a study file.

    Raises:
        OperationError: `no-accuracy` if the file does not say what is measured against what.
        PlanError: the file does not fit.
    """
    file, contract = read_study(path)
    if file.accuracy is None or not file.sites:
        raise OperationError(
            "no-accuracy", f"{path.name} has no accuracy section, or names no sites.", "Add both, or run it once."
        )
    parts = derive_parts(file, contract, list(file.sites.values()))
    return StudyDefinition(
        name=file.accuracy.name,
        title=file.title,
        purpose=file.purpose,
        data=file.accuracy.data,
        rounds=parts.mechanism.rounds,
        delta=file.budget.delta,
        threshold=choose_numbers(file, len(file.sites)),
        committee=file.committee,
        targets={e: Target(t.difference, t.auc, t.auc_required) for e, t in file.accuracy.targets.items()},
        written=WrittenStudy(file, contract, path.absolute().parent),
    )
