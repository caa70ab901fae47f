"""Frozen bytes of every signed statement: never edited, only added to.

A predicate that is missing here fails: whoever adds one adds its vector (``python -m tests.schemas.test_vectors``).
"""

from __future__ import annotations

import json
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import schemas.joining
import schemas.ledger
import schemas.messages
from schemas.canonical import Extended, sha256_hex
from schemas.envelope import Predicate, open_envelope, public_hex, sign_envelope

VECTORS = Path(__file__).with_name("vectors.json")
STUDY = "5e" * 32
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))

PREDICATES: dict[str, type[Predicate]] = {
    name: value
    for module in (schemas.messages, schemas.ledger, schemas.joining)
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, Predicate) and value is not Predicate
}
BODIES = {body.__name__: body for body in typing.get_args(typing.get_args(schemas.ledger.Body)[0])}


def example(model: type[BaseModel], **fixed: Any) -> Any:
    """Builds a deterministic instance from the field types; later fields of a statement keep their default."""
    later = model.LATER if issubclass(model, Extended) and issubclass(model, Predicate) else ()
    fields = {name: field for name, field in model.model_fields.items() if name not in later}
    return model(**{name: _value(field.annotation, field, name) for name, field in fields.items()} | fixed)


def later_example(model: type[Predicate], name: str) -> Predicate:
    field = model.model_fields[name]
    return example(model, **{name: _value(field.annotation, field, name)})


def _value(kind: Any, field: FieldInfo | None, name: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    pattern = next((m.pattern for m in (field.metadata if field else []) if getattr(m, "pattern", None)), "")
    if origin is typing.Literal:
        return arguments[0]
    if origin is typing.Annotated:
        return _value(arguments[0], FieldInfo.from_annotation(kind), name)
    if origin in (typing.Union, types.UnionType):
        return _value(arguments[0], field, name)
    if origin is tuple:
        inner = arguments[:-1] if arguments[-1] is Ellipsis else arguments
        return tuple(_value(item, None, name) for item in inner)
    if kind is bool:
        return True
    if kind is int:
        return 3
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return example(kind)
    return _text(pattern, name)


def _text(pattern: str, name: str) -> str:
    choices = {"{64}": "c1" * 32, "{2432}": "d2" * 1216, "[a-z][a-z0-9-]": "general", r"\d{4}-": "2026-01-02T03:04:05Z"}
    for part, text in choices.items():
        if part in pattern:
            return text
    if "[a-z0-9-]{1,64}" in pattern:
        return "some-code"
    return "1.5" if "[1-9]" in pattern else f"some {name}"


def examples() -> dict[str, Predicate]:
    made = {name: example(model) for name, model in PREDICATES.items() if name != "LedgerEntry"}
    entries = {
        f"LedgerEntry/{name}": example(schemas.ledger.LedgerEntry, body=example(body)) for name, body in BODIES.items()
    }
    later = {
        f"{name}+{field}": later_example(model, field)
        for name, model in PREDICATES.items()
        if issubclass(model, Extended)
        for field in model.LATER
    }
    return {**made, **entries, **later}


def vectors() -> dict[str, str]:
    return {name: sha256_hex(sign_envelope(value, STUDY, KEY)) for name, value in examples().items()}


@pytest.mark.parametrize("name", sorted(examples()))
def test_the_signed_bytes_of_every_statement_are_frozen(name: str) -> None:
    frozen = json.loads(VECTORS.read_text())
    value = examples()[name]
    data = sign_envelope(value, STUDY, KEY)
    assert sha256_hex(data) == frozen[name], f"the bytes of {name} changed: old evidence would no longer verify"
    assert open_envelope(type(value), data, STUDY, public_hex(KEY), "general") == value


def test_no_frozen_statement_was_removed() -> None:
    assert set(json.loads(VECTORS.read_text())) == set(examples())


if __name__ == "__main__":
    known = json.loads(VECTORS.read_text()) if VECTORS.exists() else {}
    VECTORS.write_text(json.dumps({**vectors(), **known}, indent=1, sort_keys=True) + "\n")
