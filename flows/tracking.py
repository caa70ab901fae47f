"""The study's review view: what the flows tell MLflow, once per round and once per release."""

from __future__ import annotations

from typing import Literal

from flows.context import CoordinatorContext
from flows.figures import bytes_down, bytes_up, contract_verdicts, epsilon_of_sites, opened_at_ms
from flows.pages import StudyPage, current_run_url
from flows.round_steps import RoundOutcome
from schemas.messages import EpsilonReport, LogPosition, ModelRelease
from tasks.lineage import Lineage
from tasks.metrics import EvaluationMetrics
from tasks.server_step import weights_safetensors
from tasks.storage.mailbox import Signed
from tasks.tracking.attacks import ARTIFACT, record_kept_attacks
from tasks.tracking.plots import EpsilonAtRound
from tasks.tracking.release import record_release, tag_release, tell_study
from tasks.tracking.rounds import RoundFacts, derive_round_metrics, record_round, recorded_rounds
from tasks.tracking.story import Story
from tasks.tracking.study import close_study, describe_software, open_study
from tasks.tracking.target import TrackingTarget, page_address
from tasks.tracking.vocabulary import release_tags


class Tracker:
    """Writes one study to MLflow; every method may be repeated.

    Attributes:
        page: The study's summary in Prefect.
    """

    def __init__(self, context: CoordinatorContext) -> None:
        """Opens the study; the present flow run is the study's."""
        self._context = context
        self._target = TrackingTarget(context.settings.mlflow_uri, context.settings.artifacts)
        self._run = open_study(self._target, context.plan, describe_software(), current_run_url())
        page = f"experiments/{self._run.experiment_id}/runs/{self._run.run_id}"
        self.page = StudyPage(context.plan, page_address(self._target, page))
        self.recorded = recorded_rounds(self._target, self._run)
        self._history: dict[int, EpsilonAtRound] = {}
        self._rounds: dict[int, RoundFacts] = {}
        self._told: set[int] = set()

    def recall(self, outcome: RoundOutcome, before: Lineage, metrics: EvaluationMetrics | None) -> None:
        """Takes in a round of `recorded`, for the summaries of later ones; writes nothing."""
        facts = self._facts(outcome, before, metrics)
        self._rounds[facts.round] = facts
        self.page.recall(facts)

    def round(self, outcome: RoundOutcome, before: Lineage, metrics: EvaluationMetrics | None) -> RoundFacts:
        """Records an opened round; returns what it may tell."""
        plan = self._context.plan
        facts = self._facts(outcome, before, metrics)
        if facts.round not in self._told:  # Prefect tries a record once more that a busy database broke off
            self._tell_done(facts)
        weights = weights_safetensors(plan, outcome.lineage.state) if facts.kind == "train" else None
        record_round(self._target, self._run, plan, facts, weights)
        self._rounds[facts.round] = facts
        so_far = f"Not released yet: {len(self._rounds)} of {plan.mechanism.rounds + 1} rounds so far."
        tell_study(self._target, self._run, plan, Story(so_far, list(self._rounds.values())))
        return facts

    def _tell_done(self, facts: RoundFacts) -> None:
        self._told.add(facts.round)
        self._context.progress.emit(
            "round-done",
            round=facts.round,
            kind=facts.kind,
            participants=list(facts.participants),
            dropped=[list(pair) for pair in facts.dropped],
            seconds=round(sum(facts.seconds.values()), 3),
            steps=facts.seconds,
            epsilon_collusion={r.site: r.collusion for r in facts.epsilon},
            epsilon_outsider={r.site: r.outsider for r in facts.epsilon},
            bytes_up=facts.bytes_up,
            bytes_down=facts.bytes_down,
        )

    def _facts(self, outcome: RoundOutcome, before: Lineage, metrics: EvaluationMetrics | None) -> RoundFacts:
        context, record = self._context, outcome.record.predicate
        asked = outcome.instruction.predicate.kind
        kind: Literal["train", "evaluate"] = "train" if asked == "train" else "evaluate"
        reports = epsilon_of_sites(context, "training" if kind == "train" else "held-out", record.round)
        if kind == "train":
            self._history[record.round] = _at_round(record.round, reports)
            figures = derive_round_metrics(context.plan, before.state, outcome.lineage.state, outcome.opened)
        else:
            figures = {n: float(v) for n, v in metrics.summary()} if metrics is not None else {}
        return RoundFacts(
            round=record.round,
            kind=kind,
            participants=tuple(site for site, _ in record.contributions),
            dropped=tuple((site, str(reason)) for site, reason in record.dropped),
            metrics=figures,
            epsilon=reports,
            bytes_up=bytes_up(context, outcome.record),
            bytes_down=bytes_down(context, outcome.record),
            seconds=outcome.seconds,
            model=outcome.opening.predicate.model,
            messages={
                "instruction.json": outcome.instruction.data,
                "record.json": outcome.record.data,
                "opening.json": outcome.opening.data,
            },
            finished_at_ms=opened_at_ms(context, record.round),
            flow_run=current_run_url(),
            verdicts=contract_verdicts(context, outcome),
        )

    def attacks(self) -> None:
        """Logs attacks.json of the coordinator's home, if it is about this study."""
        record_kept_attacks(self._target, self._context.plan, self._context.home / ARTIFACT)

    def release(
        self,
        release: Signed[ModelRelease],
        metrics: EvaluationMetrics | None,
        positions: dict[str, LogPosition],
    ) -> str:
        """Registers the released model, tags it, sets the alias and closes the parent run; returns name and version."""
        context, given = self._context, release.predicate
        weights = context.store.get(f"coordinator/{context.study}/release/weights.safetensors")
        assert weights is not None
        version = record_release(
            self._target,
            self._run,
            context.plan,
            weights,
            given,
            metrics,
            list(self._history.values()),
            {"release.json": release.data},
            list(self._rounds.values()),
            positions,
        )
        tag_release(self._target, context.plan, version, release_tags(context.plan, given, positions, release.digest))
        close_study(self._target, self._run, given.complete, given.reason)
        return version


def _at_round(round_: int, reports: tuple[EpsilonReport, ...]) -> EpsilonAtRound:
    return EpsilonAtRound(
        round_, {r.site: float(r.collusion) for r in reports}, {r.site: float(r.outsider) for r in reports}
    )
