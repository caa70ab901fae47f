"""Hospitals join, approve, pause and leave, and a coordinator proposes, by the commands that people type; on S3."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.lease import hold_study
from infra.approving import describe_decision
from infra.cli import main
from infra.embedded import EmbeddedConsortium, Faults, contribute
from infra.homes import fingerprint
from infra.joining import open_request
from infra.plans import read_plan
from infra.settings import load_settings
from infra.status import shown_running
from schemas.envelope import sign_envelope
from schemas.errors import ConsiliumError, OperationError, PeerError, PlanError, SiteDataError
from schemas.joining import JoinRequest
from schemas.layout import join_prefix
from schemas.ledger import NO_STUDY
from schemas.options import CoordinatorSettings, SiteSettings
from schemas.threshold import default_threshold
from site_agents.context import open_context
from site_agents.home import open_home
from site_agents.round import SiteRound
from tasks.audit.keys import read_public_keys
from tasks.audit.verify import verify_evidence
from tasks.identity import load_identity
from tasks.storage.folder import FolderStore
from tests.simulator import Prepared, change_settings
from tests.storage.s3_servers import S3Server, running_moto, write_credentials


@dataclass(frozen=True)
class Consortium:
    """Homes made by the commands, and the server that they share."""

    folder: Path
    sites: tuple[str, ...]
    draft: Path

    @property
    def coordinator(self) -> Path:
        return self.folder / "coordinator"

    def home(self, site: str) -> Path:
        return self.folder / site

    @property
    def study(self) -> str:
        return load_settings(CoordinatorSettings, self.coordinator / "config.json").study

    def opened(self) -> EmbeddedConsortium:
        return EmbeddedConsortium(self.coordinator, {site: self.home(site) for site in self.sites})


def run(*command: str, answer: str = "") -> str:
    result = CliRunner().invoke(main, command, input=answer, env={"CONSILIUM_DEBUG": "1"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*command: str) -> ConsiliumError:
    with pytest.raises(ConsiliumError) as caught:
        CliRunner().invoke(main, command, env={"CONSILIUM_DEBUG": "1"}, catch_exceptions=False)
    return caught.value


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_moto(tmp_path_factory.mktemp("moto")) as running:
        yield running


@pytest.fixture
def consortium(prepared_study: Prepared, tmp_path: Path) -> Consortium:
    """Five hospitals that joined, and a coordinator that has not proposed yet; the store is a folder."""
    return _joined(prepared_study, tmp_path, ("--store", str(tmp_path / "store")))


@pytest.fixture
def on_s3(server: S3Server, prepared_study: Prepared, tmp_path: Path) -> Consortium:
    """The same with a bucket, a key per participant, and everybody's approval."""
    bucket = f"b{abs(hash(str(tmp_path))):x}"
    server.client.create_bucket(Bucket=bucket)
    endpoint = ("--endpoint", str(server.settings.endpoint), "--store", f"s3://{bucket}/study")
    return _approved(_joined(prepared_study, tmp_path, endpoint))


def _joined(prepared_study: Prepared, tmp_path: Path, endpoint: tuple[str, ...]) -> Consortium:
    sites = tuple(site.name for site in prepared_study.plan.sites)
    keys = write_credentials(tmp_path, "coordinator", "secret-1")
    run("coordinator", "init", "--home", str(tmp_path / "coordinator"), "--credentials", str(keys), *endpoint)
    for name in sites:
        home, table = tmp_path / name, tmp_path / f"{name}.parquet"
        shutil.copyfile(prepared_study.workdir.site(name) / "cohort.parquet", table)
        keys = write_credentials(tmp_path, name, "secret-2")
        asked = ("--name", name, "--data", str(table), "--epsilon", "3", "--delta", "1e-5", "--prefect", "http://x/api")
        run("site", "init", "--home", str(home), "--credentials", str(keys), *asked, *endpoint)
        change_settings(home, memory_folder=str(tmp_path / "memory" / name))
        run("site", "join", "--home", str(home), "--patients", "110")
    (tmp_path / "memory").mkdir(mode=0o700)
    draft = tmp_path / "draft.json"
    draft.write_text(json.dumps(prepared_study.plan.model_dump(mode="json")))
    return Consortium(tmp_path, sites, draft)


@pytest.fixture
def approved(consortium: Consortium) -> Consortium:
    """The same after proposal and every hospital's approval."""
    return _approved(consortium)


