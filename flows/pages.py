"""What a person reads in Prefect's pages: a summary of each round and of the study, from released figures only.

Everything shown passed the allow-list of `tasks.tracking` first. The pages are a view: one that cannot be written is
logged and stops nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import FlowRunContext, TaskRunContext
from prefect.utilities.urls import url_for

from schemas.plan import StudyPlan
from tasks.tracking.names import round_name, study_name
from tasks.tracking.rounds import RoundFacts
from tasks.tracking.study import describe_plan

_log = logging.getLogger("consilium.coordinator")


def study_tag(study: str) -> str:
    """Returns the tag of every flow run that belongs to a study, here and at its sites."""
    return f"study:{study[:12]}"


def current_run_url() -> str:
    """Returns the address of the present flow run's page; empty where there is none or it would hold a password."""
    run = FlowRunContext.get()
    if run is None or run.flow_run is None:
        return ""
    address = url_for("flow-run", obj_id=run.flow_run.id) or ""
    return "" if urlsplit(address).username else address


async def show_round(plan: StudyPlan, facts: RoundFacts, codes: Mapping[str, str]) -> None:
    """Adds the round's summary to the present flow run's page.

    Args:
        codes: Site that refused -> the code it gave.
    """
    run, task = FlowRunContext.get(), TaskRunContext.get()
    if run is None or run.flow_run is None:
        return
    await _write(
        None,
        ArtifactCreate(
            key=f"rounds-{plan.study[:12]}",
            type="markdown",
            description=f"{round_name(facts.kind, facts.round)}: {_headline(plan, facts)}",
            data=describe_round(plan, facts, codes),
            flow_run_id=run.flow_run.id,
            task_run_id=task.task_run.id if task is not None else None,
        ),
    )
    await _write(
        None,
        ArtifactCreate(
            key=f"sites-{plan.study[:12]}",
            type="table",
            description=f"Sites in {round_name(facts.kind, facts.round)}",
            data=json.dumps(tabulate_sites(plan, facts, codes), ensure_ascii=False),
            flow_run_id=run.flow_run.id,
            task_run_id=task.task_run.id if task is not None else None,
        ),
    )


def tabulate_sites(plan: StudyPlan, facts: RoundFacts, codes: Mapping[str, str]) -> list[dict[str, str]]:
    """Returns one row per contributor: in the sum or why not, data contract, cumulative epsilon and its limit."""
    dropped, reports = dict(facts.dropped), {report.site: report for report in facts.epsilon}
    rows = []
    for site in plan.contributors:
        reason = dropped.get(site.name, "not asked")
        code = f" ({codes[site.name]})" if site.name in codes else ""
        report = reports.get(site.name)
        untold = "unknown" if site.name in facts.unaccounted else "0"
        rows.append(
            {
                "site": site.name,
                "in the sum": "yes" if site.name in facts.participants else f"no: {reason}{code}",
                "data contract": facts.verdicts.get(site.name, "none"),
                "ε under collusion": report.collusion if report is not None else untold,
                "ε against outsiders": report.outsider if report is not None else untold,
                "limit": plan.budget.epsilon,
            }
        )
    return rows


async def show_review(plan: StudyPlan, text: str) -> None:
    """Adds who has decided what to the present flow run's page (Markdown); the same key keeps the history."""
    run = FlowRunContext.get()
    if run is None or run.flow_run is None:
        return
    await _write(
        None,
        ArtifactCreate(
            key=f"review-{plan.study[:12]}",
            type="markdown",
            description=f"Review of {plan.title}",
            data=f"# Review of {plan.title}\n\n{text}",
            flow_run_id=run.flow_run.id,
        ),
    )


