"""Great Expectations: the contract's rules as its expectations, and the only place where its engine runs.

Results are counts of rows per rule; the engine is told to keep values out of them, and whatever else it returns
(fingerprints, tracebacks that quote values) is dropped here.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from functools import cache, reduce
from threading import Lock
from typing import TYPE_CHECKING, Any

from schemas.conditions import Condition, CrossRule
from schemas.contract import DataContract
from tasks.contract.rules import suite_description

if TYPE_CHECKING:
    import pandas as pd

# Hospitals write their own clock's time; a clock may be up to 14 hours ahead of UTC.
CLOCKS_AHEAD = dt.timedelta(hours=14)
_COUNTS = {"result_format": "SUMMARY", "partial_unexpected_count": 0, "exclude_unexpected_values": True}
_ENGINE_LOCK = Lock()


def expectation_suite(contract: DataContract, now: dt.datetime | None = None) -> Any:
    """Returns the contract's suite for Great Expectations: what a steward can open and run on the canonical table.

    Structural rules become expectations on columns and row count. A time in the future is judged at `now`.
    """
    import great_expectations as gx
    from great_expectations import expectations

    moment = now or latest_moment()
    built: list[Any] = [expectations.ExpectTableRowCountToBeBetween(min_value=1, meta={"rule": "cohort:rows"})]
    for column in contract.columns:
        meta = {"rule": f"present:{column.name}"}
        built.append(expectations.ExpectColumnToExist(column=column.name, meta=meta))
    built += [_build(contract, rule, moment) for rule in _value_rules(contract)]
    return gx.ExpectationSuite(name=f"{contract.name}-{contract.version}", expectations=built)


def count_violations(contract: DataContract, frame: pd.DataFrame, sound: set[str], now: dt.datetime) -> dict[str, int]:
    """Runs every value rule whose columns are all in `sound` on one batch.

    Args:
        contract: Names the rules.
        frame: At least one row of the sound columns.
        now: The moment after which a time lies in the future.

    Returns:
        Rows that break each rule; -1 where the engine could not tell.
    """
    from tasks.contract.rules import columns_of

    rules = [rule for rule in _value_rules(contract) if sound.issuperset(columns_of(contract, rule["rule"]))]
    if not rules:
        return {}
    import great_expectations as gx

    suite = gx.ExpectationSuite(name="contract", expectations=[_build(contract, rule, now) for rule in rules])
    # The engine caches the batch under one name: two sites in one process must not validate each other's table.
    with _ENGINE_LOCK:
        batch = _batch_definition().get_batch({"dataframe": frame})
        report = batch.validate(suite, result_format=_COUNTS)
    return {str(r.expectation_config.meta["rule"]): _unexpected(r) for r in report.results}


def warm_engine() -> None:
    """Imports the engine and builds its context once (seconds), so that the first round does not wait for it."""
    with _ENGINE_LOCK:
        _batch_definition()


def latest_moment() -> dt.datetime:
    """Returns the latest time that any hospital's clock shows now, without zone."""
    return dt.datetime.now(dt.UTC).replace(tzinfo=None) + CLOCKS_AHEAD


def _unexpected(result: Any) -> int:
    count = result.result.get("unexpected_count")
    if count is None or (not result.success and count == 0 and result.expectation_config.kwargs.get("mostly") is None):
        return 0 if result.success else -1
    return int(count)


def _value_rules(contract: DataContract) -> list[dict[str, Any]]:
    return [rule for rule in suite_description(contract) if rule["engine"] == "great-expectations"]


def _build(contract: DataContract, rule: dict[str, Any], now: dt.datetime) -> Any:
    from great_expectations import expectations

    kind, subject = rule["rule"].split(":")
    meta = {"rule": rule["rule"]}
    if kind == "rule":
        return _build_cross(contract, next(r for r in contract.rules if r.name == subject), meta)
    if kind == "keys":
        if len(rule["arguments"]["column_list"]) == 1:
            return expectations.ExpectColumnValuesToBeUnique(column=subject, meta=meta)
        return expectations.ExpectCompoundColumnsToBeUnique(**rule["arguments"], meta=meta)
    is_time = any(c.name == subject and c.kind == "time" for c in contract.columns)
    arguments = _time_bounds(rule["arguments"], now) if is_time and kind != "complete" else _plain(rule["arguments"])
    return getattr(expectations, rule["type"])(column=subject, meta=meta, **arguments)


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    numbers = ("mostly", "min_value", "max_value")
    return {name: float(value) if name in numbers else value for name, value in arguments.items()}


