"""Logs and states carry no values: looked for in the database itself, by a look that sees a row that is there."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from uuid import uuid4

import pytest

from flows.dispatch import dispatch, wait_for_end
from infra.postgres import Postgres
from infra.prefect_server import PrefectServer
from tests.canaries import search
from tests.databases import LEAKY_TABLES, dump_postgres, dump_sqlite, write_row_everywhere
from tests.runtime.agents import agent_process
from tests.runtime.site_process import SECRET_CELL
from tests.runtime.waiting import wait_until


@pytest.mark.usefixtures("prefect_settings")
def test_no_cell_that_a_sites_flow_raised_and_logged_is_in_prefects_database(
    server: PrefectServer,
    cluster: Postgres | None,
    agent_environment: dict[str, str],
    server_folder: Path,
    tmp_path: Path,
) -> None:
    def tables() -> dict[str, bytes]:
        if cluster is not None:
            return dump_postgres(cluster.socket_folder, "prefect")
        return dump_sqlite(server_folder / "prefect" / "prefect.db")

    def holders() -> set[str]:
        return {found.partition(":")[0] for found in search(tables().items())}

    site = f"site-{uuid4().hex[:8]}"
    agent = agent_process(site, tmp_path, agent_environment)
    try:

        async def run(flow: str) -> str:
            started = await dispatch(site, flow, {"study": "s1", "round": 1}, f"{site}-{flow}")
            return (await wait_for_end(started, 90.0)).code

        assert asyncio.run(run("site-leak")) == "internal-error"
        assert asyncio.run(run("site-refuse")) == "budget-exceeded"
    finally:
        agent.stop()
    # The row was there to be leaked: the agent's own log, which stays at the site, has it.
    assert SECRET_CELL in (tmp_path / "agent.log").read_text()
    # Task runs arrive as events, a moment later.
    wait_until(lambda: all(code in tables()["task_run_state"] for code in (b"internal-error", b"budget-exceeded")))
    assert b"internal-error" in tables()["flow_run_state"]
    assert holders() == set()

    write_row_everywhere(server.api_url, tmp_path / "careless", os.environ)
    wait_until(lambda: holders() >= LEAKY_TABLES)
