"""The harness of `make chaos`: a seed means the same every time, its blows land, and its verdict can fail."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tasks.storage.folder import FolderStore
from tests.chaos.hosts import fill_disk
from tests.chaos.link import Links
from tests.chaos.network import Namespaces, missing_for_namespaces
from tests.chaos.run import HOSTS, NAMES
from tests.chaos.script import write_script
from tests.chaos.verify import Verdict, verify_study
from tests.conftest import FinishedStudy
from tests.consortium.parties import Place
from tests.simulator import copy_study


class Echo:
    """A server that sends back what it gets."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._socket.getsockname()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                while block := connection.recv(4096):
                    connection.sendall(block)
            except OSError:
                return


@pytest.fixture
def links() -> Iterator[Links]:
    made = Links("127.0.0.1", seed=1)
    yield made
    made.close()


def _ask(connection: socket.socket, text: bytes) -> bytes:
    connection.settimeout(20)
    try:
        connection.sendall(text)
        return connection.recv(4096)
    except ConnectionError:
        return b""


def test_a_seed_writes_the_same_script_every_time_and_another_seed_another() -> None:
    first = write_script(7, NAMES, 10, 20.0)
    assert first == write_script(7, NAMES, 10, 20.0)
    assert first != write_script(8, NAMES, 10, 20.0)
    assert first == sorted(first, key=lambda blow: (blow.round, blow.after_seconds))
    everything = [blow for seed in range(200) for blow in write_script(seed, NAMES, 10, 20.0)]
    kinds = {"kill", "reboot", "cut", "unplug", "slow", "lossy", "narrow", "disk-full", "clock"}
    assert {blow.kind for blow in everything} == kinds
    killed = {blow.target for blow in everything if blow.kind == "kill"}
    assert killed == {"run", "worker", "prefect", "postgres", "mlflow", "proxy", "s3", *NAMES}
    assert {blow.round for blow in everything} == set(range(12))
    assert any(blow.lasts_seconds > 20.0 for blow in everything), "some outlast a deadline"


def test_a_link_passes_is_cut_and_passes_again(links: Links) -> None:
    port = links.open(Echo().address)
    with socket.create_connection(("127.0.0.1", port)) as open_before:
        assert _ask(open_before, b"one") == b"one"
        links.cut()
        assert _ask(open_before, b"two") == b"", "what is open is reset"
    with socket.create_connection(("127.0.0.1", port)) as opened_meanwhile:
        assert _ask(opened_meanwhile, b"three") == b""
    links.mend()
    with socket.create_connection(("127.0.0.1", port)) as opened_after:
        assert _ask(opened_after, b"four") == b"four"


def test_a_lossy_link_resets_some_connections(links: Links) -> None:
    port = links.open(Echo().address)
    links.state.reset_chance = 0.5
    answers = []
    for _ in range(30):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            answers.append(_ask(connection, b"x"))
    assert set(answers) == {b"x", b""}


@pytest.mark.skipif(bool(missing_for_namespaces()), reason="network namespaces need root and iproute2")
def test_a_host_in_its_namespace_reaches_its_gateway_alone_and_nothing_once_unplugged() -> None:
    with Namespaces(HOSTS) as network:
        for host in HOSTS[:2]:
            with socket.create_server((network.gateway(host), 0)) as listening:
                port = listening.getsockname()[1]
                assert _reaches(network, host, network.gateway(host), port, 30)
                assert network.unplug(host)
                assert not _reaches(network, host, network.gateway(host), port)
                network.mend(host)
                assert network.narrow(host, 256)
                network.mend(host)
                assert _reaches(network, host, network.gateway(host), port, 30)
        with socket.create_server(("127.0.0.1", 0)) as own:
            assert not _reaches(network, HOSTS[0], "127.0.0.1", own.getsockname()[1]), "a loopback of its own"
        with socket.create_server((network.gateway(HOSTS[1]), 0)) as other:
            assert not _reaches(network, HOSTS[0], network.gateway(HOSTS[1]), other.getsockname()[1])


def _reaches(network: Namespaces, host: str, address: str, port: int, patience_seconds: int = 1) -> bool:
    program = f"import socket; socket.create_connection(({address!r}, {port}), timeout={patience_seconds})"
    command = network.inside(host, ["python3", "-c", program])
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.fixture
def place(finished_study: FinishedStudy, tmp_path: Path) -> Place:
    """A finished study in the folders of a chaos run."""
    copied = copy_study(finished_study.prepared, tmp_path / "study")
    shutil.copy(finished_study.keys, copied.workdir.coordinator / "public-keys.json")
    return Place(tmp_path / "study")


def test_an_undisturbed_study_holds(place: Place) -> None:
    assert _verify(place) == Verdict(rounds=2, dead=0, dropped=0, charges=15)


def test_a_vector_that_was_never_charged_is_found(place: Place) -> None:
    drawn = _vector(place, 1)
    shutil.copy(drawn, drawn.with_name(drawn.name[:-4] + "0009"))
    with pytest.raises(AssertionError, match="computed something that was not charged"):
        _verify(place)


def test_noise_that_is_not_what_the_model_holds_is_found(place: Place) -> None:
    drawn = _vector(place, 2)
    stored = drawn.read_bytes()
    values = np.frombuffer(stored, dtype="<i8", offset=64).copy()
    values[0] += 1 << 20
    drawn.write_bytes(stored[:64] + values.tobytes())
    with pytest.raises(AssertionError, match="round 2 does not replay"):
        _verify(place)


def test_evidence_that_does_not_verify_is_found(place: Place) -> None:
    first = next((place.coordinator / "evidence").rglob("opening.json"))
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    with pytest.raises(AssertionError, match="the audit failed"):
        _verify(place)


def _verify(place: Place) -> Verdict:
    return verify_study(place, FolderStore(place.folder / "store"))


def _vector(place: Place, round_: int) -> Path:
    home = next(iter(place.sites().values()))
    (found,) = (path for path in home.rglob("values-*") if path.name.endswith(f"-{round_:04d}"))
    return found


def test_only_a_disk_of_its_own_is_filled(place: Place) -> None:
    (first, *_) = place.sites().values()
    assert fill_disk(first) is None
    assert not (first / "ballast").exists()
