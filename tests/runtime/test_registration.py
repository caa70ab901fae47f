"""Agents of one machine register one after another where the Prefect server is on SQLite."""

from __future__ import annotations

import asyncio
from pathlib import Path

from infra.demo.prepare import write_participant_settings
from infra.settings import load_settings
from schemas.options import RunOptions, SiteSettings
from site_agents import worker
from tests.simulator import Prepared, copy_study


def test_agents_that_share_a_lock_never_register_at_the_same_time(tmp_path: Path) -> None:
    happened: list[str] = []

    async def register(name: str) -> None:
        async with worker._alone(tmp_path / "lock"):
            happened.append(f"{name} begins")
            await asyncio.sleep(0)
            happened.append(f"{name} ends")

    async def all_of_them() -> None:
        await asyncio.gather(*(register(name) for name in "abc"))

    asyncio.run(all_of_them())
    assert [text.split()[1] for text in happened] == ["begins", "ends"] * 3


def test_a_demo_on_sqlite_gives_its_agents_one_lock_and_on_postgresql_none(
    prepared_study: Prepared, tmp_path: Path
) -> None:
    prepared = copy_study(prepared_study, tmp_path / "study")
    workdir, memory = prepared.workdir, tmp_path / "memory"
    locks = []
    for in_turn in (True, False):
        write_participant_settings(workdir, prepared.plan, "http://x/api", memory, RunOptions(), in_turn)
        homes = [workdir.site(site.name) for site in prepared.plan.sites]
        locks.append({load_settings(SiteSettings, home / "config.json").registration_lock for home in homes})
    assert locks == [{str(workdir.root / "registration.lock")}, {None}]