def _time_bounds(arguments: dict[str, Any], now: dt.datetime) -> dict[str, Any]:
    bounds: dict[str, Any] = {}
    if "mostly" in arguments:
        return _plain(arguments)
    if "min_value" in arguments:
        bounds["min_value"] = dt.datetime.fromisoformat(arguments["min_value"])
    if "max_value" in arguments:
        last = arguments["max_value"]
        day_after = now if last == "now" else dt.datetime.fromisoformat(last) + dt.timedelta(days=1)
        bounds |= {"max_value": day_after, "strict_max": last != "now"}
    return bounds


def _build_cross(contract: DataContract, rule: CrossRule, meta: dict[str, str]) -> Any:
    from great_expectations import expectations

    kinds: dict[str, str] = {c.name: c.kind for c in contract.columns}
    then = rule.then
    given: dict[str, Any] = {"meta": meta}
    if rule.when:
        given["row_condition"] = _row_condition(rule.when, kinds)
    if then.other:
        return _build_pair(then, given)
    column = {"column": then.column} | given
    if then.op == "present":
        return expectations.ExpectColumnValuesToNotBeNull(**column)
    if then.op == "missing":
        return expectations.ExpectColumnValuesToBeNull(**column)
    values = [_value(value, kinds[then.column]) for value in (then.values or (then.value,))]
    if then.op == "not_equals":
        return expectations.ExpectColumnValuesToNotBeInSet(value_set=values, **column)
    if then.op in ("equals", "one_of"):
        return expectations.ExpectColumnValuesToBeInSet(value_set=values, **column)
    end = "min" if then.op in ("at_least", "above") else "max"
    strict = {f"strict_{end}": then.op in ("above", "below")}
    return expectations.ExpectColumnValuesToBeBetween(**{f"{end}_value": values[0]}, **strict, **column)


def _build_pair(then: Condition, given: dict[str, Any]) -> Any:
    from great_expectations import expectations

    names = (then.column, then.other) if then.op in ("at_least", "above", "equals") else (then.other, then.column)
    pair = {"column_A": names[0], "column_B": names[1], "ignore_row_if": "either_value_is_missing"} | given
    if then.op == "equals":
        return expectations.ExpectColumnPairValuesToBeEqual(**pair)
    or_equal = then.op in ("at_least", "at_most")
    return expectations.ExpectColumnPairValuesAToBeGreaterThanB(or_equal=or_equal, **pair)


def _row_condition(conditions: Sequence[Condition], kinds: dict[str, str]) -> Any:
    return reduce(lambda left, right: left & right, [_row_part(c, kinds[c.column]) for c in conditions])


def _row_part(condition: Condition, kind: str) -> Any:
    from great_expectations.expectations.row_conditions import Column

    column = Column(condition.column)
    if condition.op == "present":
        return column.is_not_null()
    if condition.op == "missing":
        return column.is_null()
    values = [_value(value, kind) for value in (condition.values or (condition.value,))]
    compared = {
        "equals": lambda: column == values[0],
        "not_equals": lambda: column != values[0],
        "one_of": lambda: column.is_in(values),
        "at_least": lambda: column >= values[0],
        "at_most": lambda: column <= values[0],
        "above": lambda: column > values[0],
        "below": lambda: column < values[0],
    }
    # A missing value is different from everything to pandas; here it leaves the condition open.
    return column.is_not_null() & compared[condition.op]()


def _value(value: str, kind: str) -> Any:
    if kind == "number":
        return float(value)
    if kind == "time":
        return dt.datetime.fromisoformat(value)
    return value == "true" if kind == "boolean" else value


@cache
def _batch_definition() -> Any:
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(False)  # Nothing about a site's checks is sent anywhere.
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("site").add_dataframe_asset("cohort")
    return asset.add_batch_definition_whole_dataframe("whole")
