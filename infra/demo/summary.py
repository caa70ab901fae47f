"""What a demo says at its end: released figures, and beside them, labelled, those that only a demo can know.

A demo owns every site's folder and may therefore compute the exact held-out AUC. It is printed and written to the
demo's own result file; it never reaches MLflow, the store or the evidence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from infra.demo.workdir import DemoState, Workdir
from schemas.canonical import parse_json
from schemas.errors import OperationError, SiteDataError
from schemas.layout import release_key
from schemas.options import Settings
from schemas.plan import StudyPlan, layer_shapes


class Interval(Settings):
    """A released figure with its 95 % interval."""

    value: float
    low: float
    high: float


class SiteEpsilon(Settings):
    """Cumulative epsilon of one site: if sites collude with the coordinator, for outsiders, if the key breaks."""

    collusion: float
    outsider: float
    fallback: float


class AuditSummary(Settings):
    """How many checks of the audit had which outcome."""

    passed: bool
    checked: int
    failed: int
    not_applicable: int
    failures: tuple[str, ...] = ()


class Transferred(Settings):
    """Bytes of all sites together over the study."""

    up: int
    down: int


class DemoSummary(Settings):
    """The result of a demo; `--json` prints it.

    Attributes:
        participants: Round number to the hospitals in its sum; the last round is the evaluation.
        dropped: Round number to (hospital, reason).
        released_auc: The differentially private evaluation, as everybody may see it.
        exact_auc: Exact held-out AUC of the released model; only a demo can know this.
        central_auc: Exact held-out AUC of central DP training on the pooled rows; only a demo can know this.
        epsilon: Per site for training patients; `evaluation_epsilon` for held-out patients, who are others.
    """

    format: str = "consilium/demo-summary/1"
    study: str
    title: str
    data: str
    attribution: str
    complete: bool
    reason: str
    rounds: int
    participants: dict[str, tuple[str, ...]]
    dropped: dict[str, tuple[tuple[str, str], ...]]
    released_auc: Interval | None
    exact_auc: float | None
    central_auc: float | None
    epsilon: dict[str, SiteEpsilon]
    evaluation_epsilon: dict[str, SiteEpsilon]
    budget_epsilon: float
    delta: float
    transferred: Transferred = Field(serialization_alias="bytes")
    seconds: float
    model_version: str | None
    audit: AuditSummary
    workdir: str
    evidence: str


def build_summary(workdir: Workdir, state: DemoState, plan: StudyPlan, seconds: float) -> DemoSummary:
    """Puts together what the coordinator reported, what a demo can compute, and the audit's verdict.

    Args:
        seconds: Wall-clock time of this demo so far.

    Raises:
        OperationError: `summary-unreadable` if the coordinator's summary is missing or malformed.
    """
    from infra.datasets import attribution

    reported = _read_reported(workdir.coordinator_summary)
    exact, central = _demo_only_figures(workdir, plan)
    try:
        return DemoSummary(
            study=plan.study,
            title=plan.title,
            data=state.data,
            attribution=attribution(state.data),
            complete=reported["complete"],
            reason=reported["reason"],
            rounds=reported["rounds"],
            participants=reported["participants"],
            dropped=reported["dropped"],
            released_auc=_interval(reported["evaluation"]),
            exact_auc=exact,
            central_auc=central,
            epsilon=reported["epsilon"],
            evaluation_epsilon=reported["evaluation_epsilon"],
            budget_epsilon=float(plan.budget.epsilon),
            delta=float(plan.budget.delta),
            transferred=Transferred(up=reported["bytes_up"], down=reported["bytes_down"]),
            seconds=round(seconds, 1),
            model_version=reported["model_version"],
            audit=_audit(workdir),
            workdir=str(workdir.root),
            evidence=str(workdir.evidence),
        )
    except (KeyError, ValueError):
        raise OperationError(
            "summary-unreadable", f"{workdir.coordinator_summary} lacks what the summary needs.", "Report this."
        ) from None


def render_summary(summary: DemoSummary, console: Console) -> None:
    """Prints the summary for people."""
    state = "complete" if summary.complete else f"ended early: {summary.reason}"
    table = Table.grid(padding=(0, 2))
    for name, text in _figures(summary):
        table.add_row(f"[bold]{name}[/bold]", text)
    console.print(Panel(table, title=f"{summary.title} ({state})", title_align="left"))
    console.print(_epsilon_table(summary))
    console.print(_audit_text(summary.audit), highlight=False)
    root = summary.workdir
    console.print("Where to look next:", style="bold")
    console.print(f"  consilium ui --workdir {root}", soft_wrap=True, highlight=False)
    console.print(
        f"  consilium audit verify {summary.evidence} --keys {root}/public-keys.json", soft_wrap=True, highlight=False
    )
    console.print(f"Data: {summary.attribution}", style="dim", highlight=False)


def _figures(summary: DemoSummary) -> list[tuple[str, str]]:
    auc = summary.released_auc
    counts = sorted({len(names) for names in summary.participants.values()})
    missing = sum(len(names) for names in summary.dropped.values())
    sites = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else "no"
    return [
        ("study", f"{summary.study[:16]}…"),
        ("rounds", f"{summary.rounds} of training, {sites} hospitals in every sum, drop-outs: {missing}"),
        (
            "released AUC",
            f"{auc.value:.3f}, 95 % interval {auc.low:.3f} to {auc.high:.3f} (noisy; all that others see)"
            if auc
            else "none",
        ),
        ("exact AUC", f"{_figure(summary.exact_auc)}   only a demo can know this"),
        ("central DP AUC", f"{_figure(summary.central_auc)}   only a demo can know this; rows pooled, one noise"),
        ("epsilon", _epsilon_text(summary)),
        (
            "bytes",
            f"{_size(summary.transferred.up)} up, {_size(summary.transferred.down)} down, all hospitals",
        ),
        ("seconds", f"{summary.seconds:.0f}"),
        ("model", summary.model_version or "none"),
    ]


def _epsilon_text(summary: DemoSummary) -> str:
    collusion = max((e.collusion for e in summary.epsilon.values()), default=0.0)
    outsider = max((e.outsider for e in summary.epsilon.values()), default=0.0)
    return (
        f"{collusion:.3f} of {summary.budget_epsilon:g} under collusion, {outsider:.3f} against outsiders "
        f"(delta {summary.delta:g})"
    )


def _epsilon_table(summary: DemoSummary) -> Table:
    table = Table(title="epsilon per hospital", title_justify="left")
    for heading in (
        "hospital",
        "under collusion",
        "outsiders",
        "if the key breaks",
        "held-out: collusion",
        "outsiders",
    ):
        table.add_column(heading, justify="left" if heading == "hospital" else "right")
    for site, spent in sorted(summary.epsilon.items()):
        held_out = summary.evaluation_epsilon.get(site)
        table.add_row(
            site,
            f"{spent.collusion:.3f}",
            f"{spent.outsider:.3f}",
            f"{spent.fallback:.3f}",
            f"{held_out.collusion:.3f}" if held_out else "–",
            f"{held_out.outsider:.3f}" if held_out else "–",
        )
    return table


def _audit_text(audit: AuditSummary) -> str:
    counts = f"{audit.checked} checked, {audit.failed} failed, {audit.not_applicable} not applicable"
    if audit.passed:
        return f"[bold green]Audit verified[/bold green]: {counts}"
    return f"[bold red]Audit failed[/bold red]: {counts}\n" + "\n".join(f"  {line}" for line in audit.failures)


def _audit(workdir: Workdir) -> AuditSummary:
    from tasks.audit.keys import read_public_keys
    from tasks.audit.verify import verify_evidence

    report = verify_evidence(workdir.evidence, read_public_keys(workdir.public_keys))
    return AuditSummary(
        passed=report.passed,
        checked=report.count("checked"),
        failed=report.count("failed"),
        not_applicable=report.count("not-applicable"),
        failures=tuple(f"{r.check} {r.title}: {r.detail}" for r in report.results if r.status == "failed"),
    )


def _demo_only_figures(workdir: Workdir, plan: StudyPlan) -> tuple[float | None, float | None]:
    """Returns the exact AUC and that of central training; None where a table was broken meanwhile."""
    weights_file = workdir.store / release_key(plan.study, "weights.safetensors")
    if not weights_file.exists():
        return None, None
    import numpy as np
    from safetensors.numpy import load

    from infra.datasets import central_dp_auc, exact_held_out_auc, read_cohorts

    tensors = load(weights_file.read_bytes())
    flat = np.concatenate([tensors[name].astype(np.float64).ravel() for name, _ in layer_shapes(plan)])
    paths = {site.name: workdir.site(site.name) / "cohort.parquet" for site in plan.sites}
    try:
        cohorts = read_cohorts(plan.contract, paths)
    except SiteDataError:  # its site has refused by name, and the study was released without it
        return None, None
    return round(exact_held_out_auc(plan, cohorts, flat), 6), round(central_dp_auc(plan, cohorts), 6)


def _read_reported(path: Path) -> dict[str, Any]:
    try:
        reported = parse_json(path.read_bytes(), path.name)
    except OSError:
        reported = None
    if not isinstance(reported, dict):
        raise OperationError("summary-unreadable", f"Expected the coordinator's summary in {path}.", "Resume the demo.")
    return reported


def _interval(evaluation: dict[str, float] | None) -> Interval | None:
    if not evaluation:
        return None
    return Interval(value=evaluation["auc"], low=evaluation["low"], high=evaluation["high"])


def _figure(value: float | None) -> str:
    return "none " if value is None else f"{value:.4f}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1_000_000 else f"{size_bytes / 1e3:.1f} kB"
