"""An accuracy study on a small generated table: whole runs with encryption, resumed, averaged, judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from infra import datasets_eicu
from infra.studies import command
from infra.studies.command import StudyOptions, parse_epsilons, parse_seeds, run_study
from infra.studies.definitions import STUDIES, StudyDefinition, Target, find_study
from infra.studies.report import build_report, render_table
from infra.studies.results import Run, RunFile
from schemas.errors import OperationError
from schemas.threshold import default_threshold, verify_numbers_fit
from tests.studies.generated import sums_digest, write_eicu

TOY = replace(
    STUDIES["eicu"],
    name="toy",
    rounds=2,
    threshold=default_threshold(4),
    committee=None,
    targets={"3": Target(difference=-1.0, auc=0.0, auc_required=True)},
)
QUIET = Console(quiet=True)


def make_run(**changes: object) -> Run:
    values = {
        "study": "toy",
        "seed": 0,
        "epsilon": "3",
        "delta": "1e-5",
        "recipe": "0" * 64,
        "plan": "1" * 64,
        "sites": 4,
        "auc": 0.8,
        "released": (0.8, 0.7, 0.9),
        "central": 0.81,
        "central_deviation": 0.01,
        "local": 0.7,
        "non_private": 0.85,
        "repeats": 2,
        "spent_training": "3",
        "spent_held_out": "3",
        "encrypted_rounds": 3,
        "fewest_contributions": 4,
        "ceremony_seconds": 1.0,
        "seconds_per_round": 1.0,
    }
    return Run.model_validate(values | changes)


def test_a_study_runs_with_encryption_writes_table_and_plot_and_resumes_without_running_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_eicu(tmp_path / "eicu")
    monkeypatch.setattr(datasets_eicu, "_SUMS_SHA256", sums_digest(folder))
    monkeypatch.setattr(command, "find_study", lambda _: TOY)
    options = StudyOptions("toy", folder, (0,), ("3",), tmp_path / "out", repeats=2, scratch=tmp_path)

    report = run_study(options, QUIET)

    (run,) = RunFile(tmp_path / "out" / "runs.jsonl").read()
    assert (run.encrypted_rounds, run.fewest_contributions, run.sites) == (3, 4, 4)
    assert (run.spent_training, run.spent_held_out) == ("3", "3")
    assert 0 <= run.auc <= 1
    assert report.met
    assert report.rows[0].difference == pytest.approx(run.auc - run.central)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *("runs.jsonl", "report.json", "report.md", "auc.json", "auc.png"),
    }
    assert "Open Database License" in (tmp_path / "out" / "report.md").read_text()
    assert json.loads((tmp_path / "out" / "auc.json").read_text())["encrypted"] == [run.auc]
    assert not list(tmp_path.glob("consilium-study-*"))

    with pytest.raises(OperationError, match="holds runs already"):
        run_study(options, QUIET)
    before = (tmp_path / "out" / "runs.jsonl").read_bytes()
    again = run_study(replace(options, resume=True), QUIET)
    assert again == report
    assert (tmp_path / "out" / "runs.jsonl").read_bytes() == before


def test_runs_of_another_recipe_are_never_averaged(tmp_path: Path) -> None:
    runs = RunFile(tmp_path / "runs.jsonl")
    runs.append(make_run())
    with pytest.raises(OperationError, match="other hyper-parameters") as refused:
        runs.verify_recipe({"3": "f" * 64})
    assert refused.value.code == "other-recipe"
    runs.verify_recipe({"3": "0" * 64})


def test_a_line_that_a_crash_cut_off_is_not_a_finished_run(tmp_path: Path) -> None:
    runs = RunFile(tmp_path / "runs.jsonl")
    runs.append(make_run())
    with runs.path.open("ab") as out:
        out.write(b'{"format":"consilium/study-run/1","study":"to')
    assert [run.seed for run in runs.read()] == [0]
    runs.append(make_run(seed=1))
    assert [run.seed for run in runs.read()] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({}, True),
        ({"auc": 0.69, "central": 0.69}, False),
        ({"central": 0.85}, False),
        ({"encrypted_rounds": 21}, False),
    ],
)
def test_a_required_figure_that_is_missed_fails_the_study(changes: dict[str, object], met: bool) -> None:
    study = replace(TOY, targets={"3": Target(difference=-0.02, auc=0.75, auc_required=True)})
    report = build_report(study, [make_run(seed=0, **changes), make_run(seed=1, **changes)], ["3"])
    assert report.met is met
    assert ("NO" in render_table(report)) is not met


def test_an_auc_that_is_only_aimed_at_does_not_fail_the_study() -> None:
    study = replace(TOY, targets={"3": Target(difference=-0.02, auc=0.99, auc_required=False)})
    assert build_report(study, [make_run()], ["3"]).met


def test_no_run_is_no_success() -> None:
    assert not build_report(TOY, [], ["3"]).met


@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.name)
def test_the_numbers_of_every_study_fit_and_stay_within_twenty_sums(study: StudyDefinition) -> None:
    sites = {"heart": 4, "eicu": 186}[study.name]
    verify_numbers_fit(study.threshold, study.committee or sites, sites)
    assert study.rounds + 1 <= study.most_rounds == 20


def test_at_most_half_of_the_hospitals_are_trusted_in_the_eicu_study() -> None:
    numbers = STUDIES["eicu"].threshold
    assert numbers.colluding_contributors >= 186 / 2
    assert numbers.honest_noise_shares <= numbers.k_min - numbers.colluding_contributors


def test_seeds_and_epsilons_are_read_as_written() -> None:
    assert parse_seeds("0-3") == (0, 1, 2, 3)
    assert parse_seeds("7") == (7,)
    assert parse_epsilons("1, 0.5") == ("1", "0.5")
    for text in ("", "3-1", "a-b", "0-", "1-99999"):
        with pytest.raises(OperationError, match="Expected seeds"):
            parse_seeds(text)
    for text in ("", "0", "1,1", "x"):
        with pytest.raises(OperationError, match="Expected distinct epsilons"):
            parse_epsilons(text)
    with pytest.raises(OperationError, match="Expected one of heart, eicu"):
        find_study("liver")
