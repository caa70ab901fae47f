"""The privacy budget of a site's data source: charged before data is touched, across all studies, never given back.

Invariants: the check and the entry that charges are one transaction; the filter is the ledger itself (`LogRules`); a
replayed instruction finds its reservation and spends nothing; nothing here can lower a total.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from schemas.canonical import sha256_hex
from schemas.errors import BudgetError, ConsiliumError
from schemas.ledger import (
    NO_STUDY,
    CohortRegistered,
    FilterTotals,
    LaplaceEvent,
    PrivacyCommitted,
    PrivacyEvent,
    PrivacyReserved,
    Refused,
)
from schemas.plan import BudgetSpec, StudyPlan
from tasks.ledger.rules import PARTS, LogRules, Part
from tasks.ledger.store import LedgerStore, Transaction
from tasks.privacy.accounting import (
    epsilon_of_events,
    exact,
    format_decimal,
    gdp_limit,
    is_sampled,
    pure_epsilon,
    round_epsilon,
)
from tasks.privacy.filters import GdpFilter, PrivacyFilter, choose_filter, filter_of
from tasks.privacy.mechanism import evaluation_mechanism, training_mechanism


class BudgetExceeded(BudgetError):
    """The request does not fit. `requested` is its cost in the filter's unit, `before` the totals before it."""

    def __init__(self, code: str, message: str, remedy: str, requested: str, before: FilterTotals) -> None:
        super().__init__(code, message, remedy)
        self.requested = requested
        self.before = before


@dataclass(frozen=True)
class BudgetState:
    """Registered budget and totals of a site's data source."""

    cohort: str
    epsilon: str
    delta: str
    training: FilterTotals
    held_out: FilterTotals


def register_cohort(store: LedgerStore, cohort: str, epsilon: str, delta: str) -> None:
    """Gives the site's data source its budget, once; the same registration again does nothing.

    Another cohort digest or epsilon (the data steward's decision) is a new entry; what was spent stays spent.

    Args:
        cohort: Digest of the table, keyed by a secret of the site.
        epsilon: Total over all studies and for ever, collusion reading.
        delta: Fixed with the first registration, below 1 / patients.

    Raises:
        BudgetError: `budget-malformed`, `delta-fixed`.
    """
    gdp_limit(epsilon, delta)
    body = CohortRegistered(cohort=cohort, epsilon=epsilon, delta=delta)
    with store.transaction() as log:
        present = log.rules.cohort
        if present == body:
            return
        if present is not None and exact(present.delta) != exact(delta):
            raise BudgetError(
                "delta-fixed",
                f"Expected delta {present.delta} for the lifetime of the data source, got {delta}.",
                "Register with the first delta.",
            )
        log.append(NO_STUDY, body)


def reserve(
    store: LedgerStore,
    cohort: str,
    instruction_digest: str,
    round_: int,
    event: PrivacyEvent,
    study: str,
    study_budget: BudgetSpec | None = None,
) -> FilterTotals:
    """Charges `event` in one transaction with the check that it fits, and returns the totals after it.

    A replay of the same instruction returns the stored totals and spends nothing.

    Args:
        store: The site's ledger.
        cohort: The registered cohort digest.
        instruction_digest: What asked for it.
        round_: Round of the study.
        event: From the mechanism that is about to run.
        study: The study.
        study_budget: The plan's budget; the study's own total must then fit into it as well.

    Raises:
        BudgetExceeded: `budget-exceeded`, `study-budget-exceeded`, naming requested, spent and limit; nothing charged.
        BudgetError: `cohort-unregistered`, `cohort-mismatch`, `reservation-mismatch`, `event-inconsistent`,
            `sampling-unsupported` (a sampled batch where the part's first charge fixed the GDP filter).
        EvidenceError: the plan was not approved in this ledger, or the round is closed.
    """
    return reserve_all(store, cohort, ((instruction_digest, event),), round_, study, study_budget)[0]


def reserve_all(
    store: LedgerStore,
    cohort: str,
    charges: Sequence[tuple[str, PrivacyEvent]],
    round_: int,
    study: str,
    study_budget: BudgetSpec | None = None,
) -> tuple[FilterTotals, ...]:
    """Charges all of `charges` (instruction digest, event) in one transaction, or none of them; else as `reserve`."""
    with store.transaction() as log:
        return tuple(_reserve(log, cohort, digest, round_, event, study, study_budget) for digest, event in charges)


