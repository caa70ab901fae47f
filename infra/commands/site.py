"""`consilium site`: what a hospital runs, decides and reads."""

from __future__ import annotations

import json
from pathlib import Path

import click

from infra.commands.base import FILE, FOLDER, Example, PositiveDecimal, existing

HOME = click.option("--home", type=FOLDER, required=True, help="The hospital's folder.")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print as JSON on standard output.")


@click.command(
    cls=Example,
    epilog="consilium site init --home mercy --name mercy --data cohort.parquet --epsilon 3 --delta 1e-5 \\\n"
    "    --store s3://study --credentials mercy.json --endpoint https://s3.example.org \\\n"
    "    --prefect https://study.example.org/api --token-file token",
)
@HOME
@click.option("--name", required=True, help="The hospital's name in plans, like general-hospital.")
@click.option("--data", required=True, help="The hospital's table: a file, folder or source.yaml.")
@click.option("--mapping", default="", help="File that maps the table to contracts, if it needs one.")
@click.option(
    "--epsilon", type=PositiveDecimal(), required=True, help="Budget of this data, over all studies for ever."
)
@click.option("--delta", type=PositiveDecimal(), required=True, help="Probability that epsilon does not hold.")
@click.option("--store", required=True, help="The object store: a folder, or s3://bucket/prefix.")
@click.option("--credentials", type=FILE, help="JSON file, mode 0600, with this hospital's keys for the bucket.")
@click.option("--endpoint", help="Address of the S3 server [default: Amazon's].")
@click.option("--region", default="us-east-1", show_default=True, help="Region of the bucket.")
@click.option("--ca-file", type=FILE, help="Certificates that sign the servers', if the system's do not.")
@click.option("--prefect", required=True, help="Address of the coordinator's Prefect server or proxy, with /api.")
@click.option("--token-file", type=FILE, help="File with this hospital's token for the coordinator's proxy.")
def init(
    home: Path,
    name: str,
    data: str,
    mapping: str,
    epsilon: str,
    delta: str,
    store: str,
    credentials: Path | None,
    endpoint: str | None,
    region: str,
    ca_file: Path | None,
    prefect: str,
    token_file: Path | None,
) -> None:
    """Make the hospital's folder: settings and fresh keys that never leave it."""
    from infra.homes import fingerprint, make_home, make_s3, store_address
    from infra.prefect_server import verify_api_address
    from schemas.options import SiteSettings

    verify_api_address(prefect)
    if float(delta) >= 1:
        raise click.UsageError("--delta is a probability, far below 1: for instance 1e-5.")
    settings = SiteSettings(
        name=name,
        store=store_address(store),
        s3=make_s3(store, credentials, endpoint, region, ca_file),
        data=str(Path(data).absolute()),
        mapping=str(Path(mapping).absolute()) if mapping else "",
        prefect_api_url=prefect,
        epsilon=epsilon,
        delta=delta,
        token_file=str(token_file.absolute()) if token_file else None,
        ca_file=str(ca_file.absolute()) if ca_file else None,
    )
    identity = make_home(home, settings)
    for option, path in (("--data", Path(data)), ("--credentials", credentials), ("--ca-file", ca_file)):
        if path is not None and not path.exists():
            click.echo(f"Not there yet: {path.absolute()} ({option}). Put it there, or correct config.json.", err=True)
    click.echo(f"Made {home} for {name}. Back up identity.json alone; never restore an older ledger.sqlite.")
    click.echo(f"Fingerprint: {fingerprint(identity.identity_key)}")
    click.echo(f"Next: consilium site join --home {home} --patients N")


@click.command(
    cls=Example,
    epilog="consilium site join --home mercy --patients 500\n"
    "consilium site join --home mercy --patients 1200 --no-key-holder --out mercy.join.json",
)
@HOME
@click.option("--patients", type=click.IntRange(1), required=True, help="Rounded number of patients; public for ever.")
@click.option("--key-holder/--no-key-holder", default=True, help="Hold a share of the key.  [default: yes]")
@click.option("--contributor/--no-contributor", default=True, help="Contribute updates.  [default: yes]")
@click.option("--out", type=FILE, help="Also write the request to this file, to be sent by another way.")
def join(home: Path, patients: int, key_holder: bool, contributor: bool, out: Path | None) -> None:
    """Ask the coordinator to enter this hospital in plans. Nothing is agreed to yet."""
    home = existing(home, "config.json")
    from infra.homes import fingerprint
    from infra.joining import join as ask

    request, data = ask(home, patients, key_holder, contributor)
    if out is not None:
        out.write_bytes(data)
    click.echo(f"{request.site} asks to join with {request.declared_patients} patients (rounded, public).")
    click.echo(f"Fingerprint: {fingerprint(request.identity_key)}")
    click.echo("Read the fingerprint to the coordinator by telephone: the request alone does not prove who sent it.")


