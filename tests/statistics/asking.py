"""Questions in a prepared study's consortium, approved by everybody."""

from __future__ import annotations

from dataclasses import dataclass

from infra.embedded_statistics import EmbeddedQuestion
from infra.questions import Question, approve_question, propose_question, write_question
from schemas.statistics import StatisticsPlan
from tests.simulator import Prepared


@dataclass(frozen=True)
class Asked:
    """An approved question of a prepared study."""

    prepared: Prepared
    plan: StatisticsPlan

    def open(self) -> EmbeddedQuestion:
        """Opens all parties; called again, it is a restart of everybody."""
        workdir = self.prepared.workdir
        homes = {site.name: workdir.site(site.name) for site in self.plan.sites}
        return EmbeddedQuestion(workdir.coordinator, homes, self.plan.study)


def ask(prepared: Prepared, question: Question) -> Asked:
    """Writes, proposes and lets every site approve a question."""
    plan = write_question(prepared.plan, question)
    propose_question(prepared.workdir.coordinator, plan)
    for site in plan.sites:
        approve_question(prepared.workdir.site(site.name), plan.study)
    return Asked(prepared, plan)


def question(**changes: object) -> Question:
    """A count with Laplace noise, unless `changes` say otherwise."""
    base = {
        "name": "How many patients would qualify?",
        "purpose": "Feasibility.",
        "epsilon": "1",
        "delta": "1e-5",
        "noise": "laplace",
    }
    return Question(**(base | changes))  # type: ignore[arg-type]
