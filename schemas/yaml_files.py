"""What people write by hand: YAML in which every scalar is the text that was written.

A plan's numbers are signed as decimal strings and codes are compared as text, so YAML's guesses (`no` a boolean, `1_0`
a number, `2024-01-01` a date, 0.1 a float) must never happen: `0.10` stays ``0.10`` and `no` stays ``no``. Types come
from the noun that the file is read as. Tags, anchors and aliases, which build objects or grow a small file into a huge
value, are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from schemas.errors import ConsiliumError, PlanError

if TYPE_CHECKING:
    import yaml

MAX_YAML_BYTES = 1024 * 1024
MAX_YAML_DEPTH = 32
_NOTHING = ("", "null", "~")
_KINDS = ("str", "int", "float", "bool", "null", "timestamp", "merge", "value", "seq", "map")
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in _KINDS}

M = TypeVar("M", bound=BaseModel)
Raises = Callable[[str, str, str], ConsiliumError]


def parse_yaml(data: bytes, what: str, error: Raises = PlanError) -> Any:
    """Parses one YAML document into mappings, lists and text; an empty scalar, `null` or `~` is None.

    Args:
        data: At most `MAX_YAML_BYTES` of UTF-8.
        what: Words for the error, e.g. the file's name.
        error: Who must act if it does not parse.

    Raises:
        ConsiliumError: `yaml-unreadable`, naming the line and never the text in it.
    """
    import yaml

    if len(data) > MAX_YAML_BYTES:
        raise _unreadable(error, what, f"it is larger than {MAX_YAML_BYTES} bytes")
    try:
        node = yaml.compose(data.decode("utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError:
        raise _unreadable(error, what, "it is not UTF-8 text") from None
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark
        place = f"line {mark.line + 1}" if mark else "the document"
        raise _unreadable(error, what, f"{place} is not valid YAML") from None
    except (yaml.YAMLError, RecursionError):
        raise _unreadable(error, what, "it is not valid YAML") from None
    if node is None:
        raise _unreadable(error, what, "it is empty")
    return _value(node, _Document(what, error), set(), 0)


def read_yaml(model: type[M], path: Path, error: Raises = PlanError) -> M:
    """Reads a YAML file as `model`.

    Args:
        error: Who must act if it does not fit.

    Raises:
        ConsiliumError: `yaml-unreadable`, or `yaml-fields` naming every field that does not fit; and what the model's
            own rules raise.
    """
    try:
        data = path.read_bytes()
    except OSError:
        raise error("yaml-unreadable", f"Expected {path}, and it cannot be read.", "Check the path.") from None
    return model_from_plain(model, parse_yaml(data, path.name, error), path.name, error)


def model_from_plain(model: type[M], plain: Any, what: str, error: Raises = PlanError) -> M:
    """Builds `model` from what `parse_yaml` returned: texts become numbers and booleans where the noun says so.

    Raises:
        ConsiliumError: `yaml-fields` naming every field that does not fit.
    """
    try:
        return model.model_validate(plain, strict=False)
    except ValidationError as problem:
        fields = sorted({_describe(item) for item in problem.errors(include_url=False, include_input=False)})
        raise error(
            "yaml-fields", f"{what} has fields that do not fit: {'; '.join(fields)}.", "Correct them."
        ) from None


class _Document:
    def __init__(self, what: str, error: Raises) -> None:
        self.what = what
        self.error = error

    def refusal(self, node: yaml.Node, problem: str) -> ConsiliumError:
        return _unreadable(self.error, self.what, f"line {node.start_mark.line + 1}: {problem}")


def _value(node: yaml.Node, document: _Document, seen: set[int], depth: int) -> Any:
    import yaml

    # An alias is the same node again: a few of them nested describe more values than a machine holds.
    if id(node) in seen:
        raise document.refusal(node, "an alias; write the value again")
    seen.add(id(node))
    if depth > MAX_YAML_DEPTH:
        raise document.refusal(node, "nested too deeply")
    if node.tag not in _PLAIN:
        raise document.refusal(node, "a tag; write plain values")
    if isinstance(node, yaml.ScalarNode):
        return None if node.style is None and node.value in _NOTHING else str(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, document, seen, depth + 1) for item in node.value]
    return _mapping(node, document, seen, depth)


def _mapping(node: yaml.Node, document: _Document, seen: set[int], depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.value:
        name = _value(key, document, seen, depth + 1)
        if not isinstance(name, str):
            raise document.refusal(key, "a key that is not text")
        if name in found:
            raise document.refusal(key, "a key that stands there twice")
        found[name] = _value(value, document, seen, depth + 1)
    return found


def _describe(item: Any) -> str:
    place = ".".join(str(part) for part in item["loc"]) or "the document"
    return f"{place} ({item['msg'][:1].lower()}{item['msg'][1:]})"


def _unreadable(error: Raises, what: str, problem: str) -> ConsiliumError:
    return error("yaml-unreadable", f"{what} cannot be used: {problem}.", "Correct the file.")
