"""The candidate: study log entry, checkpoint, witnesses, MLflow, evidence; in this order, each step repeatable.

What turns a candidate into a released model is the gate (`flows.gate`).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from prefect import flow

from flows.context import CoordinatorContext
from flows.release_steps import (
    checkpoints,
    enter_signed_release,
    missing_items,
    publish_closing,
    publish_log,
    released_metrics,
)
from flows.round_steps import RoundOutcome
from flows.tasks import deciding, recording, waiting
from flows.tracking import Tracker
from flows.waiting import SiteRuns
from schemas.messages import LogPosition, ModelRelease
from schemas.plan import Agreement
from tasks.audit.export import export_evidence
from tasks.lineage import Lineage
from tasks.metrics import EvaluationMetrics
from tasks.storage.mailbox import Signed
from tasks.tracking.release import describe_release


@dataclass(frozen=True)
class Released:
    """What the release produced."""

    release: Signed[ModelRelease]
    metrics: EvaluationMetrics | None
    version: str
    evidence: Path


async def run_release(
    context: CoordinatorContext,
    tracker: Tracker,
    lineage: Lineage,
    rounds: int,
    evaluation: RoundOutcome | None,
    reason: str,
) -> Released:
    """Releases the model of `lineage` as a candidate.

    Args:
        rounds: Last training round number.
        reason: Empty if every planned round was opened; else why the study ended before.
    """

    @flow(name="candidate", flow_run_name="candidate", retries=0, persist_result=False)
    async def release_flow() -> Released:
        """Signs the release, collects the sites' witnesses, registers the model, exports the evidence."""
        metrics = released_metrics(context, evaluation)
        release = await enter_release(context, lineage, rounds, evaluation, metrics, reason)
        await publish_checkpoint(context, release)
        await collect_witnesses(context)
        await record_attack_figures(tracker)
        version = await register_model(context, tracker, release, metrics)
        evidence = await export(context)
        return Released(release, metrics, version, evidence)

    return await release_flow()


@deciding("enter-release")
async def enter_release(
    context: CoordinatorContext,
    lineage: Lineage,
    rounds: int,
    evaluation: RoundOutcome | None,
    metrics: EvaluationMetrics | None,
    reason: str,
) -> Signed[ModelRelease]:
    """Signs the release and enters it into the study log."""
    return enter_signed_release(context, lineage, rounds, evaluation, metrics, reason)


@deciding("checkpoint")
async def publish_checkpoint(context: CoordinatorContext, release: Signed[ModelRelease]) -> None:
    """Publishes the study log and a signed checkpoint over it; nothing is entered afterwards."""
    publish_log(context)


@waiting("collect-witnesses")
async def collect_witnesses(context: CoordinatorContext[Agreement]) -> None:
    """Asks every site to verify the release and close its ledger, lists the checkpoints, and has them witnessed."""
    runs = SiteRuns(context, "site-release", 1, "release", {"study": context.study})
    await runs.start(site.name for site in context.plan.sites)
    silent = await _wait_for(context, runs, "checkpoint.json", {site.name for site in context.plan.sites})
    listed = publish_closing(context)
    silent |= await _wait_for(context, runs, "witness.json", set(listed))
    for site in sorted(silent):
        context.progress.emit("site-state", round=0, site=site, state="silent", code=None)
    await runs.abandon(sorted(silent))


async def _wait_for(context: CoordinatorContext[Agreement], runs: SiteRuns, item: str, sites: set[str]) -> set[str]:
    """Waits until all `sites` published `item`; returns those that did not, or whose agent is gone."""
    start = time.monotonic()
    while missing := sites & set(missing_items(context, item)):
        waited = time.monotonic() - start
        gone = set[str]()
        if waited >= context.options.silent_grace_seconds:
            gone = await runs.not_started(missing)
        if missing <= gone or waited >= context.options.release_deadline_seconds:
            break
        await runs.revive(sorted(missing))
        await asyncio.sleep(context.options.pause_seconds(waited))
    return missing


@recording("record-attacks")
async def record_attack_figures(tracker: Tracker) -> None:
    """Logs the attack evaluation that `consilium attack run --home` left for this study, beside epsilon."""
    tracker.attacks()


@recording("register-model")
async def register_model(
    context: CoordinatorContext, tracker: Tracker, release: Signed[ModelRelease], metrics: EvaluationMetrics | None
) -> str:
    """Registers the model in MLflow, tags it with the checkpointed ledger roots and points `candidate` at it."""
    version = tracker.release(release, metrics, checkpointed_positions(context))
    await tracker.page.finish(describe_release(context.plan, release.predicate, version))
    context.progress.emit("released", model_version=version, weights=release.predicate.weights)
    return version


@deciding("export-evidence")
async def export(context: CoordinatorContext[Agreement]) -> Path:
    """Copies everything that was published into the evidence folder, with a signed manifest."""
    folder = export_evidence(context.store, context.plan, context.home / "evidence", context.identity.signing)
    context.progress.emit("evidence-exported", path=str(folder))
    return folder


def checkpointed_positions(context: CoordinatorContext) -> dict[str, LogPosition]:
    """Returns log owner -> position of its published checkpoint, where it verifies."""
    return {owner: found.predicate.position for owner, found in checkpoints(context).items()}
