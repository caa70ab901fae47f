"""The sampler has exactly the stated distribution, wherever its fast path hands over to exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.privacy import sampler
from tasks.privacy.noise import AesCtrStream
from tasks.privacy.sampler import sample_discrete_gaussian


class Bytes:
    """A stream that replays given bytes, then zeros."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def random_bytes(self, n: int) -> bytes:
        head, self.data = self.data[:n], self.data[n:]
        return head.ljust(n, b"\0")


def stream(label: str) -> AesCtrStream:
    return AesCtrStream(label.encode().ljust(32, b"."))


def chi_square(samples: np.ndarray, sigma: float) -> tuple[float, int]:
    """Chi-square statistic against the exact probabilities, cells of at least 20 expected, tails joined."""
    reach = math.ceil(12 * sigma) + 2
    values = np.arange(-reach, reach + 1)
    weights = np.exp(-(values.astype(float) ** 2) / (2 * sigma * sigma))
    expected = samples.size * weights / weights.sum()
    observed = np.bincount((samples + reach).clip(0, 2 * reach), minlength=2 * reach + 1).astype(float)
    order = np.argsort(-expected)
    large = order[expected[order] >= 20]
    small = order[expected[order] < 20]
    e = np.append(expected[large], expected[small].sum())
    o = np.append(observed[large], observed[small].sum())
    keep = e > 1
    return float(((o - e)[keep] ** 2 / e[keep]).sum()), int(keep.sum()) - 1


@pytest.mark.parametrize("sigma", [Fraction(1, 2), Fraction(1), Fraction(3, 2), Fraction(14, 5), Fraction("20.000001")])
@pytest.mark.parametrize(("margin", "size"), [(sampler.MARGIN, 400_000), (0.25, 8_000)])
def test_samples_follow_the_discrete_gaussian_on_the_fast_and_on_the_exact_path(
    sigma: Fraction, margin: float, size: int
) -> None:
    samples = sample_discrete_gaussian(stream(f"chi {sigma}"), sigma, size, margin)
    statistic, freedom = chi_square(samples, float(sigma))
    # Mean f, variance 2 f: 6 standard deviations is far out for a fixed key.
    assert statistic < freedom + 6 * math.sqrt(2 * freedom) + 6


@pytest.mark.parametrize("sigma", [Fraction("203900.180053"), Fraction(2**34)])
def test_large_noise_has_the_stated_moments_and_uniform_low_bits(sigma: Fraction) -> None:
    n = 400_000
    samples = sample_discrete_gaussian(stream(f"large {sigma}"), sigma, n)
    z = samples / float(sigma)
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs((z**2).mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / n)
    assert abs((z[:-1] * z[1:]).mean()) < 5 / math.sqrt(n)
    for bit in range(8):
        assert abs(((samples >> bit) & 1).mean() - 0.5) < 5 * 0.5 / math.sqrt(n)


def test_fast_and_exact_path_accept_the_same_proposals() -> None:
    """With the zone of exact decisions at nothing and at 2**-12, the same bits give the same samples: the exact path
    draws further bytes only after the batch, so the two runs see the same first batch."""
    sigma, size = Fraction("123.456"), 20_000
    fast = sample_discrete_gaussian(stream("same"), sigma, size, 0.0)
    exact = sample_discrete_gaussian(stream("same"), sigma, size, 2.0**-12)
    first = 15_000
    assert np.array_equal(fast[:first], exact[:first])


@given(st.fractions(min_value=0, max_value=60), st.integers(20, 300))
@settings(max_examples=60, deadline=None)
def test_certified_bounds_enclose_the_exponential(gamma: Fraction, bits: int) -> None:
    low, high = sampler._exp_bounds(gamma, bits)
    assert 0 <= low <= high <= low + 2
    fine_low, fine_high = sampler._exp_bounds(gamma, bits + 64)
    assert low <= fine_low >> 64
    assert fine_high >> 64 <= high


def test_an_undecided_first_word_is_decided_by_further_bits() -> None:
    table = sampler._k_table()
    threshold = int(table[0])
    low, _ = sampler._cumulative_bounds(0, 128)
    next_word = low & (2**64 - 1)
    below, above = (next_word - 5).to_bytes(8, "little"), (next_word + 5).to_bytes(8, "little")
    words = np.array([threshold], dtype=np.uint64)
    assert sampler._draw_k(Bytes(below), words)[0] == 0
    assert sampler._draw_k(Bytes(above), words)[0] == 1
    assert sampler._draw_k(Bytes(b""), np.array([threshold - 1, threshold + 1], dtype=np.uint64)).tolist() == [0, 1]
    rare = sampler._draw_k(Bytes(b"\xff" * 7), np.array([2**64 - 1], dtype=np.uint64))[0]
    assert rare > len(table) - 2


def test_bounded_integers_are_unbiased() -> None:
    bound = 3 * 2**60
    limit = (1 << 63) // bound * bound
    words = np.array([0, bound - 1, bound, limit - 1, limit, 2**63 - 1], dtype=np.uint64)
    values, usable = sampler._uniform_below(words, bound)
    assert usable.tolist() == [int(w) < limit for w in words]
    assert values[:3].tolist() == [0, bound - 1, 0]


def test_the_stream_alone_determines_the_samples() -> None:
    first = sample_discrete_gaussian(stream("repeat"), Fraction(5), 1000)
    again = sample_discrete_gaussian(stream("repeat"), Fraction(5), 1000)
    other = sample_discrete_gaussian(stream("another"), Fraction(5), 1000)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert sample_discrete_gaussian(stream("repeat"), Fraction(5), 0).shape == (0,)


@pytest.mark.parametrize("sigma", [Fraction(0), Fraction(-1), Fraction(2**40 + 1), Fraction(1, 2**57)])
def test_a_sigma_outside_the_exact_range_is_refused(sigma: Fraction) -> None:
    with pytest.raises(ValueError, match="outside the range"):
        sample_discrete_gaussian(stream("range"), sigma, 1)
