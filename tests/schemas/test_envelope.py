"""Nothing unsigned, altered, re-addressed or non-canonical is believed."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope as OtherEnvelope
from securesystemslib.signer import SSlibKey

from schemas.canonical import canonical_bytes, derive_digest, encode_parts, parse_json
from schemas.envelope import open_envelope, public_hex, read_unverified_predicate, sign_envelope
from schemas.errors import EvidenceError, PeerError
from schemas.messages import NonceOpen, PlanApproval

STUDY = "5e" * 32
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
APPROVAL = PlanApproval(participant="general", role="site")
SIGNED = sign_envelope(APPROVAL, STUDY, KEY)


def read(data: bytes, model: Any = PlanApproval, study: str = STUDY, key: Ed25519PrivateKey = KEY) -> Any:
    return open_envelope(model, data, study, public_hex(key), "general")


def test_a_signed_statement_is_read_back() -> None:
    assert read(SIGNED) == APPROVAL
    assert read_unverified_predicate(SIGNED)[1] == STUDY


def test_another_implementation_of_dsse_verifies_our_envelopes() -> None:
    key = SSlibKey(public_hex(KEY), "ed25519", "ed25519", {"public": KEY.public_key().public_bytes_raw().hex()})
    envelope = OtherEnvelope.from_dict(json.loads(SIGNED))
    assert envelope.verify([key], 1)


@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_any_flipped_byte_is_refused(position: int, mask: int) -> None:
    altered = bytearray(SIGNED)
    altered[position] ^= mask
    with pytest.raises(PeerError):
        read(bytes(altered))


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(PeerError, match="general"):
        read(data)


def test_another_key_study_or_type_is_refused_by_name() -> None:
    other = Ed25519PrivateKey.generate()
    with pytest.raises(PeerError, match="not signed by the pinned key"):
        read(SIGNED, key=other)
    with pytest.raises(PeerError, match="about another study"):
        read(SIGNED, study="00" * 32)
    with pytest.raises(PeerError, match="another statement type"):
        read(SIGNED, model=NonceOpen)


def test_a_signature_under_the_right_key_id_by_another_key_is_refused() -> None:
    forged = json.loads(sign_envelope(APPROVAL, STUDY, Ed25519PrivateKey.generate()))
    forged["signatures"][0]["keyid"] = public_hex(KEY)
    with pytest.raises(PeerError, match="does not verify") as caught:
        read(canonical_bytes(forged))
    assert caught.value.code == "bad-signature"


def test_the_same_content_in_another_encoding_is_refused() -> None:
    with pytest.raises(PeerError, match="canonical"):
        read(json.dumps(json.loads(SIGNED)).encode())
    with pytest.raises(PeerError, match="canonical"):
        read(SIGNED + b"\n")


def test_unknown_fields_in_a_signed_predicate_are_refused() -> None:
    plain = json.loads(base64.b64decode(json.loads(SIGNED)["payload"]))
    plain["predicate"]["also"] = "this"
    payload = canonical_bytes(plain)
    signature = KEY.sign(b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload))
    envelope = json.loads(SIGNED)
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    with pytest.raises(PeerError, match="expected fields: also"):
        read(canonical_bytes(envelope))


@pytest.mark.parametrize("text", [b'{"a":1,"a":2}', b"NaN", b"[1,Infinity]", b"\xff", b"{", b"[" * 100_000])
def test_json_that_two_readers_could_read_differently_is_refused(text: bytes) -> None:
    with pytest.raises(EvidenceError, match="not valid JSON"):
        parse_json(text, "a message")


@given(st.lists(st.binary(max_size=20), max_size=5), st.lists(st.binary(max_size=20), max_size=5))
def test_no_two_lists_of_parts_share_an_encoding(left: list[bytes], right: list[bytes]) -> None:
    assert (encode_parts("label", *left) == encode_parts("label", *right)) == (left == right)
    assert derive_digest("a", *left) != derive_digest("b", *left)