class StudyPage:
    """The summary on the study's own flow run: one text and one progress bar, rewritten after every round, and a table
    of what every site has been charged, whose earlier versions stay."""

    def __init__(self, plan: StudyPlan, mlflow: str = "") -> None:
        """Takes the present flow run as the study's.

        Args:
            plan: The study plan.
            mlflow: Address of the study's page in MLflow; empty where it has none.
        """
        run = FlowRunContext.get()
        self._plan = plan
        self._mlflow = mlflow
        self._flow_run = run.flow_run.id if run is not None and run.flow_run is not None else None
        self._artifact: UUID | None = None
        self._progress: UUID | None = None
        self._rounds: dict[int, RoundFacts] = {}

    async def add(self, facts: RoundFacts) -> None:
        """Adds a round that was opened."""
        self._rounds[facts.round] = facts
        await self._show("")
        await self._show_progress()
        await self._show_budget(facts)

    def recall(self, facts: RoundFacts) -> None:
        """Takes in a round of an earlier run of the study; it is shown with the next one."""
        self._rounds[facts.round] = facts

    async def finish(self, result: str) -> None:
        """Puts what was released on top."""
        await self._show(result)

    async def _show_progress(self) -> None:
        if self._flow_run is None:
            return
        planned = self._plan.mechanism.rounds + 1
        page = ArtifactCreate(
            key=f"progress-{self._plan.study[:12]}",
            type="progress",
            description=f"{len(self._rounds)} of {planned} rounds, evaluation included",
            data=round(100 * len(self._rounds) / planned, 1),
            flow_run_id=self._flow_run,
        )
        self._progress = await _write(self._progress, page)

    async def _show_budget(self, facts: RoundFacts) -> None:
        if self._flow_run is None:
            return
        page = ArtifactCreate(
            key=f"budget-{self._plan.study[:12]}",
            type="table",
            description=f"Charged up to {round_name(facts.kind, facts.round)}, of {self._plan.budget.epsilon} at "
            f"δ = {self._plan.budget.delta}",
            data=json.dumps(tabulate_budget(self._plan, self._rounds.values()), ensure_ascii=False),
            flow_run_id=self._flow_run,
        )
        await _write(None, page)

    async def _show(self, result: str) -> None:
        if self._flow_run is None:
            return
        page = ArtifactCreate(
            key=study_name(self._plan.study).replace(" ", "-"),
            type="markdown",
            description=f"{self._plan.title} {len(self._rounds)} rounds so far" if not result else self._plan.title,
            data=describe_study(self._plan, self._rounds.values(), result, self._mlflow),
            flow_run_id=self._flow_run,
        )
        self._artifact = await _write(self._artifact, page)


def tabulate_budget(plan: StudyPlan, rounds: Iterable[RoundFacts]) -> list[dict[str, str]]:
    """Returns one row per contributor: what its training and its held-out patients were charged so far."""
    spent: dict[str, dict[str, str]] = {"train": {}, "evaluate": {}}
    for facts in sorted(rounds, key=lambda facts: facts.round):
        spent[facts.kind] |= {report.site: report.collusion for report in facts.epsilon}
        spent[facts.kind] |= dict.fromkeys(facts.unaccounted, "unknown")
    return [
        {
            "site": site.name,
            "ε of training patients": spent["train"].get(site.name, "0"),
            "ε of held-out patients": spent["evaluate"].get(site.name, "0"),
            "limit of the plan": plan.budget.epsilon,
        }
        for site in plan.contributors
    ]


def describe_round(plan: StudyPlan, facts: RoundFacts, codes: Mapping[str, str]) -> str:
    """Returns one round in words (Markdown)."""
    name = round_name(facts.kind, facts.round)
    data = "training" if facts.kind == "train" else "held-out"
    lines = [
        f"## {name}",
        "",
        f"{len(facts.participants)} of {len(plan.contributors)} sites are in the opened sum.",
        "",
        f"| site | in the sum | ε under collusion | ε against outsiders |\n|---|---|---|---|\n{_sites(facts, codes)}",
        "",
        f"ε is what the site's {data} patients were charged so far in this study, of {plan.budget.epsilon} at "
        f"δ = {plan.budget.delta}, per {plan.mechanism.unit}.",
        "",
        *_quality(facts),
        f"- Bytes, all sites: {_size(facts.bytes_up)} up, {_size(facts.bytes_down)} down",
        f"- Seconds at the coordinator: {sum(facts.seconds.values()):.1f} ({_steps(facts)})",
        f"- In MLflow: experiment *{plan.title} [{plan.study[:12]}]*, run *{name}*; `consilium ui` opens it",
    ]
    return "\n".join(lines)


