"""A study with drop-outs and a refusal, made once for all tests of the audit."""

from __future__ import annotations

import pytest

from tests.audit.eventful import Eventful, make_eventful_study


@pytest.fixture(scope="session")
def eventful(tmp_path_factory: pytest.TempPathFactory) -> Eventful:
    """The study's evidence; copy it before anything changes it."""
    return make_eventful_study(tmp_path_factory.mktemp("eventful") / "study")
