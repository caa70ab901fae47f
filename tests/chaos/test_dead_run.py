"""A short study outlives the death of its run and of an agent; a file of its own: another worker can run the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import Hold
from tests.chaos.script import Blow

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux")


def test_nothing_is_lost_when_the_studys_run_and_an_agent_die(hold: Hold) -> None:
    hold((Blow(1, 1.0, "kill", "run", 2.0), Blow(1, 1.0, "kill", "hospital-02", 2.0)), 2)
