"""All numbers of the secure sum, derived from the plan with integers; a plan that does not fit is refused.

Formulas: secure-sum notes section 4, repeated in docs/secure-sum.md with the figures of the default plan.
"""

from __future__ import annotations

from decimal import Decimal as Dec
from fractions import Fraction
from functools import lru_cache

from pydantic import Field as Bounded

from schemas.canonical import Digest, Strict, derive_digest
from schemas.errors import PlanError
from schemas.plan import Agreement, StudyPlan
from schemas.statistics import StatisticsPlan
from tasks.secure_sum.modular import ceil_sqrt, largest_primes

KEY_BOUND = 42  # largest coefficient of one key half: popcount of 42 bits
VARIANCE = 21  # of a centred binomial of 42 + 42 bits
# 9.5 standard deviations: 2**-68 per coefficient, negligible over 1e8 coefficients.
TAIL_NUMERATOR, TAIL_DENOMINATOR = 19, 2
BULK_DEGREE = 2048
BULK_BITS = range(46, 53)
RING_DEGREE = 8192
DATA_BITS, SPECIAL_BITS = 56, 32
DATA_PRIMES = largest_primes(DATA_BITS, 2 * RING_DEGREE, 3)
SPECIAL_PRIME = largest_primes(SPECIAL_BITS, 2 * RING_DEGREE, 1)[0]
# Limits of log2 QP at N = 8192 and 128 bits (ePrint 2024/463), quantum; SEAL's own check would still accept 218.
SECURITY_LIMIT_BITS = 203
MAX_SETS = 16
MIN_STATISTICAL_BITS = 80
# A cohort may outgrow its declared size by this factor before an honest sum could wrap.
COHORT_MARGIN = 2


