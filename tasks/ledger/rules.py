"""What an entry may say after the entries before it. Pure; the same object guards appending and verifying.

Invariants:
1. Nothing about a study comes before its approved plan (a refusal may: it can answer a forged instruction).
2. The filter: a reservation states the totals before and after; before = everything ever reserved from that part of
   the data source, after = before + the event's cost, after <= limit. Totals never fall, whatever cohort, contract or
   study asks. Committing changes no total, so a crash between the two leaves the reservation spent.
   A part's filter (GDP, or Renyi at one order) is fixed with its first charge: GDP for full batches, Renyi for sampled.
3. An instruction is reserved once; a contribution needs the reservation of its round.
4. One record per round: a site signs one and answers for that one, and contributes nothing to the round afterwards;
   a coordinator proposes one, issues no instruction for the round afterwards and opens it once.
5. Key ceremonies of a study have increasing epochs.
6. Reviews, and what follows from them, come after the release they are about; a reviewer's decisions count upwards;
   what was released is not released again unless it was withdrawn, and only what was released can be withdrawn.
"""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Literal, TypeAlias

from schemas.errors import BudgetError, EvidenceError
from schemas.ledger import (
    NO_STUDY,
    Body,
    CohortRegistered,
    FilterTotals,
    InstructionIssued,
    KeyCeremony,
    ModelReleased,
    PlanApproved,
    PrivacyCommitted,
    PrivacyEvent,
    PrivacyReserved,
    RecordProposed,
    RecordSigned,
    Refused,
    ReleaseDecided,
    ReviewDecided,
    ShareReleased,
    StatisticsAnswered,
    SumOpened,
)
from tasks.privacy.accounting import exact, gdp_limit, is_sampled
from tasks.privacy.filters import GdpFilter, PrivacyFilter, RenyiFilter, filter_of

Part: TypeAlias = Literal["training", "held-out"]
PARTS: tuple[Part, Part] = ("training", "held-out")
MAX_SHARES_PER_RECORD = 16


