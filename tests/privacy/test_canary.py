"""The canary audit: what an attacker measures stays below the claim, and rises above it for each seeded bug.

Thousands of tiny studies with and without one canary patient run through the real encoding and the real noise. The
attacker knows everything but the noise: it projects each round's opened sum on the canary's gradient, whose sign
alternates so that reused noise would cancel. A lower bound on mu (Gaussian differential privacy) follows from
error rates with Clopper-Pearson intervals at 95 %, threshold chosen on one half, rates measured on the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import beta

from tasks.privacy.accounting import calibrate_noise_multiplier, gdp_cost, gdp_limit
from tasks.privacy.mechanism import GaussianMechanism
from tasks.privacy.noise import AesCtrStream, NoiseStream
from tasks.training.encode import encode_gradients
from tests.privacy.plans import make_mechanism

STUDIES, ROUNDS, WIDTH, EPSILON = 2000, 4, 6, "3"
Sums = NDArray[np.int64]
Noise = Callable[[GaussianMechanism, Sums, NoiseStream, int], Sums]
Encoding = Callable[[GaussianMechanism, NDArray[np.float64]], Sums]


def real_noise(mechanism: GaussianMechanism, sums: Sums, stream: NoiseStream, round_: int) -> Sums:
    for _ in range(mechanism.honest):
        sums = mechanism.add_noise(sums, stream)
    return sums


def half_the_noise(mechanism: GaussianMechanism, sums: Sums, stream: NoiseStream, round_: int) -> Sums:
    return sums + (real_noise(mechanism, np.zeros_like(sums), stream, round_) // 2)


def one_tensor_without_noise(mechanism: GaussianMechanism, sums: Sums, stream: NoiseStream, round_: int) -> Sums:
    noisy = real_noise(mechanism, sums, stream, round_).reshape(-1, WIDTH)
    noisy[:, 0] = sums.reshape(-1, WIDTH)[:, 0]
    return noisy.ravel()


def the_same_noise_every_round(mechanism: GaussianMechanism, sums: Sums, stream: NoiseStream, round_: int) -> Sums:
    return real_noise(mechanism, sums, AesCtrStream(b"noise of the first round, again."), 0)


def real_encoding(mechanism: GaussianMechanism, patients: NDArray[np.float64]) -> Sums:
    return encode_gradients(patients, float(mechanism.clip), mechanism.scale_bits, mechanism.sensitivity)


def no_clipping(mechanism: GaussianMechanism, patients: NDArray[np.float64]) -> Sums:
    return np.rint(patients / float(mechanism.clip) * mechanism.sensitivity).astype(np.int64)


def attack(present: bool, gradient: float, noise: Noise, encoding: Encoding, label: str) -> NDArray[np.float64]:
    """The attacker's score of every study, float64 (STUDIES,)."""
    mechanism = make_mechanism(
        noise_multiplier=calibrate_noise_multiplier(EPSILON, "1e-5", ROUNDS), dimension=STUDIES * WIDTH
    )
    stream = AesCtrStream(label.encode().ljust(32, b"."))
    others = np.linspace(-2, 2, 5 * WIDTH).reshape(5, WIDTH)
    score = np.zeros(STUDIES)
    for round_ in range(ROUNDS):
        sign = 1.0 if round_ % 2 == 0 else -1.0
        canary = np.zeros((1, WIDTH))
        canary[0, 0] = sign * gradient
        patients = np.vstack([others, canary]) if present else others
        sums = np.tile(encoding(mechanism, patients).sum(axis=0), STUDIES)
        opened = noise(mechanism, sums, stream, round_).reshape(STUDIES, WIDTH)
        score += sign * opened[:, 0]
    return score


def lower_bound(without: NDArray[np.float64], canary: NDArray[np.float64]) -> float:
    """A 95 % lower bound on mu from the scores without and with the canary."""
    half = STUDIES // 2
    thresholds = np.quantile(np.concatenate([without[:half], canary[:half]]), np.linspace(0.05, 0.95, 19))

    def bound(a: NDArray[np.float64], b: NDArray[np.float64], threshold: float) -> float:
        upper = [
            float(beta.ppf(0.975, errors + 1, half - errors)) if errors < half else 1.0
            for errors in (int((a > threshold).sum()), int((b <= threshold).sum()))
        ]
        normal = NormalDist()
        return -sum(normal.inv_cdf(min(max(u, 1e-12), 1 - 1e-12)) for u in upper)

    best = max(thresholds, key=lambda t: bound(without[:half], canary[:half], float(t)))
    return bound(without[half:], canary[half:], float(best))


def audit(noise: Noise = real_noise, encoding: Encoding = real_encoding, gradient: float = 1.0) -> float:
    without, canary = (attack(there, gradient, noise, encoding, f"canary {there}") for there in (False, True))
    return lower_bound(without, canary)


CLAIM = math.sqrt(gdp_limit(EPSILON, "1e-5"))


def test_the_real_mechanism_stays_below_its_claim_and_the_attack_is_not_blind() -> None:
    event = make_mechanism(noise_multiplier=calibrate_noise_multiplier(EPSILON, "1e-5", ROUNDS)).event()
    assert math.sqrt(ROUNDS * gdp_cost(event)) == pytest.approx(CLAIM, rel=1e-4)
    assert 0.6 * CLAIM < audit() <= CLAIM


def test_a_patient_with_a_huge_gradient_gains_nothing() -> None:
    assert audit(gradient=1000.0) <= CLAIM


@pytest.mark.parametrize("bug", [half_the_noise, one_tensor_without_noise, the_same_noise_every_round])
def test_a_seeded_noise_bug_is_caught(bug: Noise) -> None:
    assert audit(bug) > CLAIM


def test_clipping_left_out_is_caught() -> None:
    assert audit(encoding=no_clipping, gradient=3.0) > CLAIM
