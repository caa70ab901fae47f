"""A question's answer: derived again from the opened sum, and entered by everybody who closed the question."""

from __future__ import annotations

from schemas.layout import ANSWER, release_key
from schemas.ledger import StatisticsAnswered
from schemas.messages import StatisticsRelease
from schemas.statistics import QUESTION_ROUND
from tasks.audit.context import AuditContext
from tasks.audit.registry import Check, Findings, NotApplicable
from tasks.questions import derive_answer


def check_answer(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Derives the answer to a question from the opened sum and compares it with the signed one and the logs."""
    question = context.question
    if question is None:
        return NotApplicable("the evidence is of a study, not of a question")
    if not context.select("answer"):
        return NotApplicable("the question was not answered")
    answer = context.from_coordinator(release_key(context.study, ANSWER), StatisticsRelease)
    senders = tuple(site for site, _ in context.record(QUESTION_ROUND).predicate.contributions)
    opening = context.opening(QUESTION_ROUND).digest
    derived = derive_answer(question, opening, senders, context.result(QUESTION_ROUND))
    findings.expect(answer.predicate == derived, answer.path, "is not what the opened sum says")
    for owner in context.participants:
        with findings.at(f"log of {owner}"):
            if not context.has_log(owner):
                continue
            about = [(place, entry.body) for place, entry in context.log(owner).about(context.study)]
            entered = [(place, body) for place, body in about if isinstance(body, StatisticsAnswered)]
            needed = owner == question.coordinator.name
            findings.expect(
                len(entered) == 1 or not (entered or needed), answer.path, f"is not entered once by {owner}"
            )
            for place, body in entered:
                findings.expect(body.release == answer.predicate, place, "enters another answer than the signed one")
    return f"{len(answer.predicate.figures)} figures from {len(senders)} sites"


CHECKS = (
    Check(
        "C34",
        "The answer to a question follows from the opened sum",
        "Figures, intervals and stated epsilon are those of the one opened, noisy sum; the coordinator and the sites "
        "that recomputed it entered the same answer.",
        "That the sites counted what their conditions say: each is trusted with its own patients.",
        check_answer,
    ),
)
