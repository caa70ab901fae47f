"""Label, split and cohort follow from the contract alone, and the same rule gives the same rows everywhere."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.conditions import Condition, CrossRule, LabelRule, Split
from schemas.contract import Column, DataContract
from tasks.contract.selection import holds, select_cohort, split_patients
from tasks.contract.suite import check_table

NUMBERS = st.one_of(st.none(), st.integers(-3, 3).map(float))
CODES = st.one_of(st.none(), st.sampled_from(["a", "b", "c"]))
FLAGS = st.one_of(st.none(), st.booleans())
ROW = st.fixed_dictionaries({"x": NUMBERS, "y": NUMBERS, "c": CODES, "f": FLAGS})
LEFT = [
    Condition(column="x", op="at_least", value="0"),
    Condition(column="x", op="not_equals", value="1"),
    Condition(column="c", op="one_of", values=("a", "b")),
    Condition(column="c", op="not_equals", value="a"),
    Condition(column="f", op="equals", value="true"),
    Condition(column="y", op="missing"),
    Condition(column="y", op="below", value="2"),
]
RIGHT = [
    *LEFT,
    Condition(column="x", op="above", other="y"),
    Condition(column="x", op="at_most", other="y"),
    Condition(column="x", op="equals", other="y"),
    Condition(column="f", op="present"),
    Condition(column="x", op="above", value="1"),
    Condition(column="x", op="equals", value="-2"),
]


def contract(**more: object) -> DataContract:
    number = {"kind": "number", "minimum": "-3", "maximum": "3", "max_missing": "1"}
    columns = (
        Column(name="pid", kind="identifier", role="patient_id"),
        Column(name="ill", kind="boolean", role="label"),
        Column(name="x", **number),
        Column(name="y", **number),
        Column(name="c", kind="code", codes=("a", "b", "c"), max_missing="1"),
        Column(name="f", kind="boolean", max_missing="1"),
    )
    return DataContract(name="c", version="1", columns=columns, **more)


def table(rows: list[dict[str, object]]) -> pa.Table:
    columns = {name: [row[name] for row in rows] for name in ("x", "y", "c", "f")}
    types = {"x": pa.float64(), "y": pa.float64(), "c": pa.string(), "f": pa.bool_()}
    ids = {"pid": [str(i) for i in range(len(rows))], "ill": [False] * len(rows)}
    return pa.table(ids | {name: pa.array(values, types[name]) for name, values in columns.items()})


def obvious(condition: Condition, row: dict[str, object]) -> bool | None:
    """The slow and obvious reading of a condition."""
    left = row[condition.column]
    if condition.op in ("present", "missing"):
        return (left is None) == (condition.op == "missing")
    right: object = row[condition.other] if condition.other else condition.value
    if left is None or right is None:
        return None
    if not condition.other and isinstance(left, float) and condition.op != "one_of":
        right = float(condition.value)
    if isinstance(left, bool):
        right = right == "true" if not condition.other else right
    return {
        "equals": lambda: left == right,
        "not_equals": lambda: left != right,
        "one_of": lambda: left in condition.values,
        "at_least": lambda: left >= right,
        "at_most": lambda: left <= right,
        "above": lambda: left > right,
        "below": lambda: left < right,
    }[condition.op]()


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=6), condition=st.sampled_from(RIGHT))
def test_a_condition_means_what_it_says(rows, condition):
    kind = next(c.kind for c in contract().columns if c.name == condition.column)
    assert holds(condition, table(rows), kind).to_pylist() == [obvious(condition, row) for row in rows]


@settings(max_examples=6, deadline=None)
@given(rows=st.lists(ROW, min_size=4, max_size=12), data=st.data())
def test_great_expectations_judges_cross_column_rules_as_they_read(rows, data):
    rules = tuple(
        CrossRule(
            name=f"r{i}",
            when=tuple(data.draw(st.lists(st.sampled_from(LEFT), max_size=2, unique=True))),
            then=data.draw(st.sampled_from(RIGHT)),
        )
        for i in range(10)
    )
    verdict = {r.rule: r.passed for r in check_table(contract(rules=rules), table(rows)).rules}
    for rule in rules:
        broken = [
            row for row in rows if all(obvious(c, row) is True for c in rule.when) and obvious(rule.then, row) is False
        ]
        assert verdict[f"rule:{rule.name}"] == (not broken), rule


def test_the_cohort_keeps_the_rows_for_which_every_condition_holds():
    rows = [
        {"x": 1.0, "y": None, "c": "a", "f": True},
        {"x": None, "y": 1.0, "c": "a", "f": True},
        {"x": 1.0, "y": 1.0, "c": "c", "f": None},
    ]
    kept = select_cohort(contract(cohort=(LEFT[0], LEFT[2])), table(rows))
    assert kept.column("pid").to_pylist() == ["0"]


def test_a_condition_on_an_absent_column_leaves_the_refusal_to_the_check():
    asked = contract(cohort=(LEFT[0],))
    without = table([{"x": 1.0, "y": 1.0, "c": "a", "f": True}]).drop_columns(["x"])
    assert select_cohort(asked, without).num_rows == 1
    assert "present:x" in [r.rule for r in check_table(asked, without).rules if not r.passed]


def test_a_label_that_cannot_be_told_is_missing_and_refused():
    columns = (*contract().columns, Column(name="g", kind="number", role="outcome", minimum="0", maximum="4"))
    columns = (*columns[:-1], columns[-1].model_copy(update={"max_missing": "1"}))
    ruled = contract().model_copy(
        update={"columns": columns, "label_rule": LabelRule(when=(Condition(column="g", op="above", value="0"),))}
    )
    rows = [{"x": 1.0, "y": 1.0, "c": "a", "f": True}] * 3
    given_ = table(rows).drop_columns(["ill"]).append_column("g", pa.array([0.0, 2.0, None]))
    labelled = select_cohort(ruled, given_)
    assert labelled.column("ill").to_pylist() == [False, True, None]
    assert [r.rule for r in check_table(ruled, labelled).rules if not r.passed] == ["complete:ill"]


def test_the_split_is_the_published_formula_and_no_other():
    split = Split(share="0.25", salt="ward-1")
    ids = [f"patient {i}" for i in range(500)]
    sides = split_patients(split, pa.chunked_array([ids[:200], ids[200:]])).to_pylist()
    for patient, side in zip(ids, sides, strict=True):
        digest = hashlib.sha256(f"consilium/split/ward-1/{patient}".encode()).digest()
        assert side == (int.from_bytes(digest[:8], "big") < 2**62)
    assert 80 < sum(sides) < 170


@pytest.mark.parametrize("chunks", [[], [[]], [["a", None]]])
def test_the_split_of_nothing_is_nothing(chunks):
    ids = pa.chunked_array([pa.array(chunk, pa.string()) for chunk in chunks], pa.string())
    assert len(split_patients(Split(share="0.5", salt="s"), ids)) == len(ids)
