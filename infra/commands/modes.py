"""`consilium study modes`: distributed sums beside local steps, for the same epsilon."""

from __future__ import annotations

import json
from pathlib import Path

import click

from infra.commands.base import FOLDER, Example


@click.command(
    "modes",
    cls=Example,
    short_help="Compare distributed sums with local steps.",
    epilog="consilium study modes heart --data-dir uci_heart\n"
    "consilium study modes eicu --data-dir eicu_demo --seeds 0-4 --epsilon 3 --json",
)
@click.argument("name", metavar="NAME")
@click.option("--data-dir", type=FOLDER, help="Folder with the original files.")
@click.option("--seeds", default="0-19", show_default=True, help="Seeds of the public splits, first-last.")
@click.option("--epsilon", "epsilons", default="1,3", show_default=True, help="Budgets, separated by commas.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON on standard output.")
def study_modes(name: str, data_dir: Path | None, seeds: str, epsilons: str, as_json: bool) -> None:
    """Compare what sums of gradients and local steps (FedAvg, FedProx) reach for the same epsilon.

    NAME is heart or eicu. Real gradients, noise and server steps; no encryption, which would change no figure.
    """
    from rich.console import Console

    from infra.studies.command import parse_epsilons, parse_seeds
    from infra.studies.definitions import find_study
    from infra.studies.modes import compare_modes, render_modes

    study, console = find_study(name), Console(stderr=True)
    with console.status("training") as status:
        rows = compare_modes(study, data_dir, parse_seeds(seeds), parse_epsilons(epsilons), status.update)
    click.echo(json.dumps([row.model_dump() for row in rows], indent=2) if as_json else render_modes(rows))
