"""Modular arithmetic, transforms and sharing against plain Python integers and against SEAL."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.secure_sum.modular import ceil_sqrt, is_prime, largest_primes, minimal_root, prime_field
from tasks.secure_sum.ntt import Ntt, ntt_of
from tasks.secure_sum.parameters import DATA_PRIMES, RING_DEGREE, SPECIAL_PRIME
from tasks.secure_sum.sampling import insecure_stream, sample_uniform
from tasks.secure_sum.shamir import combine_shares, generate_shares, lagrange_at_zero

PRIME_BITS = range(30, 57)


def primes_of_every_size() -> list[int]:
    return [largest_primes(bits, 32, 1)[0] for bits in PRIME_BITS]


@given(st.sampled_from(primes_of_every_size()), st.integers(0, 2**62 - 1), st.integers(0, 2**62 - 1))
@settings(max_examples=400, deadline=None)
def test_products_and_reductions_are_those_of_python_integers(prime: int, a: int, b: int) -> None:
    field = prime_field(prime)
    left, right = (np.array([v % prime - prime // 2], dtype=np.int64) for v in (a, b))
    assert int(field.canonical(field.mul(left, right))[0]) == int(left[0]) * int(right[0]) % prime
    assert int(field.canonical(np.array([a, -b], dtype=np.int64))[0]) == a % prime
    assert int(field.canonical(np.array([a, -b], dtype=np.int64))[1]) == -b % prime


@pytest.mark.parametrize("prime", primes_of_every_size())
def test_products_of_the_largest_residues_are_exact(prime: int) -> None:
    field = prime_field(prime)
    edge = np.array([prime - 1, prime, -prime, prime // 2, -(prime // 2), 1, 0, -1], dtype=np.int64)
    for value in edge.tolist():
        product = field.mul(edge, np.full_like(edge, value))
        assert int(np.abs(product).max()) <= prime
        assert field.canonical(product).tolist() == [int(e) * value % prime for e in edge.tolist()]


def test_a_composite_or_oversized_modulus_is_refused() -> None:
    for modulus in (2**46 - 1, 2**57 + 29, 3):
        with pytest.raises(ValueError, match="prime"):
            prime_field(modulus)


def test_primality_agrees_with_trial_division() -> None:
    def slow(n: int) -> bool:
        return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))

    assert [n for n in range(3000) if is_prime(n)] == [n for n in range(3000) if slow(n)]


def test_data_primes_are_the_ones_that_seal_chooses() -> None:
    import tenseal.sealapi as seal

    chosen = [m.value() for m in seal.CoeffModulus.Create(RING_DEGREE, [56, 56, 56, 32])]
    assert chosen == [*DATA_PRIMES, SPECIAL_PRIME]


@given(st.integers(0, 2**80), st.integers(1, 1000))
def test_ceil_sqrt_is_the_smallest_integer_above(n: int, d: int) -> None:
    root = ceil_sqrt(n, d)
    assert root * root * d >= n
    assert root == 0 or (root - 1) ** 2 < -(-n // d)


@pytest.mark.parametrize("bits", [30, 46, 48, 50, 51, 52, 56])
def test_transform_is_evaluation_at_odd_powers_and_inverts(bits: int) -> None:
    degree = 64
    prime = largest_primes(bits, 2 * degree, 1)[0]
    ntt = ntt_of(degree, prime)
    rows = sample_uniform(insecure_stream(bits), prime, 5 * degree).view(np.int64).reshape(5, degree)
    rows[0], rows[1] = prime - 1, 0
    out = ntt.forward(rows)
    psi, levels = minimal_root(prime, 2 * degree), degree.bit_length() - 1
    for i in range(degree):
        point = pow(psi, 2 * int(format(i, f"0{levels}b")[::-1], 2) + 1, prime)
        for row, transformed in zip(rows.tolist(), out.tolist(), strict=True):
            assert transformed[i] == sum(c * pow(point, k, prime) for k, c in enumerate(row)) % prime
    assert (ntt.inverse(out) == rows).all()
    assert (ntt.inverse_natural(ntt.to_natural(out)) == rows).all()


@pytest.mark.parametrize(("degree", "bits"), [(2048, 46), (2048, 52), (8192, 56)])
def test_pointwise_products_are_negacyclic_products(degree: int, bits: int) -> None:
    prime = largest_primes(bits, 2 * degree, 1)[0]
    ntt, field = ntt_of(degree, prime), prime_field(prime)
    a = sample_uniform(insecure_stream(1), prime, degree).view(np.int64)
    shift = np.zeros(degree, dtype=np.int64)
    shift[3], shift[degree - 1] = 5, 7  # 5 X^3 + 7 X^(N-1)
    left, right = (field.reduce(ntt.forward(v)) for v in (a, shift))
    got = ntt.inverse(field.canonical(field.mul(left, right)).view(np.int64)).tolist()
    for k in (0, 1, 2, 3, 4, degree - 2, degree - 1):
        third = a[k - 3] if k >= 3 else -a[k - 3 + degree]
        last = a[0] if k == degree - 1 else -a[k + 1]
        assert got[k] == (5 * int(third) + 7 * int(last)) % prime


def test_numpy_transform_is_seals_transform_bit_for_bit() -> None:
    from tasks.secure_sum import ckks
    from tests.secure_sum.world import shared_ceremony, shared_public

    ceremony = shared_ceremony(5)
    from tasks.secure_sum.ckks_seal import seal_half
    from tasks.secure_sum.parameters import derive_parameters

    p = derive_parameters(ceremony.plan)
    half = seal_half(p, shared_public(ceremony))
    stream = insecure_stream(3)
    rows = np.stack([sample_uniform(stream, prime, p.ring_degree) for prime in p.data_primes])
    assert (half.inverse(rows) == ckks.inverse(p, rows)).all()


def test_a_wrong_ring_is_refused() -> None:
    with pytest.raises(ValueError, match="power of two"):
        Ntt(100, DATA_PRIMES[0])
    with pytest.raises(ValueError, match="mod 2N"):
        Ntt(1 << 20, DATA_PRIMES[0])


@pytest.mark.parametrize(("threshold", "holders"), [(2, 3), (3, 5), (9, 16)])
def test_any_t_subset_reconstructs_the_same_secret(threshold: int, holders: int) -> None:
    field = prime_field(DATA_PRIMES[0])
    secret = field.balanced(sample_uniform(insecure_stream(5), field.prime, 40))
    shares = dict(enumerate(generate_shares(field, secret, threshold, holders, insecure_stream(6)), 1))
    for points in list(combinations(shares, threshold))[:60]:
        assert (combine_shares(field, {p: shares[p] for p in points}) == field.reduce(secret)).all()


def test_t_minus_1_shares_fit_every_secret() -> None:
    field = prime_field(largest_primes(46, 4096, 1)[0])
    secret = np.array([17, -4, 0], dtype=np.int64)
    shares = dict(enumerate(generate_shares(field, secret, 3, 5, insecure_stream(7)), 1))
    other = np.array([99, 99, 99], dtype=np.int64)
    # Points 0, 1, 2 of another polynomial of degree 2: same shares 1 and 2, another secret.
    assert (combine_shares(field, {1: shares[1], 2: shares[2]}) != secret).all()
    weights = lagrange_at_zero(field.prime, [1, 2, 3])
    third = [
        (int(o) - weights[1] * int(a) - weights[2] * int(b)) * pow(weights[3], -1, field.prime) % field.prime
        for o, a, b in zip(other, shares[1], shares[2], strict=True)
    ]
    forged = {1: shares[1], 2: shares[2], 3: np.array(third, dtype=np.int64)}
    assert (combine_shares(field, forged) == other).all()


def test_repeated_or_zero_points_are_refused() -> None:
    for points in ([1, 1], [0, 1]):
        with pytest.raises(ValueError, match="distinct"):
            lagrange_at_zero(97, points)
