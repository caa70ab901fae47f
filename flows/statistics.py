"""A question before a study: key ceremony, one encrypted sum, its answer. Asking again continues where it stopped."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prefect import flow, tags

from flows.attempts import choose_attempt
from flows.ceremony import run_ceremony
from flows.context import CoordinatorContext, open_question
from flows.lease import hold_study
from flows.leftovers import close_leftover_runs
from flows.pages import study_tag
from flows.progress import Progress
from flows.question_steps import QuestionSteps, enter_answer
from flows.release import collect_witnesses, export
from flows.release_steps import publish_log
from flows.round import Clock, issue, reach_opening
from flows.round_steps import EpochLost
from flows.tasks import deciding
from flows.waiting import SiteRuns
from schemas.errors import ConsiliumError, OperationError
from schemas.messages import StatisticsRelease
from schemas.statistics import QUESTION_ROUND, StatisticsPlan
from tasks.run_log import hide_expected_tracebacks
from tasks.secure_sum.epoch import EpochPublic
from tasks.storage.mailbox import Signed


async def run_question(context: CoordinatorContext[StatisticsPlan]) -> Signed[StatisticsRelease]:
    """Asks the sites and returns the signed answer.

    Raises:
        ConsiliumError: what stopped it; nothing is charged twice, running it again continues.
    """

    @flow(name="statistics", flow_run_name=f"question {context.study[:12]}", retries=0, persist_result=False)
    async def statistics_flow() -> Signed[StatisticsRelease]:
        """Counts patients over hospitals under encryption and noise; opens nothing but the sum."""
        context.progress.emit("question-started", study=context.study, sites=[s.name for s in context.plan.sites])
        public = await run_ceremony(context)
        steps = QuestionSteps(context, public, choose_attempt(context, QUESTION_ROUND))
        instruction = await issue(steps)
        asked = {"study": context.study, "attempt": steps.attempt}
        runs = SiteRuns(context, "site-statistics", QUESTION_ROUND, "question", asked)
        try:
            await reach_opening(steps, instruction, runs, Clock())
        except EpochLost as error:
            # Charged at the sites that answered: a new ceremony could not open what they sent.
            raise OperationError(
                "question-lost", f"The question died: {error.message}", "Ask it anew; it is charged again."
            ) from None
        answer = await answer_question(context, public)
        await close_log(context)
        await collect_witnesses(context)
        await export(context)
        context.progress.emit("question-answered", study=context.study)
        return answer

    await close_leftover_runs(context.study)
    with tags(study_tag(context.study)):
        return await statistics_flow()


@deciding("answer")
async def answer_question(
    context: CoordinatorContext[StatisticsPlan], public: EpochPublic
) -> Signed[StatisticsRelease]:
    """Recomputes the opened sum, signs the answer and enters it into the log."""
    return enter_answer(context, public)


@deciding("checkpoint")
async def close_log(context: CoordinatorContext[StatisticsPlan]) -> None:
    """Publishes the question's log and a signed checkpoint over it."""
    publish_log(context)


def ask(home: Path, question: str) -> Signed[StatisticsRelease]:
    """Runs a question of the coordinator's home to its answer, continuing whatever an earlier run left.

    The environment must name the Prefect server (`PREFECT_API_URL`) before this is called.

    Raises:
        ConsiliumError: what stopped it; also the last line of the question's ``events.jsonl``.
    """
    hide_expected_tracebacks()
    context = open_question(home, question)
    try:
        with hold_study(context.home):
            return asyncio.run(run_question(context))
    except ConsiliumError as error:
        Progress(context.home / "events.jsonl").emit(
            "failed", code=error.code, message=error.message, remedy=error.remedy
        )
        raise
