"""Figures of a round that a hospital could write into: the store's names, and the words of its verdicts."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.figures import bytes_up, contract_verdicts
from flows.round_steps import RoundSteps
from infra.embedded import EmbeddedConsortium, Faults
from schemas.contract import ContractVerdict, RuleVerdict
from schemas.envelope import sign_envelope
from schemas.layout import attempt_key, round_key
from schemas.messages import Refusal
from tests.simulator import Prepared, copy_study, open_consortium


@pytest.fixture
def consortium(study_after_ceremony: Prepared, tmp_path: Path) -> EmbeddedConsortium:
    return open_consortium(copy_study(study_after_ceremony, tmp_path / "study"))


def test_objects_that_the_protocol_does_not_know_are_not_counted(consortium: EmbeddedConsortium) -> None:
    faults = Faults(unwilling=[consortium.plan.sites[0].name])
    outcome = consortium.run_round(consortium.finished_ceremony(), 1, faults=faults)
    store, study = consortium.coordinator.store, consortium.plan.study
    folders = [round_key(study, 1, site.name, "x").removesuffix("/x") for site in consortium.plan.sites]
    written = sum(store.size(key) for folder in folders for key in store.list(folder))
    assert bytes_up(consortium.coordinator, outcome.record) == written
    for number in range(1000):
        (Path(consortium.coordinator.settings.store) / folders[3] / f"junk-{number}.bin").write_bytes(b"0")
    assert bytes_up(consortium.coordinator, outcome.record) == written


def test_a_rule_that_the_contract_does_not_have_is_shown_without_its_name(consortium: EmbeddedConsortium) -> None:
    public, plan = consortium.finished_ceremony(), consortium.plan
    hostile = plan.sites[3].name
    asked = RoundSteps(consortium.coordinator, public, consortium.lineage, 1, "train").issue()
    names = ("x |\n\n# Released: [here](http://evil.invalid)", "y" * 10_000, "cohort:rows", "cohort:rows")
    refusal = Refusal(
        instruction=asked.digest,
        sender=hostile,
        code="contract-violated",
        detail="",
        ledger=consortium.sites[hostile].ledger.position(),
        verdict=ContractVerdict(
            suite_digest="", engine_version="", rules=tuple(RuleVerdict(rule=name, passed=False) for name in names)
        ),
    )
    signed = sign_envelope(refusal, plan.study, consortium.sites[hostile].home.identity.signing)
    path = Path(consortium.coordinator.settings.store) / attempt_key(plan.study, 1, 1, hostile, "refusal.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(signed)
    outcome = consortium.run_round(public, 1, faults=Faults(silent=[hostile]))
    verdicts = contract_verdicts(consortium.coordinator, outcome)
    assert verdicts.pop(hostile) == "failed: unknown rule, cohort:rows"
    assert set(verdicts.values()) == {"passed"}