def _reserve(
    log: Transaction,
    cohort: str,
    instruction_digest: str,
    round_: int,
    event: PrivacyEvent,
    study: str,
    study_budget: BudgetSpec | None,
) -> FilterTotals:
    stored = log.rules.reservations.get((study, instruction_digest))
    if stored is not None:
        if (stored.event, stored.round, stored.cohort) != (event, round_, cohort):
            raise BudgetError(
                "reservation-mismatch", "The instruction was reserved with another mechanism, round or cohort."
            )
        return stored.after
    before, after = _decide(log.rules, cohort, event, study, study_budget)
    log.append(
        study,
        PrivacyReserved(
            cohort=cohort, instruction=instruction_digest, round=round_, event=event, before=before, after=after
        ),
    )
    return after


def would_admit(
    store: LedgerStore, cohort: str, event: PrivacyEvent, study_budget: BudgetSpec | None = None, study: str = NO_STUDY
) -> None:
    """Refuses what `reserve` would refuse now, without charging: asked before data is validated.

    Raises:
        BudgetExceeded, BudgetError: like `reserve`.
    """
    _decide(store.read_rules(), cohort, event, study, study_budget)


def commit(store: LedgerStore, study: str, round_: int, instruction_digest: str, contribution_digest: str) -> None:
    """Records that the reserved mechanism ran; the same commit again does nothing.

    Raises:
        EvidenceError: `reserve-first`, `committed-twice` (another contribution for the instruction), `round-closed`.
    """
    body = PrivacyCommitted(instruction=instruction_digest, round=round_, contribution=contribution_digest)
    with store.transaction() as log:
        if log.rules.commits.get((study, instruction_digest)) != body:
            log.append(study, body)


def record_refusal(store: LedgerStore, study: str, instruction: bytes, error: ConsiliumError) -> bytes:
    """Appends that the site declined an instruction (its bytes as received), once, and returns the entry."""
    digest = sha256_hex(instruction)
    if isinstance(error, BudgetExceeded):
        body = Refused(instruction=digest, code=error.code, requested=error.requested, before=error.before)
    else:
        body = Refused(instruction=digest, code=error.code)
    return store.append_once(study, body)


def budget_state(store: LedgerStore) -> BudgetState:
    """Returns the registered budget and the totals of both data parts.

    Raises:
        BudgetError: `cohort-unregistered`.
    """
    rules = store.read_rules()
    cohort = _registered(rules)
    training, held_out = (rules.filter_state(part) for part in PARTS)
    return BudgetState(cohort.cohort, cohort.epsilon, cohort.delta, training, held_out)


def events_for(store: LedgerStore, study: str) -> list[PrivacyEvent]:
    """Returns the reserved events of `study` in order, committed or not: both are spent."""
    return [entry.body.event for entry in store.entries_for(study) if isinstance(entry.body, PrivacyReserved)]


_SHARES = (
    "The share is of what adds up from use to use, and that is not epsilon: half of the epsilon takes less than half "
    "of the budget, and a rest too small to show here can still admit a use of a tiny epsilon."
)


def describe_budget(store: LedgerStore, plan: StudyPlan | None = None) -> str:
    """Says in words what the budget is, what was spent, what remains, and what `plan` would change."""
    rules = store.read_rules()
    if rules.cohort is None:
        return "No budget is registered: every request is refused."
    cohort = rules.cohort
    studies = {study for study, _ in rules.reservations}
    lines = [
        f"The data of {store.owner} may be used up to epsilon {cohort.epsilon} at delta {cohort.delta} in total, "
        "over all studies and for ever, per patient, counting only the noise of the honest sites.",
        f"{len(rules.reservations)} uses in {len(studies)} studies were charged; a charge is never given back.",
    ]
    lines += _describe_questions(rules)
    lines += [_describe_part(rules, part) for part in PARTS]
    if rules.reservations:
        lines.append(_SHARES)
    if plan is not None:
        lines += _describe_plan(rules, plan)
    return "\n".join(lines)


def _decide(
    rules: LogRules, cohort: str, event: PrivacyEvent, study: str, study_budget: BudgetSpec | None
) -> tuple[FilterTotals, FilterTotals]:
    if _registered(rules).cohort != cohort:
        raise BudgetError(
            "cohort-mismatch", "The table is not the one that the budget was registered for.", "Register it."
        )
    part, budget = event.data, _registered(rules)
    gate = _filter(rules, part, event)
    cost, spent, limit = gate.cost(event), rules.spent[part], gate.limit(budget.epsilon, budget.delta)
    before = gate.state(part, spent, limit)
    if spent + cost > limit:
        what = f"the site's budget for {part} patients"
        raise BudgetExceeded("budget-exceeded", *_exceeded(gate, what, cost, spent, limit, budget.delta), before)
    if study_budget is not None:
        _verify_study_total(rules, study, event, study_budget)
    return before, gate.state(part, spent + cost, limit)


def _filter(rules: LogRules, part: Part, event: PrivacyEvent) -> PrivacyFilter:
    """Returns the filter of the part; the first charge of a part chooses it."""
    budget = _registered(rules)
    return rules.filters.get(part) or choose_filter([event], budget.epsilon, budget.delta)


