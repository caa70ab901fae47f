"""`consilium attack`: what attacks on a plan's mechanism reach, on public or simulated patients."""

from __future__ import annotations

from pathlib import Path

import click

from infra.commands.base import FILE, FOLDER, Example


@click.group(short_help="Attacks on a plan's mechanism, on public data.")
def attack() -> None:
    """Membership and property inference, gradient inversion and the canary bound, beside the plan's epsilon.

    The patients must be public or simulated: nothing that runs here is charged to anybody's budget.
    """


@attack.command(
    "run",
    cls=Example,
    epilog="consilium attack run --plan plan.json --data public.parquet\n"
    "consilium attack run --plan plan.json --data breast-cancer --json\n"
    "consilium attack run --home coordinator --data public.parquet --models 64",
)
@click.option("--plan", type=FILE, help="The plan that is attacked.")
@click.option(
    "--home", type=FOLDER, help="Instead of --plan: a coordinator's home; the report is kept there and logged."
)
@click.option("--data", required=True, help="Public table in the contract's form (Parquet or CSV), or breast-cancer.")
@click.option("--models", type=click.IntRange(8, 1000), default=32, show_default=True, help="Shadow models to train.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on standard output.")
def attack_run(plan: Path | None, home: Path | None, data: str, models: int, as_json: bool) -> None:
    """Attack models that the plan's own mechanism trains on public patients, and print what was reached.

    With --home the report is kept as attacks.json in the coordinator's home: the study's release logs it in MLflow, and
    a study that is tracked already gets it at once.
    """
    from infra.attacks import render_attacks, run_attacks

    if (plan is None) == (home is None):
        raise click.UsageError("Name either --plan or --home.")
    report = run_attacks(plan, home, data, models, lambda name: click.echo(f"{name} ...", err=True))
    click.echo(report.model_dump_json(indent=2) if as_json else render_attacks(report))
