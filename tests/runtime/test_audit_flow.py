"""The scheduled audit on a real Prefect server and a real MLflow: what somebody edited by hand is on its page."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import State

from flows.audit import describe_audit, run_audit_flow
from tasks.audit.report import AuditReport, CheckResult, Finding
from tasks.audit.verify import CHECKS
from tasks.tracking.target import connect
from tests.conftest import FinishedStudy
from tests.review.studies import Registered, register
from tests.simulator import Prepared, copy_study

pytestmark = pytest.mark.usefixtures("prefect_settings")
QUICK = tuple(check for check in CHECKS if check.number not in ("C27", "C28"))


@pytest.fixture(scope="module")
def registered(finished_study: FinishedStudy, tmp_path_factory: pytest.TempPathFactory) -> Registered:
    return register(finished_study.prepared, tmp_path_factory.mktemp("audited") / "study")


def run(home: Path) -> tuple[State[object], str]:
    async def act() -> tuple[State[object], str]:
        state: State[object] = await run_audit_flow(str(home), return_state=True)
        async with get_client() as client:
            key = ArtifactFilter(key=ArtifactFilterKey(like_="audit-%"))
            found = await client.read_artifacts(artifact_filter=key)
        return state, str(max(found, key=lambda artifact: artifact.created).data) if found else ""

    return asyncio.run(act())


def test_a_moved_alias_and_an_edited_tag_fail_the_scheduled_audit_which_says_so_on_its_page(
    registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.audit.verify.CHECKS", QUICK)
    state, page = run(registered.home)
    assert state.is_completed(), state.message
    assert "verified: " in page
    assert "NOT verified" not in page
    assert "| C33 | MLflow shows what the evidence says | checked |" in page
    client = connect(registered.target)
    client.set_registered_model_alias(registered.model, "released", "1")
    client.set_model_version_tag(registered.model, "1", "consilium.auc", "0.999")
    state, page = run(registered.home)
    assert state.is_failed()
    assert str(state.message).startswith("The audit failed in C33")
    assert "NOT verified" in page
    assert "no signed decision put it there" in page
    assert "another value in its tag consilium.auc" in page


def test_a_study_that_is_not_closed_is_not_called_tampered(study_after_ceremony: Prepared, tmp_path: Path) -> None:
    prepared = copy_study(study_after_ceremony, tmp_path / "study")
    state, _ = run(prepared.workdir.coordinator)
    assert state.is_completed()
    assert "is not closed yet" in str(state.message)


def test_text_of_evidence_cannot_become_markup_on_the_page() -> None:
    attack = "</code> [click](http://evil.invalid) | <script>"
    finding = Finding(place=attack, reason=attack)
    result = CheckResult(
        check="C02", title="t", status="failed", detail=attack, findings=(finding,), proves="p", does_not_prove="d"
    )
    page = describe_audit(attack, AuditReport(study="", software="s", keys_given=True, results=(result,)), "")
    assert not {"<", "[click", "| <"} & {part for part in ("<", "[click", "| <") if part in page}
