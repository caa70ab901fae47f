"""Modes side by side: the same splits, the same epsilon, and a table that says which rounds were saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from infra import datasets_eicu
from infra.datasets import load_site_tables
from infra.studies import modes
from infra.studies.definitions import STUDIES
from infra.studies.modes import Mode, compare_modes, modes_of, plan_of_mode, render_modes
from schemas.threshold import default_threshold
from tasks.privacy.accounting import gdp_cost, gdp_limit
from tasks.privacy.mechanism import training_mechanism, verify_plan_within_budget
from tests.studies.generated import sums_digest, write_eicu

TOY = replace(STUDIES["eicu"], name="toy", rounds=2, threshold=default_threshold(4), committee=None)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_eicu(tmp_path / "eicu")
    monkeypatch.setattr(datasets_eicu, "_SUMS_SHA256", sums_digest(folder))
    return folder


def test_every_mode_is_trained_on_every_split_and_put_beside_the_distributed_one(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = (Mode("distributed", 2), Mode("local, FedYogi", 1, 2, server="yogi"), Mode("local, FedProx", 1, 2, 4.0))
    monkeypatch.setattr(modes, "modes_of", lambda study: chosen)
    said: list[str] = []
    rows = compare_modes(TOY, data, (0, 1), ("3",), said.append)
    assert [(row.mode, row.encrypted_rounds, row.local_steps, row.seeds) for row in rows] == [
        ("distributed", 2, 0, 2),
        ("local, FedYogi", 1, 2, 2),
        ("local, FedProx", 1, 2, 2),
    ]
    assert rows[0].difference == rows[0].difference_error == 0
    assert all(row.difference == pytest.approx(row.auc - rows[0].auc) for row in rows)
    assert all(0 < row.auc <= 1 and row.error >= 0 for row in rows)
    assert len(said) == 6
    assert len(render_modes(rows).splitlines()) == 5


def test_all_modes_of_a_study_cost_the_same_epsilon(data: Path) -> None:
    tables = load_site_tables("eicu-demo", data_dir=data)
    for mode in modes_of(TOY):
        plan = plan_of_mode(TOY, mode, "3", tables)
        verify_plan_within_budget(plan)
        event = training_mechanism(plan).event()
        cost = plan.mechanism.rounds * gdp_cost(event)
        assert float(cost) == pytest.approx(float(gdp_limit("3", TOY.delta)), rel=1e-4)
        assert (event.noise_scope == "local") == bool(mode.steps)
        assert plan.mechanism.releases == mode.rounds * max(mode.steps, 1)
