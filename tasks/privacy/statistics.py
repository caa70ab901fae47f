"""Cohort count, mean and histogram of one number over sites, in one encrypted sum with integer noise.

A patient is one vector: (1, present, x, one bin), x in [-1, 1] the patient's mean value in the public range. Its L2
norm is at most 2 and its L1 norm at most 4 (1 if only counted), so one mechanism covers all figures at once. A question
touches training and held-out patients alike and is charged to both parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from schemas.errors import PlanError
from schemas.ledger import LaplaceEvent
from schemas.statistics import StatisticsPlan, StatisticsQuery
from tasks.privacy.accounting import epsilon_of_events, exact, gdp_cost, gdp_limit, pure_epsilon, round_epsilon
from tasks.privacy.laplace import LaplaceMechanism
from tasks.privacy.mechanism import GaussianMechanism

Int64 = NDArray[np.int64]
# 95 % of a count; of a mean, numerator and denominator at 97.5 % each.
COUNT_LEVEL, RATIO_LEVEL = 0.95, 0.975


@dataclass(frozen=True)
class Interval:
    """A released figure with its 95 % interval from the noise; what patients were sampled from is not in it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Statistics:
    """Released figures; `mean` and `histogram` only where a number was asked for and anybody has it."""

    count: Interval
    present: Interval | None
    mean: Interval | None
    histogram: tuple[Interval, ...]


Mechanism: TypeAlias = GaussianMechanism | LaplaceMechanism


def statistics_mechanism(query: StatisticsQuery, data: Literal["training", "held-out"]) -> Mechanism:
    """Derives the mechanism that answers `query`, as it is charged to one part of the data.

    Raises:
        PlanError: `mechanism-numbers`, `noise-too-fine`, `noise-too-large`.
    """
    bound = "one patient: count 1, value present 1, clipped mean value in [-1, 1], one bin 1"
    if query.noise == "laplace":
        return LaplaceMechanism(
            data=data,
            contribution_bound=bound,
            id_column=query.id_column,
            max_sites_per_patient=query.max_sites_per_patient,
            clip_norm="4" if query.column else "1",
            scale_bits=query.scale_bits,
            noise_multiplier=query.noise_multiplier,
            dimension=query.length,
            honest=query.honest_noise_shares,
            sites_in_sum=query.k_min,
        )
    return GaussianMechanism(
        data=data,
        contribution_bound=bound,
        id_column=query.id_column,
        max_sites_per_patient=query.max_sites_per_patient,
        clip_norm="2" if query.column else "1",
        scale_bits=query.scale_bits,
        noise_multiplier=query.noise_multiplier,
        divisor="1",
        dimension=query.length,
        honest=query.honest_noise_shares,
        sites_in_sum=query.k_min,
    )


def verify_question_within_budget(plan: StatisticsPlan) -> None:
    """Refuses a question that costs more than its own plan says: pure epsilon for Laplace noise, else (epsilon, delta).

    Raises:
        PlanError: `question-overspends`, `mechanism-numbers`, `noise-too-fine`, `noise-too-large`.
    """
    event = statistics_mechanism(plan.query, "training").event()
    if isinstance(event, LaplaceEvent):
        fits = pure_epsilon(event) <= exact(plan.budget.epsilon)
    else:
        fits = gdp_cost(event) <= gdp_limit(plan.budget.epsilon, plan.budget.delta)
    if not fits:
        raise PlanError(
            "question-overspends",
            f"Expected the question to cost at most epsilon {plan.budget.epsilon}, got {question_epsilon(plan)}.",
            "Raise the noise multiplier or epsilon.",
        )


def question_epsilon(plan: StatisticsPlan) -> str:
    """Derives what one site's patient is charged in the collusion reading, rounded up to 1e-4."""
    event = statistics_mechanism(plan.query, "training").event()
    if isinstance(event, LaplaceEvent):
        return round_epsilon(pure_epsilon(event))
    return epsilon_of_events([event], plan.budget.delta)


