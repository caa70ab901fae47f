"""A handful of short studies under chaos, two of them in the test command; `make chaos` runs twenty long ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.chaos.network import Loopback, Namespaces, missing_for_namespaces
from tests.chaos.run import HOSTS, remove_run, run_seed
from tests.chaos.script import Blow
from tests.consortium.stores import ObjectStore, open_object_store

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux")
SEPARATE = not missing_for_namespaces()
SHORT = {
    "the study's run and an agent die": (
        Blow(1, 1.0, "kill", "run", 2.0),
        Blow(1, 1.0, "kill", "hospital-02", 2.0),
    ),
    "Prefect and a hospital's host die while a link is cut": (
        Blow(1, 1.0, "kill", "prefect", 2.0),
        Blow(1, 1.5, "cut", "hospital-04", 4.0),
        Blow(2, 1.0, "reboot", "hospital-03", 3.0),
    ),
}
# Every kind of death at least once, and those of several at the same time.
LONG = {
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


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture
def store(folder: Path) -> Iterator[ObjectStore]:
    network = Namespaces(HOSTS) if SEPARATE else Loopback()
    with open_object_store(folder, network.certified(HOSTS)) as running:
        yield running


@pytest.mark.parametrize("name", SHORT)
def test_nothing_is_lost_when(name: str, folder: Path, store: ObjectStore) -> None:
    _hold(SHORT[name], folder, store, rounds=2)


@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_nothing_is_lost_either_when(name: str, folder: Path, store: ObjectStore) -> None:
    _hold(LONG[name], folder, store, rounds=3)


def _hold(script: Sequence[Blow], folder: Path, store: ObjectStore, rounds: int) -> None:
    place = folder / "study"
    outcome = run_seed(0, place, store, rounds=rounds, separate=SEPARATE, script=list(script), at_once=True)
    assert 1 <= outcome.verdict.rounds <= rounds - outcome.verdict.dead
    assert outcome.blows, "nobody was struck"
    remove_run(place)
