"""`consilium contract` and `consilium site contract`: what a table must look like, and whether a hospital's does."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from infra.commands.base import FILE, FOLDER, Example
from schemas.errors import OperationError, SiteDataError

CONTRACT_HELP = "The study's contract: YAML, or the plan that holds it."


@click.group(short_help="What a study's tables must look like.")
def contract() -> None:
    """Data contracts: what a study's tables must look like, at every hospital."""


@contract.command(
    "show",
    cls=Example,
    epilog="consilium contract show contract.yaml\nconsilium contract show plan.json --html out.html",
)
@click.argument("file", type=FILE)
@click.option("--html", "page", type=FILE, help="Write a page for a browser instead; it loads nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the contract as canonical JSON and its rules.")
def contract_show(file: Path, page: Path | None, as_json: bool) -> None:
    """Explain a contract: columns, who is in the study, and every rule that is checked."""
    import json

    from tasks.contract.contract_file import read_contract
    from tasks.contract.pages import contract_html, contract_markdown
    from tasks.contract.rules import suite_description, suite_digest

    read = read_contract(file)
    if as_json:
        plain = {
            "contract": read.model_dump(mode="json"),
            "suite": suite_digest(read),
            "rules": suite_description(read),
        }
        click.echo(json.dumps(plain, indent=2))
    elif page is None:
        click.echo(contract_markdown(read))
    else:
        _write(page, contract_html(read))
        click.echo(f"Wrote {page}.", err=True)


@contract.command("suite", cls=Example, epilog="consilium contract suite contract.yaml --out suite.json")
@click.argument("file", type=FILE)
@click.option("--out", type=FILE, help="File to write [default: standard output].")
def contract_suite(file: Path, out: Path | None) -> None:
    """Write a contract's rules as a Great Expectations suite, for a steward's own tools."""
    from tasks.contract.contract_file import read_contract
    from tasks.contract.data_docs import suite_json

    text = suite_json(read_contract(file))
    if out is None:
        click.echo(text, nl=False)
    else:
        _write(out, text)
        click.echo(f"Wrote {out}.", err=True)


@click.group("contract", short_help="Whether the hospital's table fits.")
def site_contract() -> None:
    """Whether the hospital's table fits a study's contract, before anything is charged."""


@site_contract.command(
    "check",
    cls=Example,
    epilog="consilium site contract check --contract contract.yaml --data cohort.csv\n"
    "consilium site contract check --contract plan.json --data source.yaml --mapping mapping.yaml --docs report\n"
    "consilium site contract check --contract plan.json --home . --json",
)
@click.option("--contract", "file", type=FILE, required=True, help=CONTRACT_HELP)
@click.option("--home", type=FOLDER, help="The hospital's folder: its settings name data and mapping.")
@click.option("--data", help="The table: .parquet, .csv, a folder of Parquet files, or a source.yaml.")
@click.option("--mapping", type=FILE, help="The hospital's mapping file; without it the columns are the contract's.")
@click.option("--docs", type=FOLDER, help="Also write Great Expectations' pages there; they stay in the hospital.")
@click.option("--all", "every_rule", is_flag=True, help="Show the rules that passed as well.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON, what may leave apart from what may not.")
def site_contract_check(
    file: Path,
    home: Path | None,
    data: str | None,
    mapping: Path | None,
    docs: Path | None,
    every_rule: bool,
    as_json: bool,
) -> None:
    """Check the hospital's table: what fails, why, in how many rows, and what to do. Nothing is charged or leaves.

    Exit code 0 if every rule passed, 10 otherwise.
    """
    from rich.console import Console

    from infra.contracts import check_local, local_data, print_report, report_as_json
    from tasks.contract.contract_file import read_contract

    notes = Console(stderr=True)
    read = read_contract(file)
    check = check_local(read, local_data(home, data, mapping), notes)
    if as_json:
        click.echo(report_as_json(read, check))
    else:
        print_report(read, check, Console(), every_rule)
    if docs is not None:
        from tasks.contract.data_docs import write_data_docs

        notes.print(
            f"Wrote {write_data_docs(read, check.report, docs)}; it holds counts: keep it here.", highlight=False
        )
    sys.exit(0 if check.report.verdict.passed else SiteDataError.exit_code)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror}."
        raise OperationError("file-unwritable", message, "Name another file.") from None
