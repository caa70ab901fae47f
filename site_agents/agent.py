"""The site agent's process: lock the home, warm up the heavy libraries, and serve the site's flows until stopped."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from schemas.errors import ConsiliumError
from schemas.ledger import NO_STUDY, Refused
from site_agents.compute import warm_up
from site_agents.context import open_context
from site_agents.home import SiteHome, exclusive, open_home
from tasks.ledger.store import LedgerStore

_log = logging.getLogger("consilium.site")


def run_site_agent(folder: Path) -> None:
    """Serves the site whose home is `folder` until SIGTERM.

    The environment must name the Prefect server (`PREFECT_API_URL`) before this is called.

    Raises:
        OperationError: `agent-running`, `settings-unreadable`, `identity-unreadable`, `work-pool-missing`, ….
    """
    home = open_home(folder)
    with exclusive(home):
        _log.info("agent of %s: loading libraries", home.settings.name)
        warm_up()
        from tasks.contract.suite import warm_engine

        warm_engine()
        asyncio.run(_serve(home))


async def _serve(home: SiteHome) -> None:
    from prefect.settings import get_current_settings

    from site_agents.flows import site_flows
    from site_agents.leftovers import RememberedRuns, close_leftover_runs
    from site_agents.worker import run_agent

    def on_refusal(code: str, flow_run_id: str) -> None:
        # A run that the worker would not even start: the server asked for something that is not installed here.
        _log.warning("refused run %s: %s", flow_run_id, code)
        ledger = LedgerStore(home.ledger_path, home.settings.name, home.identity.signing)
        # Once per code: a server that repeats itself must not fill the ledger.
        ledger.append_once(NO_STUDY, Refused(instruction="0" * 64, code=code))

    _publish_ledgers(home)
    proxied = home.settings.token_file is not None
    remembered = RememberedRuns(home.folder / "runs")
    # The coordinator's proxy does not let a site search among runs: then it closes those that it remembers.
    await (remembered.close() if proxied else close_leftover_runs(home.settings.name))
    _log.info("agent of %s: serving", home.settings.name)
    await run_agent(
        home.settings.name,
        site_flows(home.folder),
        on_refusal=on_refusal,
        register=not proxied,
        registration_lock=Path(lock) if (lock := home.settings.registration_lock) is not None else None,
        remembered=remembered,
        # A server on SQLite stalls under many questions: the environment then asks for fewer.
        poll_seconds=max(home.settings.options.poll_interval_seconds, get_current_settings().worker.query_seconds),
    )


def _publish_ledgers(home: SiteHome) -> None:
    """Publishes what an agent that died had entered but not sent, so that its charges are known to the study."""
    for study in home.settings.studies:
        try:
            open_context(home, study).publish_ledger()
        except ConsiliumError as error:
            _log.warning("study %s: %s", study[:12], error)
