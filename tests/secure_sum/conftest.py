"""One certified round per test session; tests copy it before they alter it."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import settings

from tests.secure_sum.rounds import LENGTH, SITES, values_of
from tests.secure_sum.world import Round, make_context, shared_ceremony

# make fuzz: 150 targets, four runs of each kind share these examples.
settings.register_profile("fuzz", max_examples=4_000)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says how many mutated messages were tried."""
    fuzzing = sys.modules.get("tests.secure_sum.test_fuzz")
    if fuzzing is not None and sum(fuzzing.COUNTED.values()):
        counted = ", ".join(f"{number:,} {what}" for what, number in fuzzing.COUNTED.items())
        terminalreporter.write_line(f"fuzz: {counted}; no crash, no acceptance")


@pytest.fixture(scope="session")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Round:
    """Five contributions, site-04 dropped, certified by everybody; tests copy before they alter."""
    round_ = Round(shared_ceremony(5), make_context(shared_ceremony(5), LENGTH), tmp_path_factory.mktemp("round"))
    for site in SITES:
        round_.contribute(site, values_of(site, LENGTH))
    round_.propose(drop=("site-04",))
    round_.certify()
    return round_
