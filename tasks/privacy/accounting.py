"""Privacy accounting: what an event costs, what a budget admits. Gaussian differential privacy, and Renyi if sampled.

The gate is a GDP filter: events chosen adaptively compose to mu-GDP with mu^2 = sum of their costs (Dong, Roth, Su,
JRSSB 84:3; as a filter: arXiv 2210.17520). Cost and running totals are exact rationals on a decimal grid, so that no
rounding admits an event past the limit and every verifier finds the same figures.

Why an integer mechanism has a GDP cost. h honest shares are discrete Gaussians of parameter s. Let z ~ N(f, h s^2 - 4)
and round z at random to a discrete Gaussian around z of variance 4: a post-processing of a Gaussian mechanism, with
density proportional to that of N(f, h s^2) on the integers up to a factor 1 +- theta(2). The sum of the shares has the
same density up to factors 1 +- theta(s sqrt(k / (k + 1))), k = 1 .. h - 1, with theta(u) = 2 sum_j exp(-2 pi^2 u^2 j^2)
(Poisson summation). With s^2 >= 8 each theta is at most exp(-8 pi^2) * 2.0001, so the two mechanisms differ by a factor
of at most exp(h 2**-111) per coefficient. An event is therefore charged sensitivity^2 / (h s^2 - 4), plus
h * dimension * 2**-71, so that the filter itself bounds the sum K of these exponents by limit * 2**-40 <= 2**-30; the
limit is computed for (epsilon - 2 K, delta exp(-K)) at K = 2**-30.

A purely epsilon-private event (discrete Laplace) costs what `tasks.privacy.pure` derives from its epsilon alone.

A sampled batch is a mixture over batches, so the same factor bounds its densities, and with it the Renyi divergence at
an order a >= 2 grows by at most 3 h dimension 2**-111, which the surcharge of h dimension 2**-71 covers as well.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal as Number
from decimal import InvalidOperation
from fractions import Fraction
from functools import lru_cache
from statistics import NormalDist

from schemas.errors import BudgetError
from schemas.ledger import GaussianEvent, LaplaceEvent, PrivacyEvent
from schemas.messages import EpsilonReport
from schemas.plan import StudyPlan
from tasks.privacy.pure import LARGEST_EPSILON, gdp_cost_of_pure, renyi_cost_of_pure
from tasks.privacy.renyi import epsilon_of_renyi, renyi_limit, sampled_gaussian_cost

GRID_DIGITS = 15
ROUNDING_VARIANCE = 4
SMALLEST_SHARE_VARIANCE = 2 * ROUNDING_VARIANCE
DISCRETISATION_CHARGE = Fraction(1, 2**71)
SLACK = 2.0**-30
LARGEST_LIMIT = Fraction(1024)
# Relative margin on the limit; far above the error of the float64 evaluation of the GDP curve.
CURVE_MARGIN = 1e-9
MULTIPLIER_DIGITS = 6
# Orders of reports on sampled events; a filter has one of its own.
REPORT_ORDERS = (*range(2, 33), 40, 48, 64, 96, 128)
_NORMAL = NormalDist()


@lru_cache(maxsize=1024)
def gdp_cost(event: PrivacyEvent) -> Fraction:
    """Derives the GDP cost mu^2 of an event in the collusion reading, from its own figures, rounded up to 1e-15.

    Raises:
        BudgetError: `event-inconsistent`, `sampling-unsupported` (a sampled batch has no useful GDP cost).
    """
    verify_event(event)
    if isinstance(event, GaussianEvent) and is_sampled(event):
        raise BudgetError(
            "sampling-unsupported",
            f"Expected sampling probability 1 in this data source's filter, got {event.runs[0][0]}.",
            "Plan full batches.",
        )
    return _cost_of_shares(event, event.honest_assumed)


@lru_cache(maxsize=4096)
def renyi_cost(event: PrivacyEvent, order: int, shares: int | None = None, sites: int = 1) -> Fraction:
    """Derives the Renyi cost at `order` of an event, sampled or not, rounded up to 1e-15.

    Args:
        event: From its own figures.
        order: Integer, at least 2.
        shares: Noise shares that count; by default those of the honest.
        sites: In how many sites the patient is. At least one coin of m falls with probability 1 - (1 - q)**m, and the
            patient then moves the sum by at most m times the bound (quasi-convexity of the divergence). Local noise:
            m mechanisms of their own, whose divergences add up.

    Raises:
        BudgetError: `event-inconsistent`.
    """
    verify_event(event)
    count = event.honest_assumed if shares is None else shares
    if isinstance(event, LaplaceEvent):
        return renyi_cost_of_pure(sites * pure_epsilon(event, count), order)
    times, sites = (sites, 1) if event.noise_scope == "local" else (1, sites)
    inverse, total = sites * sites * _inverse_variance(event, count), Fraction(0)
    for probability, _, steps in event.runs:
        q = 1 - (1 - exact(probability)) ** sites
        total += (
            times * steps * (sampled_gaussian_cost(q, inverse, order) + count * event.dimension * DISCRETISATION_CHARGE)
        )
    return _ceil_to_grid(total)


def is_sampled(event: PrivacyEvent) -> bool:
    """Tells whether a patient was in the batch by chance."""
    return isinstance(event, GaussianEvent) and any(exact(probability) != 1 for probability, _, _ in event.runs)


@lru_cache(maxsize=256)
def gdp_limit(epsilon: str, delta: str) -> Fraction:
    """Derives mu_B^2, the largest total cost that (`epsilon`, `delta`) admits, rounded down; 0 for a budget of zero.

    Raises:
        BudgetError: `budget-malformed` unless 0 <= epsilon <= 1000 and 0 < delta < 1.
    """
    wanted, tail = _parse_budget(epsilon, delta)
    target, allowed = wanted - 2 * SLACK, tail * math.exp(-SLACK)
    if target <= 0:
        return Fraction(0)
    low, high = 0.0, math.sqrt(float(LARGEST_LIMIT))
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of_gdp(middle, target) <= allowed else (low, middle)
    return _round_down(Fraction(low) ** 2 * (1 - Fraction(CURVE_MARGIN)))


def limit_is_honest(stated: Fraction, epsilon: str, delta: str) -> bool:
    """Tells whether `stated` is within the limit of (`epsilon`, `delta`), up to float64 differences of machines."""
    return stated <= gdp_limit(epsilon, delta) * (1 + Fraction(1, 10**11)) + Fraction(1, 10**12)


def delta_of_gdp(mu: float, epsilon: float) -> float:
    """Returns delta(epsilon) = Phi(-epsilon/mu + mu/2) - exp(epsilon) Phi(-epsilon/mu - mu/2) of mu-GDP."""
    if mu <= 0:
        return 0.0
    first = 0.5 * math.erfc((epsilon / mu - mu / 2) / math.sqrt(2))
    return max(first - math.exp(epsilon + _log_upper_tail(epsilon / mu + mu / 2)), 0.0)


def epsilon_of_gdp(mu: float, delta: float) -> float:
    """Returns the least epsilon >= 0 with delta(epsilon) <= `delta` of mu-GDP (to 1e-12 relative, from above)."""
    if delta_of_gdp(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while delta_of_gdp(mu, high) > delta:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of_gdp(mu, middle) > delta else (low, middle)
    return high


def calibrate_noise_multiplier(epsilon: str, delta: str, rounds: int) -> str:
    """Derives the least noise multiplier, on a grid of 1e-6, with which `rounds` steps fit into the budget.

    Valid for training and for the evaluation, for every `scale_bits` >= 8, and while dimension * h <= 2**37.

    Returns:
        Decimal string, rounded up.

    Raises:
        BudgetError: `budget-malformed`, `budget-too-small` if no finite noise fits.
    """
    each = gdp_limit(epsilon, delta) / rounds - Fraction(2**37) * DISCRETISATION_CHARGE - Fraction(1, 10**GRID_DIGITS)
    if each <= 0:
        raise BudgetError(
            "budget-too-small",
            f"Expected a budget that {rounds} rounds can share, got epsilon {epsilon}.",
            "Raise epsilon or plan fewer rounds.",
        )
    coarsest = Fraction(ROUNDING_VARIANCE, 2**16)
    return format_decimal(ceil_sqrt(1 / each + coarsest, MULTIPLIER_DIGITS))


def calibrate_sampled_multiplier(epsilon: str, delta: str, rounds: int, probability: str, order: int) -> str:
    """Derives the least noise multiplier, on a grid of 1e-6, with which `rounds` sampled steps fit the Renyi filter.

    Valid like `calibrate_noise_multiplier`; `order` is that of the data source's filter (`renyi.choose_order`).

    Returns:
        Decimal string, rounded up.

    Raises:
        BudgetError: `budget-malformed`, `budget-too-small`.
    """
    _parse_budget(epsilon, delta)
    each = renyi_limit(epsilon, delta, order) / rounds - Fraction(2**37) * DISCRETISATION_CHARGE
    each -= Fraction(2, 10**GRID_DIGITS)
    q, unit = exact(probability), 10**MULTIPLIER_DIGITS
    if each <= 0 or not 0 < q <= 1:
        raise BudgetError(
            "budget-too-small",
            f"Expected a budget that {rounds} rounds can share and a sampling probability in (0, 1].",
            "Raise epsilon or plan fewer rounds.",
        )

    def fits(multiplier: int) -> bool:
        variance = Fraction(multiplier, unit) ** 2 - Fraction(ROUNDING_VARIANCE, 2**16)
        return variance > 0 and sampled_gaussian_cost(q, 1 / variance, order) <= each

    high = unit
    while not fits(high):
        high *= 2
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return format_decimal(Fraction(high, unit))


def epsilon_report(plan: StudyPlan, site: str, events: Sequence[PrivacyEvent]) -> EpsilonReport:
    """Derives the cumulative epsilon of one site at the plan's delta, in three readings, each rounded up to 1e-4.

    `collusion`: noise of h honest shares; `outsider`: of the fewest shares (k_min) in any opened sum; `fallback`: of
    this site's share alone, should the threshold key ever be broken. Training and held-out events touch disjoint
    patients and compose in parallel: the report holds the larger of the two.
    """
    delta = plan.budget.delta
    return EpsilonReport(
        site=site,
        events=len(events),
        collusion=_epsilon_of_events(events, delta, lambda event: event.honest_assumed),
        outsider=_epsilon_of_events(events, delta, lambda event: event.sites_in_sum),
        fallback=_epsilon_of_events(events, delta, lambda event: 1),
    )


def epsilon_of_events(events: Sequence[PrivacyEvent], delta: str) -> str:
    """Derives epsilon of events in the collusion reading, rounded up to 1e-4; the two data parts in parallel."""
    return _epsilon_of_events(events, delta, lambda event: event.honest_assumed)


def composed_epsilon(plan: StudyPlan, events: Sequence[PrivacyEvent]) -> str:
    """Derives epsilon (collusion reading) of a patient who is in the plan's `max_sites_per_patient` such sites.

    The patient then moves the same sum up to m times as far: mu is multiplied by m. Sampled: see `renyi_cost`. Local
    noise: each site's releases have noise of their own and compose, so the cost is multiplied by m.
    """
    sites = plan.budget.max_sites_per_patient
    return _epsilon_of_events(events, plan.budget.delta, lambda event: event.honest_assumed, sites)


def epsilon_of_cost(total: Fraction, delta: str) -> str:
    """Returns the epsilon that a total cost mu^2 stands for at `delta`, rounded up to 1e-4, as a decimal string."""
    return _epsilon_string(total, delta)


def round_epsilon(epsilon: Fraction) -> str:
    """Returns epsilon rounded up to 1e-4, as a decimal string."""
    return format_decimal(Fraction(math.ceil(epsilon * 10**4), 10**4))


def pure_epsilon(event: LaplaceEvent, shares: int | None = None) -> Fraction:
    """Derives the pure epsilon of a discrete Laplace event, exactly.

    Args:
        shares: Noise shares that count. More than the honest ones only add noise, which cannot lower privacy.

    Raises:
        BudgetError: `reading-unsupported` for fewer: a part of Laplace noise has no useful pure epsilon.
    """
    if shares is not None and shares < event.honest_assumed:
        raise BudgetError(
            "reading-unsupported", "Fewer shares than the honest ones are no Laplace noise.", "Ask for another reading."
        )
    return event.sensitivity / exact(event.scale)


def verify_event(event: PrivacyEvent) -> None:
    """Refuses an event whose figures contradict each other.

    Raises:
        BudgetError: `event-inconsistent`.
    """
    rules = _laplace_rules(event) if isinstance(event, LaplaceEvent) else _gaussian_rules(event)
    broken = "; ".join(text for holds, text in rules if not holds)
    if broken:
        raise BudgetError("event-inconsistent", f"Expected of a privacy event: {broken}.", "Correct the mechanism.")


def _laplace_rules(event: LaplaceEvent) -> tuple[tuple[bool, str], ...]:
    scale = exact(event.scale)
    return (
        (event.sensitivity == 2**event.scale_bits, "sensitivity is 2**scale_bits"),
        (1 <= event.honest_assumed <= event.sites_in_sum, "1 <= honest_assumed <= sites_in_sum"),
        (scale * LARGEST_EPSILON >= event.sensitivity, f"sensitivity <= {LARGEST_EPSILON} * scale"),
        (exact(event.clip_norm) > 0, "clip_norm is positive"),
    )


def _gaussian_rules(event: GaussianEvent) -> tuple[tuple[bool, str], ...]:
    share, honest = exact(event.local_sigma), event.honest_assumed
    return (
        (all(0 < exact(q) <= 1 for q, _, _ in event.runs), "0 < sampling probability <= 1"),
        (event.sensitivity == 2**event.scale_bits, "sensitivity is 2**scale_bits"),
        (1 <= honest <= event.sites_in_sum, "1 <= honest_assumed <= sites_in_sum"),
        (event.noise_scope != "local" or event.sites_in_sum == 1, "local noise is that of one site"),
        (share > 0 and share**2 >= SMALLEST_SHARE_VARIANCE, f"local_sigma^2 >= {SMALLEST_SHARE_VARIANCE}"),
        (all(steps >= 1 and exact(z) > 0 for _, z, steps in event.runs), "steps and noise multiplier are positive"),
        (
            all((exact(z) * event.sensitivity) ** 2 <= honest * share**2 for _, z, _ in event.runs),
            "noise_multiplier * sensitivity <= sqrt(h) * local_sigma",
        ),
        (exact(event.effective_sigma) >= 0, "effective_sigma is not negative"),
        (exact(event.effective_sigma) ** 2 <= honest * share**2, "effective_sigma <= sqrt(h) * local_sigma"),
        (event.dimension >= 1 and event.max_sites_per_patient >= 1, "dimension and max_sites_per_patient are positive"),
        (exact(event.clip_norm) > 0 and exact(event.divisor) > 0, "clip_norm and divisor are positive"),
    )


@lru_cache(maxsize=512)
def exact(text: str) -> Fraction:
    """Returns the rational that a decimal string denotes.

    Raises:
        BudgetError: `event-inconsistent` for exponents beyond 60, which only serve to exhaust the reader's memory.
    """
    number = Number(text)
    if abs(int(number.as_tuple().exponent)) > 60:
        raise BudgetError("event-inconsistent", "Expected a decimal with an exponent of at most 60.")
    return Fraction(number)


def ceil_sqrt(value: Fraction, digits: int) -> Fraction:
    """Returns the least multiple of 10**-digits that is >= sqrt(value), exactly."""
    scaled = value * 100**digits
    root = math.isqrt(max(-(-scaled.numerator // scaled.denominator) - 1, 0))
    return Fraction(root + (root * root < scaled), 10**digits)


def floor_sqrt(value: Fraction, digits: int) -> Fraction:
    """Returns the largest multiple of 10**-digits that is <= sqrt(value), exactly."""
    scaled = value * 100**digits
    return Fraction(math.isqrt(scaled.numerator // scaled.denominator), 10**digits)


def format_decimal(value: Fraction) -> str:
    """Returns `value`, a multiple of 10**-15, exactly, without trailing zeros.

    Raises:
        ValueError: `value` is finer than that.
    """
    scaled = value * 10**GRID_DIGITS
    if scaled.denominator != 1:
        raise ValueError("not on the decimal grid")
    sign, digits = "-" * (value < 0), f"{abs(scaled.numerator):0{GRID_DIGITS + 1}d}"
    text = f"{digits[:-GRID_DIGITS]}.{digits[-GRID_DIGITS:]}".rstrip("0").rstrip(".")
    return sign + text


def _epsilon_of_events(
    events: Sequence[PrivacyEvent], delta: str, shares: Callable[[PrivacyEvent], int], sites: int = 1
) -> str:
    worst = Fraction(0)
    for data in ("training", "held-out"):
        counts = Counter(event for event in events if event.data == data)
        if any(is_sampled(event) for event in counts):
            epsilon = min(
                epsilon_of_renyi(
                    sum((n * renyi_cost(e, order, shares(e), sites) for e, n in counts.items()), Fraction(0)),
                    delta,
                    order,
                )
                for order in REPORT_ORDERS
            )
            worst = max(worst, exact(round_epsilon(epsilon)))
        else:
            for event in counts:
                verify_event(event)
            total = sum(
                (n * _gdp_factor(e, sites) * _cost_of_shares(e, shares(e)) for e, n in counts.items()), Fraction(0)
            )
            worst = max(worst, exact(_epsilon_string(total, delta)))
    return format_decimal(worst)


def _gdp_factor(event: PrivacyEvent, sites: int) -> int:
    return sites if event.noise_scope == "local" else sites * sites


def _cost_of_shares(event: PrivacyEvent, shares: int) -> Fraction:
    if isinstance(event, LaplaceEvent):
        return gdp_cost_of_pure(pure_epsilon(event, shares))
    each = _inverse_variance(event, shares) + shares * event.dimension * DISCRETISATION_CHARGE
    return _ceil_to_grid(each * sum(steps for _, _, steps in event.runs))


def _inverse_variance(event: GaussianEvent, shares: int) -> Fraction:
    return Fraction(event.sensitivity**2) / (shares * exact(event.local_sigma) ** 2 - ROUNDING_VARIANCE)


def _ceil_to_grid(value: Fraction) -> Fraction:
    return Fraction(math.ceil(value * 10**GRID_DIGITS), 10**GRID_DIGITS)


def _epsilon_string(total: Fraction, delta: str) -> str:
    if total == 0:
        return "0"
    mu = math.sqrt(float(total)) * (1 + 1e-12)
    epsilon = epsilon_of_gdp(mu, float(delta) * math.exp(-SLACK)) + 2 * SLACK
    return format_decimal(Fraction(math.ceil(epsilon * 10**4), 10**4))


def _log_upper_tail(x: float) -> float:
    """Returns log Phi(-x); for large x a lower bound (Gordon), so that delta is never understated."""
    if x < 30:
        return math.log(_NORMAL.cdf(-x)) if x < 5 else math.log(0.5 * math.erfc(x / math.sqrt(2)))
    return -x * x / 2 - math.log(math.sqrt(2 * math.pi)) + math.log(x / (1 + x * x))


def _round_down(value: Fraction) -> Fraction:
    scaled = value * 10**12
    return Fraction(scaled.numerator // scaled.denominator, 10**12)


def _parse_budget(epsilon: str, delta: str) -> tuple[float, float]:
    try:
        wanted, tail = Number(epsilon), Number(delta)
        good = 0 <= wanted <= 1000 and 0 < tail < 1
    except InvalidOperation:
        good = False
    if not good:
        raise BudgetError(
            "budget-malformed",
            f"Expected 0 <= epsilon <= 1000 and 0 < delta < 1, got {epsilon} and {delta}.",
            "Correct the budget.",
        )
    return float(wanted), float(tail)
