"""`consilium statistics`: ask hospitals how many patients would qualify, before there is a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from infra.commands.base import FILE, FOLDER, Example, PositiveDecimal, existing

if TYPE_CHECKING:
    from schemas.messages import StatisticsRelease
    from schemas.statistics import StatisticsPlan

HOME_HELP = "The coordinator's folder."


@click.group(short_help="Count patients before a study.")
def statistics() -> None:
    """Ask hospitals how many patients would qualify, and how one number is distributed, before there is a study.

    A question is a signed plan of its own: `write` it, let every hospital `approve` it, then `ask`. The answer is an
    encrypted sum over hospitals with noise, charged to each hospital's budget before its data is touched. The same
    question under another name is charged again.
    """


@statistics.command(
    "write",
    cls=Example,
    epilog="consilium statistics write --home coordinator --plan plan.json --name 'Women over 65' \\\n"
    "    --purpose Feasibility --where 'age>=65' --where 'sex=female' --epsilon 0.3\n"
    "consilium statistics write --home coordinator --plan plan.json --name 'Age' --purpose Feasibility \\\n"
    "    --column age --bins 8 --noise gaussian --epsilon 0.5",
)
@click.option("--home", type=FOLDER, required=True, help=HOME_HELP)
@click.option("--plan", "plan_file", type=FILE, required=True, help="Plan with the hospitals, numbers and contract.")
@click.option("--name", required=True, help="The question in a few words.")
@click.option("--purpose", required=True, help="What it is for; every hospital reads it.")
@click.option("--where", multiple=True, help="Condition on a column, like age>=65 or sex=female,other; repeatable.")
@click.option("--column", default="", help="A number: its mean and histogram as well.")
@click.option("--bins", type=click.IntRange(1, 1000), default=8, show_default=True, help="Bins of the histogram.")
@click.option(
    "--noise",
    type=click.Choice(["gaussian", "laplace"]),
    default="gaussian",
    show_default=True,
    help="Kind of noise: laplace is purely epsilon-private, gaussian takes less of the budget.",
)
@click.option("--epsilon", type=PositiveDecimal(), default="0.5", show_default=True, help="What it may cost.")
@click.option("--delta", type=PositiveDecimal(), default="1e-5", show_default=True, help="For gaussian noise.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def statistics_write(
    home: Path,
    plan_file: Path,
    name: str,
    purpose: str,
    where: tuple[str, ...],
    column: str,
    bins: int,
    noise: str,
    epsilon: str,
    delta: str,
    as_json: bool,
) -> None:
    """Write a question to the hospitals of a plan, sign and publish it. Nothing is charged yet."""
    home = existing(home, "config.json")
    from infra.plans import read_plan
    from infra.question_words import describe_question
    from infra.questions import Question, propose_question, write_question

    asked = Question(name, purpose, epsilon, delta, column, bins, where, noise)
    question = write_question(read_plan(plan_file), asked)
    propose_question(home, question)
    if as_json:
        click.echo(json.dumps({"question": question.study, "sites": [site.name for site in question.sites]}))
        return
    click.echo(describe_question(question))
    click.echo(f"Next: every hospital runs `consilium statistics approve {question.study} --home ITS_FOLDER`.")


@statistics.command(
    "approve",
    cls=Example,
    epilog="consilium statistics approve 5e1f…64 digits… --home mercy\n"
    "consilium statistics approve 5e1f…64 digits… --home mercy --yes",
)
@click.argument("question")
@click.option("--home", type=FOLDER, required=True, help="The hospital's folder.")
@click.option("--yes", is_flag=True, help="Sign without asking.")
def statistics_approve(question: str, home: Path, yes: bool) -> None:
    """Read a question, see what it costs this hospital's patients, and sign it.

    QUESTION is its 64 digits, as the coordinator told them by a safe way.
    """
    home = existing(home, "config.json")
    from infra.question_words import describe_question
    from infra.questions import approve_question, read_question

    click.echo(describe_question(read_question(home, question)))
    if (home / "ledger.sqlite").is_file():
        from infra.budget import describe_home_budget

        click.echo(describe_home_budget(home, None, False))
    if not yes:
        click.confirm("Sign this question?", abort=True)
    approve_question(home, question)
    click.echo("Signed. This hospital answers while its agent runs: consilium site run.")


@statistics.command(
    "ask",
    cls=Example,
    epilog="consilium statistics ask 5e1f…64 digits… --home coordinator\n"
    "consilium statistics ask 5e1f…64 digits… --home coordinator --json\n"
    "consilium statistics ask 5e1f…64 digits… --home coordinator --site-home mercy --site-home general",
)
@click.argument("question")
@click.option("--home", type=FOLDER, required=True, help=HOME_HELP)
@click.option(
    "--site-home",
    "site_homes",
    type=FOLDER,
    multiple=True,
    help="Play this hospital in this process instead of asking its agent through Prefect; name all of them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
def statistics_ask(question: str, home: Path, site_homes: tuple[Path, ...], as_json: bool) -> None:
    """Ask an approved question and print its answer; asked again, it continues or prints the same answer."""
    home = existing(home, "config.json")
    from infra.questions import ask_agents, ask_in_process, require_approvals

    plan = require_approvals(home, question)

    def say(text: str) -> None:
        click.echo(text, err=True)

    answer = ask_in_process(home, plan, site_homes, say) if site_homes else ask_agents(home, plan, say)
    _print_answer(plan, answer, as_json)


@statistics.command(
    "show",
    cls=Example,
    epilog="consilium statistics show 5e1f…64 digits… --home coordinator\n"
    "consilium statistics show 5e1f…64 digits… --home mercy --json",
)
@click.argument("question")
@click.option("--home", type=FOLDER, required=True, help="The coordinator's or a hospital's folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
def statistics_show(question: str, home: Path, as_json: bool) -> None:
    """Print a question, who has not approved it yet, and its answer, if there is one."""
    home = existing(home, "config.json")
    from infra.question_words import describe_question
    from infra.questions import missing_approvals, read_question, read_signed_answer

    plan = read_question(home, question)
    answer = read_signed_answer(home, plan)
    if not as_json:
        click.echo(describe_question(plan))
    if answer is not None:
        _print_answer(plan, answer, as_json)
        return
    missing = missing_approvals(home, plan)
    if as_json:
        click.echo(json.dumps({"question": plan.study, "answered": False, "not_approved": missing}))
    else:
        click.echo(f"Not approved yet by: {', '.join(missing)}." if missing else "Approved by all; not answered yet.")


def _print_answer(plan: StatisticsPlan, answer: StatisticsRelease, as_json: bool) -> None:
    from infra.question_words import answer_as_json, describe_answer

    click.echo(json.dumps(answer_as_json(plan, answer), indent=2) if as_json else describe_answer(plan, answer))