def _verify_study_total(rules: LogRules, study: str, event: PrivacyEvent, budget: BudgetSpec) -> None:
    """Refuses what the study's plan does not allow it; a plan samples or does not, so its filter never changes."""
    charged = rules.study_events.get((study, event.data), Counter())
    gate = choose_filter([*charged, event], budget.epsilon, budget.delta)
    limit, cost = gate.limit(budget.epsilon, budget.delta), gate.cost(event)
    own = sum((times * gate.cost(one) for one, times in charged.items()), Fraction(0))
    if own + cost > limit:
        what = f"the study's budget for {event.data} patients"
        texts = _exceeded(gate, what, cost, own, limit, budget.delta)
        raise BudgetExceeded("study-budget-exceeded", *texts, gate.state(event.data, own, limit))


def _exceeded(
    gate: PrivacyFilter, what: str, cost: Fraction, spent: Fraction, limit: Fraction, delta: str
) -> tuple[str, str, str]:
    """Returns message, remedy and the requested cost."""

    def figure(total: Fraction) -> str:
        return f"{float(total):.6g} (epsilon {gate.epsilon(total, delta)})"

    message = (
        f"Expected a request that fits {what}: requested {figure(cost)}, spent {figure(spent)}, limit {figure(limit)}."
    )
    remedy = "Use fewer rounds or more noise, or let the data steward decide on the budget."
    return message, remedy, format_decimal(cost)


def _registered(rules: LogRules) -> CohortRegistered:
    if rules.cohort is None:
        raise BudgetError(
            "cohort-unregistered", "Expected a budget for the site's data source.", "Register its cohort and budget."
        )
    return rules.cohort


def _describe_questions(rules: LogRules) -> list[str]:
    """Says what questions before a study were charged: an event that touched both parts of the data at once."""
    words: Counter[str] = Counter()
    asked = sorted({study for study, part in rules.study_events if _is_question(rules, study)})
    for study in asked:
        for event in rules.study_events[study, "training"]:
            if isinstance(event, LaplaceEvent):
                words[f"purely epsilon {round_epsilon(pure_epsilon(event))}"] += 1
            else:
                words[f"epsilon {epsilon_of_events([event], _registered(rules).delta)}"] += 1
    if not asked:
        return []
    costs = ", ".join(f"{times} x {text}" if times > 1 else text for text, times in sorted(words.items()))
    plural = "question" if len(asked) == 1 else "questions"
    return [
        f"Of these, {len(asked)} {plural} before a study: {costs}, each charged to training and held-out patients. The "
        "same question under another name would be charged again. A purely epsilon-private answer counts here as the "
        "worst mechanism of its epsilon; the same epsilon with Gaussian noise takes less."
    ]


def _is_question(rules: LogRules, study: str) -> bool:
    both = [rules.study_events.get((study, part), Counter()) for part in PARTS]
    bare = [{event.model_copy(update={"data": "training"}) for event in events} for events in both]
    return bool(bare[0]) and bare[0] == bare[1]


def _describe_part(rules: LogRules, part: Part) -> str:
    state, delta = rules.filter_state(part), _registered(rules).delta
    gate, spent, limit = filter_of(state), exact(state.spent), exact(state.limit)
    share = 100 * float(spent / limit) if limit else 100.0
    return (
        f"{part.capitalize()} patients: epsilon {gate.epsilon(spent, delta)} spent ({share:.1f} % of the budget); "
        f"a single further use could have epsilon {gate.epsilon(limit - spent, delta) if limit > spent else '0'}."
    )


def _describe_plan(rules: LogRules, plan: StudyPlan) -> list[str]:
    lines = []
    budget = _registered(rules)
    planned = ((plan.mechanism.rounds, training_mechanism(plan)), (1, evaluation_mechanism(plan)))
    for times, mechanism in planned:
        event = mechanism.event()
        gate = _filter(rules, event.data, event)
        if isinstance(gate, GdpFilter) and is_sampled(event):
            lines.append(f"The study {plan.title!r} samples patients; the site will refuse: it counts full batches.")
            continue
        if rules.study_events.get((plan.study, event.data)):
            lines.append(f"The study {plan.title!r} has charged {event.data} patients already; the above includes it.")
            continue
        total, limit = rules.spent[event.data] + times * gate.cost(event), gate.limit(budget.epsilon, budget.delta)
        verdict = "fits" if total <= limit else "does NOT fit: the site will refuse before the end"
        epsilon = gate.epsilon(total, budget.delta)
        lines.append(f"The study {plan.title!r} would bring {event.data} patients to epsilon {epsilon}; it {verdict}.")
    return lines
