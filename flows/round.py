"""One round, in the order in which the data travels. The steps are in `flows.round_steps`."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from prefect import flow

from flows.attempts import choose_attempt
from flows.behind import Behind
from flows.context import CoordinatorContext
from flows.departures import verify_round_survives, verify_sets_remain, verify_shares_remain
from flows.notices import SITE_SILENT, notify, site_resource
from flows.opening_steps import ActiveSets, OpeningSteps
from flows.round_steps import Answers, RoundOutcome, RoundSteps, SumSteps
from flows.tasks import deciding, waiting
from flows.waiting import SiteRuns
from schemas.errors import OperationError
from schemas.messages import Collected, Instruction, Opening, Record, ShareRequest
from tasks.lineage import Lineage
from tasks.rounds import read_opening, read_record
from tasks.secure_sum.epoch import EpochPublic
from tasks.storage.mailbox import Signed
from tasks.tracking.names import round_name

REFUSAL_LOOKS = 3
_ATTEMPT_OVER = frozenset({"too-few-contributions", "budget-exhausted", "epoch-lost", "sum-spoiled", "sites-left"})
_TOO_FEW = frozenset({"too-few-contributions", "no-quorum", "no-active-set"})


class Clock:
    """How long each step took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 3)


async def run_round(
    context: CoordinatorContext,
    public: EpochPublic,
    lineage: Lineage,
    round_: int,
    kind: Literal["train", "evaluate"],
    record_outcome: Callable[[RoundOutcome], Awaitable[object]],
    behind: Behind,
) -> RoundOutcome:
    """Runs one round to its opening, or finds what an earlier run of it left and goes on from there.

    Args:
        record_outcome: The round's last step, so that what it shows belongs to the round's flow run.
        behind: Where that step goes on when this function has returned.

    Raises:
        OperationError: `too-few-contributions`, `no-quorum`, `no-active-set`; nothing is lost, resume continues.
    """
    steps = RoundSteps(context, public, lineage, round_, kind, choose_attempt(context, round_))
    opened_round: asyncio.Future[RoundOutcome] = asyncio.get_running_loop().create_future()

    @flow(name=f"{kind}-round", flow_run_name=round_name(kind, round_), retries=0, persist_result=False)
    async def round_flow() -> None:
        """Asks the sites for noisy, encrypted updates, and opens nothing but their sum."""
        clock = Clock()
        with clock("issue"):
            instruction = await issue(steps)
        asked = {"study": context.study, "round": round_, "attempt": steps.attempt}
        runs = SiteRuns(context, "site-round", round_, round_name(kind, round_), asked)
        record = await reach_opening(steps, instruction, runs, clock)
        with clock("apply"):
            opening, opened, after = await apply(steps)
        outcome = RoundOutcome(instruction, record, opening, opened, after, clock.seconds)
        opened_round.set_result(outcome)
        await record_outcome(outcome)

    return await behind.follow(asyncio.create_task(round_flow()), opened_round)


def replay_round(
    context: CoordinatorContext,
    public: EpochPublic,
    lineage: Lineage,
    round_: int,
    kind: Literal["train", "evaluate"],
) -> RoundOutcome:
    """Takes an opened round that is recorded from what was published, without a flow run.

    Raises:
        PeerError: the published messages do not open to the published sum.
    """
    steps = RoundSteps(context, public, lineage, round_, kind, choose_attempt(context, round_))
    instruction, rest = steps.issue(), OpeningSteps(steps)
    record = rest.complete_record(instruction)
    opened, after = steps.recompute()
    return RoundOutcome(instruction, record, rest.log_opening(), opened, after)


async def reach_opening(
    steps: SumSteps, instruction: Signed[Instruction], runs: SiteRuns, clock: Clock
) -> Signed[Record]:
    """Takes an issued instruction to its published opening, or goes on from where an earlier run stopped.

    Raises:
        OperationError: `too-few-contributions`, `no-quorum`, `no-active-set`.
        TooFewRemain: `sites-left`.
        EpochLost: so many key holders lost their share that the round is dead.
        SumSpoiled: no active set opens the sum; the round is dead.
    """
    try:
        try:
            return await _reach_opening(steps, instruction, runs, clock)
        except OperationError as error:
            if error.code in _TOO_FEW:
                verify_can_go_on(steps)
            raise
    except OperationError as error:
        if error.code in _ATTEMPT_OVER:
            # A site works on one run of a study at a time: the next attempt or ceremony must not wait for this one.
            await runs.abandon(_everybody(steps))
        raise


