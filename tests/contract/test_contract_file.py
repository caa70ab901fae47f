"""A contract in YAML is read as it was written, refused by name, and written back unchanged."""

from __future__ import annotations

import pytest

from infra.datasets import contract_for
from schemas.canonical import canonical_bytes, digest_of, parse_canonical
from schemas.contract import DataContract
from schemas.errors import PlanError
from tasks.contract.contract_file import parse_contract, read_contract, render_contract
from tasks.contract.suite import suite_digest
from tests.contract.tables import clinic_contract
from tests.contract.wards import CONTRACT, ward_contract


def test_what_is_written_is_what_is_meant():
    contract = ward_contract()
    columns = {c.name: c for c in contract.columns}
    assert contract.version == "1.0"
    assert columns["rhythm"].codes == ("no", "yes", "af")
    assert columns["chol"].max_missing == "0.50"
    assert (columns["admitted"].earliest, columns["admitted"].latest) == ("2010-01-01", "2024-12-31")
    assert [c.name for c in contract.derived] == ["ill", "out"]
    assert [c.name for c in contract.features] == ["age", "chol", "temp", "sbp", "dbp", "smoker", "rhythm"]
    assert [rule.in_words() for rule in contract.rules] == [
        "sbp is above dbp",
        "where smoker is true: sbp is recorded",
        "left is at least admitted",
    ]


@pytest.mark.parametrize(
    "contract",
    [ward_contract(), clinic_contract(), contract_for("uci-heart"), contract_for("eicu-demo")],
    ids=lambda c: c.name,
)
def test_a_contract_survives_being_written(contract: DataContract):
    assert parse_contract(render_contract(contract).encode(), "c.yaml") == contract
    assert parse_contract(canonical_bytes(contract), "c.json") == contract
    assert parse_canonical(DataContract, canonical_bytes(contract), "the contract") == contract


def test_older_contracts_keep_their_bytes_and_their_suite():
    assert (digest_of(clinic_contract())[:16], suite_digest(clinic_contract())[:16]) == (
        "dd32fe1922a39214",
        "71f4d344ac32d9c7",
    )
    assert (digest_of(contract_for("eicu-demo"))[:16], suite_digest(contract_for("eicu-demo"))[:16]) == (
        "38864bd2ae93dc58",
        "238ed2cd60c65030",
    )


def test_the_contract_of_a_plan_is_read_from_the_plan(tmp_path, prepared_study):
    plan = prepared_study.plan
    (tmp_path / "plan.json").write_bytes(canonical_bytes(plan))
    assert read_contract(tmp_path / "plan.json") == plan.contract


BAD = {
    "label leak": (b"outcomes: [death_date, grade]", b"outcomes: [chol]", "chol is a feature and a declared outcome"),
    "label from a feature": (b"{column: grade, above: 0}", b"{column: age, above: 60}", "age, which is no outcome"),
    "unknown field": (b"keys:\n", b"kyes:\n", "unknown kyes"),
    "unknown column field": (b"{kind: boolean, role: label}", b"{kind: boolean, rule: label}", "ill: unknown rule"),
    "unknown column": (b"above_column: dbp", b"above_column: dbq", "rule pressures: the contract has no column dbq"),
    "other kind": (b"above_column: dbp", b"above_column: left", "the other column is of another kind"),
    "no operation": (b"at_least: 18", b"atleast: 18", "a condition is a column and one of"),
    "not a number": (b"at_least: 18", b"at_least: adult", "the value to compare with is none"),
    "not a code": (b"[{column: smoker, equals: true}]", b"[{column: rhythm, equals: vf}]", "is none of this column's"),
    "one person": (b"{column: age, at_least: 18}", b"{column: pid, equals: A}", "does not go with the role patient_id"),
    "one case": (
        b"  age: {kind: number, unit: years, range: [0, 120]}",
        b"  age: {kind: number, role: key, range: [0, 120]}",
        "does not go with the role key",
    ),
    "share": (b"share: 0.25", b"share: 1", "must lie between 0 and 1"),
    "no split column": (b"  out: {kind: boolean, role: held_out}\n", b"", "no held_out column"),
    "key": (b"[pid, admitted]", b"[pid, arrival]", "A key names no column"),
    "nullable key": (b"[pid, admitted]", b"[pid, left]", "a column that may be missing"),
    "dates": (b"[2010-01-01, 2024-12-31]", b"[2024-01-01, 2023-12-31]", "do not bound a time"),
    "no date": (b"[2010-01-01, 2024-12-31]", b"[2010-02-30, 2024-12-31]", "do not bound a time"),
    "range": (b"range: [0, 120]", b"range: [0, 120, 5]", "age: a range has two ends"),
    "time feature": (b"role: time,", b"", "admitted is a time and cannot be a feature"),
    "twice": (b"{name: order,", b"{name: pressures,", "have the same name"),
    "columns in when": (b"[{column: smoker, equals: true}]", b"[{column: sbp, above_column: dbp}]", "cannot compare"),
    "no version": (b"version: 1.0", b"version:", "version"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_contract_that_cannot_be_checked_is_refused_by_name(case: str):
    old, new, match = BAD[case]
    assert old in CONTRACT
    with pytest.raises(PlanError, match=match):
        parse_contract(CONTRACT.replace(old, new), "ward.yaml")
