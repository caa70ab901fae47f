"""A site-agent process for the tests: the real worker with trivial local flows. Arguments: site, its folder."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from prefect import flow, get_run_logger, task
from pydantic import BaseModel, ConfigDict

from schemas.errors import BudgetError
from site_agents.admission import AgentFlow
from site_agents.run_states import coded
from site_agents.worker import run_agent
from tests.canaries import GOOD, PATIENT

SECRET_CELL = f"{PATIENT} {GOOD['mean_radius']}"


class RoundParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    study: str
    round: int


def make_flows(folder: Path) -> dict[str, AgentFlow]:
    """Makes this site's flows, which leave their traces in `folder`."""

    @task(name="train", retries=0)
    async def train(study: str, round: int) -> int:
        with (folder / "trained.txt").open("a") as out:
            out.write(f"{study} {round} {time.time()}\n")
        return round

    @flow(name="site-round", retries=0)
    async def site_round(study: str, round: int) -> int:
        return await train(study, round)

    @flow(name="site-sleep", retries=0)
    async def site_sleep(study: str, round: int) -> None:
        (folder / f"sleeping-{study}").touch()
        time.sleep(0.5)  # a step that blocks its thread
        while not (folder / f"wake-{study}").exists():
            await asyncio.sleep(0.05)

    @task(name="reserve", retries=0)
    @coded
    async def reserve(study: str) -> None:
        raise BudgetError("budget-exceeded", f"Expected less of {SECRET_CELL}.")

    @task(name="parse", retries=0)
    async def parse(study: str) -> None:
        get_run_logger().error("row %s", SECRET_CELL)
        raise ValueError(f"could not convert {SECRET_CELL}")

    @flow(name="site-refuse", retries=0)
    async def site_refuse(study: str, round: int) -> None:
        state = await reserve(study, return_state=True)  # type: ignore[misc]
        (folder / "reserve-state.txt").write_text(f"{state.name} {state.message}")
        raise BudgetError(str(state.message), f"Expected less of {SECRET_CELL}.")

    @flow(name="site-leak", retries=0)
    async def site_leak(study: str, round: int) -> None:
        await parse(study)

    flows = (site_round, site_sleep, site_refuse, site_leak)
    return {entry.name: AgentFlow(entry, RoundParameters) for entry in flows}


def main() -> None:
    """Runs the agent until it is told to stop."""
    site, folder = sys.argv[1], Path(sys.argv[2])

    def note_refusal(code: str, flow_run_id: str) -> None:
        with (folder / "refusals.txt").open("a") as out:
            out.write(f"{code} {flow_run_id}\n")

    ready = (folder / "ready").touch
    register = "CONSILIUM_TEST_UNREGISTERED" not in os.environ
    work = run_agent(
        site, make_flows(folder), on_refusal=note_refusal, on_ready=ready, grace_seconds=1.0, register=register
    )
    asyncio.run(work)


if __name__ == "__main__":
    main()
