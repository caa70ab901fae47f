"""The few flows that a hospital agrees to run: ceremony, round, question, release. Nothing else can be started here.

Each step is a Prefect task of the site's own flow run, so that a person sees it. Policy: no retries and no caching (a
retry re-runs a body; the outbox is what answers again), no persisted results (Prefect would pickle them), errors leave
as codes only (`site_agents.worker.coded`).
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict, Field

from schemas.canonical import Digest
from schemas.contract import ContractVerdict
from schemas.errors import ConsiliumError, OperationError
from schemas.options import RunOptions
from schemas.plan import Agreement
from schemas.statistics import QUESTION_ROUND, StatisticsPlan
from site_agents.admission import AgentFlow
from site_agents.ceremony import STEPS, SiteCeremony
from site_agents.certifying import Certifying
from site_agents.context import SiteContext, open_agreement, open_context
from site_agents.contributing import Contributing
from site_agents.home import open_home
from site_agents.questioning import Questioning
from site_agents.release import SiteAnswer, SiteRelease
from site_agents.round import SiteRound
from site_agents.run_states import coded, refused_state

T = TypeVar("T")

_BUSY: dict[str, threading.Lock] = {}


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CeremonyParameters(_Parameters):
    """Parameters of ``site-ceremony``."""

    study: Digest
    epoch: int = Field(ge=1, le=999)


class RoundParameters(_Parameters):
    """Parameters of ``site-round``."""

    study: Digest
    round: int = Field(ge=1, le=10_001)
    attempt: int = Field(ge=1, le=16)


class StatisticsParameters(_Parameters):
    """Parameters of ``site-statistics``."""

    study: Digest
    attempt: int = Field(ge=1, le=16)


class ReleaseParameters(_Parameters):
    """Parameters of ``site-release``."""

    study: Digest


async def step(name: str, body: Callable[[], T]) -> T:
    """Runs `body` as a task run of the current flow run.

    Prefect sees a name and a final state with a code. The result and the error pass beside it: they may hold what must
    not leave the site.

    Raises:
        ConsiliumError: what `body` raised; `internal-error` for anything that is not ours.
    """
    results: list[T] = []
    errors: list[ConsiliumError] = []

    async def run() -> None:
        try:
            results.append(body())
        except ConsiliumError as error:
            errors.append(error)
            raise

    # Without a run name of its own a task run gets random letters behind its name.
    named = task(name=name, task_run_name=name, retries=0, cache_policy=NO_CACHE, persist_result=False)
    work: Any = named(coded(run))
    await work(return_state=True)
    if errors:
        raise errors[0]
    if not results:
        raise OperationError("internal-error", f"The step {name} failed.", "See the agent's log.")
    return results[0]


def site_flows(folder: Path) -> dict[str, AgentFlow]:
    """Returns the flows of the site whose home is `folder`, by name."""

    @flow(name="site-ceremony", retries=0, persist_result=False)
    async def site_ceremony(study: str, epoch: int) -> Any:
        """Takes this site through a key ceremony."""
        with _one_at_a_time(folder, study):
            return await _ceremony(open_agreement(open_home(folder), study, Agreement), epoch)

    @flow(name="site-round", retries=0, persist_result=False)
    async def site_round(study: str, round: int, attempt: int) -> Any:
        """Contributes to a round or refuses it, then helps to open the sum; a refusal is this run's last state."""
        with _one_at_a_time(folder, study):
            return await _round(_open(folder, study), round, attempt)

    @flow(name="site-release", retries=0, persist_result=False)
    async def site_release(study: str) -> Any:
        """Verifies the release and witnesses everybody's checkpoints."""
        with _one_at_a_time(folder, study):
            return await _release(_closing(folder, study))

    @flow(name="site-statistics", retries=0, persist_result=False)
    async def site_statistics(study: str, attempt: int) -> Any:
        """Answers a question before a study with a noised, encrypted count, or refuses it; helps to open the sum."""
        with _one_at_a_time(folder, study):
            return await _statistics(open_agreement(open_home(folder), study, StatisticsPlan), attempt)

    return {
        "site-ceremony": AgentFlow(site_ceremony, CeremonyParameters),
        "site-round": AgentFlow(site_round, RoundParameters),
        "site-statistics": AgentFlow(site_statistics, StatisticsParameters),
        "site-release": AgentFlow(site_release, ReleaseParameters),
    }


async def _ceremony(context: SiteContext[Agreement], epoch: int) -> Any:
    ceremony = SiteCeremony(context, epoch)
    options = context.home.settings.options
    await step("verify", ceremony.verify)
    if not ceremony.finished:
        for name, before, body in STEPS:
            if before is not None:
                await _wait(lambda phase=before: ceremony.ready(phase), options.ceremony_deadline_seconds, options)  # type: ignore[misc]
            await step(name, lambda body=body: body(ceremony))  # type: ignore[misc]
    await _wait(lambda: ceremony.ready("transcript"), options.ceremony_deadline_seconds, options)
    await step("confirm", ceremony.confirm)
    return None


