"""docs/tutorial-your-own-data.md, followed literally on a small generated table."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from infra.cli import main

TEXT = (Path(__file__).parents[2] / "docs" / "tutorial-your-own-data.md").read_text()


def write_stays(path: Path) -> None:
    """Writes a table in the format that the tutorial shows: its header, units, codes and sentinels."""
    header = next(body for kind, _, body in blocks() if kind == "csv").splitlines()[0]
    rng = np.random.default_rng(11)
    lines = [header]
    for number in range(360):
        age, lactate = int(rng.integers(18, 95)), float(rng.exponential(2))
        risk = 1 / (1 + np.exp(-((age - 60) / 12 + lactate - 2)))
        hospital = ["North", "South", "St. Mary's", "7"][number % 4]
        measured = "-1" if rng.random() < 0.1 else f"{lactate:.1f}"
        outcome = "died" if rng.random() < risk else "alive"
        lines.append(
            f"S{number:05d},{hospital},{age},{rng.normal(170, 25):.1f},{rng.integers(1, 3)},{measured},{outcome}"
        )
    path.write_text("\n".join(lines) + "\n")


def blocks() -> list[tuple[str, str, str]]:
    """Returns (kind, file name, content) of every fenced block, in order."""
    return re.findall(r"^```(\w+) ?([^\n]*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_the_tutorial_works_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_stays(tmp_path / "stays.csv")
    printed = {}
    for kind, name, content in blocks():
        if kind == "yaml" and name:
            Path(name).write_text(content)
        if kind != "sh":
            continue
        for line in content.splitlines():
            words = shlex.split(line)
            result = CliRunner().invoke(main, words[1:])
            assert result.exit_code == 0, f"{line}\n{result.output}"
            printed[tuple(words[1:3])] = result.output
    assert "site-7 (" in printed["study", "check"]
    assert "every site's rows pass" in printed["study", "check"]
    assert re.search(r"AUC      0\.\d{3} \(95 % interval", printed["study", "run"])
    assert re.search(r"Audit    \d{2} checks passed, 0 failed", printed["study", "run"])
    # What each hospital holds is the table as it came: only its own mapping makes it the contract's.
    settings = json.loads((tmp_path / "my-run" / "sites" / "st-mary-s" / "config.json").read_text())
    assert Path(settings["mapping"]).read_text() == (tmp_path / "my-study" / "mapping.yaml").read_text()
    published = b"".join(p.read_bytes() for p in (tmp_path / "my-run" / "store").rglob("*") if p.is_file())
    assert b"WEIGHT_LB" not in published
    assert b"S00001" not in published


def test_the_files_that_init_wrote_check_without_being_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_stays(tmp_path / "stays.csv")
    init = next(content for kind, _, content in blocks() if kind == "sh")
    for command in (shlex.split(init)[1:], ["study", "check", "my-study/study.yaml"]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
