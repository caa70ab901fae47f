"""A short study under a script of blows, on hosts and a store of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.chaos.network import Loopback, Namespaces, missing_for_namespaces
from tests.chaos.run import HOSTS, remove_run, run_seed
from tests.chaos.script import Blow
from tests.consortium.stores import ObjectStore, open_object_store

Hold = Callable[[Sequence[Blow], int], None]
SEPARATE = not missing_for_namespaces()


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture
def store(folder: Path) -> Iterator[ObjectStore]:
    network = Namespaces(HOSTS) if SEPARATE else Loopback()
    with open_object_store(folder, network.certified(HOSTS)) as running:
        yield running


@pytest.fixture
def hold(folder: Path, store: ObjectStore) -> Hold:
    """Runs a study of so many rounds under a script; it must be released and hold in everything that is verified."""

    def run(script: Sequence[Blow], rounds: int) -> None:
        place = folder / "study"
        outcome = run_seed(0, place, store, rounds=rounds, separate=SEPARATE, script=list(script), at_once=True)
        assert 1 <= outcome.verdict.rounds <= rounds - outcome.verdict.dead
        assert outcome.blows, "nobody was struck"
        remove_run(place)

    return run
