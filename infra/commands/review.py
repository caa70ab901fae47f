"""`consilium review`: what a model's reviewers run, and the gate that waits for them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

import click

from infra.commands.base import FILE, FOLDER, Example, existing
from schemas.errors import OperationError

HOME = click.option("--home", type=FOLDER, required=True, help="The reviewer's folder (identity.json, config.json).")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print as JSON on standard output.")
WAITING_EXIT_CODE = 20


@click.group(short_help="What a model's reviewers run.")
def review() -> None:
    """What a model's reviewers run: read a candidate, then approve or reject it with a key of their own.

    A model is released only by as many signed approvals as its plan asks for, each with another key; one standing
    rejection is enough to stop it. What anybody writes in MLflow or Prefect without a signature releases nothing.
    """


@review.command(
    "init",
    cls=Example,
    epilog="consilium review init --home reviewer --name dr-example --mlflow http://127.0.0.1:5000",
)
@HOME
@click.option("--name", required=True, help="Name of the reviewer, as it will stand in plans.")
@click.option("--mlflow", "mlflow_uri", required=True, help="Where models are registered: an MLflow server's address.")
def review_init(home: Path, name: str, mlflow_uri: str) -> None:
    """Make a reviewer's home with a fresh key, and print the entry for the plan. The key never leaves the folder."""
    from infra.reviewing import init_reviewer

    reviewer = init_reviewer(home.absolute(), name, mlflow_uri)
    click.echo(json.dumps({"name": name, "identity_key": reviewer.identity.identity_key}, indent=2))
    click.echo("Send this to the study's coordinator, over a channel that proves it is yours.", err=True)


@review.command("list", cls=Example, epilog="consilium review list --home demo-study/reviewers/first-reviewer")
@HOME
@AS_JSON
def review_list(home: Path, as_json: bool) -> None:
    """List registered models with aliases, AUC, epsilon and state of review, as MLflow shows them."""
    from infra.reviewing import list_candidates

    rows = list_candidates(_open(home).target)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Column, Table

    # No frame: the model's name, which the next command needs, must fit into a terminal of 80 columns unbroken.
    model = Column("model", min_width=max((len(row["model"]) for row in rows), default=0))
    table = Table(model, "version", "alias", "rounds", "AUC", "epsilon", "review", box=None, pad_edge=False)
    for row in rows:
        epsilon = f"{row['epsilon_collusion']} of {row['epsilon_limit']}"
        aliases = ", ".join(row["aliases"])
        table.add_row(row["model"], row["version"], aliases, row["rounds"], row["auc"], epsilon, row["review"])
    Console().print(table if rows else "No study has registered a model here.")


@review.command(
    "show",
    cls=Example,
    epilog="consilium review show breast-cancer-mlp 1 --home demo-study/reviewers/first-reviewer",
)
@click.argument("model")
@click.argument("version")
@HOME
@AS_JSON
def review_show(model: str, version: str, home: Path, as_json: bool) -> None:
    """Show one candidate, verified: plan, release and weights belong together and the coordinator signed it."""
    from infra.reviewing import describe_candidate, show_candidate

    reviewer = _open(home)
    shown = show_candidate(reviewer, _candidate(reviewer, model, version))
    click.echo(json.dumps(shown, indent=2) if as_json else describe_candidate(shown))


def _decision_options(command: Any) -> Any:
    for option in reversed(
        (
            click.argument("model"),
            click.argument("version"),
            HOME,
            click.option("--reason", required=True, help="Why; everybody who reads the study log sees it."),
            click.option("--evidence", type=FOLDER, help="Exported evidence: audit it first, sign what was audited."),
            click.option(
                "--keys", type=FILE, help="Public keys obtained outside the evidence; needed with --evidence."
            ),
            click.option("--print", "printed", is_flag=True, help="Print the signed decision instead of sending it."),
            AS_JSON,
        )
    ):
        command = option(command)
    return command


@review.command(
    "approve",
    cls=Example,
    epilog='consilium review approve breast-cancer-mlp 1 --home reviewer --reason "Calibrated; cost as planned."\n'
    'consilium review approve breast-cancer-mlp 1 --home reviewer --reason "Audited." '
    "--evidence evidence --keys public-keys.json\n"
    'consilium review approve breast-cancer-mlp 1 --home reviewer --reason "By hand." --print',
)
@_decision_options
def review_approve(**asked: Any) -> None:
    """Approve a candidate with the reviewer's own key and send the signed decision to MLflow.

    It is released once enough reviewers of its plan have approved and none has rejected.
    """
    _decide("approved", **asked)


