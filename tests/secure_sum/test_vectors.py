"""Frozen vectors: the slow reference, the implementation and the file must agree on every byte that is signed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tasks.secure_sum import ckks, transcript
from tasks.secure_sum.bulk import encrypt_bulk
from tasks.secure_sum.modular import minimal_root, prime_field
from tasks.secure_sum.opening import share_header
from tasks.secure_sum.parameters import DATA_PRIMES, SPECIAL_PRIME
from tasks.secure_sum.partial import ShareKeys, derive_partial
from tasks.secure_sum.sampling import derived_stream, insecure_stream, sample_binomial
from tasks.secure_sum.shamir import generate_shares
from tasks.secure_sum.share import share_label
from tests.secure_sum import oracle
from tests.secure_sum.world import make_context, shared_ceremony

FROZEN: dict[str, Any] = json.loads((Path(__file__).parent / "vectors.json").read_text())


@pytest.fixture(scope="module")
def context() -> Any:
    built = make_context(shared_ceremony(5), len(oracle.VALUES), round=3, attempt=2)
    object.__setattr__(built, "instruction", built.instruction.model_copy(update={"sid_star": oracle.SID_STAR}))
    object.__setattr__(built, "instruction_digest", oracle.INSTRUCTION)
    return built


def test_the_reference_still_computes_the_frozen_vectors() -> None:
    assert oracle.compute() == FROZEN


def test_moduli_and_roots(context: Any) -> None:
    assert context.parameters.bulk_modulus == FROZEN["bulk_modulus"]
    assert [*DATA_PRIMES] == FROZEN["data_primes"]
    assert FROZEN["special_prime"] == SPECIAL_PRIME
    assert minimal_root(FROZEN["bulk_modulus"], 4096) == FROZEN["psi_bulk"]
    assert [minimal_root(p, 16384) for p in DATA_PRIMES] == FROZEN["psi_data"]


def test_streams_and_samplers(context: Any) -> None:
    assert derived_stream("a label", b"bytes", 7, "text").read(32).hex() == FROZEN["stream"]
    assert sample_binomial(insecure_stream(13), 16).tolist() == FROZEN["binomials"]
    common = ckks.expand_common(context.parameters, "aa" * 32, "bb" * 32)
    assert common[:, :3].tolist() == FROZEN["common_polynomial"]


def test_commitments() -> None:
    assert transcript.commit_nonce("aa" * 32, "site-00", "bb" * 32) == FROZEN["nonce_commitment"]
    assert transcript.commit_key("aa" * 32, "site-00", "bb" * 32, "cc" * 32) == FROZEN["key_commitment"]


def test_shamir_shares() -> None:
    field = prime_field(FROZEN["bulk_modulus"])
    secret = np.array([5, -7, 0, 42], dtype=np.int64)
    shares = generate_shares(field, secret, 3, 5, insecure_stream(12))
    assert [share.tolist() for share in shares] == FROZEN["shamir_shares"]


def test_a_bulk_blob_byte_for_byte(context: Any, tmp_path: Path) -> None:
    stream = insecure_stream(11)
    key = sample_binomial(stream, 2048) + sample_binomial(stream, 2048)
    signing = Ed25519PrivateKey.from_private_bytes(oracle.SIGNING_SEED)
    values = np.array(oracle.VALUES, dtype=np.int64)
    root = encrypt_bulk(context, "site-00", key, values, signing, tmp_path / "bulk", stream)
    blob = (tmp_path / "bulk").read_bytes()
    assert blob.hex() == FROZEN["bulk_blob"]
    assert blob[-96:-64].hex() == root


def test_a_decryption_share_with_masks_and_smudging(context: Any) -> None:
    material = oracle.share_keys()
    keys = ShareKeys(
        sigma=np.array(material["sigma"], dtype=np.uint64),
        sent=material["sent"],
        received=material["received"],
        noise=material["noise"],
    )
    p = context.parameters
    assert p.smudging_bits == oracle.SMUDGING_BITS
    active = {"site-00": 1, "site-01": 2, "site-02": 3}
    c1 = np.array(material["c1"], dtype=np.uint64)
    label = share_label(context, oracle.RECORD)
    part = derive_partial(p, keys, "site-00", active, c1, label, lambda x: ckks.inverse(p, x))
    assert part[:, FROZEN["partial_places"]].tolist() == FROZEN["partial"]
    assert share_header(context, oracle.RECORD, sorted(active), "site-00").encode().hex() == FROZEN["share_header"]
