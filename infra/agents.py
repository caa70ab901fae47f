"""Runs one or several hospitals' agents in this process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

from infra.settings import enter_site_environment, load_settings
from schemas.errors import OperationError
from schemas.options import SiteSettings


def may_log(record: logging.LogRecord) -> bool:
    """Says whether a line may be written: a library that sets its own logger's level is not asked."""
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] == "consilium"


def run_agents(homes: Sequence[Path]) -> None:
    """Runs the agent of every home until the process is stopped; several homes share it, one thread each.

    Raises:
        OperationError: `settings-unreadable` if a home has no settings; `agent-stopped` if one of several agents ends.
    """
    for home in homes:
        if not (home / "config.json").is_file():
            raise OperationError(
                "settings-unreadable", f"Expected a settings file config.json in {home}.", "Name the home with --home."
            )
    settings = load_settings(SiteSettings, homes[0] / "config.json")
    enter_site_environment(homes[0].absolute(), settings)
    # Libraries stay at warnings: their information lines may describe data.
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("consilium").setLevel(logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.addFilter(may_log)
    from site_agents.agent import run_site_agent

    if len(homes) == 1:
        run_site_agent(homes[0].absolute())
        return
    stopped = threading.Event()

    def run(home: Path) -> None:
        try:
            run_site_agent(home)
        finally:
            stopped.set()

    for home in homes:
        threading.Thread(target=run, args=(home.absolute(),), name=home.name, daemon=True).start()
    stopped.wait()
    # The others go down with it, so that whoever supervises this process starts all of them again.
    raise OperationError("agent-stopped", "One of the agents in this process ended.", "See its log; start them again.")
