"""A study on a module that every hospital installed and allowed, with real encryption, up to the audit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import infra.datasets
from infra.embedded import contribute
from schemas.errors import OperationError, PlanError
from schemas.ledger import Refused
from schemas.plan import ModelSpec, StudyPlan, feature_count
from schemas.threshold import Threshold
from site_agents.compute import verify_module_in_child
from site_agents.round import SiteRound
from tasks.audit.keys import read_public_keys
from tasks.audit.verify import verify_evidence
from tasks.lineage import first_lineage
from tasks.training.registry import describe_module
from tests.simulator import Prepared, change_settings, open_consortium, prepare

ENTRY = "hospital-models:risk-net"
made = infra.datasets.demo_plan_parts


def on_module(
    data: str, sites: int, rounds: int, epsilon: str, delta: str, threshold: Threshold
) -> infra.datasets.PlanParts:
    parts = made(data, sites, rounds, epsilon, delta, threshold)
    module = describe_module(ENTRY, feature_count(parts.contract))
    return replace(parts, model=ModelSpec(kind="module", module=module))


@pytest.fixture
def prepared(installed_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    monkeypatch.setattr(infra.datasets, "demo_plan_parts", on_module)
    return prepare(tmp_path / "study", rounds=1, sites=4)


def test_a_study_on_an_installed_module_trains_releases_and_passes_its_audit(prepared: Prepared) -> None:
    """And a hospital that does not allow it declines before anything is charged; the others go on."""
    sites = [site.name for site in prepared.plan.sites]
    for name in sites[1:]:
        change_settings(prepared.workdir.site(name), models=[ENTRY])
    consortium = open_consortium(prepared)
    evaluation = consortium.run_study()
    evidence = consortium.release(1, evaluation)
    assert evaluation.lineage.state.weights.tolist() != first_lineage(prepared.plan).state.weights.tolist()
    kinds = [entry.body.kind for entry in consortium.sites[sites[0]].ledger.entries_for(prepared.plan.study)]
    refusals = consortium.sites[sites[0]].ledger.find(prepared.plan.study, "refused")
    assert [entry.body.code for entry in refusals if isinstance(entry.body, Refused)] == ["model-not-allowed"] * 2
    assert "privacy-reserved" not in kinds
    assert evaluation.record.predicate.dropped == ((sites[0], "refused"),)
    report = verify_evidence(evidence, read_public_keys(prepared.keys))
    assert report.exit_code == 0, [check for check in report.checks if check.verdict == "failed"]


def test_another_version_than_the_plans_is_refused_before_anything_is_charged(
    prepared: Prepared, installed_models: Path
) -> None:
    site = prepared.plan.sites[0].name
    for entry in prepared.plan.sites:
        change_settings(prepared.workdir.site(entry.name), models=[ENTRY])
    consortium = open_consortium(prepared)
    public = consortium.run_ceremony()
    from flows.round_steps import RoundSteps

    steps = RoundSteps(consortium.coordinator, public, consortium.lineage, 1, "train")
    steps.issue()
    metadata = next(installed_models.glob("*.dist-info/METADATA"))
    before = metadata.read_text()
    metadata.write_text(re.sub(r"(?m)^Version: .*$", "Version: 1.3.0", before))
    try:
        refused = contribute(SiteRound(consortium.sites[site], 1, steps.attempt))
    finally:
        metadata.write_text(before)
    assert isinstance(refused, PlanError)
    assert refused.code == "model-version"
    assert not consortium.sites[site].ledger.find(prepared.plan.study, "privacy-reserved")


def test_an_agent_builds_a_module_only_in_a_child(prepared: Prepared) -> None:
    import sys

    sys.modules.pop("hospital_models", None)
    verify_module_in_child(prepared.plan, 120)
    assert "hospital_models" not in sys.modules
    spec = prepared.plan.model.module
    assert spec is not None
    other = ModelSpec(kind="module", module=spec.model_copy(update={"parameters": spec.parameters[:-1]}))
    changed = StudyPlan.model_validate(prepared.plan.model_dump() | {"model": other.model_dump()})
    with pytest.raises(PlanError, match="has other parameters than the plan says"):
        verify_module_in_child(changed, 120)
    with pytest.raises(OperationError, match="did not finish in time"):
        verify_module_in_child(prepared.plan, 0.0)