def _approved(consortium: Consortium) -> Consortium:
    named = [part for site in consortium.sites for part in ("--site", site)]
    run("coordinator", "propose", "--home", str(consortium.coordinator), str(consortium.draft), *named)
    for site in consortium.sites:
        run("site", "approve", "--home", str(consortium.home(site)), consortium.study, "--yes")
    return consortium


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
    assert (status["study"]["state"], status["study"]["rounds_opened"]) == ("released", 2)
    assert status["study"]["evaluated"]
    site = json.loads(run("site", "status", "--home", str(on_s3.home(on_s3.sites[0])), "--json"))
    assert site["studies"] == [
        {"study": on_s3.study, "title": opened.plan.title, "state": "released", "waiting_for": []}
        | {"rounds_opened": 2, "rounds": 2, "evaluated": True}
    ]


def test_a_proposal_shows_the_keys_that_it_entered(consortium: Consortium) -> None:
    """A request that came after the fingerprints were shown is newer, and is the one that is entered."""
    swapped = consortium.sites[0]
    before = run("coordinator", "sites", "--home", str(consortium.coordinator), *consortium.sites)
    shutil.move(consortium.home(swapped), consortium.home("aside"))
    given = json.loads((consortium.home("aside") / "config.json").read_text())
    asked = (
        "--name",
        swapped,
        "--data",
        given["data"],
        "--epsilon",
        "3",
        "--delta",
        "1e-5",
        "--prefect",
        "http://x/api",
    )
    run("site", "init", "--home", str(consortium.home(swapped)), "--store", given["store"], *asked)
    late = sign_late_request(consortium.home(swapped), given["store"])
    named = [part for site in consortium.sites for part in ("--site", site)]
    shown = run("coordinator", "propose", "--home", str(consortium.coordinator), str(consortium.draft), *named)
    assert late in shown
    assert late not in before
    kept = [line.strip() for line in before.splitlines() if line.startswith("    ") and line.strip() in shown]
    assert len(kept) == len(consortium.sites) - 1


def sign_late_request(home: Path, store: str) -> str:
    """Publishes a request that says it is the newest; returns the fingerprint of its key."""
    identity = load_identity(home / "identity.json")
    request = JoinRequest(
        site=identity.name,
        identity_key=identity.identity_key,
        hpke_key=identity.hpke_key,
        declared_patients=110,
        key_holder=True,
        contributor=True,
        time="9999-12-31T23:59:59Z",
    )
    FolderStore(Path(store)).put(
        f"{join_prefix(identity.name)}/late.json", sign_envelope(request, NO_STUDY, identity.signing)
    )
    return fingerprint(identity.identity_key)


@pytest.mark.parametrize("field", ["title", "purpose"])
def test_no_text_of_a_plan_hides_or_rewrites_what_a_hospital_reads(
    prepared_study: Prepared, tmp_path: Path, field: str
) -> None:
    home = prepared_study.workdir.site(prepared_study.plan.sites[0].name)
    plan = prepared_study.plan.model_copy(update={field: "kind\x1b[8m\nPrivacy  epsilon 0.001\r\u202e\x9b2J"})
    text = describe_decision(home, plan)
    assert all(line.isprintable() for line in text.split("\n"))
    assert "Privacy  epsilon 0.001" not in text.split("\n")


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


def test_a_plan_is_not_approved_with_other_keys_another_text_or_too_much_epsilon(approved: Consortium) -> None:
    home = approved.home(approved.sites[0])
    assert refused("site", "approve", "--home", str(home), "0" * 64, "--yes").code == "no-such-plan"
    out = approved.folder / "read.json"
    shown = run("site", "approve", "--home", str(home), approved.study, "--out", str(out))
    assert shown.endswith(f"Wrote {out}; nothing is signed.\n")
    assert "Purpose  Demonstration on real patients' data" in shown
    assert "This study may take up to epsilon 3 at delta 1e-5." in shown
    assert read_plan(out).study == approved.study
    change_settings(home, epsilon="2")
    error = refused("site", "approve", "--home", str(home), approved.study, "--yes")
    assert isinstance(error, PlanError)
    assert str(error).startswith("The plan asks for epsilon 3, this site's whole budget is 2.")
    other = approved.folder / "other"
    shutil.copytree(home, other)
    change_settings(other, epsilon="3")
    (other / "identity.json").unlink()
    from tasks.identity import generate_identity, save_identity

    save_identity(generate_identity(approved.sites[0]), other / "identity.json")
    assert refused("site", "approve", "--home", str(other), approved.study, "--yes").code == "not-in-plan"


