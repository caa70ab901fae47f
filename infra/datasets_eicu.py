"""The eICU demo database: 186 hospitals, repeated stays of the same patients, death in hospital (ODbL 1.0).

Only from a folder, by pinned hash: the tables are a conversion to comma-separated text of the open-access demo v2.0 on
PhysioNet. A row is a unit stay with APACHE variables (worst values of the first day) and a known discharge status; all
such stays of a patient are kept, and a patient may have been in two hospitals. -1 means missing in the APACHE tables; a
number beyond its public clinical range is set to the end of the range.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from infra.datasets_tables import SiteTable, choose_held_out, round_declared
from schemas.contract import Column, DataContract
from schemas.errors import OperationError

ATTRIBUTION = (
    "eICU Collaborative Research Database Demo v2.0, Pollard, Johnson, Raffa, Celi, Mark and Badawi, Scientific Data "
    "5, 180178 (2018), doi:10.1038/sdata.2018.178, PhysioNet. Contains information from the eICU demo database, which "
    "is made available under the Open Database License (ODbL) 1.0"
)
# Of SHA256SUMS in the folder, which in turn pins every table that is read.
_SUMS_SHA256 = "a100714d981e91f3a3b0ac0347cefea217bd2a0c4b03e5034555812859e162a1"
_OLDEST, _OLDEST_YEARS = "> 89", 90.0
_DEAD, _ALIVE = "Expired", "Alive"
_FROM_SURGERY = frozenset({"Operating Room", "Recovery Room", "PACU"})
_FROM_WARD = frozenset(
    {"Floor", "Acute Care/Floor", "Step-Down Unit (SDU)", "Other Hospital", "Other ICU", "ICU", "ICU to SDU"}
)


@dataclass(frozen=True)
class _Number:
    """A number: where it stands, and its public clinical range."""

    name: str
    description: str
    unit: str
    low: str
    high: str


_NUMBERS = (
    _Number("age", "age at admission, 90 and older as 90", "years", "15", "90"),
    _Number("eyes", "Glasgow coma scale, eyes", "", "1", "4"),
    _Number("motor", "Glasgow coma scale, motor", "", "1", "6"),
    _Number("verbal", "Glasgow coma scale, verbal", "", "1", "5"),
    _Number("urine", "urine output in 24 hours", "ml", "0", "4000"),
    _Number("wbc", "white blood cells", "10^9/l", "0", "40"),
    _Number("temperature", "body temperature", "degC", "33", "40"),
    _Number("respiratoryrate", "respiratory rate", "1/min", "4", "60"),
    _Number("sodium", "serum sodium", "mmol/l", "120", "160"),
    _Number("heartrate", "heart rate", "1/min", "30", "190"),
    _Number("meanbp", "mean arterial pressure", "mmHg", "40", "190"),
    _Number("ph", "arterial pH", "", "7.0", "7.6"),
    _Number("hematocrit", "haematocrit", "%", "15", "55"),
    _Number("creatinine", "serum creatinine", "mg/dl", "0", "8"),
    _Number("albumin", "serum albumin", "g/dl", "1", "5"),
    _Number("pao2", "arterial oxygen pressure", "mmHg", "30", "300"),
    _Number("pco2", "arterial carbon dioxide pressure", "mmHg", "15", "90"),
    _Number("bun", "blood urea nitrogen", "mg/dl", "0", "120"),
    _Number("glucose", "blood glucose", "mg/dl", "30", "500"),
    _Number("bilirubin", "serum bilirubin", "mg/dl", "0", "15"),
    _Number("fio2", "inspired oxygen", "%", "21", "100"),
)
_FLAGS = {
    "intubated": "intubated on the first day",
    "vent": "ventilated on the first day",
    "dialysis": "on dialysis",
    "metastaticcancer": "metastatic cancer",
    "oobventday1": "ventilated at the time of the worst respiratory rate",
    "oobintubday1": "intubated at the time of the worst blood gas",
    "electivesurgery": "after elective surgery",
}
_SOURCES = {"from_surgery": "admitted from an operating or recovery room", "from_ward": "admitted from another ward"}


def eicu_contract() -> DataContract:
    """Returns the contract: repeated stays, public clinical ranges, and every measurement may be missing."""
    return DataContract(
        name="eicu-demo",
        version="1",
        rows_per_patient="many",
        columns=(
            Column(name="uniquepid", kind="identifier", role="patient_id", description="pseudonym across hospitals"),
            Column(name="died", kind="boolean", role="label", description="died in hospital"),
            Column(name="held_out", kind="boolean", role="held_out", description="public split, by patient"),
            *(_number_column(number) for number in _NUMBERS),
            *(Column(name=name, kind="boolean", description=text) for name, text in {**_FLAGS, **_SOURCES}.items()),
        ),
    )


def load_eicu(data_dir: Path | None, split_seed: int) -> tuple[SiteTable, ...]:
    """Loads the hospitals, sorted by name; held out is, of each outcome, the first fifth of all patients in hash order.

    A patient whose stays are in two hospitals is on the same side of the split in both. A patient counts as dead if
    any of the stays ended so.

    Args:
        data_dir: Folder with SHA256SUMS and the tables.
        split_seed: Seed of the public split.

    Raises:
        OperationError: `data-folder`, `data-changed`.
    """
    import pyarrow as pa

    from tasks.contract.arrow import arrow_schema

    if data_dir is None:
        raise OperationError(
            "data-folder", "The eICU demo tables are not downloaded.", "Name their folder with --data-dir."
        )
    contract, tables = eicu_contract(), []
    stays = _read_stays(data_dir.absolute())
    held_out = _choose_held_out((row for rows in stays.values() for row in rows), split_seed)
    for site, rows in sorted(stays.items()):
        columns: dict[str, list[object]] = {c.name: [row.get(c.name) for row in rows] for c in contract.columns}
        columns["held_out"] = [row["uniquepid"] in held_out for row in rows]
        patients = len({row["uniquepid"] for row in rows})
        tables.append(SiteTable(site, pa.table(columns, schema=arrow_schema(contract)), round_declared(patients)))
    return tuple(tables)


def _choose_held_out(rows: Iterable[dict[str, object]], split_seed: int) -> set[str]:
    dead: dict[str, bool] = {}
    for row in rows:
        patient = str(row["uniquepid"])
        dead[patient] = dead.get(patient, False) or bool(row["died"])
    strata = [[patient for patient, died in dead.items() if died == side] for side in (True, False)]
    return choose_held_out(strata, f"eicu-demo/split/{split_seed}")


@lru_cache(maxsize=2)
def _read_stays(data_dir: Path) -> dict[str, list[dict[str, object]]]:
    """Returns site name -> canonical rows; read once per process, since a study loads many splits of the same rows."""
    sums = _read_sums(data_dir)
    measured = {row["patientunitstayid"]: row for row in _read_table(data_dir, sums, "apacheapsvar.csv")}
    predictors = {row["patientunitstayid"]: row for row in _read_table(data_dir, sums, "apachepredvar.csv")}
    stays: dict[str, list[dict[str, object]]] = {}
    for stay in _read_table(data_dir, sums, "patient.csv"):
        key = stay["patientunitstayid"]
        if key in measured and stay["hospitaldischargestatus"] in (_DEAD, _ALIVE):
            row = _canonical_row(stay, measured[key], predictors.get(key, {}))
            stays.setdefault(f"hospital-{int(stay['hospitalid']):03d}", []).append(row)
    return stays


def _canonical_row(stay: dict[str, str], measured: dict[str, str], predictors: dict[str, str]) -> dict[str, object]:
    raw = {**predictors, **measured, "age": str(_OLDEST_YEARS) if stay["age"] == _OLDEST else stay["age"]}
    source = stay["unitadmitsource"]
    return {
        "uniquepid": stay["uniquepid"],
        "died": stay["hospitaldischargestatus"] == _DEAD,
        **{number.name: _value(number, raw.get(number.name, "")) for number in _NUMBERS},
        **{name: _parse(raw.get(name, "")) == 1 for name in _FLAGS},
        "from_surgery": source in _FROM_SURGERY,
        "from_ward": source in _FROM_WARD,
    }


def _value(number: _Number, text: str) -> float | None:
    value = _parse(text)
    return None if value is None else min(max(value, float(number.low)), float(number.high))


def _parse(text: str) -> float | None:
    # -1 is how the APACHE tables write that nothing was measured.
    return None if text in ("", "-1") or float(text) == -1 else float(text)


def _number_column(number: _Number) -> Column:
    return Column(
        name=number.name,
        kind="number",
        unit=number.unit,
        minimum=number.low,
        maximum=number.high,
        max_missing="1",
        description=number.description,
    )


def _read_sums(data_dir: Path) -> dict[str, str]:
    content = _read_file(data_dir, "SHA256SUMS")
    if hashlib.sha256(content).hexdigest() != _SUMS_SHA256:
        raise _changed("SHA256SUMS")
    return {name: digest for digest, name in (line.split() for line in content.decode("ascii").splitlines())}


def _read_table(data_dir: Path, sums: dict[str, str], name: str) -> list[dict[str, str]]:
    content = _read_file(data_dir, name)
    if hashlib.sha256(content).hexdigest() != sums.get(name):
        raise _changed(name)
    return list(csv.DictReader(io.StringIO(content.decode("utf-8"))))


def _read_file(data_dir: Path, name: str) -> bytes:
    try:
        return (data_dir / name).read_bytes()
    except OSError:
        raise OperationError(
            "data-folder",
            f"Expected {name} in the data folder.",
            "Name the folder that holds SHA256SUMS and the tables of the eICU demo.",
        ) from None


def _changed(name: str) -> OperationError:
    return OperationError(
        "data-changed",
        f"{name} is not the file that the figures were made with: its SHA-256 differs.",
        "Take the tables from the conversion that SOURCE.md of the data folder names.",
    )
