"""Verifies an evidence folder by the numbered checks of docs/spec-audit.md, offline."""

from __future__ import annotations

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
    model,
    openings,
    privacy,
    release,
    reviews,
    rounds,
)
from tasks.audit.context import AuditContext
from tasks.audit.evidence import EvidenceFolder
from tasks.audit.keys import PublicKeys
from tasks.audit.names import MANIFEST
from tasks.audit.registry import AuditFailure, Check, run_check
from tasks.audit.report import AuditReport

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
)


def verify_evidence(folder: Path, keys: PublicKeys | None) -> AuditReport:
    """Runs every check on an evidence folder and reports them all.

    Args:
        folder: What `tasks.audit.export.export_evidence` wrote, or a copy of it. Nothing is written to it.
        keys: Public keys obtained outside the evidence; without them the identity check fails.

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
    context = AuditContext(EvidenceFolder(folder), keys)
    results = tuple(run_check(check, context) for check in CHECKS)
    return AuditReport(
        study=_study(context), software=f"consilium {_version()}", keys_given=keys is not None, results=results
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
