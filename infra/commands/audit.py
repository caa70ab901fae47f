"""`consilium audit`: what an auditor runs, offline, and the export that a coordinator hands over."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from infra.commands.base import FILE, FOLDER, Example, existing

if TYPE_CHECKING:
    from tasks.audit.report import AuditReport

KEYS_HELP = "Public keys obtained from outside the evidence; without them identity fails."


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
    "consilium audit verify evidence --keys public-keys.json --json",
)
@click.argument("folder", type=FOLDER)
@click.option("--keys", type=FILE, help=KEYS_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on standard output.")
def audit_verify(folder: Path, keys: Path | None, as_json: bool) -> None:
    """Check every claim of an exported study. Exit code 0 only if no check failed, 15 otherwise."""
    report = _verify(folder, keys)
    if as_json:
        click.echo(report.model_dump_json(indent=2))
    else:
        from rich.console import Console

        from tasks.audit.report import render_report

        render_report(report, Console())
    sys.exit(report.exit_code)


def _verify(folder: Path, keys: Path | None) -> AuditReport:
    folder = existing(folder)
    from tasks.audit.keys import read_public_keys
    from tasks.audit.verify import verify_evidence

    return verify_evidence(folder, read_public_keys(keys) if keys else None)
