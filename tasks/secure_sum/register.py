"""What a key holder must never do twice: sign two records of a round, or answer more than 16 active sets.

Invariant: the caller makes `to_bytes()` durable, in the epoch folder that no backup holds, before the signature or the
share leaves; a register that is lost ends signing under its sid*.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from schemas.canonical import Digest, Name, Strict, canonical_bytes, parse_canonical
from schemas.errors import PeerError
from tasks.secure_sum.parameters import MAX_SETS


class _Round(Strict):
    round: int
    record: Digest
    sets: tuple[tuple[Name, ...], ...] = ()


class _Stored(Strict):
    format: Literal["consilium/register/1"] = "consilium/register/1"
    sid_star: Digest
    rounds: tuple[_Round, ...] = ()


@dataclass(frozen=True)
class Register:
    """Signed records and answered sets of one holder under one sid*; every method returns a new value."""

    stored: _Stored

    @classmethod
    def empty(cls, sid_star: str) -> Register:
        """Starts a register for a fresh epoch."""
        return cls(_Stored(sid_star=sid_star))

    @classmethod
    def from_bytes(cls, data: bytes) -> Register:
        """Reads `to_bytes`.

        Raises:
            EvidenceError: the bytes are not a register.
        """
        return cls(parse_canonical(_Stored, data, "the register of signed records"))

    def to_bytes(self) -> bytes:
        """Returns the canonical encoding."""
        return canonical_bytes(self.stored)

    @property
    def sid_star(self) -> str:
        """The epoch that it belongs to."""
        return self.stored.sid_star

    def signed_record(self, round_: int) -> str | None:
        """Returns the only record signed for a round, or None."""
        return next((r.record for r in self.stored.rounds if r.round == round_), None)

    def sign_record(self, round_: int, record_digest: str) -> Register:
        """Admits a record for signature: the first of its round, whatever the attempt, or the same again.

        Raises:
            PeerError: `second-record`, naming the coordinator.
        """
        signed = self.signed_record(round_)
        if signed == record_digest:
            return self
        if signed is not None:
            raise _second_record()
        entries = (*self.stored.rounds, _Round(round=round_, record=record_digest))
        return Register(self.stored.model_copy(update={"rounds": tuple(sorted(entries, key=lambda r: r.round))}))

    def answer_set(self, round_: int, record_digest: str, active_set: tuple[str, ...]) -> Register:
        """Admits an active set for a share of the signed record: at most 16 different ones.

        A holder that did not sign may answer a certified record; it then binds itself to it as if it had signed.

        Raises:
            PeerError: `second-record` or `too-many-sets`, naming the coordinator.
        """
        bound = self.sign_record(round_, record_digest)
        entry = next(r for r in bound.stored.rounds if r.round == round_)
        if active_set in entry.sets:
            return bound
        if len(entry.sets) >= MAX_SETS:
            raise PeerError(
                "too-many-sets", "coordinator", f"{MAX_SETS} active sets were answered for this record already."
            )
        grown = entry.model_copy(update={"sets": (*entry.sets, active_set)})
        rounds = tuple(grown if r.round == round_ else r for r in bound.stored.rounds)
        return Register(bound.stored.model_copy(update={"rounds": rounds}))


def _second_record() -> PeerError:
    return PeerError(
        "second-record",
        "coordinator",
        "this holder already signed another record of this round, and it signs one, whatever the attempt.",
        "The round stays charged; open the first record or go on with the next round.",
    )
