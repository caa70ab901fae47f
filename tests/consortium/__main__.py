"""`make consortium-up`, `consortium-study`, `consortium-down`: a whole consortium as processes of this machine."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from infra.processes import WorkdirLock
from schemas.errors import OperationError
from tests.consortium.parties import Place
from tests.consortium.supervisor import supervise

_UP_SECONDS = 900.0


def up(place: Place, store: str, rounds: int) -> dict[str, object]:
    """Starts the supervisor in the background and returns its state once everything answers."""
    place.folder.mkdir(parents=True, exist_ok=True)
    place.folder.chmod(0o700)
    if _runs(place):
        raise OperationError("consortium-up", "This consortium runs already.", "Take it down first.")
    # A supervisor that was killed had no time to remove it.
    place.state.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.consortium", "supervise", "--folder", str(place.folder)]
    command += ["--store", store, "--rounds", str(rounds)]
    log = place.folder / "supervisor.log"
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    deadline = time.monotonic() + _UP_SECONDS
    while not place.state.is_file():
        if process.poll() is not None or time.monotonic() > deadline:
            process.terminate()
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-6:])
            raise OperationError("consortium-not-up", f"The consortium did not come up:\n{tail}", f"See {log}.")
        time.sleep(0.2)
    found: dict[str, object] = json.loads(place.state.read_text())
    return found


def down(place: Place) -> None:
    """Stops every process and waits for it."""
    if not place.state.is_file() or not _runs(place):
        raise OperationError("consortium-down", "No consortium runs from this folder.", "Name it.")
    pid = int(json.loads(place.state.read_text())["process"])
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _UP_SECONDS
    while time.monotonic() < deadline:
        if not _runs(place):
            return
        time.sleep(0.2)
    raise OperationError("consortium-slow", f"Process {pid} does not end.", "Kill it; its children end with it.")


def _runs(place: Place) -> bool:
    """Says whether a supervisor holds the folder; the number in a file may by now be somebody else's."""
    try:
        with WorkdirLock(place.folder):
            return False
    except OperationError as error:
        if error.code != "workdir-in-use":
            raise
        return True


def run_study(place: Place) -> dict[str, object]:
    """Starts the study's deployment, as its schedule would, and waits for the released study's summary."""
    from infra.commands.deploy import enter_home

    enter_home(place.coordinator)
    from prefect.client.orchestration import get_client
    from prefect.deployments import arun_deployment

    async def run() -> str:
        started = await arun_deployment(f"scheduled-study/study-{place.study[:12]}", timeout=0)
        while True:
            async with get_client() as client:
                state = (await client.read_flow_run(started.id)).state
            # A schedule may have been quicker; the study then runs all the same.
            if state is not None and state.is_final() and state.name != "AlreadyRunning":
                return f"{state.name}: {state.message}"
            if (place.coordinator / "summary.json").is_file() and state is not None and state.is_final():
                return "Completed"
            await asyncio.sleep(1)

    outcome = asyncio.run(run())
    summary = place.coordinator / "summary.json"
    if not summary.is_file():
        raise OperationError("study-failed", outcome, f"See {place.log('worker')}.")
    found: dict[str, object] = json.loads(summary.read_text())
    return found


def main() -> int:
    """Does what the command line asks."""
    parser = argparse.ArgumentParser(prog="python -m tests.consortium", description=__doc__)
    parser.add_argument("action", choices=["up", "study", "down", "supervise"])
    parser.add_argument("--folder", type=Path, default=Path("consortium"))
    parser.add_argument("--store", choices=["s3", "folder"], default="s3")
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    place = Place(asked.folder.absolute())
    try:
        if asked.action == "up":
            print(json.dumps(up(place, asked.store, asked.rounds), indent=2))
        elif asked.action == "study":
            print(json.dumps(run_study(place), indent=2))
        elif asked.action == "down":
            down(place)
        else:
            supervise(place.folder, asked.store, asked.rounds)
    except OperationError as error:
        print(f"Error ({error.code}): {error.message}\n  Remedy: {error.remedy}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
