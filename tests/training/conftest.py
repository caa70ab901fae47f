"""One installed package of models for the tests of this folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.installed import install_models


@pytest.fixture(scope="session")
def installed_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("installed")
    install_models(folder)
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("hospital_models", None)
