"""`consilium audit`: what an auditor runs, offline, and the export that a coordinator hands over."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from infra.commands.base import FILE, FOLDER, Example, existing

if TYPE_CHECKING:
    from tasks.audit.context import AuditContext
    from tasks.audit.registry import Check
    from tasks.audit.report import AuditReport
    from tasks.audit.snapshot import MlflowSnapshot

KEYS_HELP = "Public keys obtained from outside the evidence; without them identity fails."
MLFLOW_HELP = "Compare MLflow too: a snapshot file, or the address of its tracking store."


@click.group(short_help="What an auditor runs, offline.")
def audit() -> None:
    """What an auditor runs: offline, with public keys and an evidence folder alone."""


@audit.command(
    "export",
    cls=Example,
    epilog="consilium audit export demo-study --out evidence\n"
    "consilium audit export coordinator --out small-evidence --without-bulk",
)
@click.argument("home", metavar="STUDY", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="Folder to write; an earlier export of the study is replaced.")
@click.option(
    "--without-bulk", is_flag=True, help="Leave ciphertexts out; checks that need them become not applicable."
)
def audit_export(home: Path, out: Path, without_bulk: bool) -> None:
    """Export a study's evidence as a Five Safes RO-Crate with a signed list of all files.

    STUDY is the coordinator's home, or the folder of a demo. It may still be running: what it published so far is
    exported.
    """
    home = existing(home)
    from infra.evidence import open_published_study
    from tasks.audit.export import export_evidence

    study = open_published_study(home)
    export_evidence(study.store, study.plan, out, study.identity.signing, without_bulk=without_bulk)
    files = [path for path in out.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    click.echo(f"{len(files)} files, {size / 1e6:.1f} MB in {out}")


@audit.command(
    "verify",
    cls=Example,
    epilog="consilium audit verify evidence --keys public-keys.json\n"
    "consilium audit verify evidence --keys public-keys.json --mlflow mlflow-snapshot.json\n"
    "consilium audit verify evidence --keys public-keys.json --json",
)
@click.argument("folder", type=FOLDER)
@click.option("--keys", type=FILE, help=KEYS_HELP)
@click.option("--mlflow", metavar="FILE|URI", help=MLFLOW_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on standard output.")
def audit_verify(folder: Path, keys: Path | None, mlflow: str | None, as_json: bool) -> None:
    """Check every claim of an exported study. Exit code 0 only if no check failed, 15 otherwise."""
    _, report = _verify(folder, keys, mlflow)
    if as_json:
        click.echo(report.model_dump_json(indent=2))
    else:
        from rich.console import Console

        from tasks.audit.report import render_report

        render_report(report, Console())
    sys.exit(report.exit_code)


@audit.command(
    "report",
    cls=Example,
    epilog="consilium audit report evidence --keys public-keys.json --out report.html\n"
    "consilium audit report evidence --keys public-keys.json --mlflow mlflow-snapshot.json --out report.html",
)
@click.argument("folder", type=FOLDER)
@click.option("--keys", type=FILE, help=KEYS_HELP)
@click.option("--mlflow", metavar="FILE|URI", help=MLFLOW_HELP)
@click.option("--out", type=FILE, default=Path("report.html"), show_default=True, help="The HTML file to write.")
def audit_report(folder: Path, keys: Path | None, mlflow: str | None, out: Path) -> None:
    """Write the verdict, the figures and what regulations ask for as one HTML file.

    The file loads nothing from anywhere, prints well and has a light and a dark form. It is written also if checks
    failed, and says so first. Exit code as of `consilium audit verify`.
    """
    context, report = _verify(folder, keys, mlflow)
    from tasks.audit.html.page import render_page

    out.write_text(render_page(context, report), encoding="utf-8")
    verdict = "verified" if report.passed else "NOT verified"
    click.echo(f"{out}: {verdict}, {report.count('failed')} of {len(report.results)} checks failed")
    sys.exit(report.exit_code)


@audit.command("explain", cls=Example, epilog="consilium audit explain C15\nconsilium audit explain")
@click.argument("check", required=False)
def audit_explain(check: str | None) -> None:
    """Say what a check proves, what its failure means and who should act; without CHECK, list all."""
    from tasks.audit.explain import explain_check, find_check
    from tasks.audit.verify import CHECKS

    if check is None:
        for known in CHECKS:
            click.echo(f"{known.number}  {known.title}")
        return
    paragraphs = explain_check(find_check(check, CHECKS)).split("\n\n")
    click.echo("\n\n".join(click.wrap_text(paragraph, width=100) for paragraph in paragraphs))


@audit.command(
    "snapshot",
    cls=Example,
    epilog="consilium audit snapshot evidence --mlflow sqlite:///demo-study/coordinator/mlflow.db --out mlflow.json\n"
    "consilium audit snapshot evidence --mlflow https://mlflow.example.org --out mlflow.json",
)
@click.argument("folder", type=FOLDER)
@click.option("--mlflow", metavar="URI", required=True, help="Address of MLflow's tracking store.")
@click.option("--out", type=FILE, required=True, help="The JSON file to write.")
def audit_snapshot(folder: Path, mlflow: str, out: Path) -> None:
    """Write down what MLflow shows of the study in FOLDER now, for an auditor without access to MLflow."""
    folder = existing(folder)
    from tasks.audit.verify import open_evidence

    out.write_text(_snapshot_of(mlflow, open_evidence(folder, None).study) + "\n")
    click.echo(f"{out}")


def _verify(folder: Path, keys: Path | None, mlflow: str | None) -> tuple[AuditContext, AuditReport]:
    folder = existing(folder)
    from tasks.audit.keys import read_public_keys
    from tasks.audit.verify import CHECKS, open_evidence, verify_context

    known = read_public_keys(keys) if keys else None
    study = open_evidence(folder, None).study if mlflow else ""
    context = open_evidence(folder, known, _read_mlflow(mlflow, study) if mlflow else None)
    return context, _with_progress(len(CHECKS), lambda tell: verify_context(context, tell))


def _with_progress(total: int, work: Callable[[Callable[[Check], None]], AuditReport]) -> AuditReport:
    """Shows the running check on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=total, completed=-1)
        return work(lambda check: progress.update(bar, advance=1, description=f"{check.number} {check.title}"))


def _read_mlflow(source: str, study: str) -> MlflowSnapshot:
    from tasks.audit.snapshot import parse_snapshot, read_snapshot

    if "://" in source:
        return parse_snapshot(_snapshot_of(source, study).encode(), "MLflow")
    return read_snapshot(Path(source))


def _snapshot_of(address: str, study: str) -> str:
    import json

    from tasks.tracking.snapshot import take_snapshot
    from tasks.tracking.target import TrackingTarget

    return json.dumps(take_snapshot(TrackingTarget(address), study), indent=1, sort_keys=True)
