"""Nothing that leaves a hospital holds a patient's cell value: neither a trained row's nor a refused row's."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from flows.tracking import Tracker
from tests.canaries import BAD, GOOD, files_under, plant, search, verify_search_sees
from tests.simulator import Prepared, change_settings, copy_study, open_consortium


def test_the_search_finds_a_row_in_every_form() -> None:
    verify_search_sees()


def test_no_cell_of_a_planted_row_is_in_store_mlflow_logs_or_output(
    prepared_study: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    prepared = copy_study(prepared_study, tmp_path / "study")
    trained, refused = (prepared.workdir.site(site.name) for site in prepared.plan.sites[:2])
    plant(trained / "cohort.parquet", GOOD)
    plant(refused / "cohort.parquet", BAD)
    coordinator = prepared.workdir.coordinator
    change_settings(
        coordinator, mlflow_uri=f"sqlite:///{coordinator / 'mlflow.db'}", artifacts=str(coordinator / "mlartifacts")
    )
    with caplog.at_level(logging.DEBUG):
        consortium = open_consortium(prepared)
        tracker = Tracker(consortium.coordinator)
        before = consortium.lineage
        outcome = consortium.run_round(consortium.run_ceremony(), 1)
        tracker.round(outcome, before, None)
    took_part = dict(outcome.record.predicate.contributions)
    assert trained.name in took_part
    assert refused.name not in took_part
    written = capfd.readouterr()
    left = [
        *files_under(prepared.workdir.store),
        *files_under(coordinator),
        ("log", caplog.text.encode()),
        ("output", (written.out + written.err).encode()),
    ]
    assert any(name.endswith("mlflow.db") for name, _ in left)
    assert len(left) > 40
    assert search(left) == []
