"""Verifies an evidence folder by the numbered checks of docs/spec-audit.md, offline."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from schemas.errors import OperationError
from tasks.audit.checks import (
    agreement,
    blobs,
    ceremony,
    container,
    entries,
    files,
    logs,
    mlflow_view,
    model,
    openings,
    privacy,
    release,
    reviews,
    rounds,
    statistics,
)
from tasks.audit.context import AuditContext
from tasks.audit.evidence import EvidenceFolder
from tasks.audit.headline import derive_headline
from tasks.audit.keys import PublicKeys
from tasks.audit.names import MANIFEST
from tasks.audit.registry import AuditFailure, Check, run_check
from tasks.audit.report import AuditReport, CheckResult
from tasks.audit.snapshot import MlflowSnapshot

CHECKS: tuple[Check, ...] = (
    *files.CHECKS,
    *blobs.CHECKS,
    *agreement.CHECKS,
    *ceremony.CHECKS,
    *logs.CHECKS,
    *entries.CHECKS,
    *rounds.CHECKS,
    *openings.CHECKS,
    *model.CHECKS,
    *privacy.CHECKS,
    *release.CHECKS,
    *container.CHECKS,
    *reviews.CHECKS,
    *mlflow_view.CHECKS,
    *statistics.CHECKS,
)


def verify_evidence(
    folder: Path,
    keys: PublicKeys | None,
    snapshot: MlflowSnapshot | None = None,
    on_check: Callable[[Check], None] | None = None,
) -> AuditReport:
    """Runs every check on an evidence folder and reports them all.

    Args:
        folder: What `tasks.audit.export.export_evidence` wrote, or a copy of it. Nothing is written to it.
        keys: Public keys obtained outside the evidence; without them the identity check fails.
        snapshot: What MLflow showed, if it is to be compared.
        on_check: Told of every check before it runs.

    Raises:
        OperationError: `evidence-missing` if there is no such folder.
    """
    return verify_context(open_evidence(folder, keys, snapshot), on_check)


def open_evidence(folder: Path, keys: PublicKeys | None, snapshot: MlflowSnapshot | None = None) -> AuditContext:
    """Opens an evidence folder for checks and reports.

    Raises:
        OperationError: `evidence-missing` if there is no such folder.
    """
    if not folder.is_dir():
        raise OperationError("evidence-missing", f"Expected an evidence folder at {folder.name}.", "Check the path.")
    if not (folder / MANIFEST).exists() and not (folder / "coordinator").exists():
        raise OperationError(
            "evidence-missing",
            f"The folder {folder.name} holds no evidence.",
            f"Name the folder with {MANIFEST} in it (in a demo: coordinator/evidence).",
        )
    return AuditContext(EvidenceFolder(folder), keys, snapshot)


def verify_context(context: AuditContext, on_check: Callable[[Check], None] | None = None) -> AuditReport:
    """Runs every check on opened evidence."""
    results: list[CheckResult] = []
    for check in CHECKS:
        if on_check is not None:
            on_check(check)
        results.append(run_check(check, context))
    return AuditReport(
        study=_study(context),
        software=f"consilium {_version()}",
        keys_given=context.keys is not None,
        results=tuple(results),
        headline=derive_headline(context, results),
    )


def _study(context: AuditContext) -> str:
    try:
        return context.study
    except AuditFailure:
        return ""


def _version() -> str:
    try:
        return version("consilium")
    except PackageNotFoundError:
        return "unknown"