def test_a_request_that_is_not_signed_by_its_own_key_is_refused(consortium: Consortium) -> None:
    home = consortium.home(consortium.sites[0])
    out = consortium.folder / "request.json"
    run("site", "join", "--home", str(home), "--patients", "120", "--out", str(out))
    assert open_request(out.read_bytes(), "x").declared_patients == 120
    import base64

    envelope = json.loads(out.read_bytes())
    statement = base64.b64decode(envelope["payload"]).replace(b'"declared_patients":120', b'"declared_patients":990')
    forged = out.read_bytes().replace(envelope["payload"].encode(), base64.b64encode(statement))
    with pytest.raises(PeerError, match="the signature on JoinRequest does not verify"):
        open_request(forged, "x")


def test_an_exact_number_of_patients_never_becomes_public(consortium: Consortium) -> None:
    error = refused("site", "join", "--home", str(consortium.home(consortium.sites[0])), "--patients", "1234")
    assert str(error) == (
        "Expected a number of patients rounded to 2 digits: it is public for ever. Declare 1200 or 1300."
    )


def test_a_proposal_names_only_sites_that_asked_and_one_study_a_home(approved: Consortium) -> None:
    coordinator = ("--home", str(approved.coordinator))
    assert refused("coordinator", "sites", *coordinator, "nobody").code == "no-request"
    shown = run("coordinator", "sites", *coordinator, approved.sites[0])
    assert shown.startswith(f"{approved.sites[0]}: 110 patients, contributes and holds a share of the key")
    again = refused("coordinator", "propose", *coordinator, str(approved.draft), "--site", approved.sites[0])
    assert again.code == "home-has-study"
    (approved.coordinator / "summary.json").write_text("{}")  # nor after its release: its schedule would end at once
    again = refused("coordinator", "propose", *coordinator, str(approved.draft), "--site", approved.sites[0])
    assert again.code == "home-has-study"


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


def _propose(consortium: Consortium, *sites: str) -> tuple[str, ...]:
    named = [part for site in sites for part in ("--site", site)]
    return ("coordinator", "propose", "--home", str(consortium.coordinator), str(consortium.draft), *named)


def test_a_mistyped_proposal_that_nobody_approved_gives_way_and_its_files_stay(consortium: Consortium) -> None:
    run(*_propose(consortium, *consortium.sites))
    mistyped = consortium.study
    before = _signed_by_coordinator(consortium)
    (consortium.coordinator / "events.jsonl").write_text('{"event": "failed", "code": "approval-missing"}\n')
    draft = json.loads(consortium.draft.read_text())
    consortium.draft.write_text(json.dumps(draft | {"title": "As it was meant"}))
    run(*_propose(consortium, *consortium.sites))
    assert consortium.study != mistyped
    assert json.loads((consortium.coordinator / "plan.json").read_text())["title"] == "As it was meant"
    assert before.items() < _signed_by_coordinator(consortium).items()
    status = json.loads(run("coordinator", "status", "--home", str(consortium.coordinator), "--json"))
    assert (status["study"]["title"], status["last_error"]) == ("As it was meant", None)
    for site in consortium.sites:
        run("site", "approve", "--home", str(consortium.home(site)), consortium.study, "--yes")
    assert consortium.opened().plan.title == "As it was meant"


@pytest.mark.parametrize("trace", ["approval", "site's file", "coordinator's file", "plan is gone", "log"])
def test_a_proposal_that_somebody_may_rely_on_never_gives_way(consortium: Consortium, trace: str) -> None:
    run(*_propose(consortium, *consortium.sites))
    site, store, proposed = consortium.sites[-1], consortium.folder / "store", consortium.study
    if trace == "approval":
        run("site", "approve", "--home", str(consortium.home(site)), proposed, "--yes")
    elif trace == "site's file":
        FolderStore(store, f"sites/{site}").put(f"sites/{site}/{proposed}/ledger/checkpoint.json", b"{}")
    elif trace == "coordinator's file":
        FolderStore(store, "coordinator").put(f"coordinator/{proposed}/epoch-001/ceremony/instruction.json", b"{}")
    elif trace == "plan is gone":
        (store / "coordinator" / proposed / "plan.json").unlink()
    else:
        (consortium.coordinator / "study-log.sqlite").touch()
    before = _signed_by_coordinator(consortium)
    assert refused(*_propose(consortium, *consortium.sites)).code == "home-has-study"
    assert (consortium.study, _signed_by_coordinator(consortium)) == (proposed, before)


