"""A site's answer to a question before a study: verify, validate, reserve, count, encrypt, upload; or refuse.

Invariants: as in `site_agents.contributing`. A question is one plan with one sum: what was charged for it is never
charged again, and another question, under whatever name, is another plan and another charge.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.canonical import digest_of
from schemas.errors import OperationError
from schemas.ledger import PrivacyReserved
from schemas.statistics import StatisticsPlan
from site_agents.contributing import TRAINING_TIMEOUT_SECONDS
from site_agents.policy import Expected, verify_question
from site_agents.round import SiteRound
from site_agents.sending import Sending
from tasks.ledger.statistics import reserve_statistics, would_admit_statistics
from tasks.privacy.statistics import verify_question_within_budget


class Questioning(Sending):
    """The contributing half of a site's part in a question. Call `verify` before the other steps."""

    def __init__(self, work: SiteRound[StatisticsPlan]) -> None:
        super().__init__(work)
        self.work: SiteRound[StatisticsPlan] = work

    def verify(self) -> None:
        """Checks the instruction: signature, plan, epoch, replay, and that the site's budget would admit it.

        Raises:
            PlanError, PeerError, BudgetError: as in `site_agents.policy` and `tasks.ledger.statistics`.
        """
        plan, epoch = self.work.plan, self.work.epoch.public
        expected = Expected(
            round=self.work.round,
            attempt=self.work.attempt,
            epoch=epoch.epoch,
            sid_star=epoch.sid_star,
            previous_opening=None,
            model=digest_of(plan.query),
        )
        verify_question(plan, self.work.instruction.predicate, self.work.context.name, expected)
        verify_question_within_budget(plan)
        self.bind()
        if not self._reserved():
            would_admit_statistics(self.work.context.ledger, self.work.context.cohort, plan.query, plan.study)

    def reserve(self) -> None:
        """Charges the question to both parts of the data before it is touched; a replay charges nothing.

        Raises:
            BudgetError: `budget-exceeded`; neither part is charged then.
        """
        if self._reserved():
            return
        context = self.work.context
        reserve_statistics(
            context.ledger, context.cohort, self.work.plan.query, self.work.plan.study, self.work.instruction.digest
        )
        context.publish_ledger()

    def count(self) -> NDArray[np.int64]:
        """Computes the noised integers, once per (sid*, question); they stay in the site's private folder.

        Raises:
            PeerError: `round-dead`: they were computed under another ceremony and are never encrypted under this one.
        """
        if not self._reserved():
            raise OperationError("not-reserved", "The question was not charged.", "Report this: nothing was computed.")
        return self.decide_values(
            lambda: self.work.context.compute(
                self.work.plan,
                self.work.context.name,
                self.work.instruction.predicate,
                np.zeros(0),
                self.work.context.data,
                TRAINING_TIMEOUT_SECONDS,
            )
        )

    def _reserved(self) -> bool:
        entries = self.work.context.ledger.find(self.work.plan.study, "privacy-reserved")
        return any(isinstance(entry.body, PrivacyReserved) for entry in entries)
