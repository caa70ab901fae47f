"""One certified round per test session; tests copy it before they alter it."""

from __future__ import annotations

import pytest

from tests.secure_sum.rounds import LENGTH, SITES, values_of
from tests.secure_sum.world import Round, make_context, shared_ceremony


@pytest.fixture(scope="session")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Round:
    """Five contributions, site-04 dropped, certified by everybody; tests copy before they alter."""
    round_ = Round(shared_ceremony(5), make_context(shared_ceremony(5), LENGTH), tmp_path_factory.mktemp("round"))
    for site in SITES:
        round_.contribute(site, values_of(site, LENGTH))
    round_.propose(drop=("site-04",))
    round_.certify()
    return round_
