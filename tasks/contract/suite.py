"""Checks a site's table against the contract: structure with pyarrow, values with Great Expectations.

Nothing about rows leaves this module: the engine runs with BOOLEAN_ONLY, its results (which carry fingerprints and
tracebacks that quote values) are dropped here, and what is returned is pass or fail per rule of the contract. A rule
that could not be checked because the column is absent or of another type has not passed.
"""

from __future__ import annotations

from decimal import Decimal
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any

from schemas.canonical import digest_of
from schemas.contract import Column, ContractVerdict, DataContract, RuleVerdict
from schemas.errors import SiteDataError
from tasks.contract.arrow import arrow_schema, conform_table

if TYPE_CHECKING:
    import pyarrow as pa

_REMEDIES = {
    "cohort": "the table has no row that the contract can use: give the site's cohort, or decline the study",
    "present": "the column is missing or named twice: rename or add it",
    "type": "the column has another type than the contract says: convert it",
    "finite": "the column holds NaN or infinity: write missing numbers as null",
    "split": "a patient has rows on both sides of the public split: give all rows of a patient the same side",
    "complete": "the column has missing values and the contract allows none: complete or exclude those rows",
    "missing": "more values are missing than the contract allows: complete the column, or ask for a new contract",
    "range": "a value lies outside the contract's public range: check the unit, correct the value or set it missing",
    "codes": "a code is not in the contract's list: map it to a listed code or set it missing",
    "unique": "a patient has more than one row and the contract wants one: select one row per patient",
}


def suite_description(contract: DataContract) -> list[dict[str, Any]]:
    """Returns every rule as canonical plain values, in the order of the verdict: rule, engine, type and arguments."""
    rules = [_structural("cohort", "rows")]
    for column in contract.columns:
        rules += [_structural("present", column.name), _structural("type", column.name)]
        if column.kind == "number":
            rules.append(_structural("finite", column.name))
    split = contract.column_with_role("held_out")
    if split is not None and contract.rows_per_patient == "many":
        rules.append(_structural("split", split.name))
    for column in contract.columns:
        rules += _value_rules(contract, column)
    return rules


def suite_digest(contract: DataContract) -> str:
    """Returns the digest of our own canonical description of the suite, independent of the engine's format."""
    return digest_of({"format": "consilium/suite/1", "rules": suite_description(contract)})


def check_table(contract: DataContract, table: pa.Table) -> ContractVerdict:
    """Checks a table against the contract and reports pass or fail per rule; never raises for the data's sake.

    Args:
        contract: The plan's contract.
        table: The site's table as read (`site_agents.cohort.reader`).
    """
    import great_expectations as gx

    table = conform_table(contract, table)
    passed = _check_structure(contract, table)
    sound = {c.name for c in contract.columns if all(passed.get(f"{k}:{c.name}", True) for k in _GATES)}
    if passed["cohort:rows"]:
        passed |= _check_values(contract, table, sound)
    names = [rule["rule"] for rule in suite_description(contract)]
    return ContractVerdict(
        suite_digest=suite_digest(contract),
        engine_version=f"great-expectations {gx.__version__}",
        rules=tuple(RuleVerdict(rule=name, passed=passed.get(name, False)) for name in names),
    )


def verify_table(contract: DataContract, table: pa.Table) -> ContractVerdict:
    """Checks a table and refuses it unless every rule passes.

    Raises:
        SiteDataError: `contract-violated`, naming rule, column and remedy, quoting no value and no count.
    """
    verdict = check_table(contract, table)
    if not verdict.passed:
        failures = describe_failures(verdict)
        raise SiteDataError(
            "contract-violated",
            f"The table does not satisfy contract {contract.name} {contract.version}: {'; '.join(failures)}.",
            "Nothing was charged. Correct the table and start the agent again.",
        )
    return verdict


def describe_failures(verdict: ContractVerdict) -> tuple[str, ...]:
    """Returns one line per rule that did not pass: the rule, its column and the remedy.

    A rule that failed only because an earlier one of its column did (a range of an absent column) is not repeated.
    """
    failed = [r.rule for r in verdict.rules if not r.passed]
    if "cohort:rows" in failed:
        failed = ["cohort:rows"]
    shown: list[str] = []
    stopped: set[str] = set()
    for rule in failed:
        kind, subject = rule.split(":")
        if subject not in stopped:
            shown.append(f"{rule} ({_REMEDIES[kind]})")
        if kind in _GATES:
            stopped.add(subject)
    return tuple(shown)


