"""A study with a refusal, a silent site, a holder that never answers and a site that is gone at the end."""

from __future__ import annotations

import shutil
from pathlib import Path

from schemas.layout import attempt_key, ledger_key, round_key
from tests.audit.eventful import Eventful


def test_faults_that_the_protocol_survives_do_not_fail_the_audit_and_are_visible(eventful: Eventful) -> None:
    results = eventful.audit(eventful.evidence)
    assert not [finding for result in results.values() for finding in result.findings]
    assert results["C11"].status == "not-applicable"
    assert eventful.gone in results["C11"].detail
    assert "1 refusals" in results["C15"].detail


def test_a_refusal_that_the_coordinator_deletes_is_missed(eventful: Eventful, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(eventful.evidence, tmp_path / "evidence"))
    refusal = folder / attempt_key(eventful.prepared.plan.study, 1, 1, eventful.refusing, "refusal.json")
    refusal.unlink()
    eventful.reseal(folder)
    result = eventful.audit(folder)["C15"]
    assert result.status == "failed"
    assert "no signed refusal" in result.findings[0].reason


def test_the_checkpoint_of_a_site_that_was_there_to_the_end_is_missed(eventful: Eventful, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(eventful.evidence, tmp_path / "evidence"))
    (folder / ledger_key(eventful.prepared.plan.study, eventful.refusing, False, "checkpoint.json")).unlink()
    eventful.reseal(folder)
    result = eventful.audit(folder)["C11"]
    assert result.status == "failed"
    assert eventful.refusing in result.findings[0].place


def test_an_end_that_fewer_than_q_sites_witnessed_fails(eventful: Eventful, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(eventful.evidence, tmp_path / "evidence"))
    for site in eventful.prepared.plan.sites:
        (folder / ledger_key(eventful.prepared.plan.study, site.name, False, "witness.json")).unlink(missing_ok=True)
    eventful.reseal(folder)
    result = eventful.audit(folder)["C11"]
    assert result.status == "failed"
    assert "witnessed by fewer than Q = 4 sites" in result.findings[0].reason


def test_a_removed_share_request_leaves_shares_that_nobody_asked_for(eventful: Eventful, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(eventful.evidence, tmp_path / "evidence"))
    study = eventful.prepared.plan.study
    assert (folder / round_key(study, 1, None, "request-2.json")).is_file()
    (folder / round_key(study, 1, None, "request-1.json")).unlink()
    eventful.reseal(folder)
    results = eventful.audit(folder)
    assert {"C17", "C18"} <= {number for number, result in results.items() if result.status == "failed"}
