from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from infra.processes import WorkdirLock, find_free_port, is_port_free, start_process
from schemas.errors import OperationError
from tests.runtime.waiting import wait_until

HOLD_LOCK = """
import sys, time
from pathlib import Path
from infra.processes import WorkdirLock
with WorkdirLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""

START_CHILD = """
import os, sys, time
from pathlib import Path
from infra.processes import start_process
child = start_process("child", ["sleep", "600"], log=Path(sys.argv[1]), environment=os.environ)
print(child.pid, flush=True)
time.sleep(600)
"""


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{pid}/status").read_text()


def _run(code: str, argument: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", code, str(argument)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_second_demo_on_one_workdir_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    holder, said = _run(HOLD_LOCK, tmp_path)
    try:
        assert said == "held"
        with pytest.raises(OperationError, match=f"in use by process {holder.pid}") as caught, WorkdirLock(tmp_path):
            pass
        assert caught.value.code == "workdir-in-use"
    finally:
        holder.kill()
        holder.wait()
    with WorkdirLock(tmp_path):
        assert (tmp_path / "consilium.lock").read_text().strip() == str(os.getpid())


def test_workdir_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OperationError, match="Expected a folder that can be written") as caught:
        WorkdirLock(tmp_path / "file" / "work").__enter__()
    assert caught.value.code == "workdir-unusable"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_killed_parent_leaves_no_child_behind(tmp_path: Path) -> None:
    parent, child = _run(START_CHILD, tmp_path / "log")
    assert _exists(int(child))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not _exists(int(child)))


def test_child_is_not_started_from_a_thread_whose_end_would_kill_it(tmp_path: Path) -> None:
    caught: list[str] = []

    def start() -> None:
        try:
            start_process("child", ["sleep", "600"], log=tmp_path / "log", environment=os.environ)
        except OperationError as error:
            caught.append(error.code)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert caught == ["not-main-thread"]


def test_child_that_ignores_the_polite_signal_is_killed(tmp_path: Path, stubborn_command: list[str]) -> None:
    child = start_process("stubborn", stubborn_command, log=tmp_path / "log", environment=os.environ)
    wait_until(lambda: "up" in child.log_tail())
    child.stop(grace_seconds=0.1)
    assert child.exit_code == -signal.SIGKILL
    assert not child.is_alive()


def test_missing_program_is_an_operator_error(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="Could not start the reader") as caught:
        start_process("the reader", ["/nonexistent/program"], log=tmp_path / "log", environment={})
    assert caught.value.code == "process-not-started"


def test_port_that_somebody_listens_on_is_not_free() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert not is_port_free(listener.getsockname()[1])
    assert is_port_free(find_free_port())
