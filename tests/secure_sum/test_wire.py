"""The binary format: what is written is read back, and nothing else is accepted."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.envelope import public_hex
from schemas.errors import PeerError
from schemas.wire import (
    Header,
    Kind,
    pack_residues,
    parse_header,
    read_blob,
    residue_width,
    unpack_residues,
    write_blob,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
HEADER = Header(Kind.KEY_CIPHERTEXT, "ab" * 32, 3, 2, "cd" * 32, "site-01", "", (2, 3, 8))
BODY = bytes(range(100))
BLOB = write_blob(HEADER, BODY, KEY)


def read(data: bytes, header: Header = HEADER, size: int = len(BODY)) -> bytes:
    return bytes(read_blob(data, header, size, public_hex(KEY), "site-01"))


def test_a_blob_reads_back() -> None:
    assert read(BLOB) == BODY
    assert parse_header(BLOB, "site-01")[0] == HEADER


def test_every_single_flipped_bit_is_refused() -> None:
    for index in range(len(BLOB)):
        for bit in (1, 128):
            altered = bytearray(BLOB)
            altered[index] ^= bit
            with pytest.raises(PeerError, match="site-01") as caught:
                read(bytes(altered))
            assert caught.value.code.startswith("wire-")


def test_every_other_length_is_refused() -> None:
    for size in range(len(BLOB)):
        with pytest.raises(PeerError, match="site-01"):
            read(BLOB[:size])
    with pytest.raises(PeerError, match="exact length"):
        read(BLOB + b"\x00")


@pytest.mark.parametrize(
    "change",
    [
        {"kind": Kind.SHARE},
        {"session": "00" * 32},
        {"round": 4},
        {"attempt": 1},
        {"reference": "00" * 32},
        {"sender": "site-02"},
        {"recipient": "site-03"},
        {"counts": (2, 3, 9)},
    ],
)
def test_a_blob_of_another_place_is_refused_by_the_field_that_differs(change: dict[str, object]) -> None:
    other = write_blob(replace(HEADER, **change), BODY, KEY)  # type: ignore[arg-type]
    with pytest.raises(PeerError, match=f"the {next(iter(change))} in a"):
        read(other)


def test_another_signer_is_refused() -> None:
    other = write_blob(HEADER, BODY, Ed25519PrivateKey.generate())
    with pytest.raises(PeerError, match="not signed by the pinned key"):
        read(other)


def test_a_signature_does_not_carry_over_to_another_kind() -> None:
    sums = replace(HEADER, kind=Kind.KEY_SUM, sender="")
    assert len(write_blob(sums, BODY, None)) + 64 + len("site-01") == len(BLOB)
    with pytest.raises(ValueError, match="only sums are unsigned"):
        write_blob(HEADER, BODY, None)
    with pytest.raises(ValueError, match="only sums are unsigned"):
        write_blob(sums, BODY, KEY)
    with pytest.raises(ValueError, match="needs its signer"):
        read_blob(BLOB, HEADER, len(BODY), None, "site-01")


@given(st.binary(max_size=300))
@settings(max_examples=400, deadline=None)
def test_random_bytes_are_refused_with_a_named_error(data: bytes) -> None:
    with pytest.raises(PeerError, match="site-01"):
        read(data)


@given(st.integers(0, len(BLOB)), st.binary(max_size=20), st.integers(0, 40))
@settings(max_examples=600, deadline=None)
def test_spliced_blobs_are_refused(place: int, insert: bytes, cut: int) -> None:
    data = BLOB[:place] + insert + BLOB[place + cut :]
    if data == BLOB:
        assert read(data) == BODY
        return
    with pytest.raises(PeerError, match="site-01"):
        read(data)


def test_a_count_that_claims_more_than_there_is_sizes_nothing() -> None:
    head = HEADER.encode()
    claimed = head[:-24] + struct.pack("<3Q", 2**63, 2**63, 2**63)
    with pytest.raises(PeerError, match="counts"):
        read(claimed + BLOB[len(head) :])


def test_names_that_are_not_names_are_refused() -> None:
    for name in ("Site", "../etc", "a b", "-x"):
        bad = write_blob(replace(HEADER, sender=name), BODY, KEY)
        with pytest.raises(PeerError, match="name in the header is malformed"):
            read(bad)


@given(st.integers(32, 64), st.lists(st.integers(0, 2**64 - 1), max_size=50))
@settings(max_examples=200, deadline=None)
def test_residues_pack_as_little_endian_bytes(bits: int, values: list[int]) -> None:
    modulus = (1 << bits) - 1
    residues = [v % modulus for v in values]
    width = residue_width(modulus)
    packed = pack_residues(np.array(residues, dtype=np.uint64), width)
    assert packed == b"".join(v.to_bytes(width, "little") for v in residues)
    assert unpack_residues(packed, modulus, "site-01").tolist() == residues


def test_a_residue_that_is_not_below_its_prime_is_refused() -> None:
    prime = 2**46 - 1
    assert unpack_residues((prime - 1).to_bytes(6, "little"), prime, "site-01").tolist() == [prime - 1]
    with pytest.raises(PeerError, match="not below its modulus"):
        unpack_residues(prime.to_bytes(6, "little"), prime, "site-01")
