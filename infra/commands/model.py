"""`consilium model`: which installed modules can be trained, and what a plan says about one."""

from __future__ import annotations

import json

import click

from infra.commands.base import Example


@click.group(short_help="Installed modules that a plan can name.")
def model() -> None:
    """Torch modules that are installed here and offer themselves to plans.

    A package offers a module in its entry point group consilium.models: a callable that takes the number of encoded
    features and returns a torch.nn.Module, which maps one row to one logit. A hospital trains it only if its own
    config.json names it in "models", as "distribution:name".
    """


@model.command("list", cls=Example, epilog="consilium model list\nconsilium model list --json")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def model_list(as_json: bool) -> None:
    """List the modules that installed packages offer. Nothing of them is imported."""
    from tasks.training.registry import installed_entries

    found = installed_entries()
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo("\n".join(found) or "No installed package offers a module in consilium.models.")


@model.command(
    "describe",
    cls=Example,
    epilog="consilium model describe hospital-models:risk-net --features 30\n"
    "consilium model describe hospital-models:risk-net --features 30 --json",
)
@click.argument("entry", metavar="DISTRIBUTION:NAME")
@click.option("--features", type=click.IntRange(1, 1_000_000), required=True, help="Encoded features of the contract.")
@click.option("--json", "as_json", is_flag=True, help="Print the model of a plan as JSON.")
def model_describe(entry: str, features: int, as_json: bool) -> None:
    """Build an installed module, refuse it with the reason if it cannot be trained privately, and print its shapes.

    This runs the package's code.
    """
    from math import prod

    from schemas.plan import ModelSpec
    from tasks.training.registry import describe_module

    module = describe_module(entry, features)
    if as_json:
        click.echo(ModelSpec(kind="module", module=module).model_dump_json(indent=2))
        return
    click.echo(f"{module.entry} {module.version}: {sum(prod(p.shape) for p in module.parameters):,} parameters")
    for parameter in module.parameters:
        shape = " x ".join(str(extent) for extent in parameter.shape) or "one number"
        click.echo(f"  {parameter.name}  {shape}  starts {parameter.start}")
