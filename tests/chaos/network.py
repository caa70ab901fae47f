"""The hosts' networks: one namespace each where this machine lets us make them, else its loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import Protocol

_SECONDS = 20


class Network(Protocol):
    """Where hosts are, and what can be done to their cables."""

    def gateway(self, host: str) -> str:
        """Returns the address at which `host` finds everybody else: the links listen there."""

    def address(self, host: str) -> str:
        """Returns the address at which the links find `host`."""

    def certified(self, hosts: Sequence[str]) -> list[str]:
        """Returns the addresses that a certificate of the servers must be good for."""

    def inside(self, host: str, command: Sequence[str]) -> list[str]:
        """Returns the command that runs `command` on `host`."""

    def unplug(self, host: str) -> bool:
        """Lets every packet of `host` vanish without a word; False where that cannot be done."""

    def narrow(self, host: str, kilobits: int) -> bool:
        """Holds `host` to so many kbit/s in each direction; False where that cannot be done."""

    def mend(self, host: str) -> None:
        """Makes the cable of `host` whole and quick again."""


class Loopback:
    """All hosts on 127.0.0.1."""

    def gateway(self, host: str) -> str:
        return "127.0.0.1"

    def address(self, host: str) -> str:
        return "127.0.0.1"

    def certified(self, hosts: Sequence[str]) -> list[str]:
        return ["127.0.0.1"]

    def inside(self, host: str, command: Sequence[str]) -> list[str]:
        return list(command)

    def unplug(self, host: str) -> bool:
        return False

    def narrow(self, host: str, kilobits: int) -> bool:
        return False

    def mend(self, host: str) -> None: ...


class Namespaces:
    """A network namespace per host, each joined to this machine by a pair of virtual cables and by nothing else."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._number = {host: index for index, host in enumerate(hosts)}
        self._process = os.getpid() % 10_000

    def gateway(self, host: str) -> str:
        return f"10.{64 + self._process % 128}.{self._number[host]}.1"

    def address(self, host: str) -> str:
        return f"10.{64 + self._process % 128}.{self._number[host]}.2"

    def certified(self, hosts: Sequence[str]) -> list[str]:
        return ["127.0.0.1", *(find(host) for host in hosts for find in (self.gateway, self.address))]

    def inside(self, host: str, command: Sequence[str]) -> list[str]:
        return [_program("ip"), "netns", "exec", self._name(host), *command]

    def unplug(self, host: str) -> bool:
        # Addresses stay: whoever listens goes on to listen, and nobody is told anything.
        _ip("-n", self._name(host), "link", "set", "eth0", "down")
        return True

    def narrow(self, host: str, kilobits: int) -> bool:
        limit = ["root", "tbf", "rate", f"{kilobits}kbit", "burst", "16kb", "latency", "400ms"]
        _run(_program("tc"), "qdisc", "replace", "dev", self._cable(host), *limit)
        _run(*self.inside(host, [_program("tc"), "qdisc", "replace", "dev", "eth0", *limit]))
        return True

    def mend(self, host: str) -> None:
        _ip("-n", self._name(host), "link", "set", "eth0", "up")
        for prefix, device in (([], self._cable(host)), (self.inside(host, []), "eth0")):
            subprocess.run(
                [*prefix, _program("tc"), "qdisc", "del", "dev", device, "root"], check=False, capture_output=True
            )

    def __enter__(self) -> Namespaces:
        for host in self._number:
            name, cable = self._name(host), self._cable(host)
            _ip("netns", "add", name)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("addr", "add", f"{self.gateway(host)}/30", "dev", cable)
            _ip("link", "set", cable, "up")
            _ip("-n", name, "addr", "add", f"{self.address(host)}/30", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._number:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                _ip("netns", "del", self._name(host))

    def _name(self, host: str) -> str:
        return f"chaos{self._process}-{self._number[host]}"

    def _cable(self, host: str) -> str:
        return f"ch{self._process}-{self._number[host]}"


def missing_for_namespaces() -> list[str]:
    """Returns what this machine lacks for a namespace per host."""
    missing = [] if os.geteuid() == 0 else ["root"]
    return missing + [name for name in ("ip", "tc") if not _program(name)]


@contextlib.contextmanager
def open_network(hosts: Sequence[str], separate: bool) -> Iterator[Network]:
    """Makes the hosts' network; with `separate`, a namespace each."""
    if not separate:
        yield Loopback()
        return
    with Namespaces(hosts) as network:
        yield network


def _program(name: str) -> str:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin") or ""


def _ip(*words: str) -> None:
    _run(_program("ip"), *words)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)
