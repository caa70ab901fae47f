"""Signed statements: in-toto Statement v1 in a DSSE envelope with one or more Ed25519 signatures.

Invariant: an envelope is believed only after `open_envelope` has checked, in this order, that its bytes are canonical,
that the wanted key signed it, that its payload is canonical, and that predicate type and subject are the expected ones.
"""

from __future__ import annotations

import base64
import json
from functools import lru_cache
from typing import Any, Literal, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, create_model

from schemas.canonical import (
    MAX_JSON_BYTES,
    Digest,
    HexKey,
    Strict,
    canonical_bytes,
    is_canonical,
    parse_canonical,
    sha256_hex,
)
from schemas.errors import EvidenceError, PeerError

PAYLOAD_TYPE: Literal["application/vnd.in-toto+json"] = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"


class Signature(Strict):
    """One DSSE signature; `keyid` is the signer's raw Ed25519 public key in hex."""

    keyid: HexKey
    sig: str


class Envelope(Strict):
    """A DSSE envelope (base64 payload, its type, signatures ordered by key id)."""

    payload: str
    payloadType: Literal["application/vnd.in-toto+json"]
    signatures: tuple[Signature, ...] = Field(min_length=1)


class Subject(Strict):
    name: str
    digest: dict[Literal["sha256"], Digest] = Field(min_length=1)


class Statement(Strict):
    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[Subject, ...] = Field(min_length=1, max_length=1)
    predicateType: str
    predicate: dict[str, Any]


class Predicate(Strict):
    """Base of every signed noun. `STUDY` predicates name the study whose plan digest is the statement's subject."""

    @classmethod
    def predicate_type(cls) -> str:
        """Returns the type URI, e.g. ``urn:consilium:instruction:v1``, derived from the class name."""
        words = "".join("-" + c.lower() if c.isupper() else c for c in cls.__name__).lstrip("-")
        return f"urn:consilium:{words}:v1"


P = TypeVar("P", bound=Predicate)


def sign_envelope(predicate: Predicate, study: str, key: Ed25519PrivateKey) -> bytes:
    """Signs `predicate` about `study` and returns the canonical bytes of the envelope.

    Args:
        predicate: What is stated.
        study: The plan digest (hex), the statement's only subject; 64 zeros for a statement outside any study.
        key: The signer's Ed25519 private key. Ed25519 is deterministic: the same statement gives the same bytes.
    """
    payload = canonical_bytes(_statement(predicate, study))
    signature = Signature(keyid=public_hex(key), sig=_b64(key.sign(_pae(payload))))
    return canonical_bytes(Envelope(payload=_b64(payload), payloadType=PAYLOAD_TYPE, signatures=(signature,)))


def open_envelope(model: type[P], data: bytes, study: str, key_hex: str, sender: str) -> P:
    """Verifies an envelope of exactly one signature by `key_hex` and returns its predicate.

    Args:
        model: The expected predicate.
        data: Envelope bytes as received.
        study: Expected plan digest.
        key_hex: The signer's Ed25519 public key, from the signed plan or a signed transcript, never from `data`.
        sender: Name for errors.

    Raises:
        PeerError: `bad-signature`, `wrong-statement` or `malformed`, naming `sender`.
    """
    opened: P = _open_verified(model, data, study, key_hex, sender)
    return opened


# Whether bytes verify under a pinned key is a function of these arguments alone, and a predicate is frozen: what was
# verified once in this process needs no second look. Refusals are never remembered.
# The number is what the audit of 20 rounds of 32 sites opens.
@lru_cache(maxsize=4096)
def _open_verified(model: type[P], data: bytes, study: str, key_hex: str, sender: str) -> P:
    what = f"a {model.__name__} from {sender}"
    try:
        envelope, payload = _read_outer(data, what)
        if len(envelope.signatures) != 1 or envelope.signatures[0].keyid != key_hex:
            raise PeerError("bad-signature", sender, f"{model.__name__} is not signed by the pinned key.")
        signature = _unb64(envelope.signatures[0].sig, what)
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(key_hex)).verify(signature, _pae(payload))
        except (InvalidSignature, ValueError):
            raise PeerError("bad-signature", sender, f"the signature on {model.__name__} does not verify.") from None
        return _open_payload(model, payload, study, sender, what)
    except EvidenceError as error:
        raise PeerError("malformed", sender, error.message) from None


def envelope_signer(data: bytes) -> str:
    """Returns the key id that a single-signature envelope *claims*, to look it up; proves nothing.

    Raises:
        EvidenceError: the bytes are not a canonical envelope.
    """
    return parse_canonical(Envelope, data, "an envelope").signatures[0].keyid


def public_hex(key: Ed25519PrivateKey) -> str:
    """Returns the raw public key of `key` as hex."""
    return key.public_key().public_bytes_raw().hex()


