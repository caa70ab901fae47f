"""`consilium site attack`: what the released model gives away about this hospital's own patients."""

from __future__ import annotations

from pathlib import Path

import click

from infra.commands.base import FOLDER, Example, existing


@click.command(
    "attack",
    cls=Example,
    epilog="consilium site attack --home mercy\n"
    "consilium site attack --home mercy --study 5e1f0c2a\n"
    "consilium site attack --home mercy --json",
)
@click.option("--home", type=FOLDER, required=True, help="The hospital's folder.")
@click.option("--study", default="", help="First 8 or more digits of the study  [default: the only one released here].")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON; it must stay in the hospital like the table.")
def site_attack(home: Path, study: str, as_json: bool) -> None:
    """Attack the released model with the hospital's own patients, here and for the data steward alone.

    Guesses from the model's loss who was trained on: area under the ROC, and true positives at 0.1 % and 1 % false
    ones, beside what the study's epsilon allows. The figures are exact. They are printed and nothing else: nothing is
    written, sent or charged. A rate for which the hospital holds too few patients out is not measured.
    """
    home = existing(home, "config.json")
    from infra.attacks import render_released
    from site_agents.attacking import attack_released_model

    found = attack_released_model(home, study, lambda step: click.echo(f"{step} ...", err=True))
    click.echo(found.model_dump_json(indent=2) if as_json else render_released(found))
