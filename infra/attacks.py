"""Runs the attack evaluation for the command line: reads plan and public table, keeps and logs the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from infra.commands.base import existing
from schemas.errors import OperationError
from schemas.plan import StudyPlan

if TYPE_CHECKING:
    from tasks.attacks.figures import AttackReport, RateFigure, ReleasedMembership
    from tasks.contract.encoder import Cohort

REPORT = "attacks.json"
EMBEDDED = "breast-cancer"


def run_attacks(
    plan_file: Path | None, home: Path | None, data: str, models: int, progress: Callable[[str], None]
) -> AttackReport:
    """Attacks the plan of a file, or of a coordinator's home, whose MLflow study then shows the figures.

    Raises:
        OperationError: `not-found`, `attack-too-small`, `attack-data`, and as the home's files are read.
        SiteDataError: the table is not what the contract says.
    """
    from tasks.attacks.report import evaluate_attacks

    plan = _plan_of(plan_file, home)
    report = evaluate_attacks(plan, _read_public(plan, data), _describe(data), models, progress)
    if home is not None:
        _keep(home, plan, report)
    return report


def render_attacks(report: AttackReport) -> str:
    """Returns the figures in words, with what they may be compared with."""
    found = report.figures
    lines = [f"Attacks on study {report.study[:12]}: {report.patients} patients of {report.source}", ""]
    if "membership_auc" in found:
        lines.append(
            f"Membership   AUC {found['membership_auc']:.3f} (no noise: {found['membership_auc_unprotected']:.3f})"
        )
        for rate, words in (("0_1pct", "0.1 %"), ("1pct", "1 %")):
            at = f"membership_tpr_at_fpr_{rate}"
            lines.append(
                f"             true positives at {words} false: {found[at]:.4f} [{found[f'{at}_low']:.4f}, "
                f"{found[f'{at}_high']:.4f}], no noise {found[f'{at}_unprotected']:.4f}; epsilon allows at most "
                f"{found[f'{at}_bound']:.4f}"
            )
    if "property_protected" in found:
        lines.append(
            f"Property     {found['property_protected']:.2f} right about a site's share of positive patients "
            f"(no noise: {found['property_unprotected']:.2f}, guessing: 0.50); epsilon per patient gives no bound"
        )
    if "inversion_protected" in found:
        bare, guess = found["inversion_unprotected"], found["inversion_guess"]
        lines.append(
            f"Inversion    mean error per feature {found['inversion_protected']:.2f} from what is sent, with its "
            f"encryption broken (bare gradient: {bare:.2g}, answering the mean: {guess:.2f})"
        )
    if "canary_measured_mu" in found:
        lines.append(
            f"Canary       at least mu {found['canary_measured_mu']:.3f}, claimed {found['canary_claimed_mu']:.3f}"
        )
    lines += [f"Not run      {name}: {reason}" for name, reason in report.not_run.items()]
    return "\n".join(lines)


def render_released(found: ReleasedMembership) -> str:
    """Returns the table for a site's data steward; it holds exact figures and must not leave."""
    value, low, high = found.auc
    lines = [
        f"Membership in the released model of study {found.study[:12]}, {found.site}",
        f"{found.members} training patients (in {found.rounds_in} of {found.rounds} rounds) against {found.others} "
        f"held out; epsilon {found.epsilon:g}, delta {found.delta:g}",
        "",
        "                              measured   95 % interval      epsilon allows   (an area of 0.5 is blind)",
        f"area under the ROC            {value:8.4f}   {low:.4f} - {high:.4f}   {found.auc_bound:8.4f}",
        *(_rate_line(rate) for rate in found.rates),
        "",
    ]
    if any(rate.above_bound for rate in found.rates):
        lines.append("ABOVE what epsilon allows: chance does it rarely. Tell the hospital's privacy officer.")
    lines += ["STAYS IN THIS HOSPITAL.", found.notice]
    return "\n".join(lines)


def _rate_line(rate: RateFigure) -> str:
    name = f"true positives at {rate.allowed * 100:g} % false"
    if rate.tpr is None:
        return f"{name:29} not measured ({rate.not_measured})"
    value, low, high = rate.tpr
    return f"{name:29} {value:8.4f}   {low:.4f} - {high:.4f}   {rate.bound:8.4f}{'   ABOVE' * rate.above_bound}"


def _plan_of(plan_file: Path | None, home: Path | None) -> StudyPlan:
    if plan_file is not None:
        from infra.plans import read_plan

        return read_plan(plan_file)
    from infra.evidence import open_published_study

    assert home is not None
    return open_published_study(existing(home)).plan


def _read_public(plan: StudyPlan, data: str) -> Cohort:
    from infra.datasets import load_site_tables, read_cohorts
    from tasks.contract.encoder import pool_cohorts

    if data != EMBEDDED:
        path = existing(Path(data))
        return pool_cohorts(read_cohorts(plan.contract, {"public": path}))
    from infra.datasets import contract_for
    from infra.datasets_tables import write_site_tables

    if contract_for(EMBEDDED) != plan.contract:
        raise OperationError(
            "attack-data", f"The plan's contract is not that of {EMBEDDED}.", "Name a public table in its form."
        )
    with TemporaryDirectory() as folder:
        paths = write_site_tables(load_site_tables(EMBEDDED, 4, None), lambda site: _made(Path(folder) / site))
        return pool_cohorts(read_cohorts(plan.contract, paths))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _describe(data: str) -> str:
    return "scikit-learn's breast-cancer table" if data == EMBEDDED else f"the public table {Path(data).name}"


def _keep(home: Path, plan: StudyPlan, report: AttackReport) -> None:
    from infra.evidence import open_published_study
    from tasks.tracking.attacks import record_attacks
    from tasks.tracking.target import TrackingTarget

    settings = open_published_study(home).settings
    folder = home if (home / "config.json").is_file() else home / "coordinator"
    data = report.model_dump_json(indent=2).encode()
    temporary = folder / f"{REPORT}.part"
    temporary.write_bytes(data)
    temporary.replace(folder / REPORT)
    try:
        record_attacks(TrackingTarget(settings.mlflow_uri, settings.artifacts), plan, report.figures, data)
    except OperationError as error:
        # The study's own release logs it.
        if error.code != "study-not-tracked":
            raise
