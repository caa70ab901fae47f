"""The scheduled audit: a fresh export, every check, MLflow as it is now; the verdict as an artifact and an event.

It runs at the coordinator, whom nobody has to believe: the point is to notice early what an auditor would find later,
such as an alias that somebody moved by hand. Institutions run `consilium audit verify` on an export themselves.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from pathlib import Path
from typing import Any

import httpx
from prefect import flow
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.context import CoordinatorContext, open_coordinator
from flows.endings import failed_state
from flows.notices import AUDIT_FAILED, AUDIT_PASSED, notify, study_resource
from flows.tasks import deciding, recording
from schemas.errors import ConsiliumError
from schemas.layout import ledger_key
from tasks.audit.export import export_evidence
from tasks.audit.keys import PublicKeys, public_keys_document, read_public_keys
from tasks.audit.report import AuditReport
from tasks.audit.snapshot import MlflowSnapshot
from tasks.audit.verify import verify_evidence
from tasks.run_log import hide_expected_tracebacks

# Where a coordinator keeps the key list that it got from the institutions; without it the plan's own keys are taken.
KEYS_FILE = "public-keys.json"

_log = logging.getLogger("consilium.coordinator")


@flow(name="audit", persist_result=False, retries=0)
async def run_audit_flow(home: str) -> State[Any]:
    """Audits the study of a coordinator's home and posts the verdict; a failed audit is a failed run."""
    hide_expected_tracebacks()
    try:
        return await _audit(open_coordinator(Path(home)))
    except ConsiliumError as error:
        return failed_state(error)


async def _audit(context: CoordinatorContext) -> State[Any]:
    if not context.store.exists(ledger_key(context.study, context.plan.coordinator.name, True, "closing.json")):
        return Completed(message="The study is not closed yet: its logs are published with its release.")
    report, note = await audit(context)
    await post(context, report, note)
    failed = [result.check for result in report.results if result.status == "failed"]
    if failed:
        return Failed(message=f"The audit failed in {', '.join(failed)}; the artifact names the places.")
    return Completed(
        message=f"{report.count('checked')} checks passed, {report.count('not-applicable')} not applicable."
    )


@deciding("audit")
async def audit(context: CoordinatorContext) -> tuple[AuditReport, str]:
    """Exports what was published so far to a temporary folder, without touching any log, and verifies it."""
    return await asyncio.to_thread(audit_now, context)


@recording("post-verdict")
async def post(context: CoordinatorContext, report: AuditReport, note: str) -> None:
    """Puts the verdict on the run's page and sends the event."""
    key = f"audit-{context.study[:12]}"
    words = "verified" if report.passed else "NOT verified"
    try:
        await acreate_markdown_artifact(
            key=key, markdown=describe_audit(context.plan.title, report, note), description=f"Audit: {words}"
        )
    except httpx.HTTPError as error:
        _log.warning("the audit's page in Prefect could not be written (%s)", type(error).__name__)
    failed = ",".join(result.check for result in report.results if result.status == "failed")
    event = AUDIT_PASSED if report.passed else AUDIT_FAILED
    payload = {"verdict": words, "failed": failed, "checked": str(report.count("checked"))}
    await notify(event, context.study, study_resource(context.study), payload)


def audit_now(context: CoordinatorContext) -> tuple[AuditReport, str]:
    """Audits a study as it is published now.

    Returns:
        The report, and what a reader must know about how it was made.
    """
    notes = []
    keys_file = context.home / KEYS_FILE
    if keys_file.is_file():
        keys = read_public_keys(keys_file)
    else:
        keys = PublicKeys.model_validate(public_keys_document(context.plan))
        notes.append(f"There is no {KEYS_FILE} in the home: identity keys were taken from the plan itself.")
    snapshot = None
    try:
        snapshot = _look_at_mlflow(context)
    except ConsiliumError as error:
        notes.append(f"MLflow was not compared: {error.message}")
    except Exception as error:  # whatever a tracking server answers: the evidence is audited all the same
        notes.append(f"MLflow was not compared ({type(error).__name__}).")
    with tempfile.TemporaryDirectory(prefix="consilium-audit-") as folder:
        out = export_evidence(context.store, context.plan, Path(folder) / "evidence", context.identity.signing)
        return verify_evidence(out, keys, snapshot), " ".join(notes)


def _look_at_mlflow(context: CoordinatorContext) -> MlflowSnapshot:
    from tasks.tracking.snapshot import take_snapshot
    from tasks.tracking.target import TrackingTarget

    found = take_snapshot(TrackingTarget(context.settings.mlflow_uri), context.study)
    return MlflowSnapshot.model_validate(found, strict=False)


def describe_audit(title: str, report: AuditReport, note: str) -> str:
    """Returns the verdict in Markdown: what failed and where first, then every check."""
    words = "verified" if report.passed else "**NOT verified**"
    counts = f"{report.count('checked')} checked, {report.count('failed')} failed, "
    counts += f"{report.count('not-applicable')} not applicable"
    lines = [f"# Audit of: {_plain(title)}", "", f"{words}: {counts}.", ""]
    lines += [f"- {_plain(sentence)}" for sentence in (report.headline.sentences() if report.headline else ())]
    lines += ["", note, ""] if note else [""]
    for result in report.results:
        lines += [f"- **{result.check}** `{_plain(f.place)}`: {_plain(f.reason)}" for f in result.findings]
    rows = [f"| {r.check} | {r.title} | {r.status.replace('-', ' ')} | {_plain(r.detail)} |" for r in report.results]
    return "\n".join([*lines, "", "| check | claim | result | detail |", "|---|---|---|---|", *rows])


def _plain(text: str) -> str:
    """Keeps text of evidence from becoming markup on a page."""
    return "".join(" " if c in "\r\n" else f"&#{ord(c)};" if c in "<>|`*_[]" else c for c in text)