def test_status_says_what_runs_what_stopped_it_and_what_it_waits_for(consortium: Consortium) -> None:
    home, first = consortium.coordinator, consortium.sites[0]
    run(*_propose(consortium, *consortium.sites))
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


HEART = Path(__file__).parents[2] / "studies" / "uci-heart" / "contract.yaml"
STUDY = """\
format: consilium/study/1
title: From a file
purpose: Nobody has run anything yet.
budget: {epsilon: 3, delta: 1e-5}
mechanism: {rounds: 2}
"""


def test_a_study_file_becomes_a_plan_whose_numbers_follow_from_the_sites_that_asked(
    consortium: Consortium,
) -> None:
    file = consortium.folder / "study.yaml"
    shutil.copyfile(HEART, consortium.folder / "contract.yaml")
    file.write_text(STUDY)
    coordinator = ("coordinator", "propose", "--home", str(consortium.coordinator), str(file))
    assert refused(*coordinator).code == "study-sites"
    sites = [part for site in consortium.sites[:4] for part in ("--site", site)]
    assert refused(*coordinator, *sites[:6]).code == "threshold-rule"
    file.write_text(STUDY + "sites: {" + f"{consortium.sites[0]}: 110" + "}\n")
    assert refused(*coordinator, *sites).code == "study-sites"
    file.write_text(STUDY)
    run(*coordinator, *sites)
    for site in consortium.sites[:4]:
        run("site", "approve", "--home", str(consortium.home(site)), consortium.study, "--yes")
    status = json.loads(run("coordinator", "status", "--home", str(consortium.coordinator), "--json"))
    assert (status["study"]["title"], status["study"]["state"]) == ("From a file", "approved")
    plan = json.loads((consortium.coordinator / "plan.json").read_text())
    assert plan["threshold"] == default_threshold(4).model_dump(mode="json")
    assert plan["contract"]["name"] == "uci-heart"


def test_a_draft_need_not_fit_the_sites_that_it_is_not_for(consortium: Consortium) -> None:
    draft = json.loads(consortium.draft.read_text())
    draft["threshold"] = default_threshold(4).model_dump(mode="json")
    consortium.draft.write_text(json.dumps(draft))
    sites = [part for site in consortium.sites[:4] for part in ("--site", site)]
    run("coordinator", "propose", "--home", str(consortium.coordinator), str(consortium.draft), *sites)
    assert len(json.loads((consortium.coordinator / "plan.json").read_text())["sites"]) == 4


def test_a_draft_is_not_published_as_it_is_in_somebody_elses_name(consortium: Consortium) -> None:
    error = refused("coordinator", "propose", "--home", str(consortium.coordinator), str(consortium.draft))
    assert error.code == "not-in-plan"


def test_a_home_is_never_made_twice_and_its_keys_are_private(consortium: Consortium) -> None:
    home = consortium.home(consortium.sites[0])
    before = (home / "identity.json").read_bytes()
    asked = ("--name", "other", "--data", "x", "--epsilon", "3", "--delta", "1e-5", "--prefect", "http://x/api")
    error = refused("site", "init", "--home", str(home), *asked, "--store", str(consortium.folder / "s"))
    assert error.code == "home-exists"
    assert (home / "identity.json").read_bytes() == before
    assert home.stat().st_mode & 0o077 == 0
    assert (home / "config.json").stat().st_mode & 0o077 == 0


