"""The `consilium` command line. Every import that costs more than a blink happens inside the command that needs it."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import click

from infra.commands import coordinator as coordinator_commands
from infra.commands import site as site_commands
from infra.commands.attack import attack
from infra.commands.audit import audit
from infra.commands.base import FILE, FOLDER, Example, PositiveDecimal, existing
from infra.commands.contract import contract, site_contract
from infra.commands.deploy import deploy, proxy, serve
from infra.commands.model import model
from infra.commands.modes import study_modes
from infra.commands.review import review
from infra.commands.site_attack import site_attack
from infra.commands.statistics import statistics
from infra.commands.study import study_check, study_init, study_run
from schemas.errors import ConsiliumError, OperationError


class Consilium(click.Group):
    """The root command: turns every error into one sentence, a remedy and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the command line; the only place where an error becomes text and an exit code."""
        from infra.settings import read_environment

        if read_environment().debug:
            return super().main(*args, **kwargs)
        try:
            return super().main(*args, **kwargs)
        except ConsiliumError as error:
            _print_error(error)
            sys.exit(error.exit_code)
        except ModuleNotFoundError as error:
            _print_error(
                OperationError(
                    "not-installed",
                    f"This command needs the package {error.name}.",
                    "Install consilium with the extra that has it: site, coordinator or demo.",
                )
            )
            sys.exit(OperationError.exit_code)
        except Exception as error:
            _print_unexpected(error)
            sys.exit(1)


def _print_error(error: ConsiliumError) -> None:
    click.echo(f"Error ({error.code}): {error.message}", err=True)
    if error.remedy:
        click.echo(f"  Remedy: {error.remedy}", err=True)
    click.echo(f"  To act: {error.who_must_act}.", err=True)


def _print_unexpected(error: Exception) -> None:
    # The text of a foreign exception may quote data: only its type is printed, the rest goes to a private file.
    handle, path = tempfile.mkstemp(prefix="consilium-", suffix=".log")
    with os.fdopen(handle, "w") as out:
        traceback.print_exception(error, file=out)
    click.echo(f"Error: something unforeseen went wrong ({type(error).__name__}).", err=True)
    click.echo(f"  Log: {path} (private; read it before you pass it on). CONSILIUM_DEBUG=1 shows it here.", err=True)
    click.echo("  To act: report it to the developers.", err=True)


@click.group(
    cls=Consilium,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with `consilium demo`; then `consilium ui` and `consilium audit verify` look at what it left.",
)
@click.version_option(package_name="consilium", message="consilium %(version)s")
def main() -> None:
    """Hospitals train a model together: differentially private, threshold-encrypted, auditable.

    Rows never leave a hospital. What leaves is noisy, encrypted under a key that nobody holds, and opened only as a
    sum over many hospitals.
    """


@main.command(
    cls=Example,
    short_help="Run a whole study on this machine.",
    epilog="consilium demo\n"
    "consilium demo --rounds 5 --epsilon 1\n"
    "consilium demo --sites 7 --threshold 4 --workdir seven\n"
    "consilium demo --data uci-heart --data-dir uci_heart --json\n"
    "consilium demo --resume",
)
@click.option(
    "--data",
    type=click.Choice(["breast-cancer", "uci-heart"]),
    default="breast-cancer",
    show_default=True,
    help="Real patients: 569 of scikit-learn's breast-cancer table, or 920 of four heart-disease hospitals.",
)
@click.option("--data-dir", type=FOLDER, help="Folder with the raw files of --data (otherwise they are downloaded).")
@click.option("--sites", type=click.IntRange(4, 64), help="Hospitals [default: 5; uci-heart has 4].")
@click.option("--threshold", type=click.IntRange(min=2), help="Hospitals that must answer to open a sum [default: 3].")
@click.option("--rounds", type=click.IntRange(1, 64), help="Training rounds [default: 10].")
@click.option("--epsilon", type=PositiveDecimal(), help="Privacy per hospital over the whole study [default: 3].")
@click.option("--delta", type=PositiveDecimal(), help="Probability that epsilon does not hold [default: 1e-5].")
@click.option("--workdir", type=FOLDER, default=Path("demo-study"), show_default=True, help="Folder of the demo.")
@click.option("--resume", is_flag=True, help="Continue the unfinished study in --workdir; nothing is charged twice.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the Prefect server [default: a free one].")
@click.option("--restart/--no-restart", default=True, help="Start a hospital's agent again if it dies.  [default: on]")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on standard output.")
def demo(as_json: bool, **asked: Any) -> None:
    """Run a whole study on this machine: real agents, real encryption, real patients.

    Starts a Prefect server (unless PREFECT_API_URL names one) and one process per hospital, each with its own folder
    and keys, runs key ceremony, training rounds and release, and audits the evidence that is left.
    """
    from infra.demo.options import DemoOptions
    from infra.demo.supervisor import run_demo

    sys.exit(run_demo(DemoOptions(**asked), as_json))


@main.group()
def site() -> None:
    """What a hospital runs and reads."""


@site.command(
    "run", cls=Example, epilog="consilium site run --home .\nconsilium site run --home general --home childrens"
)
@click.option("--home", "homes", type=FOLDER, multiple=True, required=True, help="The hospital's folder; repeatable.")
def site_run(homes: tuple[Path, ...]) -> None:
    """Run a hospital's agent until it is stopped. It only makes outbound connections."""
    from infra.agents import run_agents

    run_agents(homes)


