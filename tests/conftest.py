"""Fixtures that several areas share: one finished study, made once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.installed import install_models
from tests.simulator import Prepared, copy_study, open_consortium, prepare


@dataclass(frozen=True)
class FinishedStudy:
    """A released study.

    Attributes:
        evidence: Its evidence folder (do not change it: copy it first).
        keys: The public-keys file, obtained outside the evidence.
    """

    prepared: Prepared
    evidence: Path
    keys: Path


@pytest.fixture(scope="session")
def prepared_study(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A prepared study of five hospitals and two rounds; copy it (`copy_study`) before anything runs in it."""
    return prepare(tmp_path_factory.mktemp("prepared") / "study")


@pytest.fixture(scope="session")
def study_after_ceremony(prepared_study: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The prepared study after its key ceremony; copy it before anything runs in it."""
    prepared = copy_study(prepared_study, tmp_path_factory.mktemp("ceremony") / "study")
    open_consortium(prepared).run_ceremony()
    return prepared


@pytest.fixture(scope="session")
def finished_study(prepared_study: Prepared, tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """A whole study of five hospitals and two rounds with evaluation and release, in one process."""
    prepared = copy_study(prepared_study, tmp_path_factory.mktemp("finished") / "study")
    consortium = open_consortium(prepared)
    evaluation = consortium.run_study()
    evidence = consortium.release(prepared.plan.mechanism.rounds, evaluation)
    return FinishedStudy(prepared, evidence, prepared.keys)


@pytest.fixture(scope="session")
def installed_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A package of models, installed with its entry points for the tests of one process."""
    folder = tmp_path_factory.mktemp("installed")
    install_models(folder)
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("hospital_models", None)
