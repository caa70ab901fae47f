"""What a seed does to a study: who is struck when, how, and after how long somebody mends it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["kill", "cut", "slow", "lossy", "disk-full", "clock"]
SERVERS = ("coordinator", "prefect", "postgres")


@dataclass(frozen=True)
class Blow:
    """One thing that happens.

    Attributes:
        at_seconds: Since the study started.
        target: ``coordinator``, ``prefect``, ``postgres`` or a site.
        lasts_seconds: Until the supervisor mends it; some longer than a step's deadline.
    """

    at_seconds: float
    kind: Kind
    target: str
    lasts_seconds: float

    def __str__(self) -> str:
        return f"{self.at_seconds:.0f} s {self.kind} {self.target} for {self.lasts_seconds:.0f} s"


def write_script(seed: int, sites: Sequence[str], length_seconds: float, deadline_seconds: float) -> list[Blow]:
    """Returns the blows of `seed`, in order of time; the same for the same arguments."""
    chance = random.Random(f"consilium chaos {seed}")
    blows = []
    for _ in range(chance.randint(4, 7)):
        kind = chance.choices(["kill", "cut", "slow", "lossy", "disk-full", "clock"], [10, 3, 2, 2, 1, 1])[0]
        target = chance.choice([*SERVERS, *sites]) if kind == "kill" else chance.choice(list(sites))
        longest = 1.6 * deadline_seconds if chance.random() < 0.3 else 0.5 * deadline_seconds
        blows.append(Blow(chance.uniform(3, length_seconds), kind, target, chance.uniform(0, longest)))  # type: ignore[arg-type]
    return sorted(blows, key=lambda blow: blow.at_seconds)
