"""Reads a settings file that people edit, and says what is wrong with it: where, never what is written there.

A home that holds such a file holds keys too: no remedy here asks for a new one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from schemas.errors import OperationError
from schemas.options import Settings

S = TypeVar("S", bound=Settings)

# Whose file it is, by its format; and who that is in words.
_KINDS: Final = {
    "consilium/coordinator/1": "a coordinator's",
    "consilium/site/1": "a hospital's",
    "consilium/reviewer/1": "a reviewer's",
}
_WRONG: Final = {"missing": "missing", "extra_forbidden": "unknown", "same_port": "the same as prefect_port"}


def read_settings(model: type[S], path: Path) -> S:
    """Reads the settings file `path` as `model`.

    Raises:
        OperationError: `settings-unreadable`: there is no such file, it cannot be read, it is not JSON (line and
            column), it belongs to another kind of home, or fields do not fit (by name). No value is quoted.
    """
    content = _parse(_read(path), path)
    _verify_kind(model, content, path)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        fields = ", ".join(sorted(set(_fields(error))))
        raise _unreadable(
            f"Expected other settings in {path.name} of {path.parent}; these fields do not fit: {fields}.",
            f"Correct {path.name}; if a newer version wrote it, start this program again with that version.",
        ) from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _unreadable(
            f"Expected a settings file {path.name} in {path.parent}.", "Name the home folder with --home."
        ) from None
    except UnicodeDecodeError:
        raise _unreadable(
            f"Expected {path.name} in {path.parent} to be UTF-8 text.", f"Save {path.name} as UTF-8."
        ) from None
    except OSError as error:
        raise _unreadable(
            f"Cannot read {path.name} in {path.parent} ({error.strerror}).", "Run this as the user who owns the home."
        ) from None


def _parse(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
    except (ValueError, RecursionError):  # a number of thousands of digits, a thousand brackets
        where = "a number or a list is far too long"
    raise _unreadable(
        f"Expected {path.name} in {path.parent} to be JSON; it is not: {where}.",
        f"Correct {path.name} there or just before: a comma, a quote or a bracket is missing, or is one too many.",
    )


def _verify_kind(model: type[S], content: Any, path: Path) -> None:
    if not isinstance(content, dict):
        raise _unreadable(
            f"Expected {path.name} in {path.parent} to be one JSON object.", f"Correct {path.name}: it begins with {{."
        )
    wanted = model.model_fields["format"].default
    found = content.get("format")
    if wanted in _KINDS and found != wanted and isinstance(found, str) and found in _KINDS:
        raise _unreadable(
            f"Expected {_KINDS[wanted]} home; {path.parent} is {_KINDS[found]}.",
            "Name the other home with --home, or use the command for this kind of home.",
        )


def _fields(error: ValidationError) -> Iterable[str]:
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        name = ".".join(str(part) for part in item["loc"])
        yield f"{name} ({_WRONG.get(item['type'], 'wrong value')})"


def _unreadable(message: str, remedy: str) -> OperationError:
    return OperationError("settings-unreadable", message, remedy)
