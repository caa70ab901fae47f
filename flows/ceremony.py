"""The key ceremony, seen from the coordinator: it opens an epoch, the key holders do the rest among themselves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from prefect import flow

from flows.ceremony_steps import enter_ceremony, sign_ceremony_instruction
from flows.context import CoordinatorContext
from flows.departures import verify_ceremonies_complete, verify_holders_remain
from flows.tasks import deciding, waiting
from flows.waiting import SiteRuns
from schemas.errors import OperationError, PeerError
from schemas.layout import ceremony_key
from schemas.plan import Agreement
from tasks.ceremonies import ALL_PHASES, is_complete, missing_messages
from tasks.secure_sum.epoch import EpochPublic

MAXIMUM_EPOCHS = 999

_log = logging.getLogger("consilium.coordinator")


async def run_ceremony(context: CoordinatorContext[Agreement], after: int = 0) -> EpochPublic:
    """Returns the public side of the newest complete epoch above `after`; holds a ceremony if there is none.

    An epoch that broke off (a holder died in it) stays dead; the next one is opened.

    Raises:
        OperationError: `ceremony-incomplete`, naming the missing key holders and how their runs ended.
        TooFewRemain: `holder-left`, `ceremonies-keep-breaking`.
        PeerError: naming the holder whose part does not verify.
    """

    @flow(name="key-ceremony", flow_run_name="epoch {epoch}", retries=0, persist_result=False)
    async def ceremony_flow(epoch: int) -> EpochPublic:
        """Lets the key holders make a key that none of them, and nobody else, ever holds."""
        verify_holders_remain(context)
        verify_ceremonies_complete(context, epoch)
        runs = SiteRuns(context, "site-ceremony", epoch, f"epoch {epoch}", {"study": context.study, "epoch": epoch})
        await open_epoch(context, epoch)
        await ask_holders(context, runs)
        await follow_phases(context, epoch, runs)
        return await verify_transcript(context, epoch)

    found = find_ceremony(context, after)
    return found if found is not None else await ceremony_flow(max(newest_begun(context), after) + 1)


def find_ceremony(context: CoordinatorContext[Agreement], after: int = 0) -> EpochPublic | None:
    """Returns the public side of the newest epoch, entered into the study log; None if another ceremony is due.

    That is so if the epoch is not above `after`, broke off, or does not verify: then it is as good as broken off.
    """
    newest = newest_begun(context)
    if newest <= after or not is_complete(context.store, context.plan, newest):
        return None
    try:
        return enter_ceremony(context, newest)
    except PeerError as error:
        _log.warning("epoch %d does not verify (%s, %s)", newest, error.peer, error.code)
        return None


@deciding("open-epoch")
async def open_epoch(context: CoordinatorContext[Agreement], epoch: int) -> None:
    """Signs and publishes the ceremony instruction."""
    sign_ceremony_instruction(context, epoch)
    context.progress.emit("ceremony-started", epoch=epoch)


@waiting("dispatch")
async def ask_holders(context: CoordinatorContext[Agreement], runs: SiteRuns) -> None:
    """Starts one flow run at every key holder."""
    await runs.start(site.name for site in context.plan.key_holders)


@waiting("follow-phases")
async def follow_phases(context: CoordinatorContext[Agreement], epoch: int, runs: SiteRuns) -> None:
    """Waits until every holder has signed the transcript."""
    started = time.monotonic()
    end = started + context.options.ceremony_deadline_seconds
    for phase in ALL_PHASES:
        begun = time.monotonic()
        while missing := missing_messages(context.store, context.plan, epoch, phase):
            ended = await runs.start_missing(missing)
            # A run that died is not started again here, so nobody waits for what it owes.
            broken = ended & set(missing_messages(context.store, context.plan, epoch, phase)) if ended else set()
            if broken or time.monotonic() >= end:
                waited_for = sorted(broken) or missing
                error = OperationError(
                    "ceremony-incomplete",
                    f"Epoch {epoch}: no {phase} from {await runs.describe(waited_for)}.",
                    "Every key holder takes part in a ceremony: start the agents that do not run, repair what a code "
                    "names (the log of that agent says more), and resume.",
                )
                # The others would wait for them to their own deadline, and keep the next epoch waiting.
                with contextlib.suppress(OperationError):
                    await runs.abandon(site.name for site in context.plan.key_holders)
                raise error
            await asyncio.sleep(context.options.pause_seconds(time.monotonic() - begun))
        context.progress.emit("ceremony-phase", epoch=epoch, phase=phase)
    context.progress.emit("ceremony-done", epoch=epoch, seconds=round(time.monotonic() - started, 3))


@deciding("verify-transcript")
async def verify_transcript(context: CoordinatorContext[Agreement], epoch: int) -> EpochPublic:
    """Verifies everything public of the ceremony and enters it into the study log."""
    return enter_ceremony(context, epoch)


def newest_begun(context: CoordinatorContext[Agreement]) -> int:
    """Returns the number of the newest epoch whose ceremony was begun; 0 before the first."""
    epoch = 0
    while epoch < MAXIMUM_EPOCHS and context.store.exists(
        ceremony_key(context.study, epoch + 1, None, "instruction.json")
    ):
        epoch += 1
    return epoch