class SumParameters(Strict):
    """Parameters of the bulk cipher (b), of the threshold CKKS half (k) and what they were derived from.

    Attributes:
        key_holders, contributors, threshold: n_k, n_c, t.
        sum_bound: Largest size of a coefficient of an honest sum, noise tail included.
        bulk_degree, bulk_modulus, bulk_delta: N, q and the plaintext scale of the bulk cipher.
        ring_degree, data_primes, special_prime: SEAL's ring and moduli; ciphertexts are modulo the data primes.
        key_delta: Plaintext scale of the key ciphertext, a power of two.
        ciphertext_bound: B_ct, tail bound of the noise in a sum of key ciphertexts.
        smudging_bits: b; smudging is uniform in [-2**b, 2**b).
        statistical_bits: What smudging hides over one epoch, in bits.
        rounds_per_epoch: Rounds for which one ceremony serves.
        self_tests: Self-test ciphertexts of one ceremony.
    """

    format: str = "consilium/secure-sum/1"
    key_holders: int = Bounded(ge=2)
    contributors: int = Bounded(ge=2)
    threshold: int = Bounded(ge=2)
    sum_bound: int
    bulk_degree: int
    bulk_modulus: int
    bulk_delta: int
    ring_degree: int
    data_primes: tuple[int, ...]
    special_prime: int
    key_delta: int
    ciphertext_bound: int
    smudging_bits: int
    statistical_bits: int
    rounds_per_epoch: int
    self_tests: int

    @property
    def data_modulus(self) -> int:
        """Q, the product of the data primes."""
        product = 1
        for prime in self.data_primes:
            product *= prime
        return product

    def residual_bound(self, contributors: int) -> int:
        """Returns the tail bound of the bulk error of a sum of `contributors`."""
        return _tail(VARIANCE * contributors)

    def chunks(self, length: int) -> int:
        """Returns the number of bulk chunks of `length` coefficients."""
        return -(-length // self.bulk_degree)


def derive_parameters(plan: Agreement) -> SumParameters:
    """Derives the parameters of `plan`.

    Raises:
        PlanError: `sum-parameters`, naming the rule and the nearest figure that holds.
    """
    holders, contributors = len(plan.key_holders), len(plan.contributors)
    if DATA_BITS * len(DATA_PRIMES) + SPECIAL_BITS > SECURITY_LIMIT_BITS:
        raise PlanError("sum-parameters", "The lattice modulus is above the limit for 128 bits of security.")
    bound = derive_sum_bound(plan)
    modulus, delta = _derive_bulk(bound, contributors)
    key_delta, noise, bits = _derive_key(holders, contributors, plan.threshold.t)
    tests = len(self_test_sets(holders, plan.threshold.t))
    honest = holders - plan.threshold.colluding_key_holders
    shares = RING_DEGREE * (plan.rounds_per_epoch * MAX_SETS + tests) * honest
    statistical = bits + 1 - (noise * shares - 1).bit_length()
    if statistical < MIN_STATISTICAL_BITS:
        spare = (1 << max(bits + 1 - MIN_STATISTICAL_BITS, 0)) // (noise * RING_DEGREE * honest)
        rounds = max((spare - tests) // MAX_SETS, 0)
        raise PlanError(
            "sum-parameters",
            f"Smudging hides {statistical} bits and at least {MIN_STATISTICAL_BITS} are needed.",
            f"Set rounds_per_epoch to {rounds}." if rounds else "Use fewer key holders or contributors.",
        )
    return SumParameters(
        key_holders=holders,
        contributors=contributors,
        threshold=plan.threshold.t,
        sum_bound=bound,
        bulk_degree=BULK_DEGREE,
        bulk_modulus=modulus,
        bulk_delta=delta,
        ring_degree=RING_DEGREE,
        data_primes=DATA_PRIMES,
        special_prime=SPECIAL_PRIME,
        key_delta=key_delta,
        ciphertext_bound=noise,
        smudging_bits=bits,
        statistical_bits=statistical,
        rounds_per_epoch=plan.rounds_per_epoch,
        self_tests=tests,
    )


def derive_sum_bound(plan: Agreement) -> int:
    """Returns |Sigma|_max: every declared patient (twice over) at the clip bound, plus the tail of all noise shares.

    One patient moves a training coefficient, or a histogram count on the same lattice, by at most 2**scale_bits (the
    clip norm, rounding included). Each of the n_c shares of noise has variance (noise_multiplier * unit)**2 / h.
    A local update is bounded after its noise, by 2**scale_bits times the site's public weight: it has no tail.
    """
    declared = sum(site.declared_patients for site in plan.contributors)
    patients = COHORT_MARGIN * declared
    if isinstance(plan, StatisticsPlan):
        unit = 1 << plan.query.scale_bits
        if plan.query.noise == "gaussian":
            return patients * unit + _noise_tail(plan, plan.query.noise_multiplier, unit)
        return patients * unit + _laplace_tail(plan, unit)
    assert isinstance(plan, StudyPlan)
    unit = 1 << plan.mechanism.scale_bits
    if plan.mechanism.local is None:
        train = patients * unit + _noise_tail(plan, plan.mechanism.noise_multiplier, unit)
    else:
        train = declared * unit
    evaluate = patients * unit + _noise_tail(plan, plan.evaluation.noise_multiplier, unit)
    return max(train, evaluate)


def parameters_digest(plan: Agreement) -> Digest:
    """Returns the digest of the parameters (names and decimal values), as the ceremony instruction states it."""
    values = derive_parameters(plan).model_dump()
    return derive_digest("parameters", *(part for name in sorted(values) for part in (name, str(values[name]))))


def derive_sid(plan: Agreement, epoch: int) -> Digest:
    """Returns sid = H(plan digest, epoch, parameters, sorted roster with keys)."""
    roster: list[str | int] = []
    for site in plan.sites:
        roster += [site.name, site.identity_key, site.hpke_key, int(site.key_holder), int(site.contributor)]
    return derive_digest("sid", plan.study, epoch, parameters_digest(plan), plan.coordinator.identity_key, *roster)


@lru_cache(maxsize=64)
def self_test_sets(holders: int, threshold: int) -> tuple[tuple[int, ...], ...]:
    """Returns the active sets (0-based positions) of the ceremony's self-test: every holder occurs at least twice.

    Windows of t holders around the circle, once from holder 0 and once from holder 1.
    """
    found: list[tuple[int, ...]] = []
    for first in range(2):
        for window in range(-(-holders // threshold)):
            start = first + window * threshold
            found.append(tuple(sorted((start + k) % holders for k in range(threshold))))
    return tuple(found)


def describe_parameters(plan: Agreement) -> str:
    """Returns the parameters, bounds and security figures as text for a person."""
    p = derive_parameters(plan)
    q_bits, total = p.bulk_modulus.bit_length(), p.data_modulus.bit_length() + p.special_prime.bit_length()
    spare = Fraction(p.bulk_modulus, 2 * p.sum_bound * p.bulk_delta)
    margin = Fraction(p.key_delta, 4 * (p.threshold * (1 << p.smudging_bits) + p.ciphertext_bound))
    width = (q_bits + 7) // 8
    return "\n".join(
        (
            f"key holders {p.key_holders}, contributors {p.contributors}, t {p.threshold}",
            f"bulk cipher: N {p.bulk_degree}, q {p.bulk_modulus} ({q_bits} bits), delta {p.bulk_delta}, "
            f"{width} bytes per coefficient",
            f"  largest honest sum {p.sum_bound}; q leaves a factor {float(spare):.2f} above it",
            f"  error tail {p.residual_bound(p.contributors)} < delta/2 = {p.bulk_delta // 2}",
            f"threshold CKKS: N {p.ring_degree}, data primes {', '.join(map(str, p.data_primes))}, "
            f"special {p.special_prime}; log2 QP {total} (limit {SECURITY_LIMIT_BITS} for 128 bits)",
            f"  key sums up to {KEY_BOUND * p.contributors}, delta 2^{p.key_delta.bit_length() - 1}",
            f"  noise {p.ciphertext_bound} + {p.threshold} x 2^{p.smudging_bits} smudging, "
            f"a factor {float(margin):.2f} below delta/4",
            f"  smudging hides {p.statistical_bits} bits over {p.rounds_per_epoch} rounds x {MAX_SETS} active sets "
            f"and {p.self_tests} self-tests (at least {MIN_STATISTICAL_BITS})",
        )
    )


def _derive_bulk(bound: int, contributors: int) -> tuple[int, int]:
    delta = 1 << (2 * _tail(VARIANCE * contributors)).bit_length()
    for bits in BULK_BITS:
        modulus = largest_primes(bits, 2 * BULK_DEGREE, 1)[0]
        if modulus > delta * (2 * bound + 1):
            return modulus, delta
    largest = (largest_primes(BULK_BITS[-1], 2 * BULK_DEGREE, 1)[0] // delta - 1) // 2
    raise PlanError(
        "sum-parameters",
        f"An honest sum may reach {bound}, and the largest safe bulk modulus holds {largest}.",
        f"Lower scale_bits by {(bound // largest).bit_length()}, or the noise multiplier.",
    )


def _derive_key(holders: int, contributors: int, threshold: int) -> tuple[int, int, int]:
    modulus = 1
    for prime in DATA_PRIMES:
        modulus *= prime
    delta = 1 << ((modulus // (2 * KEY_BOUND * contributors + 1)).bit_length() - 1)
    # 9.5 * sqrt(n_c (1 + 2 N n_k / 3) / 12): rounding after the switch from QP to Q, times the summed ternary key.
    noise = _tail(Fraction(contributors * (3 + 2 * RING_DEGREE * holders), 36))
    bits = ((delta // 4 - noise) // threshold).bit_length() - 1
    return delta, noise, bits


def _noise_tail(plan: Agreement, multiplier: str, unit: int) -> int:
    sigma = Fraction(Dec(multiplier)) * unit
    return _tail(sigma * sigma * len(plan.contributors) / plan.threshold.honest_noise_shares)


def _laplace_tail(plan: StatisticsPlan, unit: int) -> int:
    """All shares together are at most ceil(n_c / h) discrete Laplaces, each beyond 60 scales with chance exp(-60)."""
    scale = Fraction(Dec(plan.query.noise_multiplier)) * unit
    laplaces = -(-len(plan.contributors) // plan.threshold.honest_noise_shares)
    return int(60 * (scale + 1) * laplaces) + 1


def _tail(variance: Fraction | int) -> int:
    scaled = Fraction(variance) * TAIL_NUMERATOR**2 / TAIL_DENOMINATOR**2
    return ceil_sqrt(scaled.numerator, scaled.denominator)
