"""scikit-learn's breast-cancer table (569 real patients, CC BY 4.0) dealt to hospitals by a public rule.

The rule, from row numbers and published values alone:

1. Patient ``bc-0001`` is row 1 of the table, and so on. "Hash order" is the order of `public_rank`.
2. Held out: of the malignant and of the benign patients, the first fifth in hash order (113 patients), whatever the
   number of hospitals.
3. Hospital k of n gets a share proportional to 3n - 2k (k = 0..n-1): the first is almost three times the last.
4. Every second patient in hash order is dealt by tumour size (mean radius, smallest first), the others in hash order;
   both halves are cut in the shares of step 3. So hospitals differ in size, case mix and outcome rate.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from infra.datasets_tables import SiteTable, choose_held_out, public_rank, round_declared
from schemas.contract import Column, DataContract
from schemas.errors import OperationError

if TYPE_CHECKING:
    import numpy as np

ATTRIBUTION = (
    "Breast Cancer Wisconsin (Diagnostic), Wolberg, Mangasarian, Street and Street (1995), "
    "UCI Machine Learning Repository, doi:10.24432/C5DW2B, CC BY 4.0"
)
DEFAULT_SITES = 5
MOST_SITES = 32
_SHA256 = "25e2eb7b7a8745b1bde5ba18bc4969983d2e2f403291ecd5bde4a29ef30c3859"

# Plausible ranges of nuclear measurements in a fine-needle aspirate image: (base, mean, standard error, worst, unit).
# Chosen as round numbers from what each measure can be, and written into the contract; not statistics of this table.
_RANGES = (
    ("radius", ("5", "30"), ("0", "4"), ("5", "40"), "pixels"),
    ("texture", ("5", "40"), ("0", "6"), ("10", "50"), "grey levels"),
    ("perimeter", ("40", "200"), ("0", "30"), ("40", "260"), "pixels"),
    ("area", ("100", "3000"), ("0", "600"), ("100", "5000"), "square pixels"),
    ("smoothness", ("0", "0.2"), ("0", "0.04"), ("0", "0.3"), ""),
    ("compactness", ("0", "0.4"), ("0", "0.2"), ("0", "1.2"), ""),
    ("concavity", ("0", "0.5"), ("0", "0.4"), ("0", "1.5"), ""),
    ("concave_points", ("0", "0.25"), ("0", "0.1"), ("0", "0.3"), ""),
    ("symmetry", ("0.1", "0.4"), ("0", "0.1"), ("0.1", "0.7"), ""),
    ("fractal_dimension", ("0.04", "0.1"), ("0", "0.04"), ("0.05", "0.25"), ""),
)


def breast_cancer_contract() -> DataContract:
    """Returns the contract: 30 numbers with public ranges, no missing values, outcome = malignant."""
    features = [
        Column(name=f"{part}_{base}", kind="number", unit=unit, minimum=low, maximum=high)
        for index, part in enumerate(("mean", "error", "worst"))
        for base, *ranges, unit in _RANGES
        for low, high in [ranges[index]]
    ]
    return DataContract(
        name="breast-cancer",
        version="1",
        columns=(
            Column(name="patient_id", kind="identifier", role="patient_id", description="pseudonym"),
            Column(name="malignant", kind="boolean", role="label", description="diagnosis of the mass"),
            Column(name="held_out", kind="boolean", role="held_out", description="public split"),
            *features,
        ),
    )


def deal_breast_cancer(sites: int, split_seed: int) -> tuple[SiteTable, ...]:
    """Deals the table to `sites` hospitals by the rule at the top of this module.

    Raises:
        OperationError: `sites-range`, `data-changed`, `package-missing`.
    """
    import pyarrow as pa

    if not 4 <= sites <= MOST_SITES:
        raise OperationError(
            "sites-range", f"Expected 4 to {MOST_SITES} sites, got {sites}.", "Choose another number of sites."
        )
    data, malignant = _load()
    ids = [f"bc-{row + 1:04d}" for row in range(len(data))]
    strata = [[p for p, m in zip(ids, malignant, strict=True) if m == side] for side in (True, False)]
    held_out = choose_held_out(strata, f"breast-cancer/split/{split_seed}")
    names = [c.name for c in breast_cancer_contract().features]
    tables = []
    for number, rows in enumerate(_deal(ids, data[:, 0], sites), start=1):
        columns: dict[str, Any] = {
            "patient_id": [ids[r] for r in rows],
            "malignant": [bool(malignant[r]) for r in rows],
            "held_out": [ids[r] in held_out for r in rows],
        }
        columns |= {name: data[rows, place] for place, name in enumerate(names)}
        tables.append(SiteTable(f"hospital-{number:02d}", pa.table(columns), round_declared(len(rows))))
    return tuple(tables)


def _deal(ids: list[str], radius: np.ndarray[Any, Any], sites: int) -> list[list[int]]:
    by_hash = sorted(range(len(ids)), key=lambda row: public_rank("breast-cancer/deal", ids[row]))
    by_size = sorted(by_hash[1::2], key=lambda row: (float(radius[row]), ids[row]))
    shares = [3 * sites - 2 * k for k in range(sites)]
    dealt: list[list[int]] = [[] for _ in range(sites)]
    for half in (by_hash[0::2], by_size):
        start = 0
        for k in range(sites):
            end = len(half) * sum(shares[: k + 1]) // sum(shares)
            dealt[k] += half[start:end]
            start = end
    return [sorted(rows) for rows in dealt]


def _load() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError:
        raise OperationError(
            "package-missing", "Expected scikit-learn, which brings the data.", "Install consilium[demo]."
        ) from None
    bunch = load_breast_cancer()
    content = bunch.data.astype("<f8").tobytes() + bunch.target.astype("<i8").tobytes()
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise OperationError(
            "data-changed",
            "Expected the published breast-cancer table; this scikit-learn brings another one.",
            "Install the scikit-learn version of constraints.txt.",
        )
    return bunch.data, bunch.target == 0
