"""One entry of a hash chain: signing the next one, reading one from bytes. Pure.

Reading believes an entry only after these steps, in this order: its bytes are the canonical envelope of one signature,
the owner's pinned key signed the payload, the payload is the canonical statement of one `LedgerEntry`.
"""

from __future__ import annotations

import base64
import json
import re
from binascii import a2b_base64
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from typing import Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, ValidationError

from schemas.canonical import Strict, canonical_bytes
from schemas.envelope import PAYLOAD_TYPE, STATEMENT_TYPE, Envelope, Subject, sign_envelope
from schemas.errors import EvidenceError
from schemas.ledger import Body, LedgerEntry

FIRST_PREVIOUS = "0" * 64
# RFC 8785 and json.dumps agree on our nouns (ASCII keys, no floats) while integers stay below 2**53.
_LONG_NUMBER = re.compile(rb"[\[:,]-?[0-9]{16}")
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, check_circular=False)
_FIELD = re.compile(r"[A-Za-z0-9_-]{1,40}")


class _EntryStatement(Strict):
    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[Subject, ...] = Field(min_length=1, max_length=1)
    predicateType: Literal["urn:consilium:ledger-entry:v1"]
    predicate: LedgerEntry


def sign_entry(
    key: Ed25519PrivateKey, owner: str, sequence: int, previous: str, study: str, body: Body, time: datetime
) -> bytes:
    """Signs the next entry of `owner`'s log and returns the canonical envelope bytes.

    Args:
        key: The owner's identity key.
        owner: Name of the site or coordinator.
        sequence: 0-based position.
        previous: Envelope digest of the entry before; `FIRST_PREVIOUS` for the first.
        study: The study the entry is about, or `NO_STUDY`.
        body: What happened.
        time: Aware time; stored in UTC with second precision.
    """
    entry = LedgerEntry(
        owner=owner,
        sequence=sequence,
        previous=previous,
        time=time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        software=software_versions(),
        body=body,
    )
    return sign_envelope(entry, study, key)


@lru_cache(maxsize=1)
def software_versions() -> str:
    """Returns the versions that bear on an entry, e.g. "consilium 0.1.0, numpy 2.4.6"."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("consilium", "numpy", "cryptography"))


class EntryReader:
    """Reads entries of one owner under its pinned key."""

    def __init__(self, owner: str, key_hex: str) -> None:
        self.owner = owner
        self.key_hex = key_hex
        self._key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key_hex))

    def read(self, data: bytes) -> tuple[str, LedgerEntry]:
        """Verifies one envelope and returns (study, entry).

        Raises:
            EvidenceError: `not-canonical`, `bad-signature`, `malformed`, `wrong-owner`.
        """
        try:
            envelope = Envelope.model_validate_json(data)
            signature, payload = a2b_base64(envelope.signatures[0].sig), a2b_base64(envelope.payload)
        except ValueError:
            raise EvidenceError("not-canonical", "it is not an envelope.") from None
        if data != _envelope_bytes(payload, envelope.signatures[0].keyid, signature):
            raise EvidenceError("not-canonical", "it is not the canonical envelope of one signature.")
        self._verify_signature(envelope.signatures[0].keyid, signature, payload)
        statement = _parse_statement(payload)
        if statement.predicate.owner != self.owner:
            raise EvidenceError("wrong-owner", "it belongs to another log.")
        return statement.subject[0].digest["sha256"], statement.predicate

    def _verify_signature(self, keyid: str, signature: bytes, payload: bytes) -> None:
        try:
            self._key.verify(signature, _pae(payload))
        except InvalidSignature:
            raise EvidenceError("bad-signature", "its signature does not verify.") from None
        if keyid != self.key_hex:
            raise EvidenceError("bad-signature", "it names another key.")


def read_entry(data: bytes, owner: str, key_hex: str) -> tuple[str, LedgerEntry]:
    """Verifies one envelope of `owner`'s log and returns (study, entry); see `EntryReader.read`."""
    return EntryReader(owner, key_hex).read(data)


def _parse_statement(payload: bytes) -> _EntryStatement:
    try:
        statement = _EntryStatement.model_validate_json(payload)
        plain: dict[str, Any] = {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": "study", "digest": statement.subject[0].digest}],
            "predicateType": statement.predicateType,
            "predicate": statement.predicate.model_dump(mode="json"),
        }
        same = _encode(plain, payload) == payload
    except ValidationError as error:
        raise EvidenceError("malformed", f"it does not hold a ledger entry known here: {_places(error)}.") from None
    except UnicodeEncodeError:
        raise EvidenceError("malformed", "it does not hold a ledger entry.") from None
    if not same or "sha256" not in statement.subject[0].digest:
        raise EvidenceError("not-canonical", "it does not hold a canonical statement about one study.")
    return statement


def _places(error: ValidationError) -> str:
    """Names the fields that do not fit, never a value; a name that no schema of ours could have is left out."""
    places = {".".join(str(p) for p in item["loc"] if _FIELD.fullmatch(str(p))) for item in error.errors()}
    return ", ".join(sorted(places)[:5]) or "(the whole)"


def _encode(plain: dict[str, Any], expected: bytes) -> bytes:
    if _LONG_NUMBER.search(expected):
        try:
            return canonical_bytes(plain)
        except ValueError:
            return b""
    return _ENCODER.encode(plain).encode()


def _envelope_bytes(payload: bytes, keyid: str, signature: bytes) -> bytes:
    return b'{"payload":"%s","payloadType":"application/vnd.in-toto+json","signatures":[{"keyid":"%s","sig":"%s"}]}' % (
        base64.b64encode(payload),
        keyid.encode(),
        base64.b64encode(signature),
    )


def _pae(payload: bytes) -> bytes:
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