@review.command(
    "reject",
    cls=Example,
    epilog='consilium review reject breast-cancer-mlp 1 --home reviewer --reason "AUC too uncertain for its purpose."',
)
@_decision_options
def review_reject(**asked: Any) -> None:
    """Reject a candidate, or withdraw a model that was released. A later approval by the same reviewer replaces it."""
    _decide("rejected", **asked)


@review.command(
    "gate",
    cls=Example,
    epilog="consilium review gate --home demo-study/coordinator --once\n"
    "consilium review gate --home . --once --decision decision.json\n"
    "consilium review gate --home . --timeout-hours 72",
)
@click.option("--home", type=FOLDER, required=True, help="The coordinator's folder.")
@click.option("--once", is_flag=True, help="Look at the doors once and end; needs no Prefect server.")
@click.option("--decision", "decisions", type=FILE, multiple=True, help="A signed decision in a file; repeatable.")
@click.option("--timeout-hours", type=click.FloatRange(min=0.001), default=336, show_default=True, help="How long.")
@AS_JSON
def review_gate(home: Path, once: bool, decisions: tuple[Path, ...], timeout_hours: float, as_json: bool) -> None:
    """Hold the release gate: enter signed decisions, check the evidence again, and release or reject.

    Run by the coordinator. Without --once it is the Prefect flow run `release`, which pauses with a form and looks at
    MLflow meanwhile. Exit code 0 when the model is released, 20 while approvals are missing, 21 when it is rejected.
    """
    home = existing(home, "config.json")
    from infra.reviewing import read_envelopes

    brought = read_envelopes(decisions)
    if once or brought:
        from flows.gate_pass import pass_gate

        context, state = pass_gate(home, brought)
    else:
        context, state = _hold_gate(home, timeout_hours * 3600)
    from flows.gate_steps import state_words

    words = state_words(context, state)
    given = {name: decision.decision for name, decision in state.standing.items()}
    if as_json:
        click.echo(json.dumps({"outcome": state.outcome, "state": words, "decisions": given, "notes": state.notes}))
    else:
        click.echo("\n".join([words, *(f"{name}: {what}" for name, what in given.items()), *state.notes]))
    sys.exit({"released": 0, "waiting": WAITING_EXIT_CODE, "rejected": WAITING_EXIT_CODE + 1}[state.outcome])


def _hold_gate(home: Path, timeout_seconds: float) -> Any:
    import asyncio

    from infra.settings import enter_participant_environment, load_settings
    from schemas.options import CoordinatorSettings

    settings = load_settings(CoordinatorSettings, home / "config.json")
    enter_participant_environment(home, settings.prefect_api_url)
    from flows.context import open_coordinator
    from flows.gate import run_gate

    click.echo("Waiting for the reviewers; Ctrl-C ends it and loses nothing.", err=True)
    return open_coordinator(home), asyncio.run(run_gate(home, timeout_seconds))


def _decide(
    decision: Literal["approved", "rejected"],
    model: str,
    version: str,
    home: Path,
    reason: str,
    evidence: Path | None,
    keys: Path | None,
    printed: bool,
    as_json: bool,
) -> None:
    from infra.reviewing import audit_for_review, sign_decision
    from tasks.tracking.review import post_decision

    if (evidence is None) != (keys is None):
        raise OperationError("keys-missing", "Expected --evidence and --keys together.", "Give both or neither.")
    reviewer = _open(home)
    candidate = _candidate(reviewer, model, version)
    audited = audit_for_review(evidence, keys, candidate) if evidence is not None and keys is not None else None
    data = sign_decision(reviewer, candidate, decision, reason, audited)
    if printed:
        click.echo(data.decode())
        return
    post_decision(reviewer.target, candidate.version, _name(reviewer, candidate), data)
    if as_json:
        said = {"model": model, "version": version, "decision": decision, "audited": audited is not None}
        click.echo(json.dumps(said | {"study": candidate.plan.study, "release": candidate.release_digest}))
        return
    click.echo(f"Signed and sent: {candidate.version.label} {decision}.")
    if audited is None:
        click.echo("The evidence was not audited by you; the gate audits it before anything is released.")


def _open(home: Path) -> Any:
    existing(home, "config.json")
    from infra.reviewing import open_reviewer

    return open_reviewer(home.absolute())


def _candidate(reviewer: Any, model: str, version: str) -> Any:
    from tasks.tracking.review import find_version, read_candidate

    return read_candidate(reviewer.target, find_version(reviewer.target, model, version))


def _name(reviewer: Any, candidate: Any) -> str:
    from infra.reviewing import reviewer_name

    return reviewer_name(reviewer, candidate.plan)
