"""A study: key ceremony, rounds, evaluation, release. Running it again continues where the store says it stopped."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Literal

from prefect import flow, tags
from prefect.utilities.annotations import quote

from flows.behind import Behind, behind_the_rounds, beside
from flows.ceremony import find_ceremony, newest_begun, run_ceremony
from flows.ceremony_steps import enter_ceremony
from flows.context import CoordinatorContext
from flows.departures import TooFewRemain, verify_rounds_live
from flows.figures import bytes_down, bytes_up, refusal_codes
from flows.leftovers import close_leftover_runs
from flows.pages import show_round, study_tag
from flows.release import Released, run_release
from flows.release_steps import read_release, released_metrics
from flows.round import replay_round, run_round
from flows.round_steps import BudgetExhausted, EpochLost, RoundOutcome, SumSpoiled
from flows.tasks import recording
from flows.tracking import Tracker
from schemas.errors import BudgetError
from schemas.messages import EpsilonReport, ModelRelease
from tasks.lineage import Lineage, first_lineage
from tasks.metrics import EvaluationMetrics
from tasks.rounds import is_anything_opened, read_instruction, read_opening
from tasks.secure_sum.epoch import EpochPublic
from tasks.tracking.names import study_name
from tasks.tracking.vocabulary import model_name

_TRAINING_LOST = "the last training rounds were lost with their key ceremony"
_EVALUATION_LOST = "the evaluation was lost with key shares"
_EVALUATION_SPOILED = "the evaluation did not open: a contribution or shares were wrong"


@dataclass
class StudyState:
    """Where a study stands; everything in it is recomputed from the store when it runs again.

    Attributes:
        public: The newest key; None if its ceremony broke off, until a round has to be asked.
        begun: The newest epoch when this run began, complete or not.
        closed: The release, if an earlier run has signed it: nothing is asked any more, whatever arrives late.
    """

    public: EpochPublic | None
    lineage: Lineage
    behind: Behind
    begun: int = 0
    closed: ModelRelease | None = None
    rounds: int = 0
    evaluation: RoundOutcome | None = None
    reason: str = ""
    deserted: bool = False
    outcomes: list[RoundOutcome] = field(default_factory=list)
    epochs: dict[int, EpochPublic] = field(default_factory=dict)
    recording: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def epoch(self) -> int:
        """The newest epoch that was begun: no round under an older key is opened any more."""
        return self.begun if self.public is None else max(self.begun, self.public.epoch)


async def run_study(context: CoordinatorContext) -> Released:
    """Runs the whole study of `context` and returns its release.

    Raises:
        ConsiliumError: what stopped it; nothing is lost, running it again continues.
    """

    @flow(name="study", flow_run_name=study_name(context.study), retries=0, persist_result=False)
    async def study_flow() -> Released:
        """Runs key ceremony, training rounds, evaluation and release; continues where an earlier run stopped."""
        started = time.monotonic()
        plan = context.plan
        context.progress.emit(
            "study-started", study=context.study, rounds=plan.mechanism.rounds, sites=[s.name for s in plan.sites]
        )
        closed = read_release(context)
        # MLflow takes seconds to open its database: meanwhile the key holders are at work.
        tracker, public = await asyncio.gather(open_tracking(context), _key_at_hand(context, closed))
        async with behind_the_rounds() as behind:
            state = StudyState(public, first_lineage(plan), behind, newest_begun(context), closed)
            await train(context, state, tracker)
            metrics = await evaluate(context, state, tracker)
        released = await run_release(context, tracker, state.lineage, state.rounds, state.evaluation, state.reason)
        _write_summary(context, state, released, metrics, time.monotonic() - started)
        context.progress.emit("study-done", complete=not state.reason, reason=state.reason)
        return released

    await close_leftover_runs(context.study)
    with tags(study_tag(context.study)):
        return await study_flow()


async def train(context: CoordinatorContext, state: StudyState, tracker: Tracker) -> None:
    """Runs the training rounds, or replays those that were opened."""
    for round_ in range(1, context.plan.mechanism.rounds + 1):
        if _is_dead(context, state, round_) or (state.closed is not None and round_ > state.closed.rounds):
            continue
        try:
            try:
                outcome = await _next_round(context, state, tracker, round_, "train")
            except EpochLost:
                await _hold_ceremony(context, state)
                continue
        except BudgetExhausted as error:
            if state.rounds == 0:
                raise BudgetError(error.code, error.message, error.remedy) from None
            state.reason = error.message
            return
        except TooFewRemain as error:
            if state.rounds == 0:
                raise
            state.reason, state.deserted = error.message, True
            return
        state.lineage, state.rounds = outcome.lineage, round_


async def evaluate(context: CoordinatorContext, state: StudyState, tracker: Tracker) -> EvaluationMetrics | None:
    """Evaluates the model on held-out patients; None if that cannot be, and `state.reason` says why."""
    if state.closed is not None:
        state.reason = state.closed.reason
        if state.closed.evaluation is None:
            return None
    if state.rounds < context.plan.mechanism.rounds and not state.reason:
        state.reason = _TRAINING_LOST
    if state.deserted:  # asking would charge those who remain for a sum that nobody can open
        return None
    round_ = context.plan.mechanism.rounds + 1
    if _is_dead(context, state, round_):
        state.reason = state.reason or _EVALUATION_LOST
        return None
    try:
        outcome = await _next_round(context, state, tracker, round_, "evaluate")
    except (BudgetExhausted, TooFewRemain) as error:
        says_who = state.reason == _TRAINING_LOST and isinstance(error, TooFewRemain)
        state.reason = error.message if says_who else state.reason or error.message
        return None
    except EpochLost as error:  # nothing is opened after it: no ceremony follows
        state.reason = state.reason or (_EVALUATION_SPOILED if isinstance(error, SumSpoiled) else _EVALUATION_LOST)
        return None
    state.evaluation = outcome
    metrics = released_metrics(context, outcome)
    if metrics is not None:
        auc = metrics.auc
        context.progress.emit("evaluation-done", auc=auc.value, low=auc.low, high=auc.high)
    return metrics


async def _next_round(
    context: CoordinatorContext, state: StudyState, tracker: Tracker, round_: int, kind: Literal["train", "evaluate"]
) -> RoundOutcome:
    """Runs one round.

    Raises:
        EpochLost: it died with its key ceremony.
        TooFewRemain: `rounds-keep-dying`, and those of `run_ceremony`.
        OperationError: as `run_round` and `run_ceremony`.
    """
    before = state.lineage
    public = public_of_opened(context, state, round_)
    if public is not None and round_ in tracker.recorded:
        outcome = replay_round(context, public, before, round_, kind)
        metrics = released_metrics(context, outcome) if kind == "evaluate" else None
        tracker.recall(outcome, before, metrics)
        state.outcomes.append(outcome)
        await asyncio.sleep(0)  # a long study can be stopped here
        return outcome
    if public is None:
        public = await _key_to_ask(context, state, round_)
    context.progress.emit("round-started", round=round_, kind=kind)

    async def record_outcome(outcome: RoundOutcome) -> None:
        async with state.recording:  # one round after another
            # Quoted: Prefect would look through these values for arrows to draw.
            await record(quote(context), tracker, quote(outcome), quote(before))

    outcome = await run_round(context, public, before, round_, kind, record_outcome, state.behind)
    state.outcomes.append(outcome)
    return outcome


async def _key_at_hand(context: CoordinatorContext, closed: ModelRelease | None) -> EpochPublic | None:
    """Returns the newest key; holds the first ceremony, since a round has to be asked where none was opened."""
    if closed is not None:
        return None
    if not is_anything_opened(context.store, context.plan):
        return await run_ceremony(context)
    return find_ceremony(context)


async def _key_to_ask(context: CoordinatorContext, state: StudyState, round_: int) -> EpochPublic:
    verify_rounds_live(context, round_, state.epoch)
    public = state.public
    if public is None or _rounds_in_epoch(context, public.epoch, round_) >= context.plan.rounds_per_epoch:
        return await _hold_ceremony(context, state)
    return public


async def _hold_ceremony(context: CoordinatorContext, state: StudyState) -> EpochPublic:
    after = 0 if state.public is None else state.public.epoch
    state.public = await state.behind.watch(run_ceremony(context, after))
    return state.public


@recording("open-tracking")
async def open_tracking(context: CoordinatorContext) -> Tracker:
    """Opens the study in MLflow, beside what else goes on."""
    return await beside(Tracker, context)


@recording("record")
async def record(context: CoordinatorContext, tracker: Tracker, outcome: RoundOutcome, before: Lineage) -> None:
    """Records the round in MLflow and shows it on the pages of the round and of the study."""
    kind = outcome.instruction.predicate.kind
    metrics = released_metrics(context, outcome) if kind == "evaluate" else None
    # MLflow's client blocks: the next round is on its way meanwhile.
    facts = await beside(tracker.round, outcome, before, metrics)
    await show_round(context.plan, facts, refusal_codes(context, outcome))
    await tracker.page.add(facts)


def _is_dead(context: CoordinatorContext, state: StudyState, round_: int) -> bool:
    """A round that was open when a newer ceremony began is dead: charged, and never opened."""
    instruction = read_instruction(context.store, context.plan, round_, 1)
    if instruction is None or read_opening(context.store, context.plan, round_) is not None:
        return False
    return instruction.predicate.epoch < state.epoch


def public_of_opened(context: CoordinatorContext, state: StudyState, round_: int) -> EpochPublic | None:
    """Returns the public side of the epoch in which a round was opened, which may be an earlier one; None before."""
    instruction = read_instruction(context.store, context.plan, round_, 1)
    if instruction is None or read_opening(context.store, context.plan, round_) is None:
        return None
    epoch = instruction.predicate.epoch
    if epoch not in state.epochs:
        newest = state.public
        state.epochs[epoch] = newest if newest and newest.epoch == epoch else enter_ceremony(context, epoch)
    return state.epochs[epoch]


def _rounds_in_epoch(context: CoordinatorContext, epoch: int, before: int) -> int:
    found = [read_instruction(context.store, context.plan, number, 1) for number in range(1, before)]
    return sum(1 for instruction in found if instruction is not None and instruction.predicate.epoch == epoch)


def _epsilon(reports: tuple[EpsilonReport, ...]) -> dict[str, dict[str, str]]:
    return {r.site: {"collusion": r.collusion, "outsider": r.outsider, "fallback": r.fallback} for r in reports}


def _write_summary(
    context: CoordinatorContext,
    state: StudyState,
    released: Released,
    metrics: EvaluationMetrics | None,
    seconds: float,
) -> None:
    """Writes summary.json: released figures only, for the command line and other programs."""
    rounds = {str(o.record.predicate.round): o.record.predicate for o in state.outcomes}
    content = {
        "study": context.study,
        "title": context.plan.title,
        "complete": not state.reason,
        "reason": state.reason,
        "rounds": state.rounds,
        "participants": {r: [site for site, _ in record.contributions] for r, record in rounds.items()},
        "dropped": {r: [list(pair) for pair in record.dropped] for r, record in rounds.items()},
        "evaluation": None
        if metrics is None
        else {"auc": metrics.auc.value, "low": metrics.auc.low, "high": metrics.auc.high},
        "epsilon": _epsilon(released.release.predicate.epsilon),
        "evaluation_epsilon": _epsilon(released.release.predicate.evaluation_epsilon),
        "bytes_up": sum(bytes_up(context, o.record) for o in state.outcomes),
        "bytes_down": sum(bytes_down(context, o.record) for o in state.outcomes),
        "seconds": round(seconds, 1),
        "model_version": f"{model_name(context.plan)}/{released.version}",
        "weights": f"coordinator/{context.study}/release/weights.safetensors",
        "evidence": "evidence",
        "experiment": context.study,
    }
    (context.home / "summary.json").write_text(json.dumps(content, indent=2) + "\n")
