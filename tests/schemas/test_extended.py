"""A noun that got a field later keeps the bytes it had before."""

from __future__ import annotations

from typing import ClassVar

import pytest

from schemas.canonical import Extended, Strict, canonical_bytes, parse_canonical
from schemas.errors import EvidenceError


class Grown(Extended):
    LATER: ClassVar[tuple[str, ...]] = ("added",)

    first: int
    added: int | None = None


class Holder(Strict):
    grown: Grown


def test_a_later_field_that_holds_its_default_is_not_in_the_bytes() -> None:
    assert canonical_bytes(Holder(grown=Grown(first=1))) == b'{"grown":{"first":1}}'
    assert canonical_bytes(Grown(first=1, added=2)) == b'{"added":2,"first":1}'
    assert parse_canonical(Holder, b'{"grown":{"first":1}}', "a holder").grown.added is None


def test_bytes_that_spell_the_default_out_are_refused() -> None:
    with pytest.raises(EvidenceError, match="not in canonical form"):
        parse_canonical(Holder, b'{"grown":{"added":null,"first":1}}', "a holder")


def test_no_noun_hides_what_turns_a_model_into_a_dictionary() -> None:
    """Prefect calls `dict(noun)` on what it hands to a task: a field named `keys` would break every flow."""

    def nouns(base: type[Strict]) -> set[type[Strict]]:
        return {found for child in base.__subclasses__() for found in (child, *nouns(child))}

    import schemas.ledger
    import schemas.plan  # noqa: F401

    assert [noun.__name__ for noun in nouns(Strict) if "keys" in noun.model_fields] == []
