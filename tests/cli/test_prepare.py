"""Preparation is what the parties would do: own keys in own folders, one plan, everybody's signature."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.cli import main
from infra.demo.options import DemoOptions
from infra.demo.prepare import choose_threshold, load_plan, prepare_study
from infra.demo.workdir import Workdir, open_workdir
from schemas.envelope import open_envelope
from schemas.errors import ConsiliumError, OperationError, PlanError
from schemas.layout import approval_key
from schemas.messages import PlanApproval
from schemas.plan import StudyPlan
from schemas.threshold import broken_rules, default_threshold
from tasks.identity import load_identity
from tasks.storage.folder import FolderStore


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workdir, StudyPlan]:
    options = DemoOptions(workdir=tmp_path_factory.mktemp("demo") / "study", rounds=2)
    with open_workdir(options) as (workdir, _):
        plan, state = prepare_study(options, workdir)
        workdir.write_state(state)
    return workdir, plan


def test_every_party_signed_the_plan_with_the_key_of_its_own_private_home(
    prepared: tuple[Workdir, StudyPlan],
) -> None:
    workdir, plan = prepared
    store = FolderStore(workdir.store)
    homes = {plan.coordinator.name: workdir.coordinator} | {s.name: workdir.site(s.name) for s in plan.sites}
    keys = {plan.coordinator.name: plan.coordinator.identity_key} | {s.name: s.identity_key for s in plan.sites}
    for name, home in homes.items():
        is_coordinator = name == plan.coordinator.name
        envelope = store.get(approval_key(plan.study, name, coordinator=is_coordinator))
        assert envelope is not None
        approval = open_envelope(PlanApproval, envelope, plan.study, keys[name], name)
        assert (approval.participant, approval.role) == (name, "coordinator" if is_coordinator else "site")
        assert load_identity(home / "identity.json").identity_key == keys[name]
        assert home.stat().st_mode & 0o777 == 0o700
        assert (home / "identity.json").stat().st_mode & 0o777 == 0o600


def test_the_default_study_is_five_hospitals_whose_numbers_fit(prepared: tuple[Workdir, StudyPlan]) -> None:
    _, plan = prepared
    numbers = plan.threshold
    assert len(plan.sites) == 5
    assert (numbers.t, numbers.certificate_quorum, numbers.k_min, numbers.honest_noise_shares) == (3, 4, 4, 2)
    assert (plan.budget.epsilon, plan.budget.delta) == ("3", "1e-5")
    assert broken_rules(numbers, 5, 5) == ()


def test_the_plan_in_the_store_is_the_signed_one(prepared: tuple[Workdir, StudyPlan]) -> None:
    workdir, plan = prepared
    assert load_plan(workdir, plan.study) == plan
    state = workdir.read_state()
    assert state is not None
    assert (state.study, state.stage, state.rounds, state.sites) == (plan.study, "running", 2, 5)


def test_public_keys_are_outside_the_evidence_and_hold_no_secret(prepared: tuple[Workdir, StudyPlan]) -> None:
    workdir, plan = prepared
    keys = json.loads(workdir.public_keys.read_text())
    assert workdir.evidence not in workdir.public_keys.parents
    assert keys["sites"] == {site.name: site.identity_key for site in plan.sites}
    secret = json.loads((workdir.coordinator / "identity.json").read_text())["signing_secret"]
    for path in (workdir.public_keys, workdir.plan, workdir.state_file, *workdir.store.rglob("*.json")):
        assert secret not in path.read_text()


def test_plan_check_prints_the_numbers_and_what_follows(prepared: tuple[Workdir, StudyPlan]) -> None:
    workdir, plan = prepared
    result = CliRunner().invoke(main, ["plan", "check", str(workdir.plan)])
    assert result.exit_code == 0
    assert plan.study in result.output
    assert "t=3, Q=4, k_min=4" in result.output
    assert "they fit together" in result.output


def test_plan_check_refuses_numbers_that_do_not_fit_and_names_the_nearest(
    prepared: tuple[Workdir, StudyPlan], tmp_path: Path
) -> None:
    plan = json.loads(prepared[0].plan.read_text())
    plan["threshold"]["certificate_quorum"] = 3
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan))
    result = CliRunner().invoke(main, ["plan", "check", str(file)])
    assert result.exit_code == 12
    assert "The plan breaks 2Q > n_k + c_key (6 > 7)" in result.stderr
    assert "The nearest plan that holds: t=3, Q=4" in result.stderr


@pytest.mark.parametrize("sites", range(4, 13))
def test_a_chosen_threshold_takes_its_collusion_bound_with_it(sites: int) -> None:
    assert choose_threshold(sites, None) == default_threshold(sites)
    for t in range(2, sites):
        numbers = choose_threshold(sites, t)
        assert numbers.t == t
        assert broken_rules(numbers, sites, sites) == ()


def refused(tmp_path: Path, **options: object) -> ConsiliumError:
    """Returns the refusal, after checking that nothing was written but the folder and its lock."""
    root = tmp_path / "study"
    asked = DemoOptions(workdir=root, **options)  # type: ignore[arg-type]
    with pytest.raises(ConsiliumError) as caught, open_workdir(asked) as (workdir, _):
        prepare_study(asked, workdir)
    assert caught.value.remedy
    assert [path.name for path in root.iterdir()] == ["consilium.lock"]
    return caught.value


def test_a_threshold_that_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    error = refused(tmp_path, threshold=5)
    assert isinstance(error, PlanError)
    assert "t <= Q (5 <= 4)" in error.message
    assert "nearest plan that holds" in error.remedy
    assert "5 hospitals allow --threshold 2 to 4." in error.remedy


def test_a_delta_that_a_single_patient_could_use_up_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    error = refused(tmp_path, delta="0.5")
    assert isinstance(error, PlanError)
    assert error.code == "delta-too-large"
    assert "below 1 / patients" in error.message


def test_a_wrong_data_folder_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    error = refused(tmp_path, data="uci-heart", data_dir=empty)
    assert error.exit_code in (10, 14)
    assert "processed.cleveland.data" in str(error)


def test_another_number_of_heart_hospitals_is_refused(tmp_path: Path) -> None:
    assert isinstance(refused(tmp_path, data="uci-heart", sites=5, data_dir=tmp_path), OperationError)
