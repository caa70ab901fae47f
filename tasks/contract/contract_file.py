"""A data contract as people write it: YAML in, the same YAML out, and never a guess in between.

Every scalar is text until the contract says what it is: a code `no` stays ``no`` and a limit `0.10` stays ``0.10``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from schemas.canonical import parse_json
from schemas.conditions import Condition
from schemas.contract import Column, DataContract
from schemas.errors import EvidenceError, PlanError
from schemas.yaml_files import model_from_plain, parse_yaml

_FIELDS = {
    "contract", "version", "description", "rows_per_patient", "columns", "label", "split", "keys", "cohort", "rules",
    "outcomes",
}  # fmt: skip
_COLUMN_FIELDS = {"kind", "role", "unit", "range", "codes", "max_missing", "description"}
_OPERATIONS = ("present", "missing", "equals", "not_equals", "one_of", "at_least", "at_most", "above", "below")


def read_contract(path: Path) -> DataContract:
    """Reads a contract from YAML, or from the JSON of a contract, a plan or a question.

    Raises:
        PlanError: `contract-unreadable`, `contract-yaml`, `yaml-unreadable`, `yaml-fields`, or the rule that the
            contract breaks.
    """
    try:
        data = path.read_bytes()
    except OSError:
        raise PlanError(
            "contract-unreadable", f"Expected a contract in {path.name}, and it cannot be read.", "Check the path."
        ) from None
    return parse_contract(data, path.name)


def parse_contract(data: bytes, what: str) -> DataContract:
    """Parses a contract: YAML, or JSON if the first character is a brace.

    Raises:
        PlanError: as `read_contract`.
    """
    if not data.lstrip().startswith(b"{"):
        return _from_yaml(parse_yaml(data, what), what)
    try:
        plain = parse_json(data, what)
    except EvidenceError as error:
        raise PlanError("contract-unreadable", error.message, "Export it again.") from None
    held = plain.get("contract", plain) if isinstance(plain, dict) else plain
    try:
        # Strict nouns read JSON's arrays as tuples only from JSON text.
        return DataContract.model_validate_json(json.dumps(held))
    except ValueError:
        raise PlanError(
            "contract-unreadable",
            f"{what} is neither a contract nor something that holds one, such as a plan.",
            "Export it again.",
        ) from None


def render_contract(contract: DataContract) -> str:
    """Writes a contract as YAML that `parse_contract` reads back unchanged."""
    import yaml

    plain: dict[str, Any] = {"contract": contract.name, "version": contract.version}
    if contract.description:
        plain["description"] = contract.description
    plain["rows_per_patient"] = contract.rows_per_patient
    plain["columns"] = {c.name: _column_to_plain(c) for c in contract.columns}
    if contract.label_rule:
        plain["label"] = {"when": [_condition_to_plain(c) for c in contract.label_rule.when]}
    if contract.split:
        plain["split"] = {"share": contract.split.share, "salt": contract.split.salt}
    if contract.row_keys:
        plain["keys"] = [list(key) for key in contract.row_keys]
    if contract.cohort:
        plain["cohort"] = [_condition_to_plain(c) for c in contract.cohort]
    if contract.rules:
        plain["rules"] = [
            {"name": r.name}
            | ({"when": [_condition_to_plain(c) for c in r.when]} if r.when else {})
            | _condition_to_plain(r.then)
            for r in contract.rules
        ]
    if contract.outcomes:
        plain["outcomes"] = list(contract.outcomes)
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None))


def _from_yaml(plain: Any, what: str) -> DataContract:
    fields = _mapping(plain, what, "the file")
    _known(fields, _FIELDS, what, "the file")
    columns = [
        {"name": name} | _column_from_plain(_mapping(column, what, name), what, name)
        for name, column in _mapping(fields.get("columns"), what, "columns").items()
    ]
    label = fields.get("label")
    if label is not None:
        label = {"when": _conditions(_mapping(label, what, "label").get("when"), what, "label")}
    built = {
        "name": fields.get("contract"),
        "version": fields.get("version"),
        "description": fields.get("description") or "",
        "rows_per_patient": fields.get("rows_per_patient") or "one",
        "columns": columns,
        "label_rule": label,
        "split": fields.get("split"),
        "row_keys": fields.get("keys") or [],
        "cohort": _conditions(fields.get("cohort"), what, "cohort"),
        "rules": [_rule(item, what) for item in _list(fields.get("rules"), what, "rules")],
        "outcomes": fields.get("outcomes") or [],
    }
    return model_from_plain(DataContract, built, what)


def _column_from_plain(fields: dict[str, Any], what: str, name: str) -> dict[str, Any]:
    _known(fields, _COLUMN_FIELDS, what, name)
    built = {key: value for key, value in fields.items() if key != "range" and value is not None}
    if fields.get("range") is not None:
        bounds = _list(fields["range"], what, f"{name}: range")
        if len(bounds) != 2:
            raise _refusal(what, f"{name}: a range has two ends, as [0, 120]")
        names = ("earliest", "latest") if fields.get("kind") == "time" else ("minimum", "maximum")
        built |= {key: bound for key, bound in zip(names, bounds, strict=True) if bound is not None}
    return built


def _column_to_plain(column: Column) -> dict[str, Any]:
    plain: dict[str, Any] = {"kind": column.kind}
    if column.role != "feature":
        plain["role"] = column.role
    if column.unit:
        plain["unit"] = column.unit
    if column.kind == "time":
        if column.earliest or column.latest:
            plain["range"] = [column.earliest or None, column.latest or None]
    elif column.minimum is not None or column.maximum is not None:
        plain["range"] = [column.minimum, column.maximum]
    if column.codes:
        plain["codes"] = list(column.codes)
    if column.max_missing != "0":
        plain["max_missing"] = column.max_missing
    if column.description:
        plain["description"] = column.description
    return plain


def _conditions(value: Any, what: str, where: str) -> list[dict[str, Any]]:
    return [_condition(_mapping(item, what, where), what, where) for item in _list(value, what, where)]


def _rule(value: Any, what: str) -> dict[str, Any]:
    fields = _mapping(value, what, "rules")
    name = fields.get("name")
    then = {key: item for key, item in fields.items() if key not in ("name", "when")}
    where = f"rule {name}"
    return {"name": name, "when": _conditions(fields.get("when"), what, where), "then": _condition(then, what, where)}


def _condition(fields: dict[str, Any], what: str, where: str) -> dict[str, Any]:
    said = [key for key in fields if key != "column"]
    operation = said[0].removesuffix("_column") if said else ""
    if "column" not in fields or len(said) != 1 or operation not in _OPERATIONS:
        raise _refusal(
            what,
            f"{where}: a condition is a column and one of {', '.join(_OPERATIONS)}, as {{column: age, at_least: 18}}",
        )
    right = fields[said[0]]
    built: dict[str, Any] = {"column": fields["column"], "op": operation}
    if said[0].endswith("_column"):
        return built | {"other": right}
    if operation in ("present", "missing"):
        if right != "true":
            raise _refusal(what, f"{where}: write {operation}: true")
        return built
    return built | ({"values": right} if operation == "one_of" else {"value": right})


def _condition_to_plain(condition: Condition) -> dict[str, Any]:
    if condition.other:
        return {"column": condition.column, f"{condition.op}_column": condition.other}
    right: Any = condition.value
    if condition.op in ("present", "missing"):
        right = "true"
    elif condition.op == "one_of":
        right = list(condition.values)
    return {"column": condition.column, condition.op: right}


def _mapping(value: Any, what: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _refusal(what, f"{where}: expected names with values")
    return value


def _list(value: Any, what: str, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _refusal(what, f"{where}: expected a list")
    return value


def _known(fields: dict[str, Any], known: set[str], what: str, where: str) -> None:
    unknown = sorted(set(fields) - known)
    if unknown:
        raise _refusal(what, f"{where}: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}")


def _refusal(what: str, problem: str) -> PlanError:
    return PlanError("contract-yaml", f"In {what}, {problem}.", "Correct the contract.")
