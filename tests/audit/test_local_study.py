"""A whole study in local mode: steps at the sites, encrypted averages, every step charged, an audit that holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import infra.datasets
from infra.local_mode import local_parts
from infra.plans import describe_plan
from schemas.ledger import PrivacyReserved
from site_agents import contributing
from site_agents.cohort.reader import read_table
from tasks.audit.context import AuditContext
from tasks.audit.evidence import EvidenceFolder
from tasks.audit.keys import read_public_keys
from tasks.audit.registry import run_check
from tasks.audit.verify import CHECKS, verify_evidence
from tasks.contract.encoder import encode_features
from tasks.ledger.budget import describe_budget
from tasks.privacy.accounting import epsilon_of_events
from tasks.privacy.mechanism import mechanism_for, training_mechanism
from tasks.server_step import initial_state, released_weights
from tasks.training.local import train_locally
from tests.simulator import InsecureRecordedStream, Prepared, copy_study, open_consortium, prepare

STEPS, ROUNDS = 4, 2


@dataclass(frozen=True)
class Finished:
    prepared: Prepared
    evidence: Path
    weights: NDArray[np.float64]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """After its key ceremony, a study whose author planned local steps; everything after the plan is the real thing."""
    distributed = infra.datasets.demo_plan_parts

    def local(*arguments: object) -> infra.datasets.PlanParts:
        parts = distributed(*arguments)  # type: ignore[arg-type]
        return local_parts(parts, declared_patients=600, steps=STEPS, learning_rate="2", proximal="0.1")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infra.datasets, "demo_plan_parts", local)
        prepared = prepare(tmp_path_factory.mktemp("local") / "study", rounds=ROUNDS)
    open_consortium(prepared).run_ceremony()
    return prepared


@pytest.fixture(scope="module")
def finished(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    copied = copy_study(prepared, tmp_path_factory.mktemp("finished") / "study")
    consortium = open_consortium(copied)
    public = consortium.finished_ceremony()
    for round_ in range(1, ROUNDS + 1):
        consortium.run_round(public, round_)
    evidence = consortium.release(ROUNDS, consortium.run_round(public, ROUNDS + 1, "evaluate"))
    return Finished(copied, evidence, released_weights(consortium.lineage.state))


def test_every_step_of_a_local_study_is_charged_and_its_audit_passes(finished: Finished) -> None:
    consortium = open_consortium(finished.prepared)
    plan = consortium.plan
    for site in plan.sites:
        ledger = consortium.sites[site.name].ledger
        charged = [e.body for e in ledger.find(plan.study, "privacy-reserved") if isinstance(e.body, PrivacyReserved)]
        training = [body.event for body in charged if body.event.data == "training"]
        assert training == [training_mechanism(plan).event()] * ROUNDS
        assert sum(steps for event in training for _, _, steps in event.runs) == ROUNDS * STEPS
        stated = consortium.epsilon()[site.name]
        assert stated == epsilon_of_events(training, plan.budget.delta)
        assert 2.9 < float(stated) <= float(plan.budget.epsilon)
        assert "has charged training patients already" in describe_budget(ledger, plan)
    report = verify_evidence(finished.evidence, read_public_keys(finished.prepared.keys))
    assert [(r.check, r.detail) for r in report.results if r.status == "failed"] == []
    passed = {r.check for r in report.results if r.status == "checked"}
    assert {"C21", "C22", "C24", "C25", "C26", "C27"} <= passed


def test_the_released_model_is_learned(finished: Finished) -> None:
    plan = finished.prepared.plan
    paths = {site.name: finished.prepared.workdir.site(site.name) / "cohort.parquet" for site in plan.sites}
    cohorts = infra.datasets.read_cohorts(plan.contract, paths)
    assert infra.datasets.exact_held_out_auc(plan, cohorts, finished.weights) > 0.9


def test_the_encrypted_average_is_the_sum_of_what_the_sites_would_send(prepared: Prepared, tmp_path: Path) -> None:
    consortium = open_consortium(copy_study(prepared, tmp_path / "study"), insecure_recorded_noise=True)
    plan = consortium.plan
    outcome = consortium.run_round(consortium.finished_ceremony(), 1)
    expected = np.zeros(outcome.opened.size, np.int64)
    for site in plan.sites:
        table = read_table(consortium.sites[site.name].data, plan.contract)
        stream = InsecureRecordedStream(site.name, outcome.instruction.predicate)
        cohort = encode_features(plan.contract, table)
        expected += train_locally(plan, site.name, cohort, initial_state(plan).weights, stream)
    assert np.array_equal(outcome.opened, expected)


def test_sites_that_charge_one_step_of_several_fail_the_audit(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a charge is whole in itself, and the ledger takes it; the plan says what it should have been."""
    monkeypatch.setattr(contributing, "mechanism_for", lambda plan, kind: replace(mechanism_for(plan, kind), steps=1))
    copied = copy_study(prepared, tmp_path / "study")
    consortium = open_consortium(copied)
    consortium.run_round(consortium.finished_ceremony(), 1)
    evidence = consortium.release(1, None, "one round is enough")
    context = AuditContext(EvidenceFolder(evidence), read_public_keys(copied.keys))
    results = [run_check(check, context) for check in CHECKS if check.number not in ("C27", "C28")]
    failed = [result for result in results if result.status == "failed"]
    assert [result.check for result in failed] == ["C24"]
    assert "is not the plan's mechanism" in str(failed[0])


def test_the_plan_says_in_words_what_a_site_does(prepared: Prepared) -> None:
    text = describe_plan(prepared.plan)
    assert f"{STEPS} steps a round at each site, learning rate 2, FedProx (mu 0.1)" in text
    assert f"in each of {ROUNDS * STEPS} steps, drawn in full by every site itself" in text
    cheap = prepared.plan.mechanism.model_copy(update={"noise_multiplier": "1"})
    with pytest.raises(Exception, match="Expected training to cost at most"):
        describe_plan(prepared.plan.model_copy(update={"mechanism": cheap}))
