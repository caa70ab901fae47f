"""Attacks succeed where nothing protects, fail where the plan's noise is, and never exceed what epsilon allows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from infra.cli import main
from schemas.canonical import canonical_bytes
from schemas.errors import OperationError, PlanError
from schemas.plan import BudgetSpec, StudyPlan
from tasks.attacks.canary import lower_bound, measure_canary
from tasks.attacks.figures import AttackReport
from tasks.attacks.inversion import invert_gradients
from tasks.attacks.membership import epsilon_bound, infer_membership
from tasks.attacks.property import infer_property
from tasks.attacks.report import evaluate_attacks
from tasks.privacy.accounting import calibrate_noise_multiplier
from tasks.privacy.noise import AesCtrStream, os_noise_stream
from tasks.tracking.allowed import ATTACK_METRICS
from tasks.tracking.attacks import record_attacks, record_kept_attacks
from tasks.tracking.study import open_study
from tasks.tracking.target import TrackingTarget, connect
from tests.training.plans import make_cohort, make_contract, make_plan

ROUNDS, PATIENTS, FEATURES = 6, 120, 60


def plan_of(epsilon: str = "1", hidden: tuple[int, ...] = (), **mechanism: object) -> StudyPlan:
    """Few patients, many features and a step that overfits: without noise, membership shows."""
    plan = make_plan(make_contract(FEATURES), hidden=hidden)
    spec = plan.mechanism.model_copy(
        update={
            "rounds": ROUNDS,
            "noise_multiplier": calibrate_noise_multiplier(epsilon, "1e-5", ROUNDS),
            "clip_norm": "4",
            **mechanism,
        }
    )
    step = plan.optimizer.model_copy(update={"learning_rate": "20", "divisor": "60"})
    budget = BudgetSpec(epsilon=epsilon, delta="1e-5")
    return plan.model_copy(update={"mechanism": spec, "optimizer": step, "budget": budget})


def cohort_of(patients: int = PATIENTS):
    cohort = make_cohort(patients, features=FEATURES)
    # Labels without any rule can only be memorised.
    labels = np.random.default_rng(8).random(patients) < 0.5
    return replace(cohort, labels=labels, held_out=np.zeros_like(cohort.held_out))


def test_membership_shows_without_noise_and_hides_behind_epsilon() -> None:
    plan, cohort = plan_of(), cohort_of()
    bare = infer_membership(plan, cohort, 16, os_noise_stream(), protected=False)
    noised = infer_membership(plan, cohort, 16, os_noise_stream())
    assert bare.auc > 0.65, "the attack is not blind"
    assert abs(noised.auc - 0.5) < 0.12
    assert bare.tpr[1][1] > 3 * 0.01
    rate, _, low, _ = noised.tpr[1]
    assert low <= epsilon_bound(1.0, 1e-5, rate)


def test_the_bound_of_epsilon_is_the_definitions() -> None:
    assert epsilon_bound(0.0, 0.0, 0.01) == 0.01
    assert epsilon_bound(1.0, 1e-5, 0.001) == pytest.approx(0.00272828, rel=1e-4)
    assert epsilon_bound(50.0, 0.0, 0.001) == 1.0


@pytest.mark.parametrize("hidden", [(), (5,)])
def test_a_bare_gradient_gives_the_patients_row_and_a_sent_update_does_not(hidden: tuple[int, ...]) -> None:
    found = invert_gradients(plan_of(hidden=hidden), cohort_of(), 20, os_noise_stream())
    assert found.unprotected < 1e-9
    assert found.protected > 0.9 * found.guess > 0.2


def test_a_sites_property_shows_without_noise_and_less_with_it() -> None:
    found = infer_property(plan_of(), make_cohort(400, features=FEATURES), 60, os_noise_stream())
    assert found.unprotected > 0.95
    assert found.protected < found.unprotected


def test_the_canary_stays_below_its_claim_and_half_the_noise_is_caught() -> None:
    plan = plan_of("3")
    found = measure_canary(plan, 4000, AesCtrStream(b"a 95 % bound fails now and then: "[:32]))
    assert 0.6 * found.claimed_mu < found.measured_mu <= found.claimed_mu
    halved = plan_of("3", noise_multiplier=str(float(plan.mechanism.noise_multiplier) / 2))
    assert measure_canary(halved, 4000, os_noise_stream()).measured_mu > found.claimed_mu


def test_a_bound_from_scores_that_say_nothing_is_not_positive() -> None:
    scores = np.random.default_rng(3).normal(size=(2, 2000))
    assert lower_bound(scores[0], scores[1]) <= 0.1


def test_what_cannot_be_attacked_is_refused_or_said(tmp_path: Path) -> None:
    stream = os_noise_stream()
    with pytest.raises(OperationError, match="Expected at least 8 models and 100 patients"):
        infer_membership(plan_of(), cohort_of(40), 16, stream)
    with pytest.raises(OperationError, match="20 patients of each label"):
        infer_property(plan_of(), cohort_of(20), 60, stream)
    sampled = plan_of(sampling_probability="0.5")
    with pytest.raises(PlanError, match="Expected full batches"):
        measure_canary(sampled, 100, stream)
    report = evaluate_attacks(sampled, cohort_of(), "generated rows", models=8)
    assert set(report.not_run) == {"canary"}
    assert report.figures["inversion_unprotected"] < 1e-9


def test_the_figures_stand_beside_epsilon_in_mlflow_and_others_are_refused(tmp_path: Path) -> None:
    plan = plan_of()
    report = evaluate_attacks(plan, cohort_of(), "generated rows", models=8)
    assert set(report.figures) == ATTACK_METRICS
    target = TrackingTarget.local(tmp_path / "mlflow.db", tmp_path / "artifacts")
    with pytest.raises(OperationError, match="The study has no run in MLflow yet"):
        record_attacks(target, plan, report.figures, b"{}")
    run = open_study(target, plan, {})
    for _ in range(2):
        record_attacks(target, plan, report.figures, report.model_dump_json().encode())
    client = connect(target)
    logged = client.get_run(run.run_id).data.metrics
    assert logged["attack/membership_auc"] == report.figures["membership_auc"]
    assert len(client.get_metric_history(run.run_id, "attack/membership_auc")) == 1
    assert [item.path for item in client.list_artifacts(run.run_id)].count("attacks.json") == 1
    kept = tmp_path / "attacks.json"
    assert not record_kept_attacks(target, plan, kept)
    kept.write_text(report.model_copy(update={"study": "0" * 64}).model_dump_json())
    assert not record_kept_attacks(target, plan, kept), "another plan's figures say nothing here"
    kept.write_text(report.model_dump_json())
    assert record_kept_attacks(target, plan, kept)
    kept.write_text("{}")
    with pytest.raises(OperationError, match=r"Expected attacks\.json to be an attack report"):
        record_kept_attacks(target, plan, kept)
    with pytest.raises(OperationError, match="attack figures from the allow-list, got patient_4711"):
        record_attacks(target, plan, {"patient_4711": 1.0}, b"{}")


def test_the_command_attacks_a_plan_on_the_embedded_table(prepared_study, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_bytes(canonical_bytes(prepared_study.plan))
    result = CliRunner().invoke(
        main, ["attack", "run", "--plan", str(file), "--data", "breast-cancer", "--models", "8", "--json"]
    )
    assert result.exit_code == 0, result.stderr
    report = AttackReport.model_validate(json.loads(result.stdout))
    assert report.study == prepared_study.plan.study
    assert not report.not_run
    assert report.source == "scikit-learn's breast-cancer table"
