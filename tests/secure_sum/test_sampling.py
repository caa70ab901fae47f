"""Distributions of keys, errors, smudging and public residues, and where their randomness comes from."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from tasks.secure_sum import ceremony, contribute
from tasks.secure_sum.modular import largest_primes, prime_field
from tasks.secure_sum.sampling import (
    derived_stream,
    insecure_stream,
    os_stream,
    reduce_box,
    sample_binomial,
    sample_box,
    sample_ternary,
    sample_uniform,
)


def test_binomials_have_variance_21_and_are_at_most_42() -> None:
    values = sample_binomial(insecure_stream(1), 400_000)
    assert int(np.abs(values).max()) <= 42
    assert abs(float(values.mean())) < 5 * (21 / 400_000) ** 0.5
    assert abs(float(values.var()) - 21) < 0.3


def test_binomial_reaches_its_ends_and_counts_42_bits_on_each_side() -> None:
    class Fixed:
        def __init__(self, raw: bytes) -> None:
            self._raw = raw

        def read(self, size: int) -> bytes:
            assert size == len(self._raw)
            return self._raw

    ones, low42 = (2**64 - 1).to_bytes(8, "little"), (2**42 - 1).to_bytes(8, "little")
    assert sample_binomial(Fixed(low42 + bytes(4)), 1)[0] == 42  # type: ignore[arg-type]
    assert sample_binomial(Fixed((2**64 - 2**42).to_bytes(8, "little") + b"\xff\xff\x0f\x00"), 1)[0] == -42  # type: ignore[arg-type]
    assert sample_binomial(Fixed(ones + b"\xff" * 4), 1)[0] == 0  # type: ignore[arg-type]


def test_an_opened_pair_leaves_a_key_with_deviation_3_24() -> None:
    one, two = (sample_binomial(insecure_stream(k), 300_000) for k in (2, 3))
    left = one - (one + two) / 2
    assert abs(float(left.std()) - 3.24) < 0.02


def test_ternary_is_uniform() -> None:
    values = sample_ternary(insecure_stream(4), 300_000)
    counts = np.bincount(values + 1, minlength=3)
    assert int(np.abs(counts - 100_000).max()) < 1500


@pytest.mark.parametrize("bits", [46, 47, 56])
def test_uniform_residues_fill_the_range_and_are_the_first_words_below_the_prime(bits: int) -> None:
    prime = largest_primes(bits, 4096, 1)[0]
    values = sample_uniform(derived_stream("x", 1), prime, 100_000)
    assert int(values.max()) < prime
    assert abs(float(values.mean()) / prime - 0.5) < 0.01
    words = derived_stream("x", 1).words(100_001).tolist()
    masked = [w & ((1 << bits) - 1) for w in words]
    assert values.tolist() == [w for w in masked if w < prime][:100_000]


def test_words_that_are_not_below_the_prime_are_skipped_in_order() -> None:
    prime = 2**20 + 7  # just above a power of two: every second 21-bit word is rejected
    values = sample_uniform(derived_stream("reject", 2), prime, 1000)
    words = [w & (2**21 - 1) for w in derived_stream("reject", 2).words(4000).tolist()]
    assert values.tolist() == [w for w in words if w < prime][:1000]


@pytest.mark.parametrize("bits", [5, 48, 49, 96, 156])
def test_smudging_is_uniform_in_its_lowest_and_highest_bits(bits: int) -> None:
    limbs = sample_box(insecure_stream(bits), bits, 50_000)
    whole = [sum(int(v) << (48 * k) for k, v in enumerate(column)) for column in limbs[:, :50_000].T.tolist()]
    assert max(whole) < 1 << bits
    for bit in {0, 1, bits // 2, bits - 1}:
        ones = sum(v >> bit & 1 for v in whole)
        assert abs(ones - 25_000) < 600


def test_boxes_are_reduced_exactly() -> None:
    limbs = sample_box(insecure_stream(9), 156, 500)
    for prime in largest_primes(56, 16384, 3):
        field = prime_field(prime)
        got = field.canonical(reduce_box(limbs, -(1 << 155), field)).tolist()
        whole = [sum(int(v) << (48 * k) for k, v in enumerate(column)) for column in limbs.T.tolist()]
        assert got == [(v - (1 << 155)) % prime for v in whole]


def test_labels_and_parts_separate_streams() -> None:
    seen = {
        derived_stream("a", 1).read(16),
        derived_stream("b", 1).read(16),
        derived_stream("a", 2).read(16),
        derived_stream("a", b"", 1).read(16),
        derived_stream("a", 1, b"").read(16),
    }
    assert len(seen) == 5


def test_secrets_come_from_the_operating_system_only() -> None:
    assert os_stream().read(32) != os_stream().read(32)
    for module in (ceremony, contribute):
        source = inspect.getsource(module)
        assert "np.random" not in source
        assert "import random" not in source
    assert inspect.signature(contribute.contribute).parameters["insecure_randomness"].default is None