@site.command(
    "budget", cls=Example, epilog="consilium site budget --home .\nconsilium site budget --home . --plan plan.json"
)
@click.option("--home", type=FOLDER, required=True, help="The hospital's folder.")
@click.option("--plan", type=FILE, help="Also say how this study would change it.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def site_budget(home: Path, plan: Path | None, as_json: bool) -> None:
    """Say in words what the hospital's patients have been charged and what remains."""
    from infra.budget import describe_home_budget

    click.echo(describe_home_budget(home, plan, as_json))


@main.group()
def coordinator() -> None:
    """What a study's coordinator runs."""


@coordinator.command("run", cls=Example, epilog="consilium coordinator run --home .")
@click.option("--home", type=FOLDER, required=True, help="The coordinator's folder.")
def coordinator_run(home: Path) -> None:
    """Run the study of this folder to its end, or continue it where it stopped."""
    home = existing(home, "config.json")
    from infra.settings import enter_participant_environment, load_settings
    from schemas.options import CoordinatorSettings

    settings = load_settings(CoordinatorSettings, home / "config.json")
    from infra.status import say_result

    if (home / "summary.json").is_file():
        click.echo(say_result(home), err=True)
        return
    enter_participant_environment(home.absolute(), settings.prefect_api_url)
    click.echo(f"Running; progress: {home / 'events.jsonl'} and consilium coordinator status.", err=True)
    from flows.main import run_coordinator

    run_coordinator(home)
    click.echo(say_result(home), err=True)


for _command in coordinator_commands.COMMANDS:
    coordinator.add_command(_command)
for _command in site_commands.COMMANDS:
    site.add_command(_command)
coordinator.add_command(deploy)
coordinator.add_command(proxy)
coordinator.add_command(serve)


@main.group(short_help="What an author of a plan runs.")
def plan() -> None:
    """What somebody who writes or approves a plan runs."""


@plan.command("check", cls=Example, epilog="consilium plan check demo-study/plan.json")
@click.argument("file", type=FILE)
def plan_check(file: Path) -> None:
    """Check that the numbers of a plan fit together and print what follows from them."""
    from infra.plans import describe_plan, read_plan

    click.echo(describe_plan(read_plan(file)))


@main.group(short_help="Studies written as YAML; studies that measure accuracy.")
def study() -> None:
    """Studies from files: on your own table, or over many public splits to measure what encryption and noise cost."""


study.add_command(study_modes)
for command in (study_init, study_check, study_run):
    study.add_command(command)


@main.command(
    cls=Example,
    short_help="Open MLflow and Prefect on a demo.",
    epilog="consilium ui\nconsilium ui --workdir seven --no-browser",
)
@click.option("--workdir", type=FOLDER, default=Path("demo-study"), show_default=True, help="Folder of a demo.")
@click.option("--browser/--no-browser", default=True, help="Open both pages in a browser.  [default: on]")
def ui(workdir: Path, browser: bool) -> None:
    """Open MLflow and Prefect on a demo's databases and print both addresses."""
    from infra.ui import run_ui

    run_ui(workdir, browser)


main.add_command(attack)
main.add_command(audit)
main.add_command(model)
main.add_command(review)
main.add_command(contract)
main.add_command(statistics)
site.add_command(site_contract)
site.add_command(site_attack)


if __name__ == "__main__":
    main()