class LogRules:
    """Everything that later entries are judged by; grows by `admit`."""

    def __init__(self) -> None:
        self.cohort: CohortRegistered | None = None
        self.spent: dict[Part, Fraction] = dict.fromkeys(PARTS, Fraction(0))
        self.filters: dict[Part, PrivacyFilter] = {}
        self.study_events: dict[tuple[str, Part], Counter[PrivacyEvent]] = {}
        self.reservations: dict[tuple[str, str], PrivacyReserved] = {}
        self.commits: dict[tuple[str, str], PrivacyCommitted] = {}
        self._approved: set[str] = set()
        self._reserved_rounds: set[tuple[str, int]] = set()
        self._signed: dict[tuple[str, int], str] = {}
        self._shares: dict[tuple[str, int], dict[str, str]] = {}
        self._issued: set[tuple[str, int]] = set()
        self._proposed: dict[tuple[str, int], str] = {}
        self._opened: set[tuple[str, int]] = set()
        self._released: set[str] = set()
        self._epochs: dict[str, int] = {}
        self._reviews = ReviewRules()

    def admit(self, study: str, body: Body) -> None:
        """Checks `body` against everything before it and takes it in; on refusal nothing changes.

        Raises:
            EvidenceError: code and text name the rule.
        """
        try:
            self._admit(study, body)
        except BudgetError as error:
            raise EvidenceError(error.code, error.message) from None

    def _admit(self, study: str, body: Body) -> None:
        _require(
            isinstance(body, PlanApproved | Refused) or study in (NO_STUDY, *self._approved),
            "plan-first",
            "Expected the approved plan of its study before it.",
        )
        match body:
            case PlanApproved():
                _require(study not in self._approved, "plan-twice", "The plan was approved before.")
                self._approved.add(study)
            case CohortRegistered():
                self._admit_cohort(body)
            case PrivacyReserved():
                self._admit_reservation(study, body)
            case PrivacyCommitted():
                self._admit_commit(study, body)
            case RecordSigned() | ShareReleased():
                self._admit_share(study, body)
            case InstructionIssued() | RecordProposed() | SumOpened() | ModelReleased() | StatisticsAnswered():
                self._admit_coordination(study, body)
            case ReviewDecided() | ReleaseDecided():
                _require(
                    study in self._released, "release-first", "Expected the released model of its study before it."
                )
                self._reviews.admit(study, body)
            case KeyCeremony():
                _require(body.epoch > self._epochs.get(study, 0), "epoch-order", "Expected a later epoch.")
                self._epochs[study] = body.epoch
            case Refused():
                pass

    def filter_state(self, part: Part) -> FilterTotals:
        """Returns the totals of `part` under the registered budget, in GDP if it was never charged.

        Raises:
            EvidenceError: `cohort-first` if no cohort was registered.
        """
        _require(self.cohort is not None, "cohort-first", "Expected a registered cohort before it.")
        assert self.cohort is not None
        gate = self.filters.get(part, GdpFilter())
        return gate.state(part, self.spent[part], gate.limit(self.cohort.epsilon, self.cohort.delta))

    def round_is_closed(self, study: str, round_: int) -> bool:
        """Tells whether this site signed or answered a record of the round."""
        return (study, round_) in self._signed or (study, round_) in self._shares

    def _admit_cohort(self, body: CohortRegistered) -> None:
        gdp_limit(body.epsilon, body.delta)
        same = self.cohort is None or exact(self.cohort.delta) == exact(body.delta)
        _require(same, "delta-fixed", "Expected the delta of the first registration.")
        self.cohort = body

    def _admit_reservation(self, study: str, body: PrivacyReserved) -> None:
        part = body.event.data
        _require(self.cohort is not None, "cohort-first", "Expected a registered cohort before it.")
        assert self.cohort is not None
        _require(body.cohort == self.cohort.cohort, "cohort-mismatch", "Expected the registered cohort.")
        _require((study, body.instruction) not in self.reservations, "reserved-twice", "It was reserved before.")
        _require(study not in self._released, "after-release", "The study's model was released before.")
        closed = self.round_is_closed(study, body.round)
        _require(not closed, "round-closed", "A record of the round was signed or answered before.")
        gate = self._verify_filter(body, part)
        cost = gate.cost(body.event)
        self._verify_totals(body, part, gate, cost)
        self.filters[part] = gate
        self.spent[part] += cost
        self.study_events.setdefault((study, part), Counter())[body.event] += 1
        self.reservations[study, body.instruction] = body
        self._reserved_rounds.add((study, body.round))

    def _verify_filter(self, body: PrivacyReserved, part: Part) -> PrivacyFilter:
        gate = filter_of(body.before)
        _require(filter_of(body.after) == gate, "filter-kind", "Expected the same filter before and after.")
        fixed = self.filters.get(part)
        if fixed is None:
            fits = isinstance(gate, RenyiFilter) == is_sampled(body.event)
            _require(fits, "filter-kind", "Expected a GDP filter for full batches and a Renyi filter for sampled ones.")
        else:
            _require(gate == fixed, "filter-kind", "Expected the filter that the part's first charge fixed.")
        return gate

    def _verify_totals(self, body: PrivacyReserved, part: Part, gate: PrivacyFilter, cost: Fraction) -> None:
        assert self.cohort is not None
        before, after = body.before, body.after
        limit = exact(after.limit)
        _require(before.data == part == after.data, "filter-part", "Expected the totals of the event's part.")
        _require(exact(before.spent) == self.spent[part], "filter-before", "Expected the total of all earlier entries.")
        _require(
            exact(after.spent) == self.spent[part] + cost, "filter-after", "Expected before plus the event's cost."
        )
        _require(exact(before.limit) == limit, "filter-limit", "Expected the same limit before and after.")
        honest = gate.admits_limit(limit, self.cohort.epsilon, self.cohort.delta)
        _require(honest, "filter-limit", "Expected the limit of the registered budget.")
        _require(exact(after.spent) <= limit, "filter-overspent", "Expected a total within the limit.")

    def _admit_commit(self, study: str, body: PrivacyCommitted) -> None:
        _require(
            (study, body.round) in self._reserved_rounds,
            "reserve-first",
            "Expected a reservation of the round before it.",
        )
        _require((study, body.instruction) not in self.commits, "committed-twice", "It was committed before.")
        _require(study not in self._released, "after-release", "The study's model was released before.")
        closed = self.round_is_closed(study, body.round)
        _require(not closed, "round-closed", "A record of the round was signed or answered before.")
        self.commits[study, body.instruction] = body

    def _admit_share(self, study: str, body: RecordSigned | ShareReleased) -> None:
        at = (study, body.round)
        _require(study not in self._released, "after-release", "The study's model was released before.")
        answers = self._shares.get(at, {})
        if isinstance(body, RecordSigned):
            _require(at not in self._signed, "second-record", "A record of the round was signed before.")
            _require(set(answers.values()) <= {body.record}, "second-record", "Another record was answered before.")
            self._signed[at] = body.record
            return
        known = {*answers.values(), *([self._signed[at]] if at in self._signed else [])}
        _require(known <= {body.record}, "second-record", "Another record of the round was signed or answered before.")
        _require(body.request not in answers, "shared-twice", "The request was answered before.")
        _require(len(answers) < MAX_SHARES_PER_RECORD, "too-many-shares", "16 requests were answered before.")
        self._shares.setdefault(at, {})[body.request] = body.record

    def _admit_coordination(
        self, study: str, body: InstructionIssued | RecordProposed | SumOpened | ModelReleased | StatisticsAnswered
    ) -> None:
        if isinstance(body, ModelReleased | StatisticsAnswered):
            _require(study not in self._released, "released-twice", "Its model or answer was released before.")
            self._released.add(study)
            return
        at = (study, body.round)
        _require(study not in self._released, "after-release", "The study's model was released before.")
        match body:
            case InstructionIssued():
                _require(at not in self._proposed, "attempt-after-record", "A record of the round was proposed before.")
                self._issued.add(at)
            case RecordProposed():
                _require(at in self._issued, "instruction-first", "Expected an instruction of the round before it.")
                _require(at not in self._proposed, "second-record", "A record of the round was proposed before.")
                self._proposed[at] = body.record
            case SumOpened():
                _require(at in self._proposed, "record-first", "Expected a proposed record of the round before it.")
                _require(at not in self._opened, "opened-twice", "The round was opened before.")
                self._opened.add(at)


class ReviewRules:
    """Reviewers' decisions and the gate's, in the order in which they may follow each other."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], int] = {}
        self._entered: dict[str, set[str]] = {}
        self._released: set[str] = set()

    def admit(self, study: str, body: ReviewDecided | ReleaseDecided) -> None:
        """Checks one entry and takes it in; on refusal nothing changes."""
        entered = self._entered.setdefault(study, set())
        if isinstance(body, ReviewDecided):
            at = (study, body.decision.reviewer)
            _require(body.decision.number > self._numbers.get(at, 0), "review-order", "Expected a later review number.")
            self._numbers[at] = body.decision.number
            entered.add(body.review)
            return
        _require(set(body.decisions) <= entered, "review-first", "Expected every decision it rests on before it.")
        if body.outcome == "released":
            _require(study not in self._released, "released-twice", "The model was released before.")
            self._released.add(study)
        else:
            withdraws = study in self._released
            _require(withdraws == (body.outcome == "withdrawn"), "withdrawal", "Only what is released is withdrawn.")
            self._released.discard(study)


def _require(holds: bool, rule: str, text: str) -> None:
    if not holds:
        raise EvidenceError(rule, text)