def warm_engine() -> None:
    """Imports the engine and builds its context once (seconds), so that the first round does not wait for it."""
    with _ENGINE_LOCK:
        _batch_definition()


_GATES = ("present", "type", "finite")
_ENGINE_LOCK = Lock()


def _structural(kind: str, subject: str) -> dict[str, Any]:
    return {"rule": f"{kind}:{subject}", "engine": "pyarrow", "type": kind, "arguments": {}}


def _value_rules(contract: DataContract, column: Column) -> list[dict[str, Any]]:
    allowed = Decimal(column.max_missing)
    rules = []
    if allowed <= 0:
        rules.append(_expectation("complete", column, "ExpectColumnValuesToNotBeNull"))
    elif allowed < 1:
        mostly = str(1 - allowed)
        rules.append(_expectation("missing", column, "ExpectColumnValuesToNotBeNull", mostly=mostly))
    if column.kind == "number":
        bounds = {"min_value": str(column.minimum), "max_value": str(column.maximum)}
        rules.append(_expectation("range", column, "ExpectColumnValuesToBeBetween", **bounds))
    if column.kind == "code":
        rules.append(_expectation("codes", column, "ExpectColumnValuesToBeInSet", value_set=list(column.codes)))
    if column.role == "patient_id" and contract.rows_per_patient == "one":
        rules.append(_expectation("unique", column, "ExpectColumnValuesToBeUnique"))
    return rules


def _expectation(kind: str, column: Column, type_: str, **arguments: object) -> dict[str, Any]:
    return {"rule": f"{kind}:{column.name}", "engine": "great-expectations", "type": type_, "arguments": arguments}


def _check_structure(contract: DataContract, table: pa.Table) -> dict[str, bool]:
    import pyarrow.compute as pc

    schema = arrow_schema(contract)
    passed = {"cohort:rows": table.num_rows > 0}
    for column in contract.columns:
        present = column.name in table.column_names
        typed = present and table.schema.field(column.name).type == schema.field(column.name).type
        passed |= {f"present:{column.name}": present, f"type:{column.name}": typed}
        if column.kind == "number":
            finite = typed and pc.all(pc.is_finite(table.column(column.name)), skip_nulls=True, min_count=0).as_py()
            passed[f"finite:{column.name}"] = bool(finite)
    split, patient = contract.column_with_role("held_out"), contract.column_with_role("patient_id")
    if split is not None and patient is not None and contract.rows_per_patient == "many":
        usable = passed[f"type:{split.name}"] and passed[f"type:{patient.name}"]
        passed[f"split:{split.name}"] = usable and _is_split_by_patient(table, patient.name, split.name)
    return passed


def _is_split_by_patient(table: pa.Table, patient: str, split: str) -> bool:
    """Tells whether no patient is both a training and a held-out patient: the two sub-ledgers must be disjoint."""
    pairs = table.select([patient, split]).group_by([patient, split]).aggregate([])
    return bool(pairs.num_rows == pairs.select([patient]).group_by([patient]).aggregate([]).num_rows)


def _check_values(contract: DataContract, table: pa.Table, sound: set[str]) -> dict[str, bool]:
    import great_expectations as gx

    rules = [
        rule
        for rule in suite_description(contract)
        if rule["engine"] == "great-expectations" and rule["rule"].split(":")[1] in sound
    ]
    if not rules:
        return {}
    frame = table.select([c.name for c in contract.columns if c.name in sound]).to_pandas()
    suite = gx.ExpectationSuite(name="contract", expectations=[_build_expectation(rule) for rule in rules])
    # The engine caches the batch under one name: two sites in one process must not validate each other's table.
    with _ENGINE_LOCK:
        batch = _batch_definition().get_batch({"dataframe": frame})
        report = batch.validate(suite, result_format="BOOLEAN_ONLY")
    return {str(r.expectation_config.meta["rule"]): bool(r.success) for r in report.results}


def _build_expectation(rule: dict[str, Any]) -> Any:
    from great_expectations import expectations

    arguments = {
        name: float(value) if name in ("mostly", "min_value", "max_value") else value
        for name, value in rule["arguments"].items()
    }
    column = rule["rule"].split(":")[1]
    return getattr(expectations, rule["type"])(column=column, meta={"rule": rule["rule"]}, **arguments)


@cache
def _batch_definition() -> Any:
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(False)  # Nothing about a site's checks is sent anywhere.
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("site").add_dataframe_asset("cohort")
    return asset.add_batch_definition_whole_dataframe("whole")
