"""A certified round that tests share; they copy before they alter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tests.secure_sum.plans import identities
from tests.secure_sum.world import Round

SITES = [f"site-{i:02d}" for i in range(5)]
LENGTH = 40


def values_of(site: str, length: int, spread: int = 2**22) -> Any:
    return np.random.default_rng(int(site[-2:])).integers(-spread, spread, length)


def copy_of(round_: Round, **changes: Any) -> Round:
    kept = {name: dict(getattr(round_, name)) for name in ("values", "parts", "envelopes", "certificate")}
    return replace(round_, **(kept | changes))


def expected(round_: Round, dropped: tuple[str, ...] = ("site-04",)) -> Any:
    return sum(v for site, v in round_.values.items() if site not in dropped)


def signing(site: str) -> Any:
    return identities(5)[site].signing
