"""A site's contribution to a round: verify, validate, reserve, train, encrypt, upload; or refuse.

Invariants: nothing is charged before every rule passed; nothing is computed before it is charged; what was decided once
is replayed, with the same bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.errors import OperationError, PeerError
from schemas.ledger import PrivacyEvent, PrivacyReserved
from site_agents.compute import compute_in_child, verify_module, verify_module_in_child
from site_agents.lineage import model_before
from site_agents.policy import (
    SPLIT_KEY,
    Expected,
    describe_split,
    verify_instruction,
    verify_model_allowed,
    verify_split,
)
from site_agents.round import SiteRound
from site_agents.sending import Sending
from tasks.ledger.budget import reserve, would_admit
from tasks.privacy.mechanism import mechanism_for
from tasks.server_step import ModelState, released_weights, state_digest

TRAINING_TIMEOUT_SECONDS = 600.0


class Contributing(Sending):
    """The contributing half of a site's round. Call `verify` before the other steps."""

    def __init__(self, work: SiteRound) -> None:
        super().__init__(work)
        self.work: SiteRound = work
        self._state: ModelState | None = None

    def verify(self) -> None:
        """Checks the instruction: signature, plan, epoch, model lineage, replay, and that the budget would admit it.

        Raises:
            PeerError, PlanError, BudgetError, OperationError: named as in `site_agents.policy`,
                `tasks.training.registry` and `tasks.ledger.budget`.
        """
        instruction, epoch = self.work.instruction, self.work.epoch
        lineage = model_before(self.work.context, self.work.round)
        expected = Expected(
            round=self.work.round,
            attempt=self.work.attempt,
            epoch=epoch.public.epoch,
            sid_star=epoch.public.sid_star,
            previous_opening=lineage.opening,
            model=state_digest(lineage.state),
        )
        verify_instruction(self.work.plan, instruction.predicate, self.work.context.name, expected)
        self._state = lineage.state
        self._verify_model()
        verify_split(self.work.context.outbox.stored(SPLIT_KEY), self.work.plan.contract)
        self.bind()
        event = self._event()
        if not self._reserved():
            would_admit(
                self.work.context.ledger, self.work.context.cohort, event, self.work.plan.budget, self.work.plan.study
            )

    def _verify_model(self) -> None:
        """Refuses a module before anything is charged: not allowed here, not installed, or not what the plan pins."""
        context = self.work.context
        verify_model_allowed(self.work.plan, context.home.settings.models)
        if context.compute is compute_in_child:
            verify_module_in_child(self.work.plan, TRAINING_TIMEOUT_SECONDS)
        else:
            verify_module(self.work.plan)

    def _event(self) -> PrivacyEvent:
        return mechanism_for(self.work.plan, self.work.instruction.predicate.kind).event()

    def reserve(self) -> None:
        """Charges the round's mechanism before data is touched; a replay charges nothing.

        The first charge fixes which patients are held out, in every later study.

        Raises:
            BudgetError: `budget-exceeded`, naming requested, spent and limit.
            PlanError: `split-changed`.
        """
        event, reserved = self._event(), self._reservation()
        if reserved is not None:
            if reserved.event != event:
                raise PeerError(
                    "instruction-changed", self.work.plan.coordinator.name, "the round was charged for something else."
                )
            return
        contract = self.work.plan.contract
        verify_split(self.work.context.outbox.decide(SPLIT_KEY, lambda: describe_split(contract)), contract)
        reserve(
            self.work.context.ledger,
            self.work.context.cohort,
            self.work.instruction.digest,
            self.work.round,
            event,
            self.work.plan.study,
            self.work.plan.budget,
        )
        # Published before anything is computed: if this process dies now, the charge is in the evidence all the same.
        self.work.context.publish_ledger()

    def train(self) -> NDArray[np.int64]:
        """Computes the noised integers m_i, once per (sid*, round); they stay in the site's private folder.

        Raises:
            PeerError: `round-dead`: m_i was computed under another ceremony and is never encrypted under this one.
        """
        if not self._reserved():
            raise OperationError("not-reserved", "The round was not charged.", "Report this: nothing was computed.")

        def compute() -> NDArray[np.int64]:
            assert self._state is not None
            kind = self.work.instruction.predicate.kind
            return self.work.context.compute(
                self.work.plan,
                self.work.context.name,
                self.work.instruction.predicate,
                self._state.weights if kind == "train" else released_weights(self._state),
                self.work.context.data,
                TRAINING_TIMEOUT_SECONDS,
            )

        return self.decide_values(compute)

    # --- parts

    def _reservation(self) -> PrivacyReserved | None:
        # One charge per round: a later attempt re-sends the same m_i.
        for entry in self.work.context.ledger.find(self.work.plan.study, "privacy-reserved"):
            if isinstance(entry.body, PrivacyReserved) and entry.body.round == self.work.round:
                return entry.body
        return None

    def _reserved(self) -> bool:
        return self._reservation() is not None
