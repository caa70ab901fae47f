"""A workdir in any state but the right one is refused in one sentence with the remedy, and left as it was."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.demo.options import DemoOptions
from infra.demo.workdir import SOFTWARE, DemoState, Workdir, open_workdir
from infra.processes import WorkdirLock
from schemas.errors import OperationError


def state(stage: str, **fields: object) -> DemoState:
    return DemoState.model_validate(
        {"stage": stage, "data": "breast-cancer", "rounds": 10, "study": "a" * 64, **fields}
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "study"


def write(root: Path, value: DemoState) -> None:
    root.mkdir()
    Workdir(root).write_state(value)


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != "consilium.lock"}


def refused(root: Path, code: str, said: str, **options: object) -> None:
    before = snapshot(root)
    with pytest.raises(OperationError, match=said) as caught, open_workdir(DemoOptions(workdir=root, **options)):  # type: ignore[arg-type]
        pytest.fail("the workdir was opened")
    assert caught.value.code == code
    assert caught.value.remedy
    assert snapshot(root) == before


def test_a_new_folder_is_private_and_to_be_prepared(root: Path) -> None:
    with open_workdir(DemoOptions(workdir=root)) as (workdir, before):
        assert before is None
        assert workdir.root == root
        assert root.stat().st_mode & 0o777 == 0o700


def test_an_unfinished_demo_asks_for_resume(root: Path) -> None:
    write(root, state("running"))
    refused(root, "workdir-unfinished", "--resume")


def test_an_unfinished_demo_is_resumed_with_its_options(root: Path) -> None:
    write(root, state("running", epsilon="3"))
    with open_workdir(DemoOptions(workdir=root, resume=True, rounds=10, epsilon="3")) as (_, before):
        assert before is not None
        assert before.study == "a" * 64


def test_a_resumed_study_keeps_what_was_signed(root: Path) -> None:
    write(root, state("running"))
    refused(root, "resume-options", "another --rounds", resume=True, rounds=20)


def test_a_finished_demo_is_not_run_again(root: Path) -> None:
    write(root, state("finished"))
    refused(root, "workdir-finished", "consilium ui")
    refused(root, "workdir-finished", "consilium ui", resume=True)


def test_nothing_to_resume_is_said(root: Path) -> None:
    refused(root, "nothing-to-resume", "Leave --resume out", resume=True)
    assert not root.exists()


def test_a_folder_with_something_else_is_never_written_to(root: Path) -> None:
    root.mkdir()
    (root / "thesis.tex").write_text("mine")
    refused(root, "workdir-foreign", "something else than a demo")
    assert [p.name for p in root.iterdir()] == ["thesis.tex"]


def test_a_workdir_of_another_version_is_refused(root: Path) -> None:
    root.mkdir()
    old = json.loads(state("running").model_dump_json()) | {"software": "consilium 0.0.9", "extra": 1}
    (root / "demo.json").write_text(json.dumps(old))
    refused(root, "workdir-version", f"made by consilium 0.0.9, and this is {SOFTWARE}", resume=True)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"software": "consilium 0.1.0", "format": "consilium/demo/1"}'])
def test_a_damaged_state_is_refused(root: Path, content: str) -> None:
    root.mkdir()
    (root / "demo.json").write_text(content)
    refused(root, "workdir-unreadable" if content != "[]" else "workdir-version", "--workdir", resume=True)


@pytest.mark.parametrize("options", [{"resume": True}, {"rounds": 3}])
def test_an_interrupted_preparation_is_thrown_away(root: Path, options: dict[str, Any]) -> None:
    write(root, state("preparing"))
    (root / "coordinator").mkdir()
    (root / "coordinator" / "identity.json").write_text("{}")
    (root / "notes.txt").write_text("mine")
    with open_workdir(DemoOptions(workdir=root, **options)) as (workdir, before):
        assert before is None
        assert not workdir.coordinator.exists()
        assert (root / "notes.txt").read_text() == "mine"


def test_two_demos_cannot_share_a_workdir(root: Path) -> None:
    write(root, state("running"))
    code = (
        "import sys, pathlib\nfrom infra.processes import WorkdirLock\n"
        "with WorkdirLock(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        refused(root, "workdir-in-use", f"in use by process {holder.pid}", resume=True)
        holder.kill()
    with WorkdirLock(root):  # the lock died with its holder
        pass


def test_no_space_for_the_store_is_said_before_anything_is_made(root: Path) -> None:
    refused(root, "store-full", "free space for the store", required_bytes=1 << 62)
    assert [p.name for p in root.iterdir()] == ["consilium.lock"]


def test_a_workdir_under_a_file_is_refused(root: Path) -> None:
    root.write_text("a file")
    with pytest.raises(OperationError, match="--workdir") as caught, open_workdir(DemoOptions(workdir=root / "below")):
        pytest.fail("the workdir was opened")
    assert caught.value.code == "workdir-unusable"
    assert os.fspath(root) in caught.value.message
