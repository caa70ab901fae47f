"""`consilium coordinator`: make a coordinator, propose a study, run its servers, look at it, back it up."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from infra.commands.base import FILE, FOLDER, Example, existing

HOME = click.option("--home", type=FOLDER, required=True, help="The coordinator's folder.")
PRINCIPAL = "arn:aws:iam:::user/{name}"
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print as JSON on standard output.")


@click.command(
    cls=Example,
    epilog="consilium coordinator init --home coord --store /srv/store\n"
    "consilium coordinator init --home coord --store s3://study --credentials coordinator.json \\\n"
    "    --endpoint https://s3.example.org --prefect-port 4200 --mlflow-port 5000",
)
@HOME
@click.option("--name", default="coordinator", show_default=True, help="The coordinator's name in plans.")
@click.option("--store", required=True, help="The object store: a folder, or s3://bucket/prefix.")
@click.option("--credentials", type=FILE, help="JSON file, mode 0600, with the coordinator's keys for the bucket.")
@click.option("--endpoint", help="Address of the S3 server [default: Amazon's].")
@click.option("--region", default="us-east-1", show_default=True, help="Region of the bucket.")
@click.option("--ca-file", type=FILE, help="Certificates that sign the store's, if the system's do not.")
@click.option(
    "--owner", type=FILE, help="Keys of the bucket's owner: give this coordinator its part of the bucket first."
)
@click.option(
    "--principal", default=PRINCIPAL, show_default=True, help="With --owner: pattern of the users' ARNs in the policy."
)
@click.option("--prefect-port", type=click.IntRange(1, 65535), default=4200, show_default=True, help="Prefect's port.")
@click.option("--mlflow-port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="MLflow's port.")
@click.option("--prefect-database", type=FILE, help="File, mode 0600, with the address of a PostgreSQL for Prefect.")
@click.option("--mlflow-database", type=FILE, help="File, mode 0600, with the address of a PostgreSQL for MLflow.")
def init(
    home: Path,
    name: str,
    store: str,
    credentials: Path | None,
    endpoint: str | None,
    region: str,
    ca_file: Path | None,
    owner: Path | None,
    principal: str,
    prefect_port: int,
    mlflow_port: int,
    prefect_database: Path | None,
    mlflow_database: Path | None,
) -> None:
    """Make the coordinator's folder: settings and fresh keys. The store is asked whether it keeps what it is given.

    A bucket lets in nobody but its owner before it has a policy: --owner sets one that names this coordinator alone, in
    place of the policy that is there; `consilium coordinator bucket` adds the hospitals.
    """
    from infra.buckets import apply_bucket, make_policy
    from infra.homes import coordinator_store, fingerprint, make_home, make_s3, store_address
    from infra.settings import save_settings
    from schemas.options import CoordinatorSettings
    from schemas.services import ServiceSettings
    from tasks.storage.s3_policy import ARTIFACTS

    if prefect_port == mlflow_port:
        raise click.UsageError("--prefect-port and --mlflow-port must differ: two servers listen.")
    settings = CoordinatorSettings(
        name=name,
        store=store_address(store),
        s3=make_s3(store, credentials, endpoint, region, ca_file),
        prefect_api_url=f"http://127.0.0.1:{prefect_port}/api",
        mlflow_uri=f"http://127.0.0.1:{mlflow_port}",
        artifacts="",
    )
    if owner is not None:
        apply_bucket(settings, owner, make_policy(settings, (), principal, enforce=False), None)
    coordinator_store(settings)  # a bucket that overwrites is refused before anything is made
    identity = make_home(home, settings)
    services = ServiceSettings(
        prefect_port=prefect_port,
        mlflow_port=mlflow_port,
        prefect_database_file=str(prefect_database.absolute()) if prefect_database else None,
        mlflow_database_file=str(mlflow_database.absolute()) if mlflow_database else None,
        # Beside the study, where neither the condition of its writes nor what the hospitals may read applies.
        mlflow_artifacts=f"{settings.store.rstrip('/')}/{ARTIFACTS}" if settings.s3 is not None else None,
    )
    save_settings(services, home / "services.json")
    click.echo(f"Made {home}. Fingerprint: {fingerprint(identity.identity_key)}")
    click.echo(f"Next: consilium coordinator up --home {home}, then sites, then propose.")


@click.command(cls=Example, epilog="consilium coordinator up --home coord")
@HOME
def up(home: Path) -> None:
    """Run PostgreSQL, the Prefect server and MLflow on this machine's loopback until stopped.

    Prefect or MLflow is started again where it ends; the command ends if PostgreSQL does: let systemd run it. A
    private PostgreSQL is used where it is installed and services.json names none. Put a reverse proxy in front:
    `consilium coordinator proxy`.
    """
    home = existing(home, "services.json")
    import signal

    from infra.services import running_services

    def say(text: str) -> None:
        click.echo(text, err=True)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a terminated program stops its servers in order
    try:
        with running_services(home, say) as services:
            click.echo(f"Prefect: {services.prefect.ui_url}")
            click.echo(f"MLflow:  {services.mlflow_address}")
            click.echo("Press Ctrl-C to stop both.")
            while True:
                services.tend(say)
                time.sleep(0.5)
    except KeyboardInterrupt:
        click.echo("Stopped.")


@click.command(
    cls=Example,
    epilog="consilium coordinator sites --home coord mercy general\n"
    "consilium coordinator sites --home coord mercy --json",
)
@HOME
@click.argument("names", nargs=-1, required=True)
@AS_JSON
def sites(home: Path, names: tuple[str, ...], as_json: bool) -> None:
    """Show what hospitals asked for, with the fingerprints to compare with them by telephone.

    Those who have not asked, or whose request is not valid, are named at the end; the command fails then.
    """
    home = existing(home, "config.json")
    from infra.homes import coordinator_store, fingerprint
    from infra.joining import entry_of, read_each
    from infra.settings import load_settings
    from schemas.options import CoordinatorSettings

    store = coordinator_store(load_settings(CoordinatorSettings, home / "config.json"))
    requests, problem = read_each(store, names)
    if as_json:
        click.echo(json.dumps([entry_of(request).model_dump(mode="json") for request in requests], indent=2))
    for request in () if as_json else requests:
        part = " and ".join(
            text
            for text, wanted in (("contributes", request.contributor), ("holds a share of the key", request.key_holder))
            if wanted
        )
        click.echo(f"{request.site}: {request.declared_patients} patients, {part}, asked {request.time}")
        click.echo(f"    {fingerprint(request.identity_key)}")
    if problem is not None:
        raise problem


@click.command(
    cls=Example,
    epilog="consilium coordinator propose --home coord my-study/study.yaml --site mercy --site general \\\n"
    "    --site north --join lakeside.json\n"
    "consilium coordinator propose --home coord draft.json --site mercy --site general --join north.json\n"
    "consilium coordinator propose --home coord plan.json",
)
@HOME
@click.argument("draft", type=FILE)
@click.option("--site", "names", multiple=True, help="Enter this hospital, as it asked in the store; repeatable.")
@click.option("--join", "files", type=FILE, multiple=True, help="Enter the hospital of this request; repeatable.")
def propose(home: Path, draft: Path, names: tuple[str, ...], files: tuple[Path, ...]) -> None:
    """Sign and publish a plan: the hospitals can approve it from here on.

    DRAFT is a study file (study.yaml, see `consilium study init`), from which the numbers for the sites named with
    --site or --join follow; or a plan (JSON), whose sites, coordinator and nonce are replaced by these. A plan without
    --site and --join is taken as it is. Compare the fingerprints first: `consilium coordinator sites`.

    A mistake is corrected by proposing again, as long as no hospital has approved: the home then has the new plan.
    """
    home = existing(home, "config.json")
    from infra.homes import coordinator_store, fingerprint
    from infra.joining import read_requests
    from infra.plans import describe_plan
    from infra.proposing import propose as publish
    from infra.proposing import warn_of
    from infra.settings import load_settings
    from schemas.options import CoordinatorSettings

    store = coordinator_store(load_settings(CoordinatorSettings, home / "config.json"))
    plan = publish(home, draft, read_requests(store, names, files))
    click.echo(describe_plan(plan))
    click.echo("\nEntered with these keys; if one is not what was compared, give the digest to nobody:")
    for site in plan.sites:
        click.echo(f"{site.name}\n    {fingerprint(site.identity_key)}")
    click.echo(f"\nPublished. Tell the hospitals this digest by a safe way:\n{plan.study}")
    if warning := warn_of(plan):
        click.echo(f"\nWarning: {warning}", err=True)


@click.command(
    cls=Example, epilog="consilium coordinator status --home coord\nconsilium coordinator status --home coord --json"
)
@HOME
@AS_JSON
def status(home: Path, as_json: bool) -> None:
    """Say how the coordinator stands: worker, servers, store, last error, schedule, approvals, rounds, agents, model.

    The worker is `consilium coordinator serve`; a run is one pass of the study, by it or by `coordinator run`. An agent
    that was killed counts as online until it has missed several heartbeats: see how old its last one is. Of each
    hospital the last round says whether it contributed, refused (with the code it signed) or was silent.
    """
    home = existing(home, "config.json")
    from infra.status import coordinator_status, say_progress, say_round, say_site, say_state

    found = coordinator_status(home)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(f"Coordinator  {found['coordinator']}, worker {found['worker']}, run {found['run']}")
    click.echo(f"Store        {found['store'].get('message', found['store']['state'])}")
    click.echo(f"Prefect      {found['prefect']}")
    click.echo(f"MLflow       {found['mlflow']}")
    error, study = found["last_error"], found["study"]
    if error is not None:
        click.echo(f"Last error   {error['time'][:19]} {error['code']}: {error['message']}")
        click.echo(f"             Remedy: {error['remedy']}")
    if study is None:
        click.echo("Study        none proposed; see consilium coordinator propose")
        return
    click.echo(f"Study        {study['study'][:12]} {study.get('title', '')}: {say_state(study)}{say_progress(study)}")
    if "schedule" in study:
        due = study["schedule"]["next_run"]
        click.echo(f"Schedule     {study['schedule']['state']}{f', next run {due[:19]} UTC' if due else ''}")
    if newest := study.get("last_round"):
        click.echo(f"Last round   {say_round(newest)}")
    for name, site in study.get("sites", {}).items():
        click.echo(f"    {name:<24} {say_site(site)}")


@click.command(
    cls=Example,
    epilog="consilium coordinator backup --home coord --out coordinator-monday.tar.gz\n"
    "consilium coordinator backup --home coord --folder /var/backups/consilium --keep 14",
)
@HOME
@click.option("--out", type=FILE, help="New archive; readable by its owner only.")
@click.option("--folder", type=FOLDER, help="Private folder for archives named after the time; for a schedule.")
@click.option("--keep", type=click.IntRange(1), default=14, show_default=True, help="Archives to keep in the folder.")
def backup(home: Path, out: Path | None, folder: Path | None, keep: int) -> None:
    """Write keys, settings and a consistent copy of the study log to an archive. Keep it as safe as the keys.

    The store is not in it; Prefect and MLflow are views. A running study is not disturbed.
    """
    home = existing(home, "config.json")
    from infra.backup import back_up, back_up_into

    if (out is None) == (folder is None):
        raise click.UsageError("Name either --out or --folder.")
    if folder is not None:
        target, removed = back_up_into(folder, home, keep)
        click.echo(f"Wrote {target}; removed {len(removed)} older.")
        return
    assert out is not None
    click.echo(f"Wrote {out}: {', '.join(back_up(home, out))}")


@click.command(
    cls=Example,
    epilog="consilium coordinator bucket --home coord mercy general > policy.json\n"
    "consilium coordinator bucket --home coord mercy --principal 'arn:aws:iam::123456789012:user/{name}' --enforce\n"
    "consilium coordinator bucket --home coord mercy general --owner owner.json --ciphertext-days 90\n"
    "consilium coordinator bucket --home coord mercy general --identity > policies.json",
)
@HOME
@click.argument("names", nargs=-1, required=True)
@click.option("--principal", default=PRINCIPAL, show_default=True, help="Pattern of the users' ARNs.")
@click.option("--enforce", is_flag=True, help="Let the server refuse unconditional writes (Amazon's condition keys).")
@click.option("--owner", type=FILE, help="Credentials of the bucket's owner: apply the policy and the lifecycle.")
@click.option(
    "--ciphertext-days", type=click.IntRange(1), help="With --owner: bulk ciphertexts expire after so many days."
)
@click.option("--identity", is_flag=True, help="Print a policy for each participant's own user instead, by name.")
def bucket(
    home: Path,
    names: tuple[str, ...],
    principal: str,
    enforce: bool,
    owner: Path | None,
    ciphertext_days: int | None,
    identity: bool,
) -> None:
    """Print the bucket's policy for the coordinator and these hospitals, or apply it with the owner's keys.

    Amazon takes a policy of 20480 bytes, which a dozen hospitals fill. With --identity the policies of all users are
    printed as one JSON object by participant; the owner attaches each to that user, and the bucket needs none. Then
    --owner applies the lifecycle only.
    """
    home = existing(home, "config.json")
    from infra import buckets
    from infra.settings import load_settings
    from schemas.options import CoordinatorSettings

    settings = load_settings(CoordinatorSettings, home / "config.json")
    if ciphertext_days is not None and owner is None:
        raise click.UsageError("--ciphertext-days needs --owner: only the bucket's owner sets its lifecycle.")
    if enforce:
        buckets.verify_artifacts_apart(home, settings)
    if identity:
        if owner is not None:
            buckets.apply_bucket(settings, owner, None, ciphertext_days)
        click.echo(json.dumps(buckets.make_identity_policies(settings, names, enforce), indent=2))
        return
    policy = buckets.make_policy(settings, names, principal, enforce)
    if buckets.exceeds_amazon(policy):
        click.echo("Amazon and some other servers refuse a policy of this size; see --identity.", err=True)
    if owner is None:
        click.echo(buckets.policy_page(policy))
        return
    buckets.apply_bucket(settings, owner, policy, ciphertext_days)
    click.echo(f"Applied to {settings.store}: each of {len(names)} hospitals writes under its own prefix only.")


COMMANDS = (init, up, sites, propose, status, backup, bucket)
