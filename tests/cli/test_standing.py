"""What `coordinator status` and `site status` say of a study: read from signatures, and never more than they say."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows.lease import hold_study
from flows.main import run_coordinator
from infra.approving import leave, set_paused
from infra.embedded import Faults
from infra.standing import model_state, newest_round, say_model
from infra.status import last_error
from schemas.errors import OperationError, PeerError
from schemas.layout import approval_key, attempt_key, ledger_key, release_key, review_key, round_key
from tests.audit.released import ReleasedStudy, make_released_study
from tests.cli.parties import Consortium, refused, run
from tests.conftest import FinishedStudy
from tests.simulator import Prepared, change_settings, copy_study, open_consortium


@pytest.fixture
def prepared(study_after_ceremony: Prepared, tmp_path: Path) -> Prepared:
    return copy_study(study_after_ceremony, tmp_path / "study")


def said(prepared: Prepared) -> str:
    return run("coordinator", "status", "--home", str(prepared.workdir.coordinator))


def told(prepared: Prepared) -> dict[str, Any]:
    status = run("coordinator", "status", "--home", str(prepared.workdir.coordinator), "--json")
    return json.loads(status)["study"]  # type: ignore[no-any-return]


def line_of(text: str, site: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith(f"    {site} "))
    return line


def spoil(prepared: Prepared, key: str) -> None:
    path = prepared.workdir.store / key
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(data[:-20] + bytes(reversed(data[-20:])))


def test_a_hospital_that_refused_or_was_silent_in_the_last_round_is_named_with_its_code(prepared: Prepared) -> None:
    first, second, third = (site.name for site in prepared.plan.sites[:3])
    assert told(prepared)["last_round"] is None
    assert "last round" not in said(prepared)
    set_paused(prepared.workdir.site(first), True)
    consortium = open_consortium(prepared)
    public = consortium.finished_ceremony()
    consortium.run_round(public, 1)
    study = told(prepared)
    assert study["last_round"] == {"round": 1, "kind": "train", "attempt": 1}
    assert study["sites"][first]["last_round"] == {"answer": "refused", "code": "site-paused"}
    assert study["sites"][second]["last_round"] == {"answer": "contributed", "code": ""}
    assert "Last round   1 (train), attempt 1" in said(prepared)
    assert "approved, last round refused (site-paused), agent " in line_of(said(prepared), first)
    set_paused(prepared.workdir.site(first), False)
    consortium = open_consortium(prepared)
    consortium.run_round(public, 1)
    assert told(prepared)["sites"][first]["last_round"]["answer"] == "refused", "a recorded round stays as it was"
    consortium.run_round(public, 2, faults=Faults(silent=(third,)))
    assert line_of(said(prepared), third).startswith(f"    {third:<24} approved, last round silent, agent ")
    assert told(prepared)["sites"][first]["last_round"]["answer"] == "contributed"


def test_before_a_round_is_recorded_nobody_is_called_silent(prepared: Prepared) -> None:
    names = [site.name for site in prepared.plan.sites]
    away = names[: len(names) - prepared.plan.threshold.k_min + 1]
    for site in away[:-1]:
        set_paused(prepared.workdir.site(site), True)
    consortium = open_consortium(prepared)
    with pytest.raises(OperationError, match="expected at least k_min"):
        consortium.run_round(consortium.finished_ceremony(), 1, faults=Faults(silent=(away[-1],)))
    sites = told(prepared)["sites"]
    assert {sites[site]["last_round"]["answer"] for site in away[:-1]} == {"refused"}
    assert sites[away[-1]]["last_round"] == {"answer": "waiting", "code": ""}
    assert sites[names[-1]]["last_round"]["answer"] == "contributed"


def test_a_hospital_that_left_is_not_shown_as_merely_approved(prepared: Prepared) -> None:
    gone = prepared.plan.sites[0].name
    assert not told(prepared)["sites"][gone]["left"]
    leave(prepared.workdir.site(gone), prepared.plan.study)
    assert told(prepared)["sites"][gone]["left"]
    assert "approved, LEFT the study, " in line_of(said(prepared), gone)


def test_what_does_not_verify_is_not_believed_and_is_named(prepared: Prepared) -> None:
    first, second, third = (site.name for site in prepared.plan.sites[:3])
    consortium, study = open_consortium(prepared), prepared.plan.study
    consortium.run_round(consortium.finished_ceremony(), 1)
    spoil(prepared, approval_key(study, first))
    spoil(prepared, ledger_key(study, second, False, "entries-000000.jsonl"))
    text = said(prepared)
    assert "waiting for approvals" in text
    assert " NOT approved, last round contributed" in line_of(text, first)
    assert "approved, published ledger NOT VERIFIED, " in line_of(text, second)
    assert told(prepared)["sites"][third]["ledger"] == "verified"
    assert "1 of 2 rounds opened" in text
    spoil(prepared, round_key(study, 1, None, "opening.json"))
    assert "0 of 2 rounds opened" in said(prepared)
    spoil(prepared, attempt_key(study, 1, 1, None, "instruction.json"))
    assert "Last round   NOT VERIFIED (" in said(prepared)
    assert told(prepared)["sites"][third]["last_round"] is None


def test_an_answer_that_is_not_the_hospitals_own_is_called_invalid(prepared: Prepared) -> None:
    names = [site.name for site in prepared.plan.sites]
    away = names[: len(names) - prepared.plan.threshold.k_min + 1]
    for site in away:
        set_paused(prepared.workdir.site(site), True)
    consortium = open_consortium(prepared)
    with pytest.raises(OperationError, match="expected at least k_min"):
        consortium.run_round(consortium.finished_ceremony(), 1)
    spoil(prepared, attempt_key(prepared.plan.study, 1, 1, away[0], "refusal.json"))
    newest = newest_round(consortium.coordinator.store, prepared.plan)
    assert newest is not None
    assert newest["answers"][away[0]]["answer"] == "invalid"
    assert newest["answers"][away[1]] == {"answer": "refused", "code": "site-paused"}


# --- what became of the model


@pytest.fixture
def released(tmp_path: Path) -> ReleasedStudy:
    return make_released_study(tmp_path / "study")


def approve(study: ReleasedStudy, *reviewers: str, decision: str = "approved", number: int = 1) -> None:
    for reviewer in reviewers:
        study.enter(study.sign(reviewer, decision, number), reviewer, decision, number)


def model(study: ReleasedStudy) -> dict[str, Any]:
    found = model_state(study.store, study.plan)
    assert found is not None
    return found


def test_a_finished_study_nobody_reviewed_is_a_candidate_to_everybody(finished_study: FinishedStudy) -> None:
    prepared = finished_study.prepared
    words = "finished; model a candidate (2 of 2 signed approvals missing), 2 of 2 rounds opened, evaluated"
    assert words in said(prepared)
    home = prepared.workdir.site(prepared.plan.sites[0].name)
    assert words in run("site", "status", "--home", str(home))
    (study,) = json.loads(run("site", "status", "--home", str(home), "--json"))["studies"]
    assert (study["state"], study["model"]["model"]) == ("finished", "candidate")
    assert "released" not in said(prepared)


def test_the_model_is_released_rejected_or_withdrawn_as_its_reviewers_signed(released: ReleasedStudy) -> None:
    assert say_model(model(released)) == "ended early; model a candidate (2 of 2 signed approvals missing)"
    approve(released, "ada")
    released.publish()
    assert say_model(model(released)) == "ended early; model a candidate (1 of 2 signed approvals missing)"
    approve(released, "ben")
    released.conclude()
    assert say_model(model(released)) == "ended early; model released"
    approve(released, "ben", decision="rejected", number=2)
    released.conclude("withdrawn")
    assert say_model(model(released)) == "ended early; model withdrawn"


def test_a_release_that_no_reviewer_decided_is_not_called_one(released: ReleasedStudy) -> None:
    approve(released, "ada")
    released.conclude("released")
    assert say_model(model(released)) == (
        "ended early; model NOT VERIFIED (review-outcome): see consilium audit verify"
    )


def test_a_decision_that_is_not_in_the_store_releases_nothing(released: ReleasedStudy) -> None:
    approve(released, "ada", "ben")
    released.conclude()
    (released.folder / "store" / review_key(released.plan.study, "ben", 1)).unlink()
    assert model(released)["code"] == "review-missing"


def test_a_decision_under_another_key_releases_nothing(released: ReleasedStudy) -> None:
    approve(released, "ada")
    released.enter(released.sign("ben", "approved", 1, by="ada"), "ben", "approved")
    released.conclude("released")
    assert model(released)["model"] == "unverified"


def test_a_release_that_the_coordinator_did_not_sign_is_none(released: ReleasedStudy) -> None:
    path = released.folder / "store" / release_key(released.plan.study, "release.json")
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(data.replace(b'"sig":"', b'"sig":"AAAA'))
    assert model(released)["model"] == "unverified"
    path.unlink()
    assert model_state(released.store, released.plan) is None


def test_a_plan_without_reviewers_says_why_its_model_stays_a_candidate(released: ReleasedStudy) -> None:
    found = model(released) | {"approvals_needed": 0}
    assert say_model(found) == "ended early; model a candidate (the plan names no reviewer)"


# --- a hospital's own ledger


def site_said(prepared: Prepared, site: str) -> str:
    return run("site", "status", "--home", str(prepared.workdir.site(site)))


def test_a_hospital_sees_what_it_refused_last_and_what_to_do(prepared: Prepared) -> None:
    first, second = (site.name for site in prepared.plan.sites[:2])
    home, study = prepared.workdir.site(first), prepared.plan.study
    path = home / "cohort.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns([prepared.plan.contract.features[0].name]), path)
    consortium = open_consortium(prepared)
    public = consortium.finished_ceremony()
    consortium.run_round(public, 1)
    text = site_said(prepared, first)
    assert re.search(r"^ +last refusal \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d contract-violated$", text, re.MULTILINE)
    assert f"Remedy: See which rules fail: consilium site approve --home {home} {study} --out plan.json, then" in text
    assert "last refusal" not in site_said(prepared, second)
    assert line_of(said(prepared), first).startswith(
        f"    {first:<24} approved, last round refused (contract-violated)"
    )
    pq.write_table(table, path)
    consortium.run_round(public, 2)
    text = site_said(prepared, first)
    assert "contract-violated; contributed since" in text
    assert "Remedy" not in text


def test_the_budget_that_counts_is_the_ledgers_and_config_json_is_compared(prepared: Prepared) -> None:
    site = prepared.plan.sites[0].name
    home = prepared.workdir.site(site)
    assert "Budget       epsilon 3, delta 1e-5; see site budget" in site_said(prepared, site)
    change_settings(home, epsilon="3.0")
    assert "config.json says" not in site_said(prepared, site)
    change_settings(home, epsilon="10")
    text = site_said(prepared, site)
    assert "Budget       epsilon 3, delta 1e-5; see site budget\n             config.json says epsilon 10: it" in text
    assert "counts once the agent opens its ledger again; restart the agent." in text
    open_consortium(prepared)  # what a restarted agent does
    text = site_said(prepared, site)
    assert "Budget       epsilon 10, delta 1e-5; see site budget" in text
    assert "config.json says" not in text
    change_settings(home, delta="1e-6")
    text = site_said(prepared, site)
    assert "Budget       epsilon 10, delta 1e-5; see site budget" in text
    assert "(delta-fixed); write 1e-5 there again." in text


def test_before_the_first_use_the_budget_is_said_to_be_config_jsons(approved: Consortium) -> None:
    text = run("site", "status", "--home", str(approved.home(approved.sites[0])))
    assert "Budget       epsilon 3, delta 1e-5 (config.json; counts from the first use); see site budget" in text


def test_an_edited_ledger_is_not_believed(prepared: Prepared) -> None:
    site = prepared.plan.sites[0].name
    ledger = prepared.workdir.site(site) / "ledger.sqlite"
    with sqlite3.connect(ledger) as connection:
        connection.execute("DROP TRIGGER no_update")
        connection.execute("UPDATE entries SET envelope = CAST('{}' AS BLOB) WHERE sequence = 0")
    status = json.loads(run("site", "status", "--home", str(prepared.workdir.site(site)), "--json"))
    assert status["budget"]["epsilon"] is None
    assert status["budget"]["ledger"] == "not-canonical"
    assert "Budget       UNKNOWN: ledger.sqlite cannot be read or does not verify (not-canonical)" in site_said(
        prepared, site
    )


# --- what stopped the study, and how it ended


def events(home: Path, *names: str) -> None:
    """Writes events; a name with a colon is a failure of that code."""
    lines = [
        {"time": "2026-01-02T03:04:05", "event": "failed", "code": name[1:], "message": "m", "remedy": "r"}
        if name.startswith(":")
        else {"time": "2026-01-02T03:04:05", "event": name}
        for name in names
    ]
    (home / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ((":approval-missing", "study-started"), None),
        ((":approval-missing", ":store-unreachable", "study-started"), None),
        (("study-started", ":no-quorum", "study-started"), "no-quorum"),
        (("study-started", ":no-quorum", "study-started", "round-started"), "no-quorum"),
        (("study-started", ":no-quorum", "study-started", "round-done"), None),
        (("study-started", "round-done", ":no-quorum"), "no-quorum"),
        (("study-started", ":no-quorum", ":study-running"), "no-quorum"),
        (("study-started", ":study-running"), None),
        ((":no-quorum", "study-done"), None),
    ],
)
def test_an_error_is_shown_until_the_study_went_on(tmp_path: Path, names: tuple[str, ...], code: str | None) -> None:
    events(tmp_path, *names)
    shown = last_error(tmp_path / "events.jsonl")
    assert (shown["code"] if shown else None) == code


def test_a_second_run_of_a_study_is_refused_and_leaves_no_error_behind(prepared: Prepared) -> None:
    home = prepared.workdir.coordinator
    with hold_study(home), pytest.raises(OperationError) as caught:
        run_coordinator(home)
    assert caught.value.code == "study-running"
    assert last_error(home / "events.jsonl") is None


def test_a_run_ends_with_its_result_and_says_it_again(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    home = prepared.workdir.coordinator
    summary = {"complete": True, "rounds": 2, "evaluation": {"auc": 0.9, "low": 0.85, "high": 0.95}}

    def end(folder: Path) -> None:
        (folder / "summary.json").write_text(json.dumps(summary | {"model_version": "breast-cancer/1"}))

    monkeypatch.setattr("flows.main.run_coordinator", end)
    monkeypatch.setattr("infra.settings.enter_participant_environment", lambda *_: None)
    ends = (
        f"The study of this folder is finished; its evidence is in {home / 'evidence'}.\n"
        "Result: 2 rounds, AUC 0.900, 95 % interval 0.850 to 0.950; model breast-cancer/1. See consilium coordinator"
    )
    assert ends in run("coordinator", "run", "--home", str(home))
    said_again = run("coordinator", "run", "--home", str(home))
    assert said_again.startswith(ends)


def test_whoever_did_not_approve_is_told_the_command_with_the_digest(approved: Consortium) -> None:
    site = approved.sites[0]
    (approved.folder / "store" / approval_key(approved.study, site)).unlink()
    with pytest.raises(PeerError, match=f"{site}: the plan is not approved") as caught:
        approved.opened()
    assert caught.value.remedy == f"There: consilium site approve --home HOME {approved.study}. Then run again."


def test_whoever_has_not_asked_may_have_asked_in_another_store(consortium: Consortium) -> None:
    error = refused("coordinator", "sites", "--home", str(consortium.coordinator), "nobody")
    store = consortium.folder / "store"
    assert error.remedy == f"It runs consilium site join; or it did, and its store differs from this one: {store}."
