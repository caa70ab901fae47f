"""What a reviewer finds in MLflow, and what must never be there."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.canonical import sha256_hex
from schemas.errors import EvidenceError, OperationError
from schemas.messages import LogPosition
from schemas.plan import StudyPlan
from tasks.metrics import evaluate_histogram
from tasks.server_step import initial_state, released_weights, weights_safetensors
from tasks.tracking.network import build_network
from tasks.tracking.plots import EpsilonAtRound
from tasks.tracking.release import record_release, tag_release
from tasks.tracking.rounds import record_round, recorded_rounds
from tasks.tracking.study import StudyRun, close_study, describe_software, open_study
from tasks.tracking.target import TrackingTarget, connect
from tasks.tracking.vocabulary import is_known_tag, model_name, release_tags
from tests.tracking.studies import SITES, make_plan, make_release, step, train_facts


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracking")


@pytest.fixture(scope="module")
def target(home: Path) -> TrackingTarget:
    return TrackingTarget.local(home / "mlflow.db", home / "mlartifacts")


@pytest.fixture(scope="module")
def plan() -> StudyPlan:
    return make_plan()


@pytest.fixture(scope="module")
def run(target: TrackingTarget, plan: StudyPlan) -> StudyRun:
    return open_study(target, plan, describe_software())


def _children(client: Any, run: StudyRun) -> list[Any]:
    condition = f"tags.`mlflow.parentRunId` = '{run.run_id}'"
    return list(client.search_runs([run.experiment_id], condition))


def test_a_study_opened_twice_is_one_experiment_and_one_parent_run(
    target: TrackingTarget, plan: StudyPlan, run: StudyRun
) -> None:
    assert open_study(target, plan, describe_software()) == run
    tags = connect(target).get_run(run.run_id).data.tags
    assert tags["consilium.plan_digest"] == plan.study
    assert tags["consilium.epsilon_limit"] == "3"
    assert tags["consilium.participants"] == ", ".join(SITES)
    assert tags["mlflow.user"] == "registry"


def test_a_round_recorded_twice_appears_once(target: TrackingTarget, plan: StudyPlan, run: StudyRun) -> None:
    facts, weights = train_facts(plan)
    child = record_round(target, run, plan, facts, weights)
    assert record_round(target, run, plan, facts, weights) == child
    client = connect(target)
    assert [c.info.run_id for c in _children(client, run)] == [child]
    assert len(client.get_metric_history(run.run_id, "epsilon/collusion_max")) == 1
    assert len(client.search_logged_models([run.experiment_id], filter_string="name = 'round-0001'")) == 1


def test_a_round_interrupted_while_recorded_is_completed_without_a_second_point(
    target: TrackingTarget, plan: StudyPlan, run: StudyRun
) -> None:
    facts, weights = train_facts(plan, 2)
    child = record_round(target, run, plan, facts, weights)
    client = connect(target)
    assert 2 in recorded_rounds(target, run)
    for nonsense in ("one", "-2", "²", "9" * 5000, ""):  # whoever writes to MLflow stops no study
        client.set_tag(child, "consilium.round", nonsense)
        assert 2 not in recorded_rounds(target, run)
    client.set_tag(child, "consilium.round", "2")
    client.update_run(child, status="RUNNING")
    assert 2 not in recorded_rounds(target, run)
    assert record_round(target, run, plan, facts, weights) == child
    assert client.get_run(child).info.status == "FINISHED"
    assert len(client.get_metric_history(child, "model/step_norm")) == 1
    assert len(client.get_metric_history(run.run_id, "model/step_norm")) <= 2


def test_a_round_shows_epsilon_of_every_site_in_both_readings(
    target: TrackingTarget, plan: StudyPlan, run: StudyRun
) -> None:
    facts, weights = train_facts(plan)
    metrics = connect(target).get_run(record_round(target, run, plan, facts, weights)).data.metrics
    assert {f"epsilon_collusion/{site}" for site in SITES} <= set(metrics)
    assert metrics["epsilon/collusion_max"] == 1.25
    assert metrics["epsilon/outsider_max"] == 0.5
    assert metrics["seconds/collect"] == 1.5
    before = initial_state(plan)
    after, _ = step(plan, before)
    assert metrics["model/distance_from_last"] == pytest.approx(float(np.linalg.norm(after.weights - before.weights)))


def test_an_evaluation_adds_nothing_to_the_curves_of_training(target: TrackingTarget) -> None:
    plan = make_plan(nonce="33")
    run = open_study(target, plan, {})
    facts = replace(train_facts(plan, 3)[0], kind="evaluate", metrics={"auc": 0.9, "auc_low": 0.8, "auc_high": 0.95})
    child = connect(target).get_run(record_round(target, run, plan, facts))
    assert child.info.run_name == "evaluation"
    assert child.data.metrics["evaluation/auc"] == 0.9
    assert child.data.metrics["evaluation_epsilon/collusion_max"] == 1.25
    names = set(connect(target).get_run(run.run_id).data.metrics)
    assert names == {"round/bytes_up", "round/bytes_down", "round/participants"}


def test_a_round_says_in_words_who_took_part_and_where_its_flow_run_is(target: TrackingTarget) -> None:
    plan = make_plan(nonce="44")
    run = open_study(target, plan, {}, "http://127.0.0.1:4200/runs/flow-run/1")
    facts, weights = train_facts(plan)
    child = record_round(target, run, plan, replace(facts, flow_run="http://127.0.0.1:4200/runs/flow-run/2"), weights)
    note = connect(target).get_run(child).data.tags["mlflow.note.content"]
    assert "3 of 4 sites in the opened sum; not in it: west (silent)" in note
    assert "1.25 under collusion, 0.5 against outsiders, of 3 at δ = 1e-5" in note
    assert "](http://127.0.0.1:4200/runs/flow-run/2)" in note
    assert [output.model_id for output in connect(target).get_run(child).outputs.model_outputs]
    note = connect(target).get_run(run.run_id).data.tags["mlflow.note.content"]
    assert note.startswith("Not released yet.")
    assert "](http://127.0.0.1:4200/runs/flow-run/1)" in note


def test_only_the_study_is_among_the_experiments(target: TrackingTarget, run: StudyRun) -> None:
    assert "Default" not in {experiment.name for experiment in connect(target).search_experiments()}


def test_a_metric_outside_the_allow_list_is_refused_and_leaves_no_run(
    target: TrackingTarget, plan: StudyPlan, run: StudyRun
) -> None:
    facts, weights = train_facts(plan, 7)
    bad = replace(facts, metrics={**facts.metrics, "training_loss": 0.3})
    with pytest.raises(OperationError, match="training_loss"):
        record_round(target, run, plan, bad, weights)
    with pytest.raises(OperationError, match="lower-case letters"):
        record_round(target, run, plan, replace(facts, seconds={"patient 17": 1.0}), weights)
    assert all(c.data.tags["consilium.round"] != "7" for c in _children(connect(target), run))


@pytest.fixture(scope="module")
def released(target: TrackingTarget, plan: StudyPlan, run: StudyRun) -> tuple[str, bytes]:
    state, _ = step(plan, initial_state(plan))
    weights = weights_safetensors(plan, state)
    release = make_release(plan, sha256_hex(weights))
    histogram = np.array([9, 8, 6, 5, 4, 3, 2, 1, 1, 0, 0, 1, 1, 2, 3, 4, 5, 6, 8, 9], dtype=np.float64) * 5
    history = [EpsilonAtRound(r, dict.fromkeys(SITES, 1.0 * r), dict.fromkeys(SITES, 0.7 * r)) for r in (1, 2)]
    arguments = (target, run, plan, weights, release, evaluate_histogram(histogram, 2.0), history)
    version = record_release(*arguments, {"release.json": b"{}"})
    assert record_release(*arguments, {"release.json": b"{}"}) == version
    roots = {name: LogPosition(size=3, root="ee" * 32) for name in ("registry", *SITES)}
    tags = release_tags(plan, release, roots, "aa" * 32)
    tag_release(target, plan, version, tags)
    tag_release(target, plan, version, tags)
    return version, weights


def test_a_release_is_registered_once_with_its_tags_and_alias(
    target: TrackingTarget, plan: StudyPlan, run: StudyRun, released: tuple[str, bytes]
) -> None:
    version, weights = released
    client = connect(target)
    found = client.get_model_version_by_alias(model_name(plan), "candidate")
    assert str(found.version) == version == "1"
    assert found.tags["consilium.weights"] == sha256_hex(weights)
    assert found.tags["consilium.epsilon_collusion"] == "2.5"
    assert found.tags["consilium.ledger.east"] == f"3:{'ee' * 32}"
    assert found.tags["consilium.auc"] == "0.951000"
    assert "| AUC | 0.951 | 0.911 to 0.981 |" in found.description
    assert "| the coordinator and 1 colluding sites | 2.5 of 3 |" in found.description
    assert "No attack evaluation was logged" in found.description
    note = client.get_run(run.run_id).data.tags["mlflow.note.content"]
    assert note.startswith(f"**Released as `{model_name(plan)}` version 1**, alias `candidate`.")
    model = client.get_logged_model(found.source.removeprefix("models:/"))
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": model_name(plan), "version": found.version}]
    history = client.get_metric_history(run.run_id, "released/auc")
    assert [point.value for point in history] == [0.951]


def test_the_registered_model_loads_without_pickle_and_scores_as_the_weights_do(
    target: TrackingTarget, plan: StudyPlan, released: tuple[str, bytes]
) -> None:
    connect(target)
    import mlflow.pyfunc

    rows = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    model = mlflow.pyfunc.load_model(f"models:/{model_name(plan)}@candidate")
    state, _ = step(plan, initial_state(plan))
    flat = released_weights(state)
    expected = 1 / (1 + np.exp(-(rows.astype(np.float64) @ flat[:4] + flat[4])))
    assert model.predict(rows)[:, 0] == pytest.approx(expected, abs=1e-6)


def test_the_release_folder_holds_weights_plots_with_data_and_no_pickle(
    home: Path, released: tuple[str, bytes]
) -> None:
    files = {path.relative_to(home / "mlartifacts").as_posix() for path in (home / "mlartifacts").rglob("*")}
    ends = {name.split("/", 1)[1].split("artifacts/", 1)[-1] for name in files if "artifacts/" in name}
    for plot in ("epsilon", "roc", "calibration"):
        assert {f"plots/{plot}.png", f"plots/{plot}.json"} <= ends
    assert {"plan.json", "contract.json", "release.json", "weights.safetensors", "data/model.pt2"} <= ends
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pth"))]
    example = next((home / "mlartifacts").rglob("*input_example.json"))
    assert set(np.ravel(json.loads(example.read_text())["inputs"] if "inputs" in example.read_text() else [0])) == {0}


def test_weights_that_are_not_the_release_are_refused(target: TrackingTarget, plan: StudyPlan, run: StudyRun) -> None:
    with pytest.raises(EvidenceError, match="not those of the release"):
        record_release(target, run, plan, b"x", make_release(plan, "00" * 32), None, [], {})


def test_neither_database_nor_artifacts_name_the_user_the_machine_or_the_repository(
    home: Path, released: tuple[str, bytes]
) -> None:
    """Attack: who ran the study, on which machine and commit, read from MLflow."""
    head = Path(__file__).parents[2] / ".git" / "HEAD"
    words = {socket.gethostname(), os.fspath(Path(__file__).parents[2])}
    if head.is_file() and head.read_text().startswith("ref: "):
        branch = head.parent / head.read_text().split()[1]
        words |= {branch.read_text().strip()} if branch.is_file() else set()
    with sqlite3.connect(home / "mlflow.db") as database:
        dump = "\n".join(database.iterdump())
        users = {row[0] for row in database.execute("select distinct user_id from runs")}
        keys = {row[0] for row in database.execute("select key from tags union select tag_key from logged_model_tags")}
    assert users == {"registry"}
    assert not {key for key in keys if "git" in key}
    for path in (home / "mlartifacts").rglob("*"):
        if path.is_file() and path.suffix not in (".png", ".pt2", ".safetensors"):
            dump += path.read_text(errors="replace")
    assert not [word for word in words if word and word in dump]


def test_the_plan_with_hidden_layers_is_rebuilt_layer_by_layer() -> None:
    import torch

    plan = make_plan("mlp")
    state, _ = step(plan, initial_state(plan))
    flat = released_weights(state)
    rows = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    hidden = np.tanh(rows @ flat[:12].reshape(3, 4).T + flat[12:15])
    expected = 1 / (1 + np.exp(-(hidden @ flat[15:18] + flat[18])))
    given = build_network(plan, weights_safetensors(plan, state))(torch.from_numpy(rows)).numpy()[:, 0]
    assert given == pytest.approx(expected, abs=1e-6)
    with pytest.raises(EvidenceError, match="layers of the plan"):
        build_network(make_plan(), weights_safetensors(plan, state))


def test_an_ended_study_says_why(target: TrackingTarget, plan: StudyPlan, run: StudyRun) -> None:
    close_study(target, run, complete=False, reason="budget-exceeded")
    ended = connect(target).get_run(run.run_id)
    assert (ended.info.status, ended.data.tags["consilium.end_reason"]) == ("KILLED", "budget-exceeded")
    open_study(target, plan, describe_software())
    assert connect(target).get_run(run.run_id).info.status == "RUNNING"


def test_every_tag_of_a_version_is_in_the_vocabulary(
    target: TrackingTarget, plan: StudyPlan, released: tuple[str, bytes]
) -> None:
    tags = connect(target).get_model_version(model_name(plan), released[0]).tags
    assert [name for name in tags if not is_known_tag(name)] == []


def test_ending_a_run_on_a_server_prints_no_link(target: TrackingTarget, capsys: pytest.CaptureFixture[str]) -> None:
    client = connect(TrackingTarget("http://127.0.0.1:9"))
    try:
        # Otherwise it asks the server for the run's name, and nobody is there.
        client._tracking_client._log_url("0" * 32)
    finally:
        connect(target)
    assert capsys.readouterr().out == ""