def verify_can_go_on(steps: SumSteps) -> None:
    """Says whether a step that too few sites answered can succeed later.

    Raises:
        TooFewRemain: `sites-left`.
        EpochLost: too many key holders lost their share.
        SumSpoiled: everybody who answers was asked for shares, and no active set opens the sum.
    """
    verify_round_survives(steps)
    verify_shares_remain(steps)
    verify_sets_remain(steps)


async def _reach_opening(
    steps: SumSteps, instruction: Signed[Instruction], runs: SiteRuns, clock: Clock
) -> Signed[Record]:
    opening = read_opening(steps.context.store, steps.plan, steps.round)
    if opening is None:
        with clock("dispatch"):
            await ask_sites(runs, steps, instruction)
    record = read_record(steps.context.store, steps.plan, steps.round)
    if record is None:
        answers = Answers()
        with clock("collect"):
            await collect(steps, instruction, answers, runs)
        with clock("check"):
            collected, checks = await check_shares(steps, instruction, answers, runs)
        with clock("add"):
            record = await add(steps, instruction, answers, collected, checks)
    else:
        record = await complete_record(steps, instruction)
    if opening is None:
        with clock("certify"):
            signatures = await certify(steps, record, runs)
        with clock("open"):
            await share_and_open(steps, instruction, record, signatures, runs)
    return record


@deciding("issue")
async def issue(steps: SumSteps) -> Signed[Instruction]:
    """Signs and publishes the round's instruction."""
    return steps.issue()


@waiting("dispatch")
async def ask_sites(runs: SiteRuns, steps: SumSteps, instruction: Signed[Instruction]) -> None:
    """Starts one flow run at every participant and at every other key holder."""
    await runs.start(_everybody(steps))


@waiting("collect")
async def collect(steps: SumSteps, instruction: Signed[Instruction], answers: Answers, runs: SiteRuns) -> None:
    """Waits until every participant answered or the deadline passed."""
    options, progress = steps.context.options, steps.context.progress
    participants = instruction.predicate.participants
    shown: dict[str, str] = {}
    start = news = time.monotonic()
    quiet = steps.silent_before()
    for look in itertools.count():
        is_over = time.monotonic() - start >= options.contribute_deadline_seconds
        # A refusal is rare, and each look at a site's is a request.
        steps.collect(instruction, answers, refusals=is_over or look % REFUSAL_LOOKS == 0)
        for site in participants:
            state = answers.state(site)
            if shown.get(site) != state:
                shown[site] = state
                code = answers.refusals[site].predicate.code if site in answers.refusals else answers.invalid.get(site)
                progress.emit("site-state", round=steps.round, site=site, state=state, code=code)
                news = time.monotonic()
        pending = [site for site in participants if site not in answers.settled]
        waited = time.monotonic() - start
        if waited >= options.silent_grace_seconds:
            quiet &= await runs.not_started(quiet)
        awaited = pending if waited < options.silent_grace_seconds else [site for site in pending if site not in quiet]
        if not awaited or is_over:
            break
        await runs.revive(pending)
        # Where one has answered, the others are seldom far behind.
        await asyncio.sleep(options.pause_seconds(time.monotonic() - news))
    for site in pending:
        progress.emit("site-state", round=steps.round, site=site, state="silent", code=None)
        await notify(SITE_SILENT, steps.context.study, site_resource(site), {"site": site, "round": str(steps.round)})
    await runs.abandon(pending)


@waiting("check-shares")
async def check_shares(
    steps: SumSteps, instruction: Signed[Instruction], answers: Answers, runs: SiteRuns
) -> tuple[Signed[Collected], dict[str, tuple[str, ...]]]:
    """Closes the collection and waits for the holders to try their sealed shares."""
    collected = steps.close(instruction, answers)
    expected = _answering_holders(steps, {site for site, _ in collected.predicate.contributions})
    checks: dict[str, tuple[str, ...]] = {}

    def enough() -> bool:
        checks.update(steps.read_checks(collected))
        return expected <= set(checks)

    await _until_reviving(
        steps, enough, runs, lambda: expected - set(checks), steps.context.options.certify_deadline_seconds
    )
    if len(checks) < steps.plan.threshold.certificate_quorum:
        raise OperationError(
            "no-quorum",
            f"Round {steps.round}: fewer than Q = {steps.plan.threshold.certificate_quorum} key holders checked.",
            "Start the agents of the silent key holders and resume.",
        )
    return collected, checks


