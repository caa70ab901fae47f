"""Canonical bytes and digests: the only way in which anything is hashed, signed or compared.

JSON goes through RFC 8785. Hash inputs that are not JSON are an injective, length-prefixed encoding under a label
(`derive_digest`), so that no two lists of parts share an encoding.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, ClassVar, TypeVar

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from schemas.errors import EvidenceError

_LARGEST_INTEGER = 2**53 - 1
MAX_JSON_BYTES = 64 * 1024 * 1024
_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, check_circular=False, allow_nan=False
)
# A number that may not be written alike by RFC 8785: with a fraction or exponent, or beyond what a double holds.
_ODD_NUMBER = re.compile(rb"[\[:,]-?[0-9]+(?:[.eE]|(?<=[0-9]{16}))")

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
HexKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")]
# Exact numbers travel as decimal strings: a float would not say which value was meant.
# Exponents are short: as a rational, 1e-99999999 only exhausts the reader's memory.
Decimal = Annotated[str, Field(pattern=r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?(e-?[0-9]{1,3})?$", max_length=40)]


class Strict(BaseModel):
    """Base of every stored or signed noun: frozen, no unknown fields, no coercion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Extended(Strict):
    """A noun that got fields after its bytes were frozen.

    A field named in `LATER` is left out of the canonical bytes while it holds its default, so that bytes and digests
    from before it existed stay canonical; bytes that spell the default out are refused.
    """

    LATER: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _leave_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: dict[str, Any] = handler(self)
        for name in self.LATER:
            if getattr(self, name) == type(self).model_fields[name].get_default(call_default_factory=True):
                del plain[name]
        return plain


M = TypeVar("M", bound=Strict)


def canonical_bytes(value: Strict | dict[str, Any] | list[Any]) -> bytes:
    """Encodes a model or plain JSON value as RFC 8785 canonical UTF-8 bytes."""
    plain = value.model_dump(mode="json") if isinstance(value, Strict) else value
    if _is_simple(plain):
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return rfc8785.dumps(plain)


def _is_simple(value: Any) -> bool:
    """Tells whether the standard library's encoder gives the RFC 8785 form, five times faster.

    It does for ASCII strings (sorting by code point is then sorting by UTF-16 unit, and the escapes are the same), for
    integers that a double holds exactly, and never for other floats.
    """
    stack = [value]
    while stack:
        item = stack.pop()
        kind = type(item)
        if kind is str:
            if not item.isascii():
                return False
        elif kind is dict:
            if not all(type(key) is str and key.isascii() for key in item):
                return False
            stack.extend(item.values())
        elif kind is list or kind is tuple:
            stack.extend(item)
        elif kind is int:
            if not -_LARGEST_INTEGER <= item <= _LARGEST_INTEGER:
                return False
        elif item is not None and kind is not bool:
            return False
    return True


def sha256_hex(data: bytes) -> str:
    """Returns the SHA-256 of `data` as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def digest_of(value: Strict | dict[str, Any] | list[Any]) -> str:
    """Returns the SHA-256 (hex) of the canonical bytes of `value`."""
    return sha256_hex(canonical_bytes(value))


def encode_parts(label: str, *parts: bytes | str | int) -> bytes:
    """Encodes a label and parts injectively: each as an 8-byte big-endian length and its bytes.

    Integers must be non-negative and below 2**64 and are encoded as 8 big-endian bytes; strings as UTF-8.
    """
    out = bytearray()
    for part in (f"consilium/{label}", *parts):
        raw = part.to_bytes(8, "big") if isinstance(part, int) else part.encode() if isinstance(part, str) else part
        out += len(raw).to_bytes(8, "big") + raw
    return bytes(out)


def derive_digest(label: str, *parts: bytes | str | int) -> str:
    """Returns SHA-256 (hex) over `encode_parts(label, *parts)`."""
    return sha256_hex(encode_parts(label, *parts))


def parse_canonical(model: type[M], data: bytes, what: str) -> M:
    """Parses canonical JSON into `model` and refuses any byte that re-encoding would not reproduce.

    Args:
        model: The expected noun.
        data: The bytes as received; at most `MAX_JSON_BYTES`.
        what: Words for the error, e.g. "record of round 3".

    Raises:
        EvidenceError: `not-canonical` if the bytes do not parse, do not fit the model or are not its canonical form.
    """
    parsed = parse_json(data, what)
    try:
        value = model.model_validate_json(json.dumps(parsed))
    except ValidationError as error:
        fields = sorted({".".join(str(p) for p in item["loc"]) or "(root)" for item in error.errors()})
        raise EvidenceError("malformed", f"{what} does not have the expected fields: {', '.join(fields)}.") from None
    if not is_canonical(value, data):
        raise EvidenceError("not-canonical", f"{what} is not in canonical form.")
    return value


def is_canonical(value: Strict | dict[str, Any] | list[Any], data: bytes) -> bool:
    """Tells whether `data` is the canonical encoding of `value`; a value that has none, such as 2**53, is nothing's."""
    plain = value.model_dump(mode="json") if isinstance(value, Strict) else value
    try:
        if data.isascii() and not _ODD_NUMBER.search(data):
            # Only equal bytes count, and in such bytes the standard library's encoder writes the RFC 8785 form.
            return _ENCODER.encode(plain).encode() == data
        return canonical_bytes(plain) == data
    except (rfc8785.CanonicalizationError, ValueError, RecursionError):
        return False


def parse_json(data: bytes, what: str) -> Any:
    """Parses JSON bytes, refusing duplicates, non-finite numbers, oversized and non-UTF-8 input.

    Raises:
        EvidenceError: `not-canonical`.
    """
    if len(data) > MAX_JSON_BYTES:
        raise EvidenceError("not-canonical", f"{what} is larger than {MAX_JSON_BYTES} bytes.")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise EvidenceError("not-canonical", f"{what} is not valid JSON.") from None


def is_name(value: str) -> bool:
    """Tells whether `value` is a legal site, coordinator or reviewer name."""
    return re.fullmatch(r"[a-z][a-z0-9-]{0,30}", value) is not None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(name)
