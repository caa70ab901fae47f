"""A hospital's ledger goes on in other studies; what it publishes of a closed one ends with that study's checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.ceremony_steps import sign_ceremony_instruction
from infra.embedded import EmbeddedConsortium
from schemas.ledger import NO_STUDY, Refused
from site_agents.agent import _publish_ledgers
from site_agents.ceremony import STEPS, SiteCeremony
from tasks.audit.export import export_evidence
from tasks.audit.keys import read_public_keys
from tasks.audit.verify import verify_evidence
from tasks.ledger.store import LedgerStore
from tests.conftest import FinishedStudy
from tests.simulator import Prepared, copy_study, open_consortium

ELSEWHERE = Refused(instruction="0" * 64, code="asked-by-another-study")


def test_an_agent_that_starts_again_publishes_nothing_of_others_under_a_closed_study(
    finished_study: FinishedStudy, tmp_path: Path
) -> None:
    prepared = copy_study(finished_study.prepared, tmp_path / "study")
    consortium = open_consortium(prepared)
    for site in consortium.sites.values():
        site.ledger.append(NO_STUDY, ELSEWHERE)
        _publish_ledgers(site.home)
    verify_now(prepared, consortium)


def test_an_entry_of_another_study_at_the_moment_of_closing_is_left_out_of_the_checkpoint(
    study_after_ceremony: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = copy_study(study_after_ceremony, tmp_path / "study")
    consortium = open_consortium(prepared)
    consortium.run_round(consortium.finished_ceremony(), 1)
    sign = LedgerStore.sign_checkpoint

    def sign_late(log: LedgerStore, *args: Any) -> bytes:
        if log.owner in consortium.sites:
            log.append(NO_STUDY, ELSEWHERE)
        return sign(log, *args)

    monkeypatch.setattr(LedgerStore, "sign_checkpoint", sign_late)
    consortium.release(1, None, "no more rounds")
    verify_now(prepared, consortium)


def test_a_ceremony_that_broke_off_and_completes_too_late_does_not_fail_the_audit(
    study_after_ceremony: Prepared, tmp_path: Path
) -> None:
    prepared = copy_study(study_after_ceremony, tmp_path / "study")
    consortium = open_consortium(prepared)
    consortium.run_round(consortium.finished_ceremony(), 1)
    sign_ceremony_instruction(consortium.coordinator, 2)
    late = [SiteCeremony(consortium.sites[site.name], 2) for site in prepared.plan.key_holders]
    for party in late:
        party.verify()
    for _, _, step in STEPS:
        for party in late:
            step(party)
    consortium.run_round(consortium.run_ceremony(3), 2)
    consortium.release(2, None, "no more rounds")
    verify_now(prepared, consortium)


def verify_now(prepared: Prepared, consortium: EmbeddedConsortium) -> None:
    """Exports as a nightly audit does, and verifies."""
    home, signing = consortium.coordinator.home, consortium.coordinator.identity.signing
    evidence = export_evidence(consortium.coordinator.store, prepared.plan, home / "evidence", signing)
    report = verify_evidence(evidence, read_public_keys(prepared.keys))
    assert [result for result in report.results if result.status == "failed"] == []
