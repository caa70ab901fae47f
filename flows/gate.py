"""The release gate: the flow ``release`` waits for reviewers at three doors and goes on only with their signatures.

Doors: a signed decision in MLflow's mailbox tag (put there by `consilium review`, or pasted in MLflow's pages), one in
a file, one pasted into the pause form of this flow run in Prefect. A form or a tag without a signature is shown and
changes nothing: neither server knows who its user is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import httpx
from prefect import flow, tags
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import apause_flow_run
from prefect.input import RunInput
from prefect.utilities.annotations import quote
from pydantic import Field

from flows.context import CoordinatorContext, open_coordinator
from flows.gate_pass import pass_doors_once
from flows.gate_steps import GateState, describe_gate, has_news
from flows.notices import notify, study_resource
from flows.pages import show_review, study_tag
from flows.tasks import deciding
from schemas.errors import OperationError
from tasks.run_log import hide_expected_tracebacks

_log = logging.getLogger("consilium.coordinator")

REVIEW_WANTED = "consilium.review.wanted"
REVIEW_DECIDED = "consilium.review.decided"


class ReviewForm(RunInput):
    """What Prefect asks for on the paused run's page; the answer is believed only with a signature."""

    decision: Literal["approved", "rejected"] = Field(
        default="approved", description="Your wish; it counts only together with the signed decision below."
    )
    signed_decision: str = Field(
        default="",
        max_length=16_384,
        description="Paste what `consilium review approve MODEL VERSION --reason … --print` printed on your machine.",
    )


async def run_gate(home: Path, timeout_seconds: float, poll_seconds: float = 5.0) -> GateState:
    """Holds the gate open as a Prefect flow run until the reviewers have decided.

    Args:
        home: The coordinator's home.
        timeout_seconds: How long to wait; afterwards the run ends and running it again goes on.
        poll_seconds: How often MLflow is looked at.

    Raises:
        OperationError: `review-timeout`, and those of `pass_doors_once`.
        EvidenceError: as `pass_doors_once`.
    """
    hide_expected_tracebacks()
    context = open_coordinator(home)

    @flow(name="release", flow_run_name=f"release {context.study[:12]}", retries=0, persist_result=False)
    async def release_flow() -> GateState:
        """Waits for signed decisions of the plan's reviewers, checks the evidence again, sets the alias."""
        end = time.monotonic() + timeout_seconds
        brought: tuple[bytes, ...] = ()
        pauses = 0
        while True:
            state = await pass_doors(quote(context), brought)
            await show_review(context.plan, describe_gate(context, state))
            if state.outcome != "waiting":
                await notify(REVIEW_DECIDED, context.study, study_resource(context.study), {"outcome": state.outcome})
                return state
            if pauses == 0:
                await notify(REVIEW_WANTED, context.study, study_resource(context.study), {})
            pauses += 1
            left = end - time.monotonic()
            brought = await _wait_at_doors(context, state, f"review-{pauses}", left, poll_seconds)

    with tags(study_tag(context.study)):
        return await release_flow()


@deciding("pass-doors")
async def pass_doors(context: CoordinatorContext, brought: tuple[bytes, ...]) -> GateState:
    """Enters signed decisions and does what follows: audit, entry, evidence, alias."""
    return await asyncio.to_thread(pass_doors_once, context, brought)


async def _wait_at_doors(
    context: CoordinatorContext, state: GateState, key: str, left_seconds: float, poll_seconds: float
) -> tuple[bytes, ...]:
    """Pauses the run with the form and polls MLflow meanwhile; returns what the form brought."""
    run = FlowRunContext.get()
    assert run is not None
    assert run.flow_run is not None
    form = ReviewForm.with_initial_data(description=describe_gate(context, state))
    pause = asyncio.create_task(_pause(form, key, left_seconds, poll_seconds))
    end = time.monotonic() + left_seconds
    poll = asyncio.create_task(_until_news(context, state, run.flow_run.id, end, poll_seconds))
    try:
        await asyncio.wait({pause, poll}, return_when=asyncio.FIRST_COMPLETED)
        if poll.done() and not pause.done():
            poll.result()
            await _resume(run.flow_run.id)
    except BaseException:
        pause.cancel()
        raise
    finally:
        poll.cancel()
    text = str((await pause).signed_decision).strip()
    return (text.encode(),) if text else ()


async def _resume(run: UUID) -> None:
    """Ends the pause as the form does, with an empty answer; a form that was sent at the same moment wins."""
    async with get_client() as client:
        try:
            await client.resume_flow_run(run, run_input={"decision": "approved", "signed_decision": ""})
        except httpx.HTTPStatusError:
            _log.info("the gate's run was resumed already")


async def _pause(form: type[RunInput], key: str, timeout_seconds: float, poll_seconds: float) -> Any:
    try:
        return await apause_flow_run(
            wait_for_input=form, timeout=max(1, int(timeout_seconds)), poll_interval=max(1, int(poll_seconds)), key=key
        )
    except FlowPauseTimeout:
        raise _timeout() from None


def _timeout() -> OperationError:
    return OperationError(
        "review-timeout", "The reviewers did not decide in time.", "Run the gate again; what was signed is kept."
    )


async def _until_news(
    context: CoordinatorContext, state: GateState, run: UUID, end: float, poll_seconds: float
) -> None:
    """Returns when MLflow shows something new.

    Raises:
        OperationError: `review-timeout`; `review-cancelled` if a person ended the run meanwhile.
    """
    while not await asyncio.to_thread(has_news, context, state):
        async with get_client() as client:
            now = (await client.read_flow_run(run)).state
        if time.monotonic() >= end - 1:
            raise _timeout()  # the server may have ended the pause before this process did
        if now is not None and now.is_final():
            raise OperationError("review-cancelled", "The gate's run was ended in Prefect.", "Run the gate again.")
        await asyncio.sleep(poll_seconds)
