"""A study with a refusal, a silent site, a holder that never answers and a site that is gone at the end."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from infra.embedded import EmbeddedConsortium, Faults
from schemas.layout import attempt_key, ledger_key, round_key
from tasks.audit.context import AuditContext
from tasks.audit.evidence import EvidenceFolder
from tasks.audit.keys import read_public_keys
from tasks.audit.registry import run_check
from tasks.audit.report import CheckResult
from tasks.audit.verify import CHECKS
from tasks.identity import load_identity
from tests.audit.studies import reseal
from tests.simulator import Prepared, open_consortium, prepare


@dataclass(frozen=True)
class Eventful:
    prepared: Prepared
    evidence: Path
    refusing: str
    gone: str

    def audit(self, folder: Path) -> dict[str, CheckResult]:
        context = AuditContext(EvidenceFolder(folder), read_public_keys(self.prepared.keys))
        return {check.number: run_check(check, context) for check in CHECKS if check.number not in ("C27", "C28")}

    def reseal(self, folder: Path) -> None:
        coordinator = load_identity(self.prepared.workdir.coordinator / "identity.json")
        reseal(folder, self.prepared.plan.study, coordinator)


def _run(prepared: Prepared, consortium: EmbeddedConsortium, refusing: str, gone: str) -> Path:
    public = consortium.run_ceremony()
    data = prepared.workdir.site(refusing) / "cohort.parquet"
    whole = pq.read_table(data)
    pq.write_table(whole.drop_columns([prepared.plan.contract.features[0].name]), data)
    consortium.run_round(public, 1, faults=Faults(unwilling=(prepared.plan.sites[1].name,)))
    pq.write_table(whole, data)
    consortium.run_round(public, 2, faults=Faults(mute=(prepared.plan.sites[2].name,)))
    evaluation = consortium.run_round(public, 3, "evaluate", Faults(silent=(gone,)))
    consortium.sites.pop(gone)
    return consortium.release(2, evaluation)


@pytest.fixture(scope="module")
def eventful(tmp_path_factory: pytest.TempPathFactory) -> Eventful:
    prepared = prepare(tmp_path_factory.mktemp("eventful") / "study")
    names = [site.name for site in prepared.plan.sites]
    evidence = _run(prepared, open_consortium(prepared), names[0], names[4])
    return Eventful(prepared, evidence, names[0], names[4])


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
