"""One registered candidate for all tests of this folder; each takes a copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import FinishedStudy
from tests.review.studies import Registered, register


@pytest.fixture(scope="session")
def registered_study(finished_study: FinishedStudy, tmp_path_factory: pytest.TempPathFactory) -> Registered:
    return register(finished_study.prepared, tmp_path_factory.mktemp("registered") / "study")


@pytest.fixture
def candidate(registered_study: Registered, tmp_path: Path) -> Registered:
    return registered_study.copy(tmp_path / "study")
