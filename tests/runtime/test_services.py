"""`consilium coordinator up`: PostgreSQL, Prefect and MLflow with artifacts in a bucket, by the command people type."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.cli import main
from infra.processes import find_free_port
from infra.services import is_answering
from infra.settings import load_settings
from infra.status import coordinator_status
from schemas.options import CoordinatorSettings
from tasks.tracking.target import TrackingTarget, connect
from tests.storage.s3_servers import running_moto, write_credentials

pytestmark = pytest.mark.long


def test_the_coordinators_servers_start_keep_artifacts_in_the_bucket_and_end_together(tmp_path: Path) -> None:
    home, ports = tmp_path / "coordinator", [str(find_free_port()), str(find_free_port())]
    with running_moto(tmp_path) as server:
        server.client.create_bucket(Bucket="study")
        keys = write_credentials(tmp_path, "coordinator", "swordfish")
        asked = ["--store", "s3://study/one", "--credentials", str(keys), "--endpoint", str(server.settings.endpoint)]
        asked += ["--prefect-port", ports[0], "--mlflow-port", ports[1]]
        made = CliRunner().invoke(main, ["coordinator", "init", "--home", str(home), *asked])
        assert made.exit_code == 0, made.output
        command = [sys.executable, "-P", "-m", "infra.cli", "coordinator", "up", "--home", str(home)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            _wait(process, f"http://127.0.0.1:{ports[1]}/health")
            _wait(process, f"http://127.0.0.1:{ports[0]}/api/health")
            status = coordinator_status(home)
            assert (status["prefect"], status["mlflow"], status["study"]) == ("answers", "answers", None)
            client = connect(TrackingTarget(load_settings(CoordinatorSettings, home / "config.json").mlflow_uri))
            run = client.create_run(client.create_experiment("one"))
            client.log_text(run.info.run_id, "kept", "note.txt")
            names = [item["Key"] for item in server.client.list_objects_v2(Bucket="study")["Contents"]]
            assert [name for name in names if name.endswith("note.txt")]
            assert [name for name in names if not name.startswith("one/coordinator/probe/")] == [
                name for name in names if name.startswith("one/mlflow/")
            ]
            refused = CliRunner().invoke(main, ["coordinator", "up", "--home", str(home)])
            assert "Error (workdir-in-use): This home's servers run already." in refused.output
            assert f"is in use by process {process.pid}." in refused.output
            database = _child(process.pid, b"postgres")
            for word, url in ((b"mlflow", f"{ports[1]}/health"), (b"prefect", f"{ports[0]}/api/health")):
                os.kill(_child(process.pid, word), signal.SIGKILL)
                while _child(process.pid, word) == 0:
                    assert process.poll() is None
                    time.sleep(0.1)
                _wait(process, f"http://127.0.0.1:{url}")
            assert _child(process.pid, b"postgres") == database, "the database of both went on"
            assert client.get_run(run.info.run_id).info.status == "RUNNING"
            arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            assert b"swordfish" not in arguments
        finally:
            process.send_signal(signal.SIGTERM)
            output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        # Root's database belongs to another account, which cannot pass this folder.
        assert ("The database is not in the home but in " in errors) == (os.geteuid() == 0)
        assert output.endswith("Stopped.\n")
        assert not is_answering(f"http://127.0.0.1:{ports[0]}/api/health")
        assert not is_answering(f"http://127.0.0.1:{ports[1]}/health")
    written = "".join(path.read_text(errors="replace") for path in (home / "services").glob("*.log"))
    assert "swordfish" not in written + output + errors
    assert "swordfish" not in json.dumps(json.loads((home / "config.json").read_text()))


def _child(parent: int, word: bytes) -> int:
    """Returns the living child of `parent` whose command has `word` in its first words; 0 if there is none."""
    for path in Path("/proc").iterdir():
        try:
            state, owner = (path / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (path / "cmdline").read_bytes().split(b"--host")[0]
        except (OSError, ValueError):
            continue
        if int(owner) == parent and word in command and state != "Z":
            return int(path.name)
    return 0


def _wait(process: subprocess.Popen[str], url: str) -> None:
    deadline = time.monotonic() + 240
    while not is_answering(url):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, url
        time.sleep(0.5)
