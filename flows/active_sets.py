"""Which holders are asked for shares next.

A share that is wrong in value shows only in that its whole set does not open, and not whose it is: sets are varied so
that one is found soon that everybody at fault is outside of.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import combinations

ActiveSet = tuple[str, ...]


def choose_active_set(willing: Collection[str], t: int, asked: Collection[ActiveSet]) -> ActiveSet | None:
    """Returns the next active set, in name order; the same whenever the same was asked before.

    Of up to 16 holders one at fault is outside of one of the first 16 sets, and so are two where as many answer as the
    default numbers ask to certify. Where there are at most 16 sets at all, each is asked.

    Args:
        willing: Holders that certified and answer.
        t: How many make a set.
        asked: The sets that did not open; none of them is asked again.

    Returns:
        None if there is no further set.
    """
    holders = sorted(willing)
    if len(holders) < t:
        return None
    chosen = _without_suspects(holders, t, asked)
    if chosen not in asked:
        return chosen
    seldom = sorted(holders, key=lambda holder: _times(holder, asked))
    sets = (tuple(sorted(members)) for members in combinations(seldom, t))
    return next((members for members in sets if members not in asked), None)


def _without_suspects(holders: list[str], t: int, asked: Collection[ActiveSet]) -> ActiveSet:
    """Leaves out, one after another, who would explain most of what failed: alone, or with one that is left out."""
    singles = [holder for holder in holders if _times(holder, asked) == len(asked)]
    pairs = [pair for pair in combinations(holders, 2) if all(set(pair) & set(members) for members in asked)]
    left_out: set[str] = set()

    def suspicion(holder: str) -> tuple[bool, int, int, int]:
        with_holder = [pair for pair in pairs if holder in pair]
        explained = sum(bool(left_out & set(pair)) for pair in with_holder)
        return holder in singles, explained, len(with_holder), _times(holder, asked)

    while len(holders) - len(left_out) > t:
        rest = [holder for holder in reversed(holders) if holder not in left_out]
        left_out.add(max(rest, key=suspicion))
    return tuple(holder for holder in holders if holder not in left_out)


def _times(holder: str, asked: Collection[ActiveSet]) -> int:
    return sum(holder in members for members in asked)
