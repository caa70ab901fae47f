"""What a process has verified of the public past: ceremonies and openings, each verified once.

Both are functions of signed, digest-bound bytes and of the plan, whoever verifies them. Sites in separate processes
share nothing. Only an experiment that plays many sites in one process lets them share (`share_past`): then the first of
them verifies, and the others still read, and compare, the signed opening.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from schemas.plan import Agreement
from site_agents.context import SiteContext
from tasks.lineage import Lineage
from tasks.secure_sum.epoch import EpochPublic


@dataclass
class VerifiedPast:
    """Verified public facts.

    Attributes:
        epochs: (study, epoch) -> verified public side.
        openings: (study, round, digest of the opening before, digest of the opening) -> the model after it.
    """

    epochs: dict[tuple[str, int], EpochPublic] = field(default_factory=dict)
    openings: dict[tuple[str, int, str | None, str], Lineage] = field(default_factory=dict)
    shared: bool = False


_PAST: dict[Path, VerifiedPast] = {}


def past_of(context: SiteContext[Agreement]) -> VerifiedPast:
    """Returns what this process has verified for the site."""
    return _PAST.setdefault(context.home.folder, VerifiedPast())


def share_past(contexts: Iterable[SiteContext[Agreement]]) -> None:
    """Lets sites of one process share what they verify; for experiments, where one operator plays all of them."""
    common = VerifiedPast(shared=True)
    for context in contexts:
        _PAST[context.home.folder] = common


def forget_past(contexts: Iterable[SiteContext[Agreement]]) -> None:
    """Drops what was verified for the sites."""
    for context in contexts:
        _PAST.pop(context.home.folder, None)
