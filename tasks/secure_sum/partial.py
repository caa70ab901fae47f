"""One holder's part in opening a ciphertext under the collective key, and the combination of all parts of one set.

Invariant: the parts of an active set S carry masks that cancel over S and over nothing smaller, so a part is uniform
until all of S answered; everything added is a PRF of a label that names the ciphertext and S, so a part computed
again is the same part. Parts without masks would leak the key as soon as two active sets answer (ePrint 2025/409).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from tasks.secure_sum import ckks
from tasks.secure_sum.modular import Int64, UInt64, prime_field
from tasks.secure_sum.parameters import SumParameters
from tasks.secure_sum.sampling import derived_stream, reduce_box, sample_box, sample_uniform
from tasks.secure_sum.shamir import lagrange_at_zero


@dataclass(frozen=True)
class ShareKeys:
    """What one holder keeps of a ceremony to make parts.

    Attributes:
        sigma: (3, N) residues of its share of the collective secret key, in SEAL's transformed order.
        sent: Mask key that it sent to each other holder.
        received: Mask key that each other holder sent to it.
        noise: Its own smudging key.
    """

    sigma: UInt64 = field(repr=False)
    sent: Mapping[str, bytes] = field(repr=False)
    received: Mapping[str, bytes] = field(repr=False)
    noise: bytes = field(repr=False)


def derive_partial(
    parameters: SumParameters,
    keys: ShareKeys,
    name: str,
    active: Mapping[str, int],
    ciphertext: UInt64,
    label: bytes,
    inverse: Callable[[UInt64], UInt64],
) -> UInt64:
    """Derives h = lambda * sigma * c_1 + r + e for one active set: (3, 2048) residues of its first coefficients.

    Args:
        parameters: Of the plan.
        keys: The holder's.
        name: The holder.
        active: Point of every member of the active set, the holder included.
        ciphertext: c_1, transformed, (3, N).
        label: Injective encoding of everything that fixes ciphertext and set; never used for another ciphertext.
        inverse: Inverse transform; what it sees is masked already.
    """
    primes = parameters.data_primes
    masked = np.empty_like(ciphertext)
    for index, prime in enumerate(primes):
        ring = prime_field(prime)
        weight = lagrange_at_zero(prime, sorted(active.values()))[active[name]]
        product = ring.mul(ring.balanced(keys.sigma[index]), ring.balanced(ciphertext[index]))
        total = ring.reduce(ring.scale(product, weight) + _mask(parameters, keys, name, active, label, index))
        masked[index] = ring.canonical(total)
    coefficients = inverse(masked)[:, : parameters.bulk_degree]
    smudging = derive_smudging(parameters, keys.noise, active, label)
    return ckks.add(parameters, coefficients, smudging)


def derive_smudging(parameters: SumParameters, noise: bytes, active: Iterable[str], label: bytes) -> UInt64:
    """Derives e, uniform in [-2**b, 2**b), from the holder's noise key: (3, 2048) residues.

    A power-of-two box: Gaussians computed in float64 have zero low bits and would show the noise underneath.
    """
    stream = derived_stream("smudging", noise, label, *sorted(active))
    limbs = sample_box(stream, parameters.smudging_bits + 1, parameters.bulk_degree)
    rows = []
    for prime in parameters.data_primes:
        ring = prime_field(prime)
        rows.append(ring.canonical(reduce_box(limbs, -(1 << parameters.smudging_bits), ring)))
    return np.stack(rows)


def combine_partials(parameters: SumParameters, body: UInt64, partials: Iterable[UInt64]) -> Int64 | None:
    """Opens c_0 with the parts of one complete active set: the 2048 integers, or None if they do not round.

    Args:
        parameters: Of the plan.
        body: c_0, transformed, (3, N).
        partials: Parts of every member of the set.
    """
    total = ckks.inverse(parameters, body)[:, : parameters.bulk_degree]
    for partial in partials:
        total = ckks.add(parameters, total, partial)
    return ckks.round_key(parameters, ckks.lift(parameters, total))


def _mask(
    parameters: SumParameters, keys: ShareKeys, name: str, active: Mapping[str, int], label: bytes, index: int
) -> Int64:
    ring = prime_field(parameters.data_primes[index])
    total = np.zeros(parameters.ring_degree, dtype=np.int64)
    members = sorted(active)
    for other in members:
        if other == name:
            continue
        for key, sign in ((keys.sent[other], 1), (keys.received[other], -1)):
            stream = derived_stream("mask", key, label, index, *members)
            drawn = ring.balanced(sample_uniform(stream, ring.prime, parameters.ring_degree))
            total = ring.reduce(total + sign * drawn)
    return total