@click.command(
    cls=Example,
    epilog="consilium site approve --home mercy 5e1f…64 digits… --out plan.json\n"
    "consilium site contract check --home mercy --contract plan.json\n"
    "consilium site approve --home mercy 5e1f…64 digits… --yes",
)
@HOME
@click.argument("study")
@click.option("--yes", is_flag=True, help="Approve without asking.")
@click.option("--out", type=FILE, help="Write the plan to this file, to be read and checked; nothing is signed.")
def approve(home: Path, study: str, yes: bool, out: Path | None) -> None:
    """Read a proposed plan, see what it would do to this hospital's budget, and sign it.

    STUDY is the plan's digest, all 64 digits, as the coordinator told it by a safe way. A running agent takes part at
    once. Whether the hospital's table fits is looked at before every use, and by `consilium site contract check`.
    """
    home = existing(home, "config.json")
    from infra.approving import approve as sign
    from infra.approving import describe_decision, read_proposed

    plan = read_proposed(home, study)
    click.echo(describe_decision(home, plan))
    if out is not None:
        out.write_text(plan.model_dump_json(indent=2) + "\n")
        click.echo(f"Wrote {out}; nothing is signed.")
        return
    if not yes:
        click.confirm("Sign this plan?", abort=True)
    sign(home, plan)
    click.echo(f"Signed. This hospital takes part in {study[:12]} while its agent runs: consilium site run.")


@click.command(cls=Example, epilog="consilium site status --home mercy\nconsilium site status --home mercy --json")
@HOME
@AS_JSON
def status(home: Path, as_json: bool) -> None:
    """Say how this hospital stands: agent, store, server, budget, studies and what it refused last in each.

    The budget is the one that counts, of the hospital's ledger; where config.json says otherwise, what to do about it.
    """
    home = existing(home, "config.json")
    from infra.own_ledger import say_budget, say_refusal
    from infra.status import say_progress, say_state, site_status

    found = site_status(home)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(f"Hospital     {found['site']}, agent {found['agent']}{', PAUSED' if found['paused'] else ''}")
    click.echo(f"Fingerprint  {found['fingerprint']}")
    click.echo(f"Store        {found['store'].get('message', found['store']['state'])}")
    click.echo(f"Prefect      {found['prefect']}")
    click.echo(f"Budget       {say_budget(found['budget'])}")
    for advice in found["budget"]["advice"]:
        click.echo(f"             {advice}")
    for study in found["studies"]:
        title = study["title"] or "(plan not readable)"
        click.echo(f"Study        {study['study'][:12]} {title}: {say_state(study)}{say_progress(study)}")
        if study["waiting_for"] and study["state"] == "approved":
            click.echo(f"             not begun: {', '.join(study['waiting_for'])} did not approve it")
        for line in say_refusal(study["last_refusal"], home) if study["last_refusal"] else ():
            click.echo(f"             {line}")
    if not found["studies"]:
        click.echo("Study        none approved; see consilium site approve")


@click.command(cls=Example, epilog="consilium site pause --home mercy")
@HOME
def pause(home: Path) -> None:
    """Contribute nothing until `site resume`: every request is refused by name, and nothing is charged.

    The agent may go on running. It still helps to open sums that others began, so that their round is not lost.
    """
    home = existing(home, "config.json")
    from infra.approving import set_paused

    click.echo("Paused." if set_paused(home, True) else "It was paused before.")


@click.command(cls=Example, epilog="consilium site resume --home mercy")
@HOME
def resume(home: Path) -> None:
    """End a pause: the hospital contributes to the next round again."""
    home = existing(home, "config.json")
    from infra.approving import set_paused

    click.echo("The pause has ended." if set_paused(home, False) else "It was not paused.")


@click.command(
    cls=Example, epilog="consilium site leave --home mercy 5e1f0a2b\nconsilium site leave --home mercy 5e1f0a2b --yes"
)
@HOME
@click.argument("study")
@click.option("--yes", is_flag=True, help="Leave without asking.")
def leave(home: Path, study: str, yes: bool) -> None:
    """Leave a study for good: no contribution, no key ceremony, no share of the key from here on.

    STUDY is its digest or the first 8 digits. What was charged stays charged, and sums that were opened stay public.
    The decision is entered in this hospital's ledger. The others go on if enough of them remain.
    """
    home = existing(home, "config.json")
    from infra.approving import find_study
    from infra.approving import leave as go
    from infra.settings import load_settings
    from schemas.options import SiteSettings

    found = find_study(load_settings(SiteSettings, home / "config.json"), study)
    if not yes:
        click.confirm(f"Leave study {found[:12]} for good?", abort=True)
    go(home, found)
    click.echo(f"Left {found[:12]}; this hospital's share of its key is erased.")


COMMANDS = (init, join, approve, status, pause, resume, leave)
