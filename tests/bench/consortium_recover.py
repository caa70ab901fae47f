"""Kills one part of a consortium after another while a round runs, and measures until the study goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from infra.services import is_answering
from tests.bench.consortium_figures import Event, at
from tests.bench.consortium_place import Consortium
from tests.bench.consortium_processes import groups

CUT_SECONDS = 3.0
_LIMIT_SECONDS = 300.0


@dataclass(frozen=True)
class Recovery:
    """One death.

    Attributes:
        what: Who died.
        answers: Seconds from the kill until it answered again, or had work to show.
        goes_on: Seconds from the kill until the next step of the study was done after that.
        round_done: Seconds from the kill, at the round's beginning, until the round was done.
        study_starts: Runs of the study's deployment that it took.
        without: Sites that the round went on without.
    """

    what: str
    answers: float
    goes_on: float
    round_done: float
    study_starts: int
    without: tuple[str, ...] = ()


def kinds(consortium: Consortium) -> dict[str, Callable[[], Callable[[Event | None], bool]]]:
    """Returns who can die, and for each what kills it and returns how to see that it is back."""
    ports, site = consortium.ports, next(iter(consortium.place.sites()))
    assert ports.s3 is not None
    s3 = ports.s3

    def agent() -> Callable[[Event | None], bool]:
        _kill(consortium, site)
        return lambda event: event is not None and event.get("site") == site and event["state"] == "contributed"

    def server(group: str, fact: Callable[[], bool]) -> Callable[[], Callable[[Event | None], bool]]:
        def kill() -> Callable[[Event | None], bool]:
            old = _kill(consortium, group)
            return lambda _: old.isdisjoint(groups(consortium.pids()).get(group, old)) and fact()

        return kill

    def flow() -> Callable[[Event | None], bool]:
        _kill(consortium, "study's flow")
        return lambda event: event is not None and event["event"] == "study-started"

    def store() -> Callable[[Event | None], bool]:
        killed = consortium.store.kill()
        if not killed:  # it would lose its objects
            consortium.wire.cut(s3)
        mends = [consortium.store.start if killed else lambda: consortium.wire.mend(s3)]
        end = time.monotonic() + CUT_SECONDS

        def back(_: Event | None) -> bool:
            if time.monotonic() < end:
                return False
            while mends:
                mends.pop()()
            return _accepts(s3)

        return back

    return {
        f"agent of {site}": agent,
        "S3 server": store,
        "Prefect server": server("Prefect server", consortium.is_up),
        "PostgreSQL": server("PostgreSQL", consortium.is_up),
        "MLflow": server("MLflow", lambda: is_answering(f"http://127.0.0.1:{ports.mlflow}/health")),
        "coordinator's flow": flow,
    }


def strike(consortium: Consortium, what: str, kill: Callable[[], Callable[[Event | None], bool]]) -> Recovery:
    """Waits for the next training round to begin, kills, and waits until that round is done.

    Raises:
        SystemExit: the study did not go on.
    """
    # A flow that was started anew goes through the rounds that are over.
    over = max(event["round"] for event in consortium.events if event["event"] == "round-started")
    consortium.until(lambda event: event["event"] == "round-started" and event["round"] > over, _LIMIT_SECONDS)
    number, starts = over + 1, consortium.starts
    killed = time.time()
    is_back = kill()
    answers = goes_on = 0.0
    while time.time() - killed < _LIMIT_SECONDS:
        for event in (*consortium.look(), None):
            # What was on its way when the kill came proves nothing.
            late = event is not None and at(event) > killed
            if not answers and is_back(event if late else None):
                answers = (at(event) if late and event is not None else time.time()) - killed
            if event is None:
                continue
            if answers and not goes_on and _is_progress(event, number) and at(event) - killed >= answers:
                goes_on = at(event) - killed
            if event["event"] == "round-done" and event["round"] == number:
                # Until it answers again the round may be over; then nothing had to wait for it.
                done = at(event) - killed
                _wait_back(consortium, answers, is_back)
                without = tuple(site for site, _ in event["dropped"])
                answers = answers or time.time() - killed
                return Recovery(what, answers, goes_on or done, done, consortium.starts - starts, without)
    raise SystemExit(f"After the death of {what} the round was not done; see {consortium.place.folder}.")


def _is_progress(event: Event, number: int) -> bool:
    if event["event"] == "site-state":
        return bool(event["round"] == number and event["state"] in ("contributed", "certified", "shared"))
    return bool(event["event"] == "round-done" and event["round"] == number)


def _wait_back(consortium: Consortium, answers: float, is_back: Callable[[Event | None], bool]) -> None:
    end = time.monotonic() + 60
    while not answers and time.monotonic() < end and not is_back(None):
        consortium.running.tend_once()
        time.sleep(0.1)


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _kill(consortium: Consortium, group: str) -> set[int]:
    """Kills all processes of a group and returns their ids; nobody to kill would be a figure of nothing."""
    found = set(groups(consortium.pids()).get(group, []))
    if not found:
        raise SystemExit(f"There is no process of {group} to kill; see {consortium.place.folder}.")
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found
