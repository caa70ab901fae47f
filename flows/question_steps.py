"""The coordinator's part of a question, as steps that never wait and may be repeated."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flows.context import CoordinatorContext
from flows.round_steps import SumSteps
from schemas.canonical import digest_of
from schemas.envelope import sign_envelope
from schemas.errors import OperationError
from schemas.layout import ANSWER, release_key
from schemas.ledger import StatisticsAnswered
from schemas.messages import StatisticsRelease
from schemas.statistics import QUESTION_ROUND, StatisticsPlan
from tasks.questions import recompute_answer
from tasks.secure_sum.epoch import EpochPublic
from tasks.storage.mailbox import Signed, read_signed


class QuestionSteps(SumSteps):
    """The one sum of a question."""

    def __init__(self, context: CoordinatorContext[StatisticsPlan], public: EpochPublic, attempt: int = 1) -> None:
        super().__init__(context, public, QUESTION_ROUND, "statistics", attempt)
        self.query_digest = digest_of(context.plan.query)

    @property
    def before(self) -> tuple[str, str | None]:
        """Digest of the query; nothing was opened before it."""
        return self.query_digest, None

    def digest_after(self, opened: NDArray[np.int64]) -> str:
        """Returns the digest of the query, whatever was opened."""
        return self.query_digest


def enter_answer(context: CoordinatorContext[StatisticsPlan], public: EpochPublic) -> Signed[StatisticsRelease]:
    """Recomputes the answer from what was published, signs it and enters it into the log; repeated, returns the first.

    Raises:
        OperationError: `not-opened`.
        PeerError: the published messages do not open to the published sum.
    """
    answer = recompute_answer(context.store, context.plan, lambda _: public, context.options.bulk_processes)
    if answer is None:
        raise OperationError("not-opened", "The question's sum was not opened yet.", "Ask again: it continues.")
    key = release_key(context.study, ANSWER)
    if not context.store.exists(key):
        context.store.put(key, sign_envelope(answer, context.study, context.identity.signing))
    found = read_answer(context)
    assert found is not None
    context.log.append_once(context.study, StatisticsAnswered(release=found.predicate))
    return found


def read_answer(context: CoordinatorContext[StatisticsPlan]) -> Signed[StatisticsRelease] | None:
    """Reads the signed answer, or None while there is none."""
    coordinator, key = context.plan.coordinator, release_key(context.study, ANSWER)
    return read_signed(context.store, key, StatisticsRelease, context.study, coordinator.identity_key, coordinator.name)
