"""`consilium ui` where it cannot start; `test_demo` opens it on a whole demo."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from infra.cli import main
from infra.demo.workdir import DemoState, Workdir
from infra.processes import WorkdirLock


def test_a_demo_that_still_runs_is_left_alone_and_its_page_named(tmp_path: Path) -> None:
    running = Workdir(tmp_path)
    running.coordinator.mkdir()
    (running.coordinator / "mlflow.db").touch()
    running.write_state(DemoState(stage="running", data="breast-cancer", study="ab" * 32, prefect_port=4321))
    with WorkdirLock(tmp_path):
        result = CliRunner().invoke(main, ["ui", "--workdir", str(tmp_path), "--no-browser"])
    assert result.exit_code == 14
    assert "Error (workdir-in-use)" in result.stderr
    assert "Watch it at http://127.0.0.1:4321" in result.stderr
    assert not running.logs.exists()
