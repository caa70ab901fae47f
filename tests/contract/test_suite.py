"""The contract check: names rule, column and remedy; says nothing about rows; never passes what it did not check."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from schemas.contract import ContractVerdict
from schemas.errors import SiteDataError
from tasks.contract.suite import check_table, describe_failures, suite_description, suite_digest, verify_table
from tests.contract.tables import clinic_columns, clinic_contract, clinic_table

SECRET = 987654.25  # A value that must not appear in any message.


def failed(verdict: ContractVerdict) -> list[str]:
    return [r.rule for r in verdict.rules if not r.passed]


def test_good_table_passes_every_rule():
    verdict = check_table(clinic_contract(), clinic_table())
    assert verdict.passed
    assert [r.rule for r in verdict.rules] == [r["rule"] for r in suite_description(clinic_contract())]
    assert verdict.engine_version.startswith("great-expectations 1.")


BAD = {
    "range:age": ({"age": [60.0, 0.0, SECRET, 30.0]}, "check the unit"),
    "complete:age": ({"age": [60.0, None, 1.0, 30.0]}, "the contract allows none"),
    "missing:chol": ({"chol": [None, None, None, 100.0]}, "more values are missing"),
    "codes:rhythm": ({"rhythm": ["secret-code", "sinus", None, "af"]}, "map it to a listed code"),
    "unique:patient_id": ({"patient_id": ["p1", "p1", "p2", "p3"]}, "select one row per patient"),
    "complete:patient_id": ({"patient_id": [None, "p1", "p2", "p3"]}, "missing values"),
    "complete:died": ({"died": [None, True, True, True]}, "missing values"),
    "complete:held_out": ({"held_out": [None, True, True, True]}, "missing values"),
    "present:age": ({"age": None}, "missing or named twice"),
    "type:age": ({"age": ["60", "0", "secret-code", "30"]}, "another type"),
    "type:died": ({"died": [1, 0, 0, 1]}, "another type"),
    "finite:age": ({"age": [60.0, float("nan"), 1.0, 30.0]}, "NaN or infinity"),
    "finite:chol": ({"chol": [60.0, float("inf"), 100.0, 100.0]}, "NaN or infinity"),
}


@pytest.mark.parametrize("rule", BAD)
def test_each_violation_names_its_rule_and_remedy_and_quotes_nothing(rule, caplog):
    changes, remedy = BAD[rule]
    caplog.set_level(logging.DEBUG)
    with pytest.raises(SiteDataError, match=remedy) as caught:
        verify_table(clinic_contract(), clinic_table(**changes))
    assert caught.value.code == "contract-violated"
    text = str(caught.value) + caplog.text
    assert f"{rule} (" in str(caught.value)
    assert "secret-code" not in text
    assert "987654" not in text
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("rule", BAD)
def test_only_the_rules_of_the_bad_column_fail(rule):
    verdict = check_table(clinic_contract(), clinic_table(**BAD[rule][0]))
    column = rule.split(":")[1]
    assert rule in failed(verdict)
    assert {r.split(":")[1] for r in failed(verdict)} == {column}


def test_rules_of_an_absent_column_have_not_passed_but_are_reported_once():
    verdict = check_table(clinic_contract(), clinic_table(age=None))
    assert failed(verdict) == ["present:age", "type:age", "finite:age", "complete:age", "range:age"]
    assert [line.split(" ")[0] for line in describe_failures(clinic_contract(), verdict)] == ["present:age"]


def test_empty_cohort_is_not_success():
    verdict = check_table(clinic_contract(), clinic_table().slice(0, 0))
    assert not verdict.passed
    with pytest.raises(SiteDataError, match="no row that the contract can use"):
        verify_table(clinic_contract(), clinic_table().slice(0, 0))


def test_verdict_without_rules_is_not_success():
    assert not ContractVerdict(suite_digest="0" * 64, engine_version="x", rules=()).passed


def test_patient_on_both_sides_of_the_split_is_refused():
    contract = clinic_contract("many")
    same = {"patient_id": ["p1", "p1", "p2", "p3"], "held_out": [True, True, False, False]}
    assert check_table(contract, clinic_table(**same)).passed
    both = same | {"held_out": [True, False, False, False]}
    assert failed(check_table(contract, clinic_table(**both))) == ["split:held_out"]


def test_verdict_carries_rules_and_versions_only():
    plain = json.loads(check_table(clinic_contract(), clinic_table(age=[1.0, SECRET, 2.0, 3.0])).model_dump_json())
    assert set(plain) == {"suite_digest", "engine_version", "rules"}
    assert all(set(rule) == {"rule", "passed"} for rule in plain["rules"])
    names = {r["rule"].split(":")[1] for r in plain["rules"]}
    assert names == {c.name for c in clinic_contract().columns} | {"rows"}


def test_types_that_lose_nothing_are_taken_as_they_are():
    columns = clinic_columns()
    table = clinic_table(
        age=pa.array([60, 0, 120, 30], pa.int32()),
        chol=pa.array(columns["chol"], pa.float32()),
        rhythm=pa.array(columns["rhythm"]).dictionary_encode(),
        patient_id=pa.array([4, 2, 1, 3], pa.int64()),
        smoker=pa.nulls(4),
        unrelated=["not", "in", "the", "contract"],
    )
    assert check_table(clinic_contract(), table).passed


def test_suite_digest_changes_with_every_part_of_a_rule():
    contract = clinic_contract()
    digests = {suite_digest(contract)}
    for change in ({"maximum": "121"}, {"minimum": "1"}, {"max_missing": "0.1"}, {"name": "years"}):
        columns = list(contract.columns)
        columns[3] = columns[3].model_copy(update=change)
        digests.add(suite_digest(contract.model_copy(update={"columns": tuple(columns)})))
    columns = list(contract.columns)
    columns[6] = columns[6].model_copy(update={"codes": ("sinus", "af")})
    digests.add(suite_digest(contract.model_copy(update={"columns": tuple(columns)})))
    digests.add(suite_digest(contract.model_copy(update={"rows_per_patient": "many"})))
    assert len(digests) == 7


def test_check_prints_nothing(capfd):
    check_table(clinic_contract(), clinic_table(age=[1.0, SECRET, 2.0, 3.0]))
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_sites_in_one_process_do_not_judge_each_others_table():
    good, bad = clinic_table(), clinic_table(age=[1.0, SECRET, 2.0, 3.0])
    with ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(lambda table: check_table(clinic_contract(), table).passed, [good, bad] * 6))
    assert verdicts == [True, False] * 6
