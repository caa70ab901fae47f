"""The four UCI heart-disease hospitals (920 real patients, CC BY 4.0), from a folder or downloaded, by pinned hash.

Most public copies are altered (one has the label inverted, others write 0 or -9 for missing values), so a file is used
only if its SHA-256 is that of the original ``processed.<hospital>.data``. ``?`` means missing; so does 0 in resting
blood pressure and cholesterol (Swiss cholesterol is 0 in every row). Outcome: num > 0, a coronary artery is narrowed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from infra.datasets_tables import SiteTable, choose_held_out, round_declared
from schemas.contract import Column, DataContract
from schemas.errors import OperationError

ATTRIBUTION = (
    "Heart Disease, Janosi, Steinbrunn, Pfisterer and Detrano (1988), UCI Machine Learning Repository, "
    "doi:10.24432/C52P4X, CC BY 4.0"
)
_SOURCE = "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease/"
_HOSPITALS = {
    "cleveland": ("cleveland", "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8"),
    "hungarian": ("hungarian", "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796"),
    "switzerland": ("switzerland", "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314"),
    "va-long-beach": ("va", "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f"),
}
_FIELDS = (
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg"),
    *("thalach", "exang", "oldpeak", "slope", "ca", "thal", "num"),
)
_CODES = {
    "cp": {1: "typical", 2: "atypical", 3: "non-anginal", 4: "asymptomatic"},
    "restecg": {0: "normal", 1: "st-t", 2: "hypertrophy"},
    "slope": {1: "up", 2: "flat", 3: "down"},
    "thal": {3: "normal", 6: "fixed", 7: "reversible"},
}
_ZERO_IS_MISSING = ("trestbps", "chol")


def uci_heart_contract() -> DataContract:
    """Returns the contract: public clinical ranges, code lists, and what a hospital may leave out."""
    return DataContract(
        name="uci-heart",
        version="1",
        columns=(
            Column(name="patient_id", kind="identifier", role="patient_id", description="pseudonym"),
            Column(name="diseased", kind="boolean", role="label", description="a coronary artery narrowed by half"),
            Column(name="held_out", kind="boolean", role="held_out", description="public split"),
            Column(name="age", kind="number", unit="years", minimum="20", maximum="90"),
            Column(name="sex", kind="boolean", description="male"),
            _codes("cp", "chest pain", "0"),
            _number("trestbps", "resting blood pressure", "mmHg", "60", "240"),
            _number("chol", "serum cholesterol", "mg/dl", "50", "650"),
            Column(name="fbs", kind="boolean", description="fasting blood sugar > 120 mg/dl", max_missing="1"),
            _codes("restecg", "resting electrocardiogram", "1"),
            _number("thalach", "maximum heart rate", "1/min", "60", "210"),
            Column(name="exang", kind="boolean", description="exercise-induced angina", max_missing="1"),
            _number("oldpeak", "ST depression by exercise", "mm", "-3", "7"),
            _codes("slope", "slope of the ST segment", "1"),
            _number("ca", "major vessels coloured by fluoroscopy", "", "0", "3"),
            _codes("thal", "thallium scan", "1"),
        ),
    )


def load_uci_heart(data_dir: Path | None, split_seed: int) -> tuple[SiteTable, ...]:
    """Loads the four hospitals; held out is, of each hospital and outcome, the first fifth in hash order.

    Args:
        data_dir: Folder with the original files; None downloads them (``pooch``, cached for the user).
        split_seed: 0 is the fixed public split of the demo; other seeds serve repeated splits.

    Raises:
        OperationError: `data-folder`, `data-changed`, `download-failed`.
    """
    import pyarrow as pa

    from tasks.contract.arrow import arrow_schema

    tables = []
    for site, (stem, _) in _HOSPITALS.items():
        rows = _parse(_read_original(stem, data_dir))
        ids = [f"{stem}-{number:04d}" for number in range(1, len(rows) + 1)]
        diseased = [float(row["num"] or 0) > 0 for row in rows]
        strata = [[p for p, d in zip(ids, diseased, strict=True) if d == side] for side in (True, False)]
        held_out = choose_held_out(strata, f"uci-heart/split/{split_seed}")
        columns: dict[str, list[object]] = {
            "patient_id": list(ids),
            "diseased": list(diseased),
            "held_out": [p in held_out for p in ids],
        }
        columns |= {c.name: [_value(c, row[c.name]) for row in rows] for c in uci_heart_contract().features}
        table = pa.table(columns, schema=arrow_schema(uci_heart_contract()))
        tables.append(SiteTable(site, table, round_declared(len(rows))))
    return tuple(tables)


def _number(name: str, description: str, unit: str, low: str, high: str) -> Column:
    return Column(
        name=name, kind="number", unit=unit, minimum=low, maximum=high, max_missing="1", description=description
    )


def _codes(name: str, description: str, max_missing: str) -> Column:
    return Column(
        name=name, kind="code", codes=tuple(_CODES[name].values()), max_missing=max_missing, description=description
    )


def _read_original(stem: str, data_dir: Path | None) -> str:
    name = f"processed.{stem}.data"
    path = _download(stem, name) if data_dir is None else data_dir / name
    try:
        content = path.read_bytes()
    except OSError:
        raise OperationError(
            "data-folder",
            f"Expected {name} in the data folder.",
            "Name the folder that holds the four original processed.*.data files.",
        ) from None
    if hashlib.sha256(content).hexdigest() != _sha256_of(stem):
        raise OperationError(
            "data-changed",
            f"{name} is not the original file: its SHA-256 differs.",
            "Most public copies are altered; take the file from the UCI Machine Learning Repository, data set 45.",
        )
    return content.decode("ascii")


def _download(stem: str, name: str) -> Path:
    try:
        import pooch

        fetched = pooch.retrieve(
            _SOURCE + name, known_hash=f"sha256:{_sha256_of(stem)}", fname=name, path=pooch.os_cache("consilium")
        )
    except (ImportError, OSError, ValueError):  # requests' errors are OSErrors; pooch's hash mismatch a ValueError.
        raise OperationError(
            "download-failed",
            f"{name} could not be downloaded.",
            "Download the four original files yourself and name their folder with --data-dir.",
        ) from None
    return Path(fetched)


def _sha256_of(stem: str) -> str:
    return next(sha for other, sha in _HOSPITALS.values() if other == stem)


def _parse(content: str) -> list[dict[str, float | None]]:
    rows = []
    for line in content.splitlines():
        values = [None if field == "?" else float(field) for field in line.split(",")]
        row = dict(zip(_FIELDS, values, strict=True))
        rows.append({n: None if n in _ZERO_IS_MISSING and v == 0 else v for n, v in row.items()})
    return rows


def _value(column: Column, raw: float | None) -> float | bool | str | None:
    if raw is None:
        return None
    if column.kind == "boolean":
        return raw > 0
    return _CODES[column.name][int(raw)] if column.kind == "code" else raw
