"""What a coordinator may propose, and what a hospital reads before it approves."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.approving import describe_decision
from infra.cli import main
from infra.homes import fingerprint
from infra.joining import open_request
from infra.plans import read_plan
from schemas.envelope import sign_envelope
from schemas.errors import PeerError, PlanError
from schemas.joining import JoinRequest
from schemas.layout import join_prefix
from schemas.ledger import NO_STUDY
from schemas.threshold import default_threshold
from tasks.identity import load_identity
from tasks.storage.folder import FolderStore
from tests.cli.parties import (
    Consortium,
    propose_command,
    refused,
    run,
    signed_by_coordinator,
)
from tests.simulator import Prepared, change_settings


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
    section, document = re.search(r'"(.+)" in (docs/\S+\.md)', again.remedy).groups()
    assert f"\n## {section}\n" in (Path(__file__).parents[2] / document).read_text()
    (approved.coordinator / "summary.json").write_text("{}")  # nor after its release: its schedule would end at once
    again = refused("coordinator", "propose", *coordinator, str(approved.draft), "--site", approved.sites[0])
    assert again.code == "home-has-study"


def test_a_mistyped_proposal_that_nobody_approved_gives_way_and_its_files_stay(consortium: Consortium) -> None:
    run(*propose_command(consortium, *consortium.sites))
    mistyped = consortium.study
    before = signed_by_coordinator(consortium)
    (consortium.coordinator / "events.jsonl").write_text('{"event": "failed", "code": "approval-missing"}\n')
    draft = json.loads(consortium.draft.read_text())
    consortium.draft.write_text(json.dumps(draft | {"title": "As it was meant"}))
    run(*propose_command(consortium, *consortium.sites))
    assert consortium.study != mistyped
    assert json.loads((consortium.coordinator / "plan.json").read_text())["title"] == "As it was meant"
    assert before.items() < signed_by_coordinator(consortium).items()
    status = json.loads(run("coordinator", "status", "--home", str(consortium.coordinator), "--json"))
    assert (status["study"]["title"], status["last_error"]) == ("As it was meant", None)
    for site in consortium.sites:
        run("site", "approve", "--home", str(consortium.home(site)), consortium.study, "--yes")
    assert consortium.opened().plan.title == "As it was meant"


@pytest.mark.parametrize("trace", ["approval", "site's file", "coordinator's file", "plan is gone", "log"])
def test_a_proposal_that_somebody_may_rely_on_never_gives_way(consortium: Consortium, trace: str) -> None:
    run(*propose_command(consortium, *consortium.sites))
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
    before = signed_by_coordinator(consortium)
    assert refused(*propose_command(consortium, *consortium.sites)).code == "home-has-study"
    assert (consortium.study, signed_by_coordinator(consortium)) == (proposed, before)


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


def test_reviewers_and_their_number_go_from_the_study_file_into_the_plan(consortium: Consortium) -> None:
    file = consortium.folder / "study.yaml"
    shutil.copyfile(HEART, consortium.folder / "contract.yaml")
    printed = [review_init(consortium, name) for name in ("dr-a", "dr-b")]
    file.write_text(STUDY + f"reviewers: [{', '.join(printed)}]\nrelease: {{reviewers_needed: 2}}\n")
    sites = [part for site in consortium.sites[:4] for part in ("--site", site)]
    said = run("coordinator", "propose", "--home", str(consortium.coordinator), str(file), *sites)
    assert "no reviewer" not in said
    plan = read_plan(consortium.coordinator / "plan.json")
    assert [reviewer.model_dump() for reviewer in plan.reviewers] == [json.loads(text) for text in printed]
    assert plan.release.reviewers_needed == 2


def review_init(consortium: Consortium, name: str) -> str:
    """Returns what `review init` prints, as it is pasted into a study file."""
    asked = ["review", "init", "--home", str(consortium.folder / name), "--name", name, "--mlflow", "http://x"]
    return CliRunner().invoke(main, asked).stdout


def test_a_plan_without_reviewers_is_published_with_a_warning(consortium: Consortium) -> None:
    draft = json.loads(consortium.draft.read_text())
    consortium.draft.write_text(json.dumps(draft | {"reviewers": []} | {"release": {"reviewers_needed": 1}}))
    said = run(*propose_command(consortium, *consortium.sites))
    assert "Warning: The plan names no reviewer: its model stays a candidate and is never released." in said
    assert consortium.study in said


def test_reviewers_who_could_never_release_a_model_are_refused(consortium: Consortium) -> None:
    file = consortium.folder / "study.yaml"
    shutil.copyfile(HEART, consortium.folder / "contract.yaml")
    sites = [part for site in consortium.sites[:4] for part in ("--site", site)]
    entry = review_init(consortium, "dr-a")
    cases = (
        (f"reviewers: [{entry}]\nrelease: {{reviewers_needed: 2}}\n", "plan-reviewers", "at least 2 reviewers, got 1"),
        (f"reviewers: [{entry}, {entry.replace('dr-a', 'dr-b')}]\n", "plan-keys", "Two participants share a key"),
        ("reviewers: [{name: dr-a, identity_key: 00}]\n", "yaml-fields", "reviewers.0.identity_key"),
    )
    for text, code, message in cases:
        file.write_text(STUDY + text)
        error = refused("coordinator", "propose", "--home", str(consortium.coordinator), str(file), *sites)
        assert error.code == code
        assert message in str(error)
    assert consortium.study == ""


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