async def _round(context: SiteContext, round_: int, attempt: int) -> Any:
    work = SiteRound(context, round_, attempt)
    contributing = Contributing(work)
    try:
        await step("verify", work.read)
    except ConsiliumError as error:
        # Not the coordinator's instruction, or no epoch to answer in: say so, and take no part in the round.
        refusal = error
        await step("refuse", lambda: contributing.refuse(refusal))
        return refused_state(refusal.code)
    asked = context.is_participant(work.instruction.predicate)
    code = await _contribute(contributing, "train", contributing.train) if asked else None
    if work.epoch.secrets is not None:
        await _certify(Certifying(work), context.home.settings.options)
    return refused_state(code) if code is not None else None


async def _statistics(context: SiteContext[StatisticsPlan], attempt: int) -> Any:
    work = SiteRound(context, QUESTION_ROUND, attempt)
    questioning = Questioning(work)
    try:
        await step("verify", work.read)
    except ConsiliumError as error:
        refusal = error
        await step("refuse", lambda: questioning.refuse(refusal))
        return refused_state(refusal.code)
    asked = context.is_participant(work.instruction.predicate)
    code = await _contribute(questioning, "count", questioning.count) if asked else None
    if work.epoch.secrets is not None:
        await _certify(Certifying(work), context.home.settings.options)
    return refused_state(code) if code is not None else None


async def _contribute(
    contributing: Contributing | Questioning, name: str, compute: Callable[[], NDArray[np.int64]]
) -> str | None:
    """Contributes, or refuses and returns the code."""
    if contributing.decided:
        await step("resend", contributing.resend)
        return "already-refused" if contributing.refused else None
    verdict: ContractVerdict | None = None
    try:
        await step("admit", contributing.verify)
        verdict = await step("validate", contributing.validate)
        checked = verdict
        await step("reserve", contributing.reserve)
        values = await step(name, compute)
        await step("encrypt", lambda: contributing.encrypt(values, checked))
    except ConsiliumError as error:
        # The refusal is the state of the contribution; the same run stays to certify and share.
        refusal = error
        await step("refuse", lambda: contributing.refuse(refusal, verdict))
        return refusal.code
    await step("upload", contributing.upload)
    return None


async def _certify(certifying: Certifying, options: RunOptions) -> None:
    deadline = options.contribute_deadline_seconds + options.certify_deadline_seconds
    looks = itertools.count()
    # A record without a closed collection is an earlier attempt's, and rare: it is not asked for at every look.
    await _wait(lambda: certifying.collected or (next(looks) % 4 == 0 and certifying.proposed), deadline, options)
    if not certifying.proposed:
        await step("check-shares", certifying.check_shares)
    await _wait(lambda: certifying.proposed, options.certify_deadline_seconds, options)
    await step("certify", certifying.certify)
    start = time.monotonic()
    answered = 0
    while not certifying.opened and (waited := time.monotonic() - start) < options.opening_deadline_seconds:
        if (requests := certifying.count_requests(answered)) > answered:
            answered = requests
            await step("share", certifying.share)
        await asyncio.sleep(options.pause_seconds(waited))


async def _release(release: SiteRelease | SiteAnswer) -> Any:
    options = release.context.home.settings.options
    await step("verify", release.verify)
    await step("checkpoint", release.publish_checkpoint)
    await _wait(lambda: release.closed, options.release_deadline_seconds, options)
    await step("witness", release.witness)
    return None


def _open(folder: Path, study: str) -> SiteContext:
    return open_context(open_home(folder), study)


def _closing(folder: Path, study: str) -> SiteRelease | SiteAnswer:
    home = open_home(folder)
    context = open_agreement(home, study, Agreement)
    if isinstance(context.plan, StatisticsPlan):
        return SiteAnswer(open_agreement(home, study, StatisticsPlan))
    return SiteRelease(open_context(home, study))


@contextmanager
def _one_at_a_time(folder: Path, study: str) -> Iterator[None]:
    """Lets one flow run of a study work at a site; a second one waits, then finds what the first decided."""
    with _BUSY.setdefault(f"{folder}\0{study}", threading.Lock()):
        yield


async def _wait(done: Callable[[], bool], deadline_seconds: float, options: RunOptions) -> None:
    start = time.monotonic()
    while not done():
        waited = time.monotonic() - start
        if waited >= deadline_seconds:
            raise OperationError("deadline", "The others did not answer in time.", "The coordinator resumes.")
        await asyncio.sleep(options.pause_seconds(waited))
