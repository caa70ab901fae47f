"""A handful of short studies under chaos; `make chaos` runs twenty long ones, the test command two shorter ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import Hold
from tests.chaos.script import Blow

pytestmark = [pytest.mark.long, pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux")]
# Every kind of death at least once, and those of several at the same time.
SCRIPTS = {
    "a run, the store and MLflow die": (
        Blow(1, 1.0, "kill", "run", 5.0),
        Blow(2, 1.0, "kill", "s3", 6.0),
        Blow(3, 0.5, "kill", "mlflow", 4.0),
    ),
    "PostgreSQL dies, then Prefect while a hospital's clock is off": (
        Blow(0, 2.0, "clock", "hospital-02", 30.0),
        Blow(1, 2.0, "kill", "postgres", 3.0),
        Blow(2, 2.0, "kill", "prefect", 3.0),
    ),
    "the coordinator's host and a hospital's boot again, a disk is full": (
        Blow(1, 1.0, "disk-full", "hospital-01", 10.0),
        Blow(2, 2.0, "reboot", "coordinator", 5.0),
        Blow(3, 2.0, "reboot", "hospital-03", 5.0),
    ),
    "links are cut, unplugged, lossy and narrow": (
        Blow(0, 1.0, "lossy", "hospital-01", 20.0),
        Blow(1, 0.0, "unplug", "hospital-02", 12.0),
        Blow(2, 0.0, "narrow", "coordinator", 20.0),
        Blow(3, 1.0, "cut", "hospital-04", 30.0),
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_nothing_is_lost_when(name: str, hold: Hold) -> None:
    hold(SCRIPTS[name], 3)
