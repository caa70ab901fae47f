"""What the study cost each site's patients, recomputed from the ledgers' events."""

from __future__ import annotations

import importlib.util
from fractions import Fraction

from schemas.ledger import CohortRegistered, LedgerEntry, PrivacyEvent, PrivacyReserved
from schemas.messages import EpsilonReport
from schemas.statistics import QUESTION_ROUND, StatisticsPlan
from tasks.audit.context import AuditContext
from tasks.audit.logs import Log
from tasks.audit.registry import Check, Findings, NotApplicable
from tasks.ledger.statistics import part_digest, statistics_event
from tasks.privacy.accounting import epsilon_of_events, epsilon_report, exact, is_sampled
from tasks.privacy.filters import PrivacyFilter, RenyiFilter, choose_filter, filter_of
from tasks.privacy.mechanism import mechanism_for
from tasks.privacy.recompute import check_recomputations

Place = str
PARTS = ("training", "held-out")
NO_ACCOUNTANT = "no independent accountant is installed here: install consilium with its extra `audit`"


def check_reservations(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Checks that every contribution was charged once, before it was made, with the plan's mechanism."""
    contributions = context.select("contribution")
    if not contributions:
        return NotApplicable("no site contributed")
    for site in context.plan.contributors:
        with findings.at(f"ledger of {site.name}"):
            if context.has_log(site.name):
                _check_reserved_rounds(context, findings, site.name)
    for item in contributions:
        with findings.at(item.path):
            if context.is_exempt(item):
                continue
            sender = str(item.site)
            given = context.contribution(item.round, item.attempt, sender).predicate
            charged = [e for _, e, body in _reservations(context, sender) if body.round == item.round]
            # A question touches both parts of the data, and each is charged.
            wanted = 1 if context.question is None else len(PARTS)
            findings.expect(
                len(charged) == wanted, item.path, f"was charged {len(charged)} times in the ledger of {sender}"
            )
            early = all(entry.sequence < given.ledger.size for entry in charged)
            findings.expect(early, item.path, f"was made before it was charged in the ledger of {sender}")
    return f"{len(contributions)} contributions, each charged once and before"


def _check_question_charges(context: AuditContext, question: StatisticsPlan, findings: Findings, site: str) -> None:
    charged: set[str] = set()
    asked = [context.instruction(QUESTION_ROUND, attempt).digest for attempt in context.attempts(QUESTION_ROUND)]
    for place, _, body in _reservations(context, site):
        part = body.event.data
        findings.expect(part not in charged, place, f"charges the {part} patients a second time")
        charged.add(part)
        digests = {part_digest(question.query, part, digest) for digest in asked}
        findings.expect(body.instruction in digests, place, "charges an instruction that is not in the evidence")
        findings.expect(body.event == statistics_event(question.query, part), place, "is not the plan's mechanism")


def _check_reserved_rounds(context: AuditContext, findings: Findings, site: str) -> None:
    if context.question is not None:
        _check_question_charges(context, context.question, findings, site)
        return
    rounds: set[int] = set()
    for place, _, body in _reservations(context, site):
        findings.expect(body.round not in rounds, place, f"charges round {body.round} a second time")
        rounds.add(body.round)
        attempts = context.attempts(body.round)
        digests = {context.instruction(body.round, attempt).digest for attempt in attempts}
        findings.expect(body.instruction in digests, place, "charges an instruction that is not in the evidence")
        if attempts:
            kind = context.instruction(body.round, attempts[0]).predicate.kind
            expected = mechanism_for(context.study_plan, kind).event()
            findings.expect(body.event == expected, place, "is not the plan's mechanism")


def check_filter(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Recomputes every site's privacy filter over its whole ledger, and the study's share of it."""
    checked = 0
    for site in context.plan.contributors:
        with findings.at(f"ledger of {site.name}"):
            if not context.has_log(site.name):
                continue
            _replay_filter(findings, context.log(site.name))
            _check_study_total(context, findings, site.name)
            checked += 1
    return f"{checked} ledgers" if checked else NotApplicable("no ledger was published")


def _replay_filter(findings: Findings, log: Log) -> None:
    spent = dict.fromkeys(PARTS, Fraction(0))
    budget: CohortRegistered | None = None
    filters: dict[str, PrivacyFilter] = {}
    charged: set[str] = set()
    for place, _, entry in log.entries:
        body = entry.body
        if isinstance(body, CohortRegistered):
            budget = body
        if not isinstance(body, PrivacyReserved):
            continue
        part, gate = body.event.data, filter_of(body.before)
        suits = filters.setdefault(part, gate) == gate == filter_of(body.after)
        findings.expect(suits, place, "changes the filter that the first charge fixed")
        first = part not in charged
        charged.add(part)
        suits = not first or isinstance(gate, RenyiFilter) == is_sampled(body.event)
        findings.expect(suits, place, "begins a filter of another kind than its mechanism needs")
        findings.expect(exact(body.before.spent) == spent[part], place, "does not start from the total before it")
        spent[part] += gate.cost(body.event)
        findings.expect(exact(body.after.spent) == spent[part], place, "does not add the cost of its event")
        findings.expect(spent[part] <= exact(body.after.limit), place, "exceeds the site's budget")
        if budget is None:
            findings.add(place, "charges a data source that has no budget")
            continue
        honest = gate.admits_limit(exact(body.after.limit), budget.epsilon, budget.delta)
        findings.expect(honest, place, "states a larger limit than the registered budget gives")


def _check_study_total(context: AuditContext, findings: Findings, site: str) -> None:
    if context.question is not None:
        return  # C06 holds its one mechanism against the plan's epsilon, C24 every charge against the mechanism.
    budget = context.plan.budget
    for part in PARTS:
        events = _events(context, site, part)
        gate = choose_filter(events, budget.epsilon, budget.delta)
        total = sum((gate.cost(event) for event in events), Fraction(0))
        within = gate.admits_limit(total, budget.epsilon, budget.delta)
        findings.expect(
            within, f"ledger of {site}", f"the study's {part} charges exceed the plan's epsilon {budget.epsilon}"
        )


def check_epsilon(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Recomputes the released epsilon of every site in all readings from its ledger's events."""
    if not context.released:
        return NotApplicable("no model was released")
    release = context.release
    worst = 0.0
    for stated, part in ((release.predicate.epsilon, "training"), (release.predicate.evaluation_epsilon, "held-out")):
        expected: list[EpsilonReport] = []
        unreadable: set[str] = set()
        for site in context.plan.contributors:
            unreadable.add(site.name)
            with findings.at(f"ledger of {site.name}"):
                if context.has_log(site.name) and (events := _events(context, site.name, part)):
                    expected.append(epsilon_report(context.study_plan, site.name, events))
                unreadable.discard(site.name)
        by_site = {report.site: report for report in stated}
        named = [report.site for report in stated if report.site not in unreadable]
        findings.expect(named == [r.site for r in expected], release.path, f"its {part} cost names other sites")
        for report in expected:
            worst = max(worst, float(report.collusion))
            same = by_site.get(report.site) == report
            findings.expect(same, release.path, f"states another {part} cost of {report.site} than its ledger gives")
    return f"at most {worst:g} per site at delta {context.plan.budget.delta}, under the plan's collusion"


def check_independent(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Recomputes epsilon by dp-accounting, for every different list of charges, and compares."""
    if not _is_installed("dp_accounting"):
        return NotApplicable(NO_ACCOUNTANT)
    lists = _charge_lists(context, findings)
    for site, events in lists.items():
        for result in check_recomputations(events, context.plan.budget.delta, with_opacus=False):
            findings.expect(result.passed is not False, f"ledger of {site}", f"{result.name}: {result.detail}")
    return f"{len(lists)} different lists of charges" if lists else NotApplicable("nothing was charged")


def check_opacus(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Recomputes the largest epsilon by Opacus in a child process, if it is installed."""
    if not _is_installed("dp_accounting"):
        return NotApplicable(NO_ACCOUNTANT)
    lists = _charge_lists(context, findings)
    if not lists:
        return NotApplicable("nothing was charged")
    delta = context.plan.budget.delta
    site, events = max(lists.items(), key=lambda pair: float(epsilon_of_events(pair[1], delta)))
    for result in check_recomputations(events, delta):
        if result.passed is None:
            return NotApplicable("Opacus is not installed here")
        findings.expect(result.passed, f"ledger of {site}", f"{result.name}: {result.detail}")
    return f"the charges of {site}"


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _charge_lists(context: AuditContext, findings: Findings) -> dict[str, tuple[PrivacyEvent, ...]]:
    """Returns every different list of charges, by the first site that has it."""
    lists: dict[tuple[PrivacyEvent, ...], str] = {}
    for site in context.plan.contributors:
        with findings.at(f"ledger of {site.name}"):
            if context.has_log(site.name):
                events = tuple(event for part in PARTS for event in _events(context, site.name, part))
                if events:
                    lists.setdefault(events, site.name)
    return {site: events for events, site in lists.items()}


def _reservations(context: AuditContext, site: str) -> list[tuple[Place, LedgerEntry, PrivacyReserved]]:
    """Returns the study's reservations in a site's ledger."""
    entries = context.log(site).about(context.study)
    return [(place, entry, entry.body) for place, entry in entries if isinstance(entry.body, PrivacyReserved)]


def _events(context: AuditContext, site: str, part: str) -> tuple[PrivacyEvent, ...]:
    return tuple(body.event for _, _, body in _reservations(context, site) if body.event.data == part)


CHECKS = (
    Check(
        "C24",
        "Every contribution was charged once, before it was made",
        "The site entered the plan's mechanism into its ledger before the contribution that carries the ledger's "
        "position; no round was charged twice and none was free.",
        "That the site drew the noise that it entered: its software is trusted with its own patients.",
        check_reservations,
    ),
    Check(
        "C25",
        "No privacy filter was exceeded",
        "Over the whole life of each data source the charges of all studies stay within the site's own budget, and "
        "this study's within the plan's.",
        "That a site registered each data source once.",
        check_filter,
    ),
    Check(
        "C26",
        "The released epsilon follows from the ledgers' events",
        "Each site's cost under collusion, against outsiders and without the threshold key is what its events give.",
        "That the unit and the assumptions (how many sites a patient is in, how many collude) fit reality.",
        check_epsilon,
    ),
    Check(
        "C27",
        "Google's dp-accounting agrees",
        "From the same events, the privacy loss distribution gives the filter's cost, and the Rényi bound is above it.",
        "That the events are true; see C24.",
        check_independent,
    ),
    Check(
        "C28",
        "Opacus' accountant agrees",
        "A third implementation finds the same Rényi cost for the site with the largest charges.",
        "That the events are true; see C24. Not applicable where Opacus is not installed.",
        check_opacus,
    ),
)
