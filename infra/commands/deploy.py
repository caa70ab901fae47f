"""`consilium coordinator deploy` and `consilium coordinator serve`: the coordinator's schedules and their worker."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from infra.commands.base import FILE, FOLDER, Example
from schemas.errors import OperationError


class NamedCron(click.ParamType[tuple[str, str]]):
    """``NAME=CRON``."""

    name = "name=cron"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        found = re.fullmatch(r"([a-z]+)=(.+)", str(value))
        if found is None:
            self.fail(f"Expected something like study='0 2 * * *', got {value!r}.", param, ctx)
        return found[1], found[2]


def deploy_home(home: Path, crons: tuple[tuple[str, str], ...], webhook_file: Path | None) -> list[str]:
    """Applies ``prefect.yaml`` for the study of `home` and returns what was applied.

    Raises:
        OperationError: `settings-unreadable`, `prefect-unreachable`, and those of `infra.deployments`.
    """
    from infra.deployments import PROJECT, apply_project, read_project
    from infra.settings import load_settings
    from schemas.options import CoordinatorSettings

    # What can be refused without the server is refused first.
    settings = load_settings(CoordinatorSettings, home / "config.json")
    project = read_project(PROJECT, home, settings.study)
    webhook = _read_webhook(webhook_file) if webhook_file is not None else None
    enter_home(home)
    from flows.context import open_coordinator

    sites = [site.name for site in open_coordinator(home).plan.sites]
    return asyncio.run(apply_project(project, settings.study, dict(crons), webhook, sites))


def serve_home(home: Path) -> None:
    """Runs the coordinator's Prefect worker until it is stopped.

    Raises:
        OperationError: `settings-unreadable`, `prefect-unreachable`, `not-deployed`, `worker-running`.
    """
    # A schedule that is five seconds late harms nobody; asking four times a second would keep the database busy.
    os.environ["PREFECT_WORKER_QUERY_SECONDS"] = "5"
    enter_home(home)
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    from infra.deployments import POOL
    from infra.status import shown_running

    worker = ProcessWorker(POOL, create_pool_if_not_found=False)
    try:
        with _only_worker(home), shown_running(home):
            asyncio.run(worker.start())
    except ObjectNotFound:
        raise OperationError(
            "not-deployed", f"There is no work pool {POOL}.", "Run `consilium coordinator deploy` first."
        ) from None


@contextmanager
def _only_worker(home: Path) -> Iterator[None]:
    # Not the lock that shows the worker: whoever looks at that one holds it for an instant.
    with (home / "serve.lock").open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OperationError(
                "worker-running",
                "A worker of this home runs already: another consilium coordinator serve.",
                "Leave it, or stop it first.",
            ) from None
        yield


def enter_home(home: Path) -> Any:
    """Makes this process the coordinator of `home`; returns its settings."""
    from infra.settings import enter_participant_environment, load_settings
    from schemas.options import CoordinatorSettings

    settings = load_settings(CoordinatorSettings, home / "config.json")
    enter_participant_environment(home, settings.prefect_api_url)
    return settings


def _read_webhook(path: Path) -> str:
    try:
        address = path.read_text().strip()
    except OSError:
        address = ""
    if not re.fullmatch(r"https?://\S+", address):
        raise OperationError(
            "webhook-unreadable", f"Expected one http address in {path}.", "Write the webhook's address to the file."
        )
    return address


HOME = click.option("--home", type=FOLDER, required=True, help="The coordinator's folder.")


@click.command(
    cls=Example,
    epilog="consilium coordinator deploy --home .\n"
    "consilium coordinator deploy --home . --cron study='0 2 * * *' --webhook-file webhook.txt",
)
@HOME
@click.option(
    "--cron", "crons", type=NamedCron(), multiple=True, help="Another schedule: study='0 2 * * *'; repeatable."
)
@click.option(
    "--webhook-file",
    type=FILE,
    help="File with one address; silent sites, low budgets and failed audits are posted to it.",
)
def deploy(home: Path, crons: tuple[tuple[str, str], ...], webhook_file: Path | None) -> None:
    """Make or renew the schedules of this study on its Prefect server.

    The study runs, or continues after a crash, every 15 minutes until it is released; its audit
    is nightly, its budget report weekly.
    Repeat the command after a change: it never makes anything twice, and a schedule that was paused stays paused.
    `consilium coordinator serve` runs what is due. Every client of the server can read a webhook's address.
    """
    for line in deploy_home(home.absolute(), crons, webhook_file):
        click.echo(line)


@click.command(cls=Example, epilog="consilium coordinator serve --home .")
@HOME
def serve(home: Path) -> None:
    """Run the scheduled studies, audits and reports of this machine until it is stopped."""
    serve_home(home.absolute())


@click.command(
    cls=Example,
    epilog="consilium coordinator proxy --home . --listen 0.0.0.0:8443 --certificate tls.pem --key tls-key.pem",
)
@HOME
@click.option("--listen", required=True, help="Address and port where the hospitals' agents arrive, host:port.")
@click.option("--certificate", type=FILE, required=True, help="PEM file with the certificate chain.")
@click.option("--key", type=FILE, required=True, help="PEM file with its private key.")
@click.option("--out", type=FOLDER, help="Folder of the configuration  [default: HOME/proxy]")
def proxy(home: Path, listen: str, certificate: Path, key: Path, out: Path | None) -> None:
    """Write the nginx configuration and the tokens that let each hospital's agent reach Prefect, and nothing more.

    nginx, started by root, becomes the user who runs this command: run it as the coordinator's own, not as root.

    Give tokens/SITE to that hospital by a safe way; it names the file as token_file in its config.json. A token reaches
    the site's own work pool and runs, no other site's and no setting of the server. Repeating the command keeps tokens;
    remove a token's file to make a new one.

    One proxy serves one coordinator: the --out of another one is refused. Two on one machine listen on two ports.
    """
    from flows.context import open_coordinator
    from infra.proxy.config import ProxyOptions, current_user, passable, verify_tls_files, write_proxy
    from infra.proxy.owner import mark_owner, verify_owner

    root, folder = os.geteuid() == 0, out.absolute() if out is not None else home.absolute() / "proxy"
    if root and out is None:
        raise OperationError(
            "proxy-as-root",
            "Written by root, nginx gives up root and cannot pass the folder of the coordinator.",
            "Run it as the coordinator's own user, or name --out, a folder that every user can pass.",
        )
    context = open_coordinator(home.absolute())
    sites, own_key = [site.name for site in context.plan.sites], context.identity.identity_key
    verify_owner(folder, own_key, sites, default=out is None)
    behind = context.settings.prefect_api_url
    options = ProxyOptions(listen, behind, certificate.absolute(), key.absolute(), current_user())
    verify_tls_files(options)
    config = write_proxy(folder, sites, options)
    mark_owner(folder, own_key)
    if root and not passable(folder):
        click.echo(f"Not every user can pass {folder}: nginx must be told a user that can (user NAME;).", err=True)
    click.echo(f"Wrote {config}. Check it with nginx -t -c {config}, start it with nginx -c {config}.")
