"""The verdict of a study: means over seeds, held against the targets; table, figures as JSON, and a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

from infra.datasets import attribution
from infra.studies.definitions import StudyDefinition
from infra.studies.results import Run, of_epsilon
from schemas.options import Settings

REFERENCES = ("central", "local", "non_private")


class Row(Settings):
    """Means over the seeds of one epsilon.

    Attributes:
        error: Standard error of the mean AUC; of `difference`: `difference_error`.
        difference: Mean paired difference to central DP on the same splits.
        difference_target, auc_target: None where the study names none for this epsilon.
        met: Whether every required figure is reached.
    """

    epsilon: str
    runs: int
    auc: float
    error: float
    central: float
    local: float
    non_private: float
    released: float
    difference: float
    difference_error: float
    difference_target: float | None
    auc_target: float | None
    auc_required: bool
    met: bool
    encrypted_rounds: int
    most_rounds: int
    fewest_contributions: int
    spent_training: str
    spent_held_out: str
    seconds_per_round: float


class Report(Settings):
    """What is published of a study."""

    format: Literal["consilium/study-report/1"] = "consilium/study-report/1"
    study: str
    title: str
    sites: int
    delta: str
    threshold: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    attribution: str

    @property
    def met(self) -> bool:
        """Whether there is a figure for every epsilon and each reaches what is required."""
        return bool(self.rows) and all(row.met for row in self.rows)


def build_report(study: StudyDefinition, runs: Sequence[Run], epsilons: Sequence[str]) -> Report:
    """Averages finished runs; an epsilon without runs has no row."""
    from schemas.threshold import describe

    rows = tuple(_row(study, epsilon, of_epsilon(runs, epsilon)) for epsilon in epsilons if of_epsilon(runs, epsilon))
    return Report(
        study=study.name,
        title=study.title,
        sites=max((run.sites for run in runs), default=0),
        delta=study.delta,
        threshold=describe(study.threshold),
        seeds=tuple(sorted({run.seed for run in runs})),
        rows=rows,
        attribution=attribution(study.data),
    )


def write_report(report: Report, out: Path) -> None:
    """Writes ``report.json``, ``report.md`` and, if there is a row, ``auc.png`` with its figures in ``auc.json``."""
    (out / "report.json").write_text(report.model_dump_json(indent=2) + "\n")
    (out / "report.md").write_text(render_table(report))
    if report.rows:
        series = plot_series(report)
        (out / "auc.json").write_text(json.dumps(series, indent=2) + "\n")
        _plot(report, series, out / "auc.png")


def render_table(report: Report) -> str:
    """Returns the report as Markdown."""
    head = "| ε | runs | encrypted | central DP | local noise | non-private | difference to central | required | met |"
    lines = [
        f"# {report.title}",
        "",
        f"{report.sites} sites, δ = {report.delta}, {report.threshold}; exact AUC over the held-out patients, mean "
        f"over {len(report.seeds)} public splits ± standard error; encryption, ledgers and key ceremony are real.",
        "",
        head,
        "|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in report.rows),
        "",
        *(_notes(row) for row in report.rows),
        "",
        f"Data: {report.attribution}.",
    ]
    return "\n".join(lines) + "\n"


def plot_series(report: Report) -> dict[str, object]:
    """Returns the plotted figures as plain JSON values."""
    rows = report.rows
    return {
        "epsilon": [row.epsilon for row in rows],
        "encrypted": [row.auc for row in rows],
        "encrypted_error": [row.error for row in rows],
        **{name: [getattr(row, name) for row in rows] for name in REFERENCES},
        "attribution": report.attribution,
    }


def _row(study: StudyDefinition, epsilon: str, runs: Sequence[Run]) -> Row:
    target = study.targets.get(epsilon)
    auc, difference = fmean(run.auc for run in runs), fmean(run.difference for run in runs)
    rounds = max(run.encrypted_rounds for run in runs)
    met = rounds <= study.most_rounds
    if target is not None:
        met = met and difference >= target.difference and (auc >= target.auc or not target.auc_required)
    return Row(
        epsilon=epsilon,
        runs=len(runs),
        auc=auc,
        error=_standard_error([run.auc for run in runs]),
        central=fmean(run.central for run in runs),
        local=fmean(run.local for run in runs),
        non_private=fmean(run.non_private for run in runs),
        released=fmean(run.released[0] for run in runs),
        difference=difference,
        difference_error=_standard_error([run.difference for run in runs]),
        difference_target=target.difference if target else None,
        auc_target=target.auc if target else None,
        auc_required=bool(target and target.auc_required),
        met=met,
        encrypted_rounds=rounds,
        most_rounds=study.most_rounds,
        fewest_contributions=min(run.fewest_contributions for run in runs),
        spent_training=max((run.spent_training for run in runs), key=float),
        spent_held_out=max((run.spent_held_out for run in runs), key=float),
        seconds_per_round=fmean(run.seconds_per_round for run in runs),
    )


def _standard_error(values: Sequence[float]) -> float:
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _line(row: Row) -> str:
    required = "none"
    if row.difference_target is not None and row.auc_target is not None:
        word = "AUC ≥" if row.auc_required else "aiming at AUC"
        required = f"≥ {row.difference_target:+.3f}, {word} {row.auc_target:.3f}"
    return (
        f"| {row.epsilon} | {row.runs} | {row.auc:.4f} ± {row.error:.4f} | {row.central:.4f} | {row.local:.4f} "
        f"| {row.non_private:.4f} | {row.difference:+.4f} ± {row.difference_error:.4f} | {required} "
        f"| {'yes' if row.met else 'NO'} |"
    )


def _notes(row: Row) -> str:
    return (
        f"- ε = {row.epsilon}: {row.encrypted_rounds} encrypted sums (at most {row.most_rounds}), evaluation included; "
        f"at least {row.fewest_contributions} sites in each; charged ε {row.spent_training} for training patients and "
        f"{row.spent_held_out} for held-out patients; AUC from the released noisy histogram {row.released:.3f}; "
        f"{row.seconds_per_round:.1f} s a sum for all sites in one process."
    )


def _plot(report: Report, series: dict[str, object], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    x = [float(row.epsilon) for row in report.rows]
    figure, axes = plt.subplots(figsize=(6.4, 4.2), dpi=150)
    axes.errorbar(x, series["encrypted"], yerr=series["encrypted_error"], marker="o", capsize=3, label="encrypted")
    for name, style, label in (
        ("central", "--", "central DP"),
        ("local", ":", "full noise at every site"),
        ("non_private", "-.", "not private"),
    ):
        axes.plot(x, series[name], style, marker=".", color="0.4", label=label)
    axes.set_xscale("log")
    axes.set_xticks(x, [row.epsilon for row in report.rows])
    axes.minorticks_off()
    axes.set_xlabel(f"ε (δ = {report.delta}), per patient, over the whole study")
    axes.set_ylabel("exact held-out AUC")
    axes.set_title(f"{report.title} {report.sites} sites, {len(report.seeds)} splits", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.text(0.01, 0.01, _wrap(f"Data: {report.attribution}"), fontsize=5, va="bottom")
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(path)
    plt.close(figure)


def _wrap(text: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, 150))
