"""The folder of a demo: whose it is, which version made it, how far it got.

Invariant: one process at a time works in a workdir, and a folder that this version did not prepare is never written to.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from infra.demo.options import DemoOptions
from infra.processes import WorkdirLock
from schemas.errors import OperationError
from schemas.options import Settings

SOFTWARE = "consilium 0.1.0"


class DemoState(Settings):
    """`demo.json`: what was asked, and how far the demo got.

    Attributes:
        stage: ``preparing`` until every party signed, ``running`` until the coordinator finished, then ``finished``.
        study: Plan digest; empty while preparing.
        prefect_port: Port of the local Prefect server, kept across resumption where it is free.
    """

    format: Literal["consilium/demo/1"] = "consilium/demo/1"
    software: str = SOFTWARE
    stage: Literal["preparing", "running", "finished"]
    data: str
    data_dir: str | None = None
    sites: int | None = None
    threshold: int | None = None
    rounds: int | None = None
    epsilon: str | None = None
    delta: str | None = None
    study: str = ""
    prefect_port: int | None = None


class Workdir:
    """Names of everything in a demo's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.state_file = self.root / "demo.json"
        self.coordinator = self.root / "coordinator"
        self.evidence = self.coordinator / "evidence"
        self.events = self.coordinator / "events.jsonl"
        self.coordinator_summary = self.coordinator / "summary.json"
        self.store = self.root / "store"
        self.postgres = self.root / "postgres"
        self.prefect = self.root / "prefect"
        self.logs = self.root / "logs"
        self.public_keys = self.root / "public-keys.json"
        self.plan = self.root / "plan.json"
        self.result = self.root / "result.json"

    def site(self, name: str) -> Path:
        """Returns the home of site `name`."""
        return self.root / "sites" / name

    def reviewer(self, name: str) -> Path:
        """Returns the home of reviewer `name`."""
        return self.root / "reviewers" / name

    def log(self, process: str) -> Path:
        """Returns the log file of a process."""
        return self.logs / f"{process}.log"

    def read_state(self) -> DemoState | None:
        """Reads demo.json; None where there is no such file.

        Raises:
            OperationError: `workdir-version` if another version wrote it, `workdir-unreadable`.
        """
        try:
            raw = json.loads(self.state_file.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError):
            raise OperationError(
                "workdir-unreadable", f"{self.state_file} cannot be read.", "Choose another folder with --workdir."
            ) from None
        written_by = raw.get("software", "unknown") if isinstance(raw, dict) else "unknown"
        if written_by != SOFTWARE or raw.get("format") != "consilium/demo/1":
            raise OperationError(
                "workdir-version",
                f"{self.root} was made by {written_by}, and this is {SOFTWARE}.",
                "Choose another folder with --workdir, or continue with the version that made it.",
            )
        try:
            return DemoState.model_validate(raw)
        except ValidationError:
            raise OperationError(
                "workdir-unreadable", f"{self.state_file} is damaged.", "Choose another folder with --workdir."
            ) from None

    def write_state(self, state: DemoState) -> None:
        """Writes demo.json, whole or not at all."""
        temporary = self.state_file.with_suffix(".part")
        temporary.write_text(state.model_dump_json(indent=2) + "\n")
        temporary.replace(self.state_file)


@contextmanager
def open_workdir(options: DemoOptions) -> Iterator[tuple[Workdir, DemoState | None]]:
    """Locks the workdir that `options` name and yields it with the state to continue from; None means prepare it.

    Raises:
        OperationError: `workdir-in-use`, `workdir-unusable`, `workdir-version`, `workdir-unreadable`,
            `workdir-foreign`, `workdir-unfinished`, `workdir-finished`, `nothing-to-resume`, `resume-options`,
            `store-full`.
    """
    workdir = Workdir(options.workdir)
    _verify_stage(workdir, options)
    with WorkdirLock(workdir.root):
        workdir.root.chmod(0o700)
        state = _verify_stage(workdir, options)
        _verify_space(workdir.root, options.required_bytes)
        if state is not None and state.stage == "preparing":
            # Nobody has signed or trained yet: an interrupted preparation is thrown away, identities included.
            _discard(workdir)
            state = None
        yield workdir, state


def _verify_stage(workdir: Workdir, options: DemoOptions) -> DemoState | None:
    root = workdir.root
    state = workdir.read_state()
    if state is None:
        if options.resume:
            raise OperationError(
                "nothing-to-resume", f"Expected an unfinished demo in {root}.", "Leave --resume out to start one."
            )
        if root.exists() and (not root.is_dir() or any(p.name != "consilium.lock" for p in root.iterdir())):
            raise OperationError(
                "workdir-foreign", f"{root} holds something else than a demo.", "Choose a new folder with --workdir."
            )
        return None
    if state.stage == "finished":
        raise OperationError(
            "workdir-finished",
            f"The demo in {root} is finished.",
            f"Look at it with `consilium ui --workdir {root}`, or choose a new folder with --workdir.",
        )
    if state.stage == "preparing":
        return state
    if not options.resume:
        raise OperationError(
            "workdir-unfinished",
            f"{root} holds an unfinished demo.",
            f"Continue it with `consilium demo --workdir {root} --resume`, or choose a new folder with --workdir.",
        )
    _verify_same_options(state, options)
    return state


def _verify_same_options(state: DemoState, options: DemoOptions) -> None:
    asked = {name: getattr(options, name) for name in ("sites", "threshold", "rounds", "epsilon", "delta")}
    differing = [f"--{name}" for name, value in asked.items() if value is not None and value != getattr(state, name)]
    if differing:
        raise OperationError(
            "resume-options",
            f"The study in this folder was signed with another {', '.join(differing)}.",
            "Resume without these options, or start a new study in another --workdir.",
        )


def _verify_space(root: Path, required_bytes: int) -> None:
    free = shutil.disk_usage(root).free
    if free < required_bytes:
        raise OperationError(
            "store-full",
            f"Expected {required_bytes >> 20} MiB of free space for the store in {root}, got {free >> 20} MiB.",
            "Free space or choose another folder with --workdir.",
        )


def _discard(workdir: Workdir) -> None:
    for folder in (
        workdir.coordinator,
        workdir.root / "sites",
        workdir.root / "reviewers",
        workdir.store,
        workdir.logs,
    ):
        shutil.rmtree(folder, ignore_errors=True)
    for file in (workdir.plan, workdir.public_keys, workdir.state_file):
        file.unlink(missing_ok=True)
