"""Figures of a study from what it left: events, the sites' task runs, counters. Nothing here looks at a clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from statistics import median
from typing import Any

# A site's work on rows and ciphertexts; store requests inside these steps are in them, waiting is not.
COMPUTE = ("validate", "train", "encrypt", "check-shares", "certify", "share")
TRAINING = ("validate", "train", "encrypt")
_NEXT = ("round-started", "ceremony-started", "evaluation-done")

Event = Mapping[str, Any]


@dataclass(frozen=True)
class RoundTime:
    """One round.

    Attributes:
        wall: Seconds from this round's `round-started` to the next one's: bookkeeping between rounds is in it.
        slowest: The site whose `COMPUTE` steps took longest.
        compute: Its seconds in these steps.
        training: The longest that a site spent in `TRAINING` steps.
        steps: The coordinator's steps; `between` is what the wall time has besides. The record in MLflow and on
            Prefect's pages runs behind the next round.
    """

    round: int
    wall: float
    slowest: str
    compute: float
    training: float
    steps: Mapping[str, float]

    @property
    def beyond(self) -> float:
        """Seconds beyond compute."""
        return self.wall - self.compute


@dataclass(frozen=True)
class Step:
    """One task run of a site in a round."""

    site: str
    round: int
    name: str
    seconds: float


def at(event: Event) -> float:
    """Returns an event's Unix time in seconds."""
    return datetime.fromisoformat(event["time"]).timestamp()


def derive_rounds(events: Sequence[Event], steps: Sequence[Step], rounds: Sequence[int]) -> list[RoundTime]:
    """Returns the times of `rounds`, which nobody disturbed.

    Raises:
        ValueError: a round began twice, was not opened, or its sites' steps are not known.
    """
    return [_derive_round(events, [step for step in steps if step.round == number], number) for number in rounds]


def _derive_round(events: Sequence[Event], steps: Sequence[Step], number: int) -> RoundTime:
    starts = [n for n, event in enumerate(events) if event["event"] == "round-started" and event["round"] == number]
    dones = [n for n, event in enumerate(events) if event["event"] == "round-done" and event["round"] == number]
    if len(starts) != 1 or len(dones) != 1:
        raise ValueError(f"Round {number} began {len(starts)} times and was done {len(dones)} times.")
    ends = [event for event in events[starts[0] + 1 :] if event["event"] in _NEXT]
    taken, training = sum_by_site(steps, COMPUTE), sum_by_site(steps, TRAINING)
    if not ends or set(taken) != set(events[dones[0]]["participants"]) or not all(taken.values()):
        raise ValueError(f"Round {number}: no end, or a participant whose steps are not known.")
    wall = at(ends[0]) - at(events[starts[0]])
    slowest = max(taken, key=lambda site: taken[site])
    named = dict(events[dones[0]]["steps"])
    named["between"] = wall - sum(named.values())
    return RoundTime(number, wall, slowest, taken[slowest], max(training.values()), named)


def sum_by_site(steps: Sequence[Step], names: Sequence[str]) -> dict[str, float]:
    """Returns each site's seconds in the steps named."""
    total: dict[str, float] = {}
    for step in steps:
        total[step.site] = total.get(step.site, 0.0) + (step.seconds if step.name in names else 0.0)
    return total


def median_steps(rounds: Sequence[RoundTime]) -> dict[str, float]:
    """Returns the median seconds of each of the coordinator's steps."""
    names = dict.fromkeys(name for one in rounds for name in one.steps)
    return {name: median(one.steps.get(name, 0.0) for one in rounds) for name in names}


def per_round(counts: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, tuple[float, ...]]:
    """Returns the median growth of counters that were read at the start of each of several rounds in a row.

    Args:
        counts: One reading per round and one after the last; names that are new in a later reading count from zero.
    """
    growth: dict[str, list[tuple[float, ...]]] = {}
    for before, after in pairwise(counts):
        for name, values in after.items():
            old = before.get(name, (0.0,) * len(values))
            growth.setdefault(name, []).append(tuple(b - a for a, b in zip(old, values, strict=True)))
    return {name: tuple(median(column) for column in zip(*rows, strict=True)) for name, rows in growth.items()}
