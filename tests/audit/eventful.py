"""A study with a refusal, a silent site, a holder that never answers and a site that is gone at the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from infra.embedded import EmbeddedConsortium, Faults
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


def make_eventful_study(folder: Path) -> Eventful:
    """Runs the study."""
    prepared = prepare(folder)
    names = [site.name for site in prepared.plan.sites]
    evidence = _run(prepared, open_consortium(prepared), names[0], names[4])
    return Eventful(prepared, evidence, names[0], names[4])