@deciding("add")
async def add(
    steps: SumSteps,
    instruction: Signed[Instruction],
    answers: Answers,
    collected: Signed[Collected],
    checks: dict[str, tuple[str, ...]],
) -> Signed[Record]:
    """Adds the ciphertexts and proposes the round's only record."""
    return OpeningSteps(steps).propose(instruction, answers, collected, checks)


@deciding("complete-record")
async def complete_record(steps: SumSteps, instruction: Signed[Instruction]) -> Signed[Record]:
    """Finishes what an earlier run left of the record: a crash may have come before its sums or its log entry."""
    return OpeningSteps(steps).complete_record(instruction)


@waiting("certify")
async def certify(steps: SumSteps, record: Signed[Record], runs: SiteRuns) -> dict[str, str]:
    """Waits for every holder that answers, at least Q, to sign the record."""
    signed = await _wait_for_signatures(steps, record, runs, steps.plan.threshold.certificate_quorum)
    for holder in sorted(signed):
        steps.context.progress.emit("site-state", round=steps.round, site=holder, state="certified", code=None)
    return signed


async def _wait_for_signatures(
    steps: SumSteps, record: Signed[Record], runs: SiteRuns, enough_signatures: int
) -> dict[str, str]:
    expected = _answering_holders(steps, {site for site, _ in record.predicate.contributions})
    signed: dict[str, str] = {}

    def enough() -> bool:
        signed.update(OpeningSteps(steps).read_signatures(record))
        return len(signed) >= enough_signatures

    deadline = steps.context.options.certify_deadline_seconds
    await _until_reviving(steps, enough, runs, lambda: expected - set(signed), deadline)
    return signed


@deciding("share-and-open")
async def share_and_open(
    steps: SumSteps,
    instruction: Signed[Instruction],
    record: Signed[Record],
    signatures: dict[str, str],
    runs: SiteRuns,
) -> None:
    """Asks active sets, one after another, until what one answered opens the sum; publishes it.

    Raises:
        OperationError: `no-quorum`, `no-active-set`.
    """
    opening = OpeningSteps(steps)
    sets = ActiveSets(opening, instruction, record)
    while True:
        request = sets.next(signatures)
        if sets.open(request, await _ask_active_set(steps, instruction, record, request, runs)):
            return
        if len(sets.failed) == 1:
            # Somebody at fault answers: every holder that certifies is another set without it.
            await _wait_for_signatures(steps, record, runs, len(steps.plan.key_holders))
        signatures = {**signatures, **opening.read_signatures(record)}


async def _ask_active_set(
    steps: SumSteps,
    instruction: Signed[Instruction],
    record: Signed[Record],
    request: Signed[ShareRequest],
    runs: SiteRuns,
) -> dict[str, tuple[str, bytes]]:
    chosen = set(request.predicate.active_set)
    shares: dict[str, tuple[str, bytes]] = {}

    def complete() -> bool:
        shares.update(OpeningSteps(steps).read_shares(instruction, record, request))
        return chosen <= set(shares)

    deadline = steps.context.options.share_deadline_seconds
    await _until_reviving(steps, complete, runs, lambda: chosen - set(shares), deadline)
    for holder in sorted(shares):
        steps.context.progress.emit("site-state", round=steps.round, site=holder, state="shared", code=None)
    return shares


@deciding("apply")
async def apply(steps: RoundSteps) -> tuple[Signed[Opening], NDArray[np.int64], Lineage]:
    """Recomputes the opening from what was published, takes the server step, and enters it into the study log."""
    opened, lineage = steps.recompute()
    return OpeningSteps(steps).log_opening(), opened, lineage


def _everybody(steps: SumSteps) -> list[str]:
    return [site.name for site in steps.plan.sites if site.key_holder or site.contributor]


def _answering_holders(steps: SumSteps, contributed: set[str]) -> set[str]:
    # A holder that contributed is alive; one that did not may be: it is welcome, but not waited for beyond the quorum.
    holders = {site.name for site in steps.plan.key_holders}
    answering = holders & contributed
    return answering if len(answering) >= steps.plan.threshold.certificate_quorum else holders


async def _until_reviving(
    steps: SumSteps,
    done: Callable[[], bool],
    runs: SiteRuns,
    pending: Callable[[], set[str]],
    deadline_seconds: float,
) -> bool:
    start = time.monotonic()
    while not done():
        waited = time.monotonic() - start
        if waited >= deadline_seconds:
            return False
        await runs.revive(sorted(pending()))
        await asyncio.sleep(steps.context.options.pause_seconds(waited))
    return True
