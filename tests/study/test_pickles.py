"""No pickle is ever loaded: not from any place in the store, and by no line of the program."""

from __future__ import annotations

import ast
import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.errors import ConsiliumError
from tasks.audit.export import export_evidence
from tasks.audit.keys import read_public_keys
from tasks.audit.verify import verify_evidence
from tests.conftest import FinishedStudy
from tests.simulator import Prepared, copy_study, open_consortium

ROOT = Path(__file__).parents[2]
# What loads code with data. torch.load is one even with weights_only, whose rules change between versions.
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# Found wrong by a check, and still read by somebody else later: one of each for a quick look.
QUICK = ("plan", "instruction", "weights")


@pytest.fixture(autouse=True)
def without_opacus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audits as where Opacus is not installed: it computes from numbers, reads no object, and loads torch each time."""
    monkeypatch.setattr("tasks.privacy.recompute.run_opacus_in_subprocess", lambda events, delta: None)


class Bomb:
    """Leaves a file behind in whoever unpickles it."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self._marker,)


def bombs(marker: Path) -> dict[str, bytes]:
    """Returns a plain pickle and what ``torch.save`` makes of it."""
    import torch

    saved = io.BytesIO()
    torch.save({"weights": Bomb(marker)}, saved)
    return {"pickle": pickle.dumps(Bomb(marker)), "torch": saved.getvalue()}


def kinds(store: Path) -> dict[str, Path]:
    """Returns one object of every kind that the store holds: names differ in sites, numbers and digests only."""
    found: dict[str, Path] = {}
    for path in sorted(store.rglob("*")):
        if path.is_file():
            name = re.sub(r"hospital-\d+", "SITE", path.relative_to(store).as_posix())
            found.setdefault(re.sub(r"[0-9a-f]{16,}|\d+", "N", name), path)
    return found


def read_everything(prepared: Prepared, folder: Path) -> list[str]:
    """Lets everybody read the store as after a restart and audits it; returns who refused, and why."""
    refused = []

    def restart() -> None:
        consortium = open_consortium(prepared)
        public = consortium.finished_ceremony()
        for round_ in range(1, prepared.plan.mechanism.rounds + 1):
            consortium.run_round(public, round_)

    def audit() -> None:
        consortium = open_consortium(prepared)
        evidence = export_evidence(
            consortium.coordinator.store, prepared.plan, folder, consortium.coordinator.identity.signing
        )
        report = verify_evidence(evidence, read_public_keys(prepared.keys))
        refused.extend(result.check for result in report.results if result.status == "failed")

    for action in (restart, audit):
        try:
            action()
        except ConsiliumError as error:
            refused.append(error.code)
    return refused


def plant_everywhere(prepared: Prepared, tmp_path: Path, wanted: tuple[str, ...] | None) -> None:
    marker = tmp_path / "exploded"
    places = kinds(prepared.workdir.store)
    assert len(places) > 15, sorted(places)
    bomb_of = bombs(marker)
    pickle.loads(bomb_of["pickle"])
    assert marker.exists(), "the bomb does not work"
    marker.unlink()
    chosen = {
        kind: path for kind, path in places.items() if wanted is None or any(word in path.name for word in wanted)
    }
    assert len(chosen) >= 3
    # A finished study that is run again by force is refused, whatever lies in the store; its evidence stays as it was.
    without = set(read_everything(prepared, tmp_path / "evidence"))
    assert without == {"study-released"}
    believed = []
    for number, (kind, path) in enumerate(chosen.items()):
        before = path.read_bytes()
        path.chmod(0o600)
        for name, bomb in bomb_of.items():
            path.write_bytes(bomb)
            refused = read_everything(prepared, tmp_path / f"evidence-{number}-{name}")
            assert not marker.exists(), f"{kind}: {name} was loaded"
            if not set(refused) - without:
                believed.append(f"{kind}: {name}")
        path.write_bytes(before)
    assert believed == []


def test_a_pickle_in_place_of_plan_instruction_or_weights_is_refused_and_never_loaded(
    finished_study: FinishedStudy, tmp_path: Path
) -> None:
    plant_everywhere(copy_study(finished_study.prepared, tmp_path / "study"), tmp_path, QUICK)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_pickle_in_place_of_any_object_of_the_store_is_refused_and_never_loaded(
    finished_study: FinishedStudy, tmp_path: Path
) -> None:
    plant_everywhere(copy_study(finished_study.prepared, tmp_path / "study"), tmp_path, None)


def test_no_line_of_the_program_can_load_a_pickle() -> None:
    found = []
    for folder in ("schemas", "tasks", "site_agents", "flows", "infra"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text())
            found += [f"{path.relative_to(ROOT)}:{line} {what}" for line, what in unpickling(tree)]
    assert found == []


def test_the_look_at_the_program_sees_every_way() -> None:
    for line in (
        "import pickle",
        "from dill import loads",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "pandas.read_pickle(path)",
        "import shelve",
    ):
        assert unpickling(ast.parse(line)), line
    assert unpickling(ast.parse("import json\nnp.load(path, allow_pickle=False)")) == []


def unpickling(tree: ast.AST) -> list[tuple[int, str]]:
    """Lists where a module imports or calls something that unpickles."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").split(".")[0]]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("torch.load", "torch.jit.load") or called.endswith((".read_pickle", ".loads_pickle")):
                found.append((node.lineno, called))
            found += [
                (node.lineno, f"{called} with pickles")
                for word in node.keywords
                if word.arg == "allow_pickle" and not (isinstance(word.value, ast.Constant) and not word.value.value)
            ]
        found += [(getattr(node, "lineno", 0), name) for name in names if name in UNPICKLERS]
    return found
