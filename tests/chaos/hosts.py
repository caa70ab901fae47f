"""Everything that runs in a chaos study, on which host, and how each of it is struck and mended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from infra.processes import ChildProcess, find_free_port, start_process
from infra.settings import load_settings, participant_environment
from schemas.errors import OperationError
from schemas.options import CoordinatorSettings
from tests.chaos.link import Links
from tests.chaos.network import Network
from tests.chaos.script import Blow
from tests.consortium.parties import Place, Ports, make_parties
from tests.consortium.stores import ObjectStore
from tests.consortium.supervisor import NGINX, ROOT

Mend = Callable[[], None]
COORDINATOR = "coordinator"
_PROXY_PORT = 8443
_UP = "Press Ctrl-C"
_START_SECONDS = 240.0
_REST_SECONDS = 3.0
FAKETIME = (
    Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"),
    Path("/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1"),
)


@dataclass(frozen=True)
class Addresses(Ports):
    """Who finds whom where: everybody else through links of their own."""

    s3_urls: dict[str, str] = field(default_factory=dict)
    prefect_urls: dict[str, str] = field(default_factory=dict)
    proxy_address: str = "127.0.0.1"

    def s3_endpoint(self, name: str) -> str:
        return self.s3_urls[COORDINATOR if name == "owner" else name]

    def prefect_url(self, name: str) -> str:
        return self.prefect_urls[name]

    def listen(self) -> str:
        return f"{self.proxy_address}:{self.proxy}"


@dataclass
class Hosts:
    """A coordinator's host, a hospital's host each, the links between them and the store."""

    place: Place
    network: Network
    store: ObjectStore
    names: tuple[str, ...]
    stack: ExitStack
    links: dict[str, Links] = field(default_factory=dict)
    processes: dict[str, ChildProcess] = field(default_factory=dict)
    down_until: dict[str, float] = field(default_factory=dict)
    skew: dict[str, str] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)

    def build(self, seed: int, rounds: int) -> None:
        """Lays the links and makes every party's home."""
        addresses = self._lay_links(seed)
        log = self.place.log("parties")
        log.parent.mkdir()
        with log.open("w") as out, contextlib.redirect_stdout(out):
            make_parties(self.place, addresses, rounds, self.store.add_user)

    def start(self) -> None:
        """Starts every process of every host and deploys the study, due every minute."""
        self._start("servers", *_consilium("coordinator", "up", "--home", str(self.place.coordinator)))
        self._wait("servers", lambda: _UP in self.place.log("servers").read_text())
        self._start_proxy()
        home = str(self.place.coordinator)
        self._run_once("deploy", *_consilium("coordinator", "deploy", "--home", home, "--cron", "study=* * * * *"))
        for name in ("worker", *self.names):
            self._start_again(name)

    def ask_study(self) -> None:
        """Starts the study's deployment now, as a coordinator would who does not wait for its schedule."""
        settings = load_settings(CoordinatorSettings, self.place.coordinator / "config.json")
        prefect = ("env", f"PREFECT_API_URL={settings.prefect_api_url}", sys.executable, "-m", "prefect")
        self._run_once("ask", *prefect, "deployment", "run", f"scheduled-study/study-{self.place.study[:12]}")

    def tend(self) -> None:
        """Starts again what died, once its time has come; a process that ends by itself rests before that."""
        now = time.monotonic()
        for name, process in self.processes.items():
            if not process.is_alive() and name not in self.down_until:
                self.down_until[name] = now + _REST_SECONDS
        for name in [name for name, due in self.down_until.items() if now >= due]:
            del self.down_until[name]
            if name == "s3":
                self.store.start()
            elif not self.processes[name].is_alive():
                self._start_again(name)

    @property
    def released(self) -> bool:
        """Says whether the study is released and the process that ran it has ended."""
        return (self.place.coordinator / "summary.json").is_file() and not list(self._runs())

    def strike(self, blow: Blow) -> Mend | None:
        """Does what `blow` says and returns what mends it; None where there was nobody to strike."""
        if blow.kind in ("kill", "reboot"):
            return _nothing if self._kill(blow) else None
        if blow.kind == "clock":
            return self._skew_clock(blow.target)
        if blow.kind == "disk-full":
            return fill_disk(self.place.sites()[blow.target])
        return self._strain(blow)

    def stop(self) -> None:
        """Stops everything at once."""
        self.network.mend(COORDINATOR)
        for name in [*self.names, "worker", "proxy", "servers"]:
            process = self.processes.get(name)
            if process is not None:
                # The servers' children end with them; PostgreSQL is asked to end in order.
                process.stop(grace_seconds=20.0) if name == "servers" else process.kill()
        _kill_all(self._runs())

    def mend(self) -> None:
        """Mends all links, cables and clocks, and the store."""
        for name, links in self.links.items():
            links.mend()
            self.network.mend(name)
        self.skew.clear()
        if not self.store.is_alive():
            self.store.start()

    def _lay_links(self, seed: int) -> Addresses:
        # In a namespace of its own every port is free; on a loopback these are.
        prefect, mlflow = find_free_port(), find_free_port()
        at = self.network.address(COORDINATOR)
        proxy = None if NGINX is None else (_PROXY_PORT if at != "127.0.0.1" else find_free_port())
        s3, servers = {}, {}
        for index, name in enumerate((COORDINATOR, *self.names)):
            gateway = self.network.gateway(name)
            links = Links(gateway, seed * 100 + index)
            self.stack.callback(links.close)
            self.links[name] = links
            s3[name] = f"{self.store.scheme}://{gateway}:{links.open(('127.0.0.1', self.store.port))}"
            if name != COORDINATOR:
                scheme = "http" if proxy is None else "https"
                servers[name] = f"{scheme}://{gateway}:{links.open((at, proxy or prefect))}/api"
        bucket = f"study-{os.getpid()}-{seed}"
        return Addresses(
            prefect,
            mlflow,
            self.store.port,
            proxy,
            bucket,
            s3_urls=s3,
            prefect_urls=servers,
            proxy_address=at,
        )

    def _start_again(self, name: str) -> None:
        if name == "servers":
            self._start(name, *_consilium("coordinator", "up", "--home", str(self.place.coordinator)))
        elif name == "worker":
            self._start(name, *_consilium("coordinator", "serve", "--home", str(self.place.coordinator)))
        elif name == "proxy":
            self._start_proxy()
        else:
            self._start(name, *_consilium("site", "run", "--home", str(self.place.sites()[name])))

    def _start(self, name: str, *command: str) -> None:
        host = name if name in self.names else COORDINATOR
        home = self.place.sites()[name] if name in self.names else self.place.coordinator
        self.starts[name] = self.starts.get(name, 0) + 1
        environment = participant_environment(home, {"PYTHONPATH": str(ROOT)}) | self._fake_clock(name)
        self.processes[name] = start_process(
            name,
            self.network.inside(host, command),
            log=self.place.log(name),
            environment=environment,
            folder=home,
        )

    def _run_once(self, name: str, *command: str) -> None:
        self._start(name, *command)
        process = self.processes.pop(name)
        if not process.wait(_START_SECONDS) or process.exit_code:
            raise OperationError("command-failed", f"{name}: {process.log_tail(5)}", "See its log.")

    def _start_proxy(self) -> None:
        if NGINX is None:
            return
        config = self.place.proxy / "nginx.conf"
        # Started as root, nginx would become a user that may not read this folder.
        user = " user root;" if os.geteuid() == 0 and "\nuser " not in f"\n{config.read_text()}" else ""
        self._start("proxy", str(NGINX), "-c", str(config), "-g", f"daemon off;{user}")

    def _wait(self, name: str, fact: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not fact():
            process = self.processes[name]
            if not process.is_alive() or time.monotonic() > deadline:
                raise OperationError("process-ended", f"{name}: {process.log_tail(5)}", f"See {process.log}.")
            time.sleep(0.2)

    def _kill(self, blow: Blow) -> bool:
        """Kills what `blow` names and says whether anything of it was alive."""
        until, target = time.monotonic() + blow.lasts_seconds, blow.target
        if blow.kind == "reboot" and target == COORDINATOR:
            several = [self._kill_process(name, until) for name in ("worker", "servers", "proxy")]
            return any([*several, _kill_all(self._runs())])
        if blow.kind == "reboot":
            killed = self._kill_process(target, until)
            for path in (self.place.folder / "memory" / target).iterdir():  # what a host keeps in memory goes with it
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            return killed
        if target in ("prefect", "postgres", "mlflow"):
            # Their supervisor starts two of them again, and ends with the third: then it is started again.
            if target == "postgres":
                self.down_until["servers"] = until
            return _kill_all(self._children_of_servers(target))
        if target == "s3":
            self.down_until["s3"] = until
            return self.store.kill()
        return _kill_all(self._runs()) if target == "run" else self._kill_process(target, until)

    def _kill_process(self, name: str, until: float) -> bool:
        process = self.processes.get(name)
        if process is None:
            return False
        was_alive = process.is_alive()
        self.down_until[name] = until
        process.kill()
        return was_alive

    def _strain(self, blow: Blow) -> Mend:
        """Cuts, slows, tears or narrows the links of a host."""
        links, network, host = self.links[blow.target], self.network, blow.target
        if blow.kind == "slow":
            links.state.delay_seconds = 0.4
        elif blow.kind == "lossy":
            links.state.reset_chance = 0.05
        else:
            done = {"narrow": lambda: network.narrow(host, 256), "unplug": lambda: network.unplug(host)}.get(blow.kind)
            if done is not None and done():
                return lambda: network.mend(host)
            links.cut()
        return links.mend

    def _children_of_servers(self, target: str) -> list[int]:
        servers = self.processes["servers"].pid
        return [pid for pid, parent, command, _ in _processes() if parent == servers and _is_server(target, command)]

    def _runs(self) -> Iterator[int]:
        """Yields the processes in which Prefect's worker runs flows of the coordinator; they may outlive it."""
        home = str(self.place.coordinator).encode()
        for pid, _, command, environment in _processes():
            if b"prefect.engine" in command and home in environment:
                yield pid

    def _fake_clock(self, name: str) -> dict[str, str]:
        library = next((path for path in FAKETIME if path.is_file()), None)
        if name not in self.skew or library is None:
            return {}
        return {"LD_PRELOAD": str(library), "FAKETIME": self.skew[name], "DONT_FAKE_MONOTONIC": "1"}

    def _skew_clock(self, site: str) -> Mend:
        """Starts the agent again with a clock that is minutes off; the next start has the right time again."""
        self.skew[site] = "+7m"
        self._kill_process(site, 0.0)

        def mend() -> None:
            self.skew.pop(site, None)

        return mend


def fill_disk(home: Path) -> Mend | None:
    """Takes all space of the site's home; None where it is no file system of its own."""
    if not home.is_mount():
        return None
    ballast = home / "ballast"
    with ballast.open("wb", buffering=0) as out, contextlib.suppress(OSError):
        while True:
            out.write(bytes(1 << 20))

    def mend() -> None:
        ballast.unlink(missing_ok=True)

    return mend


def mount_homes(place: Place, stack: ExitStack) -> bool:
    """Gives each site a small file system, so that its disk can be full; needs root, and says whether it could."""
    if os.geteuid() != 0:
        return False
    for home in place.sites().values():
        kept = place.folder / f"{home.name}.kept"
        home.rename(kept)
        home.mkdir(mode=0o700)
        if os.spawnlp(os.P_WAIT, "mount", "mount", "-t", "tmpfs", "-o", "size=96m,mode=0700", "tmpfs", str(home)):
            home.rmdir()
            kept.rename(home)
            return False
        stack.callback(os.spawnlp, os.P_WAIT, "umount", "umount", "-l", str(home))
        shutil.copytree(kept, home, dirs_exist_ok=True)
        shutil.rmtree(kept)
    return True


def _processes() -> Iterator[tuple[int, int, bytes, bytes]]:
    """Yields process id, parent, command line and environment of every process that can be read."""
    for path in Path("/proc").iterdir():
        if not path.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            yield int(path.name), parent, (path / "cmdline").read_bytes(), (path / "environ").read_bytes()


def _kill_all(pids: Iterable[int]) -> bool:
    found = list(pids)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(found)


def _consilium(*command: str) -> list[str]:
    return [sys.executable, "-P", "-m", "infra.cli", *command]


def _is_server(target: str, command: bytes) -> bool:
    words = command.split(b"\0")
    if target == "postgres":
        return Path(words[0].decode(errors="replace")).name == "postgres"
    if target == "mlflow":
        return words[1:5] == [b"-P", b"-m", b"mlflow", b"server"]
    return b"uvicorn" in words and any(word.startswith((b"prefect.", b"infra.prefect_app")) for word in words)


def _nothing() -> None: ...
