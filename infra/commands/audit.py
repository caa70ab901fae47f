"""`consilium audit`: what an auditor runs, offline."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from infra.commands.base import FILE, FOLDER, Example, existing


@click.group(short_help="What an auditor runs, offline.")
def audit() -> None:
    """What an auditor runs: offline, with public keys and an evidence folder alone."""


@audit.command(
    "verify",
    cls=Example,
    epilog="consilium audit verify evidence --keys public-keys.json\n"
    "consilium audit verify evidence --keys public-keys.json --json",
)
@click.argument("folder", type=FOLDER)
@click.option("--keys", type=FILE, help="Public keys obtained from outside the evidence; without them identity fails.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on standard output.")
def audit_verify(folder: Path, keys: Path | None, as_json: bool) -> None:
    """Check every claim of an exported study. Exit code 0 only if no check failed, 15 otherwise."""
    folder = existing(folder)
    from tasks.audit.keys import read_public_keys
    from tasks.audit.report import render_report
    from tasks.audit.verify import verify_evidence

    report = verify_evidence(folder, read_public_keys(keys) if keys else None)
    if as_json:
        click.echo(report.model_dump_json(indent=2))
    else:
        from rich.console import Console

        render_report(report, Console())
    sys.exit(report.exit_code)