def statistics_sum(query: StatisticsQuery, values: NDArray[np.float64], qualifies: NDArray[np.bool_]) -> Int64:
    """Sums the site's qualifying patients on the mechanism's lattice; adds no noise (`GaussianMechanism.add_noise`).

    Args:
        query: What is asked.
        values: float64 (patients,), each patient's mean value; not finite where there is none. Ignored without column.
        qualifies: bool (patients,).

    Returns:
        int64 (dimension,). Every patient's vector has integer norm at most the mechanism's sensitivity: its entries
        are at most half of it (count, present, value, bin), and the value is rounded towards zero.

    Raises:
        ValueError: shapes differ.
    """
    if values.shape != qualifies.shape or values.ndim != 1:
        raise ValueError("expected one value and one mark per patient")
    mechanism = statistics_mechanism(query, "training")
    total = np.zeros(mechanism.dimension, np.int64)
    unit = mechanism.sensitivity // int(mechanism.clip)
    total[0] = unit * int(np.count_nonzero(qualifies))
    if query.column:
        low, high = float(query.minimum), float(query.maximum)
        known = values[qualifies & np.isfinite(values)]
        position = (np.clip(known, low, high) - low) / (high - low)
        total[1] = unit * known.size
        total[2] = int(np.trunc((2.0 * position - 1.0) * unit).astype(np.int64).sum())
        bins = np.minimum((position * query.bins).astype(np.int64), query.bins - 1)
        total[3:] = unit * np.bincount(bins, minlength=query.bins)
    return total


def decode_statistics(query: StatisticsQuery, opened: Int64, participants: int) -> Statistics:
    """Decodes an opened sum of `participants` sites' noised contributions.

    Raises:
        ValueError: another dimension.
    """
    mechanism = statistics_mechanism(query, "training")
    if opened.shape != (mechanism.dimension,):
        raise ValueError("expected an opened sum of the query's dimension")
    figures = mechanism.decode(opened)
    counts = [_count(float(figure), mechanism.noise_reach(participants, COUNT_LEVEL)) for figure in figures]
    if not query.column:
        return Statistics(counts[0], None, None, ())
    return Statistics(
        counts[0],
        counts[1],
        _mean(query, float(figures[1]), float(figures[2]), mechanism.noise_reach(participants, RATIO_LEVEL)),
        tuple(counts[3:]),
    )


def figures(query: StatisticsQuery, answer: Statistics) -> tuple[tuple[str, str, str, str], ...]:
    """Returns (name, value, low, high) of every figure in the query's order, as decimals with 6 digits.

    A mean that noise hides is left out. Bins are named ``bin 1`` and so on, from the range's lower end.
    """
    named = [("patients", answer.count), ("recorded", answer.present), ("mean", answer.mean)]
    named += [(f"bin {index}", one) for index, one in enumerate(answer.histogram, start=1)]
    return tuple((name, _decimal(i.value), _decimal(i.low), _decimal(i.high)) for name, i in named if i is not None)


def _decimal(value: float) -> str:
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def _count(figure: float, reach: float) -> Interval:
    return Interval(figure, max(figure - reach, 0.0), max(figure + reach, 0.0))


def _mean(query: StatisticsQuery, present: float, total: float, slack: float) -> Interval | None:
    """The mean in the number's own unit; None where the noise does not even say that anybody has the number."""
    if present - slack <= 0:
        return None
    corners = [(total + a) / (present + b) for a in (-slack, slack) for b in (-slack, slack)]
    low, high = float(query.minimum), float(query.maximum)

    def scale(x: float) -> float:
        return low + (min(max(x, -1.0), 1.0) + 1.0) / 2.0 * (high - low)

    middle = total / present
    assert math.isfinite(middle)
    return Interval(scale(middle), scale(min(corners)), scale(max(corners)))
