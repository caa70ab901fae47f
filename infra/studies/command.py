"""`consilium study run`: every (seed, epsilon) that is not finished, then the table, the plot and the verdict."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from infra.studies.definitions import StudyDefinition, find_study
from infra.studies.report import Report, build_report, write_report
from infra.studies.results import RUNS, Run, RunFile
from schemas.errors import OperationError

FAILED_EXIT_CODE = 1


@dataclass(frozen=True)
class StudyOptions:
    """Options of `consilium study run`.

    Attributes:
        data_dir: Folder with the original files.
        seeds: Public splits.
        epsilons: Budgets, as they will stand in the plans.
        out: Where runs, table and plot go.
        resume: Go on in a folder that holds runs.
        repeats: Noise draws of each reference.
        scratch: Where the parties' homes live during a run; memory where there is some.
    """

    name: str
    data_dir: Path | None
    seeds: tuple[int, ...]
    epsilons: tuple[str, ...]
    out: Path
    resume: bool = False
    repeats: int = 20
    scratch: Path | None = None


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parses ``7`` or ``0-19`` (both ends included).

    Raises:
        OperationError: `seeds`.
    """
    found = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", text)
    if found:
        first, last = int(found[1]), int(found[2] or found[1])
        if first <= last:
            return tuple(range(first, last + 1))
    raise OperationError("seeds", "Expected seeds like 0-19 or 7.", "Correct --seeds.")


def parse_epsilons(text: str) -> tuple[str, ...]:
    """Parses ``1,3``: distinct positive decimal numbers.

    Raises:
        OperationError: `epsilons`.
    """
    parts = tuple(part.strip() for part in text.split(","))
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if not values or len(set(values)) != len(values) or not all(0 < value <= 100 for value in values):
        raise OperationError("epsilons", "Expected distinct epsilons like 1,3.", "Correct --epsilon.")
    return parts


def run_study(options: StudyOptions, console: Console) -> Report:
    """Makes every run that is missing and writes the report; a crash loses at most the run it interrupts.

    Raises:
        OperationError: `runs-exist`, `other-recipe`, `out-unwritable`, and those of loading the data.
    """
    from infra.studies.running import derive_recipe

    study = find_study(options.name)
    runs = _open_runs(options)
    runs.verify_recipe({epsilon: derive_recipe(study, epsilon) for epsilon in options.epsilons})
    finished = {(run.seed, run.epsilon) for run in runs.read()}
    asked = [(seed, epsilon) for seed in options.seeds for epsilon in options.epsilons]
    missing = [pair for pair in asked if pair not in finished]
    console.print(f"{study.title} {len(missing)} of {len(asked)} runs to make.", highlight=False)
    _make_runs(study, options, missing, runs, console)
    report = build_report(
        study, [run for run in runs.read() if (run.seed, run.epsilon) in set(asked)], options.epsilons
    )
    write_report(report, options.out)
    return report


def _make_runs(
    study: StudyDefinition,
    options: StudyOptions,
    missing: Sequence[tuple[int, str]],
    runs: RunFile,
    console: Console,
) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from infra.studies.running import run_once

    scratch = options.scratch or _default_scratch()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(study.name, total=len(missing))
        for seed, epsilon in missing:

            def say(step: str, seed: int = seed, epsilon: str = epsilon) -> None:
                progress.update(task, description=f"seed {seed}, epsilon {epsilon}: {escape(step)}")

            run = run_once(study, options.data_dir, seed, epsilon, options.repeats, scratch, say)
            runs.append(run)
            progress.advance(task)
            console.print(_describe(run), highlight=False, soft_wrap=True)


def _describe(run: Run) -> str:
    return (
        f"seed {run.seed}, epsilon {run.epsilon}: AUC {run.auc:.4f} (central {run.central:.4f}, local noise "
        f"{run.local:.4f}, non-private {run.non_private:.4f}), {run.seconds_per_round:.2f} s a round"
    )


def _open_runs(options: StudyOptions) -> RunFile:
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OperationError(
            "out-unwritable", f"{options.out} cannot be made: {error.strerror}.", "Name another --out."
        ) from None
    runs = RunFile(options.out / RUNS)
    if runs.path.exists() and not options.resume:
        raise OperationError(
            "runs-exist", f"{options.out} holds runs already.", "Add --resume to continue them, or name another --out."
        )
    return runs


def _default_scratch() -> Path:
    # Homes with epoch secrets: in memory where the machine has some, so that no backup holds them.
    memory = Path("/dev/shm")  # noqa: S108
    return memory if memory.is_dir() else Path(tempfile.gettempdir())
