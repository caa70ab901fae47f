"""What a seed does to a study: who is struck when, how, and after how long somebody mends it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

Kind = Literal["kill", "reboot", "cut", "unplug", "slow", "lossy", "narrow", "disk-full", "clock"]
# What dies at a coordinator and in between: its run, its worker, what `coordinator up` runs, the proxy, the store.
SERVERS: Final = ("run", "worker", "prefect", "postgres", "mlflow", "proxy", "s3")
_WEIGHTS: Final = {"kill": 12, "reboot": 2, "cut": 2, "unplug": 2, "slow": 2, "lossy": 2, "narrow": 1, "disk-full": 1}


@dataclass(frozen=True)
class Blow:
    """One thing that happens.

    Attributes:
        round: In which round; 0 is the key ceremony before the first.
        after_seconds: Since that round began.
        target: One of SERVERS, ``coordinator`` or a site.
        lasts_seconds: Until somebody mends it; some longer than a step's deadline.
    """

    round: int
    after_seconds: float
    kind: Kind
    target: str
    lasts_seconds: float

    def __str__(self) -> str:
        when = f"round {self.round} + {self.after_seconds:.0f} s"
        return f"{when}: {self.kind} {self.target}, {self.lasts_seconds:.0f} s"


def write_script(seed: int, sites: Sequence[str], rounds: int, deadline_seconds: float) -> list[Blow]:
    """Returns the blows of `seed`, in order of time; the same for the same arguments."""
    chance = random.Random(f"consilium chaos {seed}")
    kinds: tuple[Kind, ...] = get_args(Kind)
    blows = []
    for _ in range(chance.randint(4, 7)):
        kind = chance.choices(kinds, [_WEIGHTS.get(name, 1) for name in kinds])[0]
        target = chance.choice(_targets(kind, sites))
        longest = 1.6 * deadline_seconds if chance.random() < 0.3 else 0.5 * deadline_seconds
        # The round after the last is the evaluation; with it comes the release.
        when = chance.randint(0, rounds + 1), chance.uniform(0, 8)
        blows.append(Blow(*when, kind, target, chance.uniform(0, longest)))
    return sorted(blows, key=lambda blow: (blow.round, blow.after_seconds))


def _targets(kind: Kind, sites: Sequence[str]) -> list[str]:
    if kind == "kill":
        return [*SERVERS, *sites]
    if kind in ("disk-full", "clock"):
        return list(sites)
    return ["coordinator", *sites]
