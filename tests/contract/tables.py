"""A generated table with every kind of column, and its contract."""

from __future__ import annotations

import pyarrow as pa

from schemas.contract import Column, DataContract


def clinic_contract(rows_per_patient: str = "one") -> DataContract:
    return DataContract(
        name="clinic",
        version="1",
        rows_per_patient="many" if rows_per_patient == "many" else "one",
        columns=(
            Column(name="patient_id", kind="identifier", role="patient_id"),
            Column(name="died", kind="boolean", role="label"),
            Column(name="held_out", kind="boolean", role="held_out"),
            Column(name="age", kind="number", unit="years", minimum="0", maximum="120"),
            Column(name="chol", kind="number", unit="mg/dl", minimum="50", maximum="650", max_missing="0.5"),
            Column(name="smoker", kind="boolean", max_missing="1"),
            Column(name="rhythm", kind="code", codes=("sinus", "af", "paced"), max_missing="0.25"),
        ),
    )


def clinic_columns() -> dict[str, list[object]]:
    return {
        "patient_id": ["p4", "p2", "p1", "p3"],
        "died": [True, False, False, True],
        "held_out": [False, False, True, False],
        "age": [60.0, 0.0, 120.0, 30.0],
        "chol": [50.0, None, 350.0, 650.0],
        "smoker": [True, False, None, None],
        "rhythm": ["paced", "sinus", None, "af"],
    }


def clinic_table(**changes: object) -> pa.Table:
    """Returns the table with some columns replaced, or dropped where the new value is None."""
    columns = clinic_columns() | changes
    return pa.table({name: value for name, value in columns.items() if value is not None})
