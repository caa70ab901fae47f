"""Hospitals join, approve, pause and leave, and a coordinator proposes, by the commands that people type; on S3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.lease import hold_study
from infra.cli import main
from infra.commands.deploy import _only_worker
from infra.embedded import Faults, contribute
from infra.settings import load_settings
from infra.status import shown_running
from schemas.errors import OperationError, PeerError, SiteDataError
from schemas.layout import join_prefix
from schemas.options import CoordinatorSettings, SiteSettings
from site_agents.context import open_context
from site_agents.home import open_home
from site_agents.round import SiteRound
from tasks.audit.keys import read_public_keys
from tasks.audit.verify import verify_evidence
from tests.cli.parties import (
    Consortium,
    propose_command,
    refused,
    run,
)
from tests.simulator import change_settings
from tests.storage.s3_servers import S3Server


@pytest.mark.long
def test_a_study_made_by_the_commands_runs_on_s3_and_its_evidence_verifies(on_s3: Consortium) -> None:
    status = json.loads(run("coordinator", "status", "--home", str(on_s3.coordinator), "--json"))
    assert status["study"]["state"] == "approved"
    assert status["store"] == {"state": "answers", "conditional_parts": True}
    opened = on_s3.opened()
    evaluation = opened.run_study()
    evidence = opened.release(opened.plan.mechanism.rounds, evaluation)
    report = verify_evidence(evidence, read_public_keys(on_s3.coordinator / "public-keys.json"))
    assert report.passed
    status = json.loads(run("coordinator", "status", "--home", str(on_s3.coordinator), "--json"))
    assert (status["study"]["state"], status["study"]["rounds_opened"]) == ("finished", 2)
    assert status["study"]["evaluated"]
    assert status["study"]["last_round"]["kind"] == "evaluate"
    assert {site["last_round"]["answer"] for site in status["study"]["sites"].values()} == {"contributed"}
    assert status["study"]["model"] == {
        "complete": True,
        "model": "candidate",
        "code": "",
        "approvals_needed": 2,
        "approvals_missing": 2,
    }
    site = json.loads(run("site", "status", "--home", str(on_s3.home(on_s3.sites[0])), "--json"))
    assert site["studies"] == [
        {"study": on_s3.study, "title": opened.plan.title, "state": "finished", "waiting_for": []}
        | {"rounds_opened": 2, "rounds": 2, "evaluated": True}
        | {"model": status["study"]["model"], "last_refusal": None}
    ]


def test_a_paused_site_contributes_nothing_charges_nothing_and_helps_to_open(approved: Consortium) -> None:
    paused, home = approved.sites[0], approved.home(approved.sites[0])
    opened = approved.opened()
    public = opened.run_ceremony()
    assert run("site", "pause", "--home", str(home)) == "Paused.\n"
    assert run("site", "pause", "--home", str(home)) == "It was paused before.\n"
    opened.sites[paused] = opened.open_site(paused)
    outcome = opened.run_round(public, 1)
    assert paused not in dict(outcome.record.predicate.contributions)
    assert [entry.body.code for entry in opened.sites[paused].ledger.find(approved.study, "refused")] == ["site-paused"]  # type: ignore[union-attr]
    assert opened.sites[paused].ledger.find(approved.study, "privacy-reserved") == []
    assert opened.sites[paused].ledger.find(approved.study, "record-signed") != []
    run("site", "resume", "--home", str(home))
    opened.sites[paused] = opened.open_site(paused)
    outcome = opened.run_round(public, 2)
    assert paused in dict(outcome.record.predicate.contributions)


def test_a_site_that_left_never_answers_again_and_the_others_finish(approved: Consortium) -> None:
    gone, home = approved.sites[0], approved.home(approved.sites[0])
    opened = approved.opened()
    public = opened.run_ceremony()
    opened.run_round(public, 1)
    before = opened.sites[gone].ledger.position().size
    run("site", "leave", "--home", str(home), approved.study[:12], answer="y\n")
    assert load_settings(SiteSettings, home / "config.json").left == (approved.study,)
    context = open_context(open_home(home), approved.study)
    assert context.ledger.position().size == before + 1
    assert not list((approved.folder / "memory" / gone).glob("*/epoch-*/secrets-*"))
    opened.sites[gone] = opened.open_site(gone)
    with pytest.raises(SiteDataError, match="This site has left the study"):
        contribute(SiteRound(opened.sites[gone], 1, 1))
    outcome = opened.run_round(public, 2, faults=Faults(silent=(gone,)))
    assert gone not in dict(outcome.record.predicate.contributions)
    evaluation = opened.run_round(public, 3, "evaluate", Faults(silent=(gone,)))
    evidence = opened.release(2, evaluation)
    assert verify_evidence(evidence, read_public_keys(approved.coordinator / "public-keys.json")).passed
    assert refused("site", "approve", "--home", str(home), approved.study, "--yes").code == "site-left"


def test_those_who_asked_are_shown_and_all_others_named(consortium: Consortium) -> None:
    first, second = consortium.sites[:2]
    (request,) = (consortium.folder / "store" / join_prefix(second)).iterdir()
    request.write_bytes(b"{}")
    asked = ["coordinator", "sites", "--home", str(consortium.coordinator), "nobody", first, "else"]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == PeerError.exit_code
    assert result.stdout.startswith(f"{first}: 110 patients")
    assert "Error (no-request): else, nobody: have not asked to join." in result.stderr
    result = CliRunner().invoke(main, [*asked, second, "--json"])
    assert [entry["name"] for entry in json.loads(result.stdout)] == [first]
    assert f"no valid request: else (no-request), {second} (malformed), nobody (no-request)" in result.stderr
    assert CliRunner().invoke(main, [*asked[:4], first]).exit_code == 0


def test_status_says_what_runs_what_stopped_it_and_what_it_waits_for(consortium: Consortium) -> None:
    home, first = consortium.coordinator, consortium.sites[0]
    run(*propose_command(consortium, *consortium.sites))
    run("site", "approve", "--home", str(consortium.home(first)), consortium.study, "--yes")
    failed = {"time": "2026-01-02T03:04:05.678+00:00", "event": "failed", "code": "no-quorum", "message": "Too few."}
    (home / "events.jsonl").write_text(json.dumps(failed | {"remedy": "Start them."}) + '\n{"time": "2026-0')
    with shown_running(home):
        said = run("coordinator", "status", "--home", str(home))
    assert "coordinator, worker running, run none" in said
    assert "Last error   2026-01-02T03:04:05 no-quorum: Too few.\n             Remedy: Start them." in said
    assert "waiting for approvals, 0 of 2 rounds opened, not evaluated yet" in said
    assert "Schedule     unknown" in said
    with hold_study(home):
        said = run("coordinator", "status", "--home", str(home))
    assert "coordinator, worker stopped, run in progress" in said
    (home / "events.jsonl").write_text(json.dumps(failed) + '\n{"event": "study-done"}\n')
    assert "Last error" not in run("coordinator", "status", "--home", str(home))
    others = ", ".join(consortium.sites[1:])
    said = run("site", "status", "--home", str(consortium.home(first)))
    assert f"not begun: {others} did not approve it" in said


def test_a_home_is_never_made_twice_and_its_keys_are_private(consortium: Consortium) -> None:
    home = consortium.home(consortium.sites[0])
    before = (home / "identity.json").read_bytes()
    asked = ("--name", "other", "--data", "x", "--epsilon", "3", "--delta", "1e-5", "--prefect", "http://x/api")
    error = refused("site", "init", "--home", str(home), *asked, "--store", str(consortium.folder / "s"))
    assert error.code == "home-exists"
    assert "Correct its config.json, or choose another folder." in error.remedy
    assert (home / "identity.json").read_bytes() == before
    assert home.stat().st_mode & 0o077 == 0
    assert (home / "config.json").stat().st_mode & 0o077 == 0


def test_a_hospital_is_not_made_with_what_cannot_be_right(tmp_path: Path) -> None:
    home = tmp_path / "mercy"
    asked = ["site", "init", "--home", str(home), "--data", "x", "--epsilon", "3", "--store", str(tmp_path / "s")]
    named = ["--name", "mercy", "--delta", "1e-5", "--prefect"]
    assert refused(*asked, *named, "https://127.0.0.1:4613").code == "prefect-address"
    assert refused(*asked, *named, "study.example.org/api").code == "prefect-address"
    good = ["--prefect", "https://study.example.org/api"]
    error = refused(*asked, "--name", "Mercy Hospital", "--delta", "1e-5", *good)
    assert (error.code, error.message) == ("bad-name", "Expected a name like general-hospital, got 'Mercy Hospital'.")
    assert "at most 30 lower-case letters, digits and hyphens" in error.remedy
    result = CliRunner().invoke(main, [*asked, "--name", "mercy", "--delta", "5", *good])
    assert (result.exit_code, "--delta is a probability" in result.output) == (2, True)
    assert not home.exists()
    result = CliRunner().invoke(main, [*asked, "--name", "mercy", "--delta", "1e-5", *good])
    assert result.exit_code == 0
    assert f"Not there yet: {Path('x').absolute()} (--data)." in result.stderr
    assert "Not there yet" not in result.stdout


def test_a_second_worker_of_one_home_is_refused(consortium: Consortium) -> None:
    with _only_worker(consortium.coordinator):
        with pytest.raises(OperationError, match="A worker of this home runs already") as caught:
            _only_worker(consortium.coordinator).__enter__()
        assert caught.value.code == "worker-running"
    with _only_worker(consortium.coordinator):
        assert run("coordinator", "status", "--home", str(consortium.coordinator))


def test_the_buckets_policy_is_printed_and_applied(on_s3: Consortium, server: S3Server) -> None:
    asked = ("coordinator", "bucket", "--home", str(on_s3.coordinator), *on_s3.sites)
    policy = json.loads(run(*asked))
    assert len({statement["Principal"]["AWS"][0] for statement in policy["Statement"]}) == 6
    owner = str(Path(server.settings.credentials_file))
    run(*asked, "--owner", owner, "--ciphertext-days", "30")
    bucket = load_settings(CoordinatorSettings, on_s3.coordinator / "config.json").store.split("/")[2]
    assert json.loads(server.client.get_bucket_policy(Bucket=bucket)["Policy"]) == policy
    assert refused(*asked, "--principal", "arn:aws:iam:::user/all").code == "bad-principal"


def test_status_says_what_it_cannot_reach(on_s3: Consortium) -> None:
    home = on_s3.home(on_s3.sites[0])
    s3 = json.loads((home / "config.json").read_text())["s3"]
    change_settings(home, s3=s3 | {"endpoint": "http://127.0.0.1:9", "attempts": 1})
    status = json.loads(run("site", "status", "--home", str(home), "--json"))
    assert status["store"]["state"] == "store-unreachable"
    assert (status["agent"], status["paused"]) == ("stopped", False)
    assert status["prefect"] == "does not answer: no connection"
    assert "(plan not readable): approved" in run("site", "status", "--home", str(home))


def test_a_coordinator_without_a_study_says_so(consortium: Consortium) -> None:
    from flows.context import open_coordinator

    with pytest.raises(OperationError, match="This coordinator has no study yet"):
        open_coordinator(consortium.coordinator)
    assert "none proposed" in run("coordinator", "status", "--home", str(consortium.coordinator))
    error = refused("coordinator", "deploy", "--home", str(consortium.coordinator))
    assert (error.code, error.remedy) == ("no-study", "Propose one: coordinator propose.")
