"""The answer that follows from an opened sum: recomputed by every site and by the auditor, never accepted as bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.canonical import digest_of, sha256_hex
from schemas.errors import PeerError
from schemas.messages import StatisticsRelease
from schemas.statistics import QUESTION_ROUND, StatisticsPlan
from tasks.lineage import PublicFor, recompute_opening
from tasks.privacy.statistics import decode_statistics, figures, question_epsilon
from tasks.rounds import read_opening, read_record
from tasks.storage.base import Store


def derive_answer(
    plan: StatisticsPlan, opening: str, participants: tuple[str, ...], opened: NDArray[np.int64]
) -> StatisticsRelease:
    """Derives the release of an opened sum.

    Args:
        opening: Envelope digest of the opening.
        participants: Senders of the record, in name order.
        opened: int64 (coefficients,).
    """
    return StatisticsRelease(
        query=digest_of(plan.query),
        opening=opening,
        participants=participants,
        figures=figures(plan.query, decode_statistics(plan.query, opened, len(participants))),
        epsilon=question_epsilon(plan),
        pure=plan.query.noise == "laplace",
    )


def recompute_answer(
    store: Store, plan: StatisticsPlan, public_for: PublicFor, processes: int = 1
) -> StatisticsRelease | None:
    """Opens the certified sum again from the published shares and derives the answer; None if nothing was opened.

    Raises:
        PeerError: the published messages do not open to the published sum.
    """
    opening, record = read_opening(store, plan, QUESTION_ROUND), read_record(store, plan, QUESTION_ROUND)
    if opening is None or record is None:
        return None
    opened = recompute_opening(store, plan, public_for, QUESTION_ROUND, processes)
    name = plan.coordinator.name
    if opening.predicate.result != sha256_hex(opened.astype("<i8").tobytes()):
        raise PeerError("wrong-opening", name, "the published sum is not what the shares open.")
    if opening.predicate.model != digest_of(plan.query):
        raise PeerError("wrong-opening", name, "the opening is of another query.")
    participants = tuple(site for site, _ in record.predicate.contributions)
    return derive_answer(plan, opening.digest, participants, opened)
