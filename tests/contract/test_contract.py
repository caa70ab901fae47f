"""A contract that makes no sense is refused when it is written, naming the column and what to correct."""

from __future__ import annotations

import pytest

from schemas.contract import Column, DataContract
from schemas.errors import PlanError

PATIENT = Column(name="patient_id", kind="identifier", role="patient_id")
LABEL = Column(name="died", kind="boolean", role="label")
AGE = Column(name="age", kind="number", minimum="0", maximum="120")


@pytest.mark.parametrize(
    ("column", "match"),
    [
        (AGE.model_copy(update={"maximum": "0"}), "Column age needs minimum < maximum"),
        (AGE.model_copy(update={"maximum": "1e999"}), "Column age needs minimum < maximum"),
        (AGE.model_copy(update={"minimum": None}), "Give the public clinical range"),
        (AGE.model_copy(update={"max_missing": "1.5"}), "Column age needs a max_missing between 0 and 1"),
        (LABEL.model_copy(update={"name": "again"}), "exactly one label"),
        (PATIENT, "names a column twice"),
        (Column(name="name", kind="identifier"), "cannot be a feature"),
        (Column(name="x", kind="code", codes=("a",)), "at least two distinct codes"),
        (Column(name="x", kind="code", codes=("a", "a")), "at least two distinct codes"),
        (Column(name="x", kind="number", role="held_out", minimum="0", maximum="1"), "must be boolean"),
    ],
)
def test_contract_that_makes_no_sense_is_refused(column, match):
    with pytest.raises(PlanError, match=match):
        DataContract(name="c", version="1", columns=(PATIENT, LABEL, column))


def test_label_may_not_be_missing():
    with pytest.raises(PlanError, match="0 for patient id, label and held_out"):
        DataContract(name="c", version="1", columns=(PATIENT, LABEL.model_copy(update={"max_missing": "0.1"}), AGE))
