"""A whole study on sampled batches: every site draws its own patients, and the audit recomputes what that cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import infra.datasets
from schemas.ledger import PrivacyReserved, RenyiState
from tasks.audit.keys import read_public_keys
from tasks.audit.verify import verify_evidence
from tasks.privacy.accounting import calibrate_sampled_multiplier, epsilon_of_events
from tasks.privacy.mechanism import training_mechanism
from tasks.privacy.renyi import choose_order
from tests.simulator import Prepared, open_consortium, prepare

PROBABILITY = "0.25"


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Prepared]:
    """A study whose author planned sampled batches; everything after the plan is the real thing."""
    full_batches = infra.datasets.demo_plan_parts

    def sampled(*arguments: object) -> infra.datasets.PlanParts:
        parts = full_batches(*arguments)  # type: ignore[arg-type]
        rounds, order = parts.mechanism.rounds, choose_order(parts.budget.epsilon, parts.budget.delta)
        multiplier = calibrate_sampled_multiplier(parts.budget.epsilon, parts.budget.delta, rounds, PROBABILITY, order)
        change = {"sampling_probability": PROBABILITY, "noise_multiplier": multiplier}
        return replace(parts, mechanism=parts.mechanism.model_copy(update=change))

    monkeypatch.setattr(infra.datasets, "demo_plan_parts", sampled)
    return prepare(tmp_path / "study")


def test_a_sampled_study_is_charged_by_the_renyi_filter_and_its_audit_passes(prepared: Prepared) -> None:
    consortium = open_consortium(prepared)
    plan = consortium.plan
    evaluation = consortium.run_study()
    evidence = consortium.release(plan.mechanism.rounds, evaluation)
    for site in plan.sites:
        ledger = consortium.sites[site.name].ledger
        charged = [e.body for e in ledger.find(plan.study, "privacy-reserved") if isinstance(e.body, PrivacyReserved)]
        training = [body for body in charged if body.event.data == "training"]
        assert [body.event for body in training] == [training_mechanism(plan).event()] * plan.mechanism.rounds
        assert all(isinstance(body.after, RenyiState) for body in training)
        assert [body.after.kind for body in charged if body.event.data == "held-out"] == ["gdp"]
        stated = consortium.epsilon()[site.name]
        assert stated == epsilon_of_events([body.event for body in training], plan.budget.delta)
        assert 0 < float(stated) <= float(plan.budget.epsilon)
    report = verify_evidence(evidence, read_public_keys(prepared.keys))
    assert [(r.check, r.detail) for r in report.results if r.status == "failed"] == []


def test_every_round_draws_other_patients_and_noise_covers_an_empty_draw(prepared: Prepared) -> None:
    consortium = open_consortium(prepared)
    public = consortium.run_ceremony()
    consortium.run_round(public, 1)
    mechanism = training_mechanism(consortium.plan)
    for site in consortium.plan.sites:
        stored = consortium.sites[site.name].outbox.stored(f"private/{consortium.plan.study}/values-0001")
        assert stored is not None
        sent = np.frombuffer(stored, dtype="<i8", offset=64)
        assert np.count_nonzero(sent) == sent.size == mechanism.dimension