def envelope_digest(data: bytes) -> str:
    """Returns the digest by which other messages refer to an envelope: SHA-256 of its canonical bytes."""
    return sha256_hex(data)


def read_unverified_predicate(data: bytes) -> tuple[str, str, dict[str, Any]]:
    """Returns (predicate type, study, predicate) of an envelope WITHOUT checking its signature; for display only.

    Raises:
        EvidenceError: the bytes are not a canonical envelope.
    """
    envelope = parse_canonical(Envelope, data, "an envelope")
    statement = _parse_statement(_unb64(envelope.payload, "an envelope"), "an envelope")
    return statement.predicateType, statement.subject[0].digest["sha256"], statement.predicate


def read_unverified(model: type[P], data: bytes, what: str) -> tuple[str, P]:
    """Returns (study, predicate) of a canonical envelope of a `model` WITHOUT checking its signatures.

    Its bytes are the only encoding of what it says: canonical envelope, payload and predicate, strict base64.

    Raises:
        EvidenceError: `not-canonical` or `malformed`; `wrong-statement` if it states something else.
    """
    envelope, payload = _read_outer(data, what)
    for signature in envelope.signatures:
        _unb64(signature.sig, what)
    return _read_statement(model, payload, what)


def _read_outer(data: bytes, what: str) -> tuple[Envelope, bytes]:
    """Returns a canonical envelope and its payload."""
    try:
        if len(data) > MAX_JSON_BYTES:
            raise ValueError
        envelope = Envelope.model_validate_json(data)
        # The canonical form of strings that need no escapes; with escapes, these bytes differ from what was parsed.
        signatures = ",".join(f'{{"keyid":"{s.keyid}","sig":"{s.sig}"}}' for s in envelope.signatures)
        written = f'{{"payload":"{envelope.payload}","payloadType":"{PAYLOAD_TYPE}","signatures":[{signatures}]}}'
        same = written.encode() == data
    except ValueError:
        same = False
    if not same:
        envelope = parse_canonical(Envelope, data, what)
    return envelope, _unb64(envelope.payload, what)


def _read_statement(model: type[P], payload: bytes, what: str) -> tuple[str, P]:
    """Returns (study, predicate) of a canonical payload that states a `model`.

    Raises:
        EvidenceError: as `read_unverified`.
    """
    found = _read_exact(model, payload)
    if found is not None:
        return found
    plain = _parse_statement(payload, what)
    if plain.predicateType != model.predicate_type():
        raise EvidenceError("wrong-statement", f"expected {model.predicate_type()}, got another statement type.")
    predicate = parse_canonical(model, canonical_bytes(plain.predicate), what)
    return plain.subject[0].digest["sha256"], predicate


def _read_exact(model: type[P], payload: bytes) -> tuple[str, P] | None:
    """Returns (study, predicate) if `payload` is exactly what signing that would write, None without saying why not."""
    try:
        statement = _statement_of(model).model_validate_json(payload)
        predicate: P = statement.predicate
        study: str = statement.subject[0].digest["sha256"]
        return (study, predicate) if is_canonical(_statement(predicate, study), payload) else None
    except (ValueError, LookupError, RecursionError):
        return None


@lru_cache(maxsize=256)
def _statement_of(model: type[Predicate]) -> Any:
    return create_model(
        f"{model.__name__}Statement",
        __base__=Statement,
        predicate=(model, ...),
    )


def _statement(predicate: Predicate, study: str) -> dict[str, Any]:
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": "study", "digest": {"sha256": study}}],
        "predicateType": predicate.predicate_type(),
        "predicate": predicate.model_dump(mode="json"),
    }


def _parse_statement(payload: bytes, what: str) -> Statement:
    try:
        plain = json.loads(payload)
        statement = Statement.model_validate_json(payload)
    except (ValueError, RecursionError):
        raise EvidenceError("malformed", f"{what} does not hold an in-toto statement.") from None
    if not is_canonical(plain, payload):
        raise EvidenceError("not-canonical", f"{what} does not hold a canonical payload.")
    return statement


def _open_payload(model: type[P], payload: bytes, study: str, sender: str, what: str) -> P:
    found = _read_exact(model, payload)
    if found is not None and found[0] == study:
        return found[1]
    # Something is wrong: say what.
    statement = _parse_statement(payload, what)
    if statement.predicateType != model.predicate_type():
        raise PeerError("wrong-statement", sender, f"expected {model.predicate_type()}, got another statement type.")
    if statement.subject[0].name != "study" or statement.subject[0].digest["sha256"] != study:
        raise PeerError("wrong-statement", sender, f"{model.__name__} is about another study.")
    return parse_canonical(model, canonical_bytes(statement.predicate), what)


def _pae(payload: bytes) -> bytes:
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unb64(text: str, what: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise EvidenceError("not-canonical", f"{what} holds invalid base64.") from None
    if _b64(data) != text:
        raise EvidenceError("not-canonical", f"{what} holds non-canonical base64.")
    return data