def describe_study(plan: StudyPlan, rounds: Iterable[RoundFacts], result: str, mlflow: str = "") -> str:
    """Returns the study so far in words (Markdown).

    Args:
        result: What was released; empty before that.
        mlflow: Address of the study's page in MLflow; empty where it has none.
    """
    rows = "\n".join(_row(facts) for facts in sorted(rounds, key=lambda facts: facts.round))
    head = "| round | in the sum | dropped | largest ε under collusion | against outsiders | seconds |"
    table = f"{head}\n|---|---|---|---|---|---|\n{rows}"
    link = [f"[The study in MLflow]({mlflow})"] if mlflow else []
    return "\n\n".join([f"# {plan.title}", result or "Not released yet.", *link, table, "---", describe_plan(plan)])


def _headline(plan: StudyPlan, facts: RoundFacts) -> str:
    epsilon = max((float(report.collusion) for report in facts.epsilon), default=0.0)
    sites = f"{len(facts.participants)} of {len(plan.contributors)} sites"
    return f"{sites}, largest ε {epsilon:g} of {plan.budget.epsilon}"


def _sites(facts: RoundFacts, codes: Mapping[str, str]) -> str:
    epsilon = {report.site: report for report in facts.epsilon}
    said = dict.fromkeys(facts.participants, "yes")
    said |= {site: f"no: {reason}" + (f" ({codes[site]})" if site in codes else "") for site, reason in facts.dropped}
    figures = {site: "unknown | unknown" if site in facts.unaccounted else "0 | 0" for site in said}
    figures |= {site: f"{report.collusion} | {report.outsider}" for site, report in epsilon.items()}
    return "\n".join(f"| {site} | {word} | {figures[site]} |" for site, word in sorted(said.items()))


def _row(facts: RoundFacts) -> str:
    dropped = ", ".join(f"{site} ({reason})" for site, reason in facts.dropped) or "nobody"
    collusion = max((float(report.collusion) for report in facts.epsilon), default=0.0)
    outsider = max((float(report.outsider) for report in facts.epsilon), default=0.0)
    held_out = " (held-out patients)" if facts.kind == "evaluate" else ""
    cells = [round_name(facts.kind, facts.round), str(len(facts.participants)), dropped]
    cells += [f"{collusion:g}{held_out}", f"{outsider:g}", f"{sum(facts.seconds.values()):.1f}"]
    return f"| {' | '.join(cells)} |"


def _quality(facts: RoundFacts) -> list[str]:
    if not {"auc", "auc_low", "auc_high"} <= set(facts.metrics):
        return []
    value, low, high = (facts.metrics[name] for name in ("auc", "auc_low", "auc_high"))
    return [f"- AUC {value:.3f}, 95 % interval {low:.3f} to {high:.3f} (privacy noise and sampling)"]


def _steps(facts: RoundFacts) -> str:
    return ", ".join(f"{step} {seconds:.1f}" for step, seconds in facts.seconds.items())


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


async def _write(artifact: UUID | None, page: ArtifactCreate) -> UUID | None:
    """Creates the page, or rewrites it; returns its id."""
    try:
        async with get_client() as client:
            if artifact is None:
                return (await client.create_artifact(page)).id
            await client.update_artifact(artifact, ArtifactUpdate(data=page.data, description=page.description))
    except httpx.HTTPError as error:
        _log.warning("a page in Prefect could not be written (%s)", type(error).__name__)
    return artifact