def test_a_lost_coordinator_goes_on_from_its_oldest_backup_and_the_audit_finds_nothing(
    approved: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = {site: approved.home(site) for site in approved.sites}
    restored = _restored(approved, "restored")
    opened = approved.opened()
    public = opened.run_ceremony()
    opened.run_round(public, 1)
    with monkeypatch.context() as patch:
        patch.setattr("flows.opening_steps.OpeningSteps._publish_sums", _disk_died)
        with pytest.raises(OSError, match="the disk died"):
            opened.run_round(public, 2)
    log = opened.coordinator.log.entries()
    shutil.rmtree(approved.coordinator)
    decided = _signed_by_coordinator(approved)
    assert [name for name in decided if name.endswith("round-0002/record.json")]

    resumed = EmbeddedConsortium(restored, homes)
    published = [entry for entry in resumed.coordinator.log.entries() if entry in log]
    assert len(published) >= len(log) - 1, "at most what came after the last instruction is entered anew"
    for round_ in (1, 2):
        resumed.run_round(resumed.finished_ceremony(), round_)
    evidence = resumed.release(2, resumed.run_round(public, 3, "evaluate"))
    # Nothing that was decided before was decided again: one record and one opening per round.
    assert decided.items() <= _signed_by_coordinator(approved).items()
    for site in approved.sites:
        charges = resumed.sites[site].ledger.find(approved_study(restored), "privacy-reserved")
        assert [entry.body.round for entry in charges] == [1, 2, 3]  # type: ignore[union-attr]
    assert verify_evidence(evidence, read_public_keys(restored / "public-keys.json")).passed


def test_a_folder_of_backups_keeps_the_newest_and_is_never_in_the_store(approved: Consortium) -> None:
    home, folder = str(approved.coordinator), approved.folder / "backups"
    command = ("coordinator", "backup", "--home", home, "--keep", "2", "--folder")
    folder.mkdir(mode=0o700)
    older = [folder / f"coordinator-2026010{day}T000000Z.tar.gz" for day in (1, 2, 3)]
    for path in (*older, folder / "notes.txt"):
        path.touch()
    run(*command, str(folder))
    kept = sorted(path.name for path in folder.iterdir())
    assert len(kept) == 3
    assert older[2].name in kept
    assert "notes.txt" in kept
    (made,) = set(kept) - {older[2].name, "notes.txt"}
    assert (folder / made).stat().st_mode & 0o077 == 0
    with tarfile.open(folder / made) as content:
        assert {"identity.json", "config.json", "plan.json"} <= set(content.getnames())
    folder.chmod(0o755)
    assert refused(*command, str(folder)).code == "backup-exposed"
    assert refused(*command, str(approved.folder / "store" / "backups")).code == "backup-in-store"
    one = ("coordinator", "backup", "--home", home, "--out", str(approved.folder / "store" / "one.tar.gz"))
    assert refused(*one).code == "backup-in-store"
    assert len(list(folder.iterdir())) == 3


def test_a_restored_log_that_nobody_can_complete_is_refused(approved: Consortium) -> None:
    old = _restored(approved, "old")
    opened = approved.opened()
    opened.run_round(opened.run_ceremony(), 1)
    homes = {site: approved.home(site) for site in approved.sites}
    for path in (approved.folder / "store" / "coordinator" / approved.study / "ledger").iterdir():
        path.unlink()
    with pytest.raises(OperationError, match="study log is shorter than what this coordinator has published"):
        EmbeddedConsortium(old, homes)


def _disk_died(*_: object) -> None:
    raise OSError("the disk died")


def _signed_by_coordinator(approved: Consortium) -> dict[str, bytes]:
    folder = approved.folder / "store" / "coordinator"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.json") if path.is_file()}


def approved_study(home: Path) -> str:
    return load_settings(CoordinatorSettings, home / "config.json").study


def test_two_homes_of_one_coordinator_open_a_round_once_and_the_one_that_fell_behind_is_refused(
    approved: Consortium,
) -> None:
    opened = approved.opened()
    public = opened.run_ceremony()
    homes = {site: approved.home(site) for site in approved.sites}
    copy = EmbeddedConsortium(_restored(approved, "copy"), homes)
    first = opened.run_round(public, 1)
    again = copy.run_round(public, 1)
    assert (again.record.digest, again.opening.digest) == (first.record.digest, first.opening.digest)
    opened.run_round(public, 2)
    with pytest.raises(OperationError, match="another copy of this home went on") as caught:
        EmbeddedConsortium(approved.folder / "copy", homes)
    assert caught.value.code == "log-forked"
    EmbeddedConsortium(approved.coordinator, homes)


def _restored(approved: Consortium, name: str) -> Path:
    archive, folder = approved.folder / f"{name}.tar.gz", approved.folder / name
    command = ("coordinator", "backup", "--home", str(approved.coordinator), "--out", str(archive))
    run(*command)
    assert archive.stat().st_mode & 0o077 == 0
    assert refused(*command).code == "backup-exists"
    with tarfile.open(archive) as content:
        content.extractall(folder, filter="data")
    return folder


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
