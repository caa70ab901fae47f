"""A short study outlives the death of Prefect and of a hospital's host; a file of its own, as in test_dead_run.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import Hold
from tests.chaos.script import Blow

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux")


def test_nothing_is_lost_when_prefect_and_a_hospitals_host_die_while_a_link_is_cut(hold: Hold) -> None:
    script = (
        Blow(1, 1.0, "kill", "prefect", 2.0),
        Blow(1, 1.5, "cut", "hospital-04", 4.0),
        Blow(2, 1.0, "reboot", "hospital-03", 3.0),
    )
    hold(script, 2)
