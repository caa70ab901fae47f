"""One study under chaos: hosts of real processes, struck as a seed says, mended and started again, then verified.

The coordinator's host runs `coordinator up`, `coordinator serve` and nginx; each hospital's host runs its agent, which
arrives through the proxy. The study is a deployment that is due every minute, so that resuming is Prefect's doing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from infra.homes import coordinator_store
from infra.settings import load_settings
from schemas.options import CoordinatorSettings
from tests.chaos.hosts import COORDINATOR, Hosts, Mend, mount_homes
from tests.chaos.network import open_network
from tests.chaos.script import Blow, write_script
from tests.chaos.verify import Verdict, verify_study
from tests.consortium.parties import SITES, Place
from tests.consortium.stores import ObjectStore
from tests.simulator import change_settings

NAMES = tuple(f"hospital-{number:02d}" for number in range(1, SITES + 1))
HOSTS = (COORDINATOR, *NAMES)
DEADLINE_SECONDS = 20.0
OPTIONS = {
    "poll_interval_seconds": 0.5,
    "ceremony_deadline_seconds": 60,
    "contribute_deadline_seconds": DEADLINE_SECONDS,
    "certify_deadline_seconds": DEADLINE_SECONDS,
    "share_deadline_seconds": DEADLINE_SECONDS,
    "opening_deadline_seconds": DEADLINE_SECONDS,
    "release_deadline_seconds": DEADLINE_SECONDS,
    "silent_grace_seconds": 8,
}


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        seconds: From the first due run to the release.
        blows: What struck somebody; a release may come before the last ones, and the dead cannot be killed.
        starts: How often each process was started.
    """

    seed: int
    seconds: float
    starts: dict[str, int]
    blows: tuple[str, ...]
    verdict: Verdict


def run_seed(
    seed: int,
    folder: Path,
    store: ObjectStore,
    *,
    rounds: int = 10,
    limit_seconds: float = 1800,
    separate: bool = True,
    script: list[Blow] | None = None,
    at_once: bool = False,
) -> Outcome:
    """Runs a study under the script of `seed` in `folder` and verifies what it left.

    Args:
        store: The S3 server, with its certificate in the parent of `folder`.
        separate: A network namespace per host; False puts all on the loopback.
        script: Instead of the seed's.
        at_once: The first run does not wait for the schedule.

    Raises:
        AssertionError: the study did not finish in time, or something does not hold afterwards.
    """
    place = Place(folder)
    folder.mkdir(mode=0o700)
    for name in ("tls.pem", "tls-key.pem"):
        shutil.copy(folder.parent / name, folder / name)
    script = write_script(seed, NAMES, rounds, DEADLINE_SECONDS) if script is None else script
    with ExitStack() as stack:
        network = stack.enter_context(open_network(HOSTS, separate))
        hosts = Hosts(place, network, store, NAMES, stack)
        stack.callback(hosts.stop)
        hosts.build(seed, rounds)
        for home in (place.coordinator, *place.sites().values()):
            change_settings(home, options=OPTIONS)
        mount_homes(place, stack)
        hosts.start()
        started = time.monotonic()
        if at_once:
            hosts.ask_study()
        struck = _play(hosts, script, started, limit_seconds)
        seconds = time.monotonic() - started
        hosts.mend()
        hosts.stop()
        settings = load_settings(CoordinatorSettings, place.coordinator / "config.json")
        verdict = verify_study(place, coordinator_store(settings))
    return Outcome(seed, seconds, hosts.starts, tuple(str(blow) for blow in struck), verdict)


def _play(hosts: Hosts, script: list[Blow], started: float, limit_seconds: float) -> list[Blow]:
    """Plays the script until the study is released; returns the blows that struck somebody before that."""
    waiting, mending, begun = list(script), list[tuple[float, Mend]](), dict[int, float]()
    struck = list[Blow]()
    while not hosts.released:
        now = time.monotonic() - started
        if now > limit_seconds:
            raise AssertionError(f"the study did not finish within {limit_seconds:.0f} s; see {hosts.place.folder}")
        for number in _begun(hosts.place):
            begun.setdefault(number, now)
        for blow in [blow for blow in waiting if _is_due(blow, begun, now)]:
            waiting.remove(blow)
            mend = hosts.strike(blow)
            note = "" if mend is not None else " (nobody there)"
            print(f"  {now:.0f} s: {blow}{note}", file=sys.stderr, flush=True)
            if mend is not None:
                struck.append(blow)
                mending.append((now + blow.lasts_seconds, mend))
        for due in [item for item in mending if item[0] <= now]:
            mending.remove(due)
            due[1]()
        hosts.tend()
        time.sleep(0.2)
    return struck


def _begun(place: Place) -> set[int]:
    """Returns the rounds that have begun; 0 once the study has."""
    path = place.coordinator / "events.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {event.get("round", 0) for event in events if event["event"] in ("study-started", "round-started")}


def _is_due(blow: Blow, begun: dict[int, float], now: float) -> bool:
    """A round that died before it began counts as begun when a later one does."""
    since = [at for number, at in begun.items() if number >= blow.round]
    return bool(since) and now >= min(since) + blow.after_seconds


def remove_run(folder: Path) -> None:
    """Removes a run's folder, and what a killed run left mounted in it."""
    for home in (folder / "sites").glob("*"):
        while os.path.ismount(home):
            if os.spawnlp(os.P_WAIT, "umount", "umount", "-l", str(home)):
                break
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
