"""What every step of one round shares: plan, public epoch, verified instruction and derived parameters."""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.errors import PeerError, PlanError
from schemas.messages import Instruction
from schemas.plan import Agreement
from schemas.statistics import coefficients
from schemas.wire import Header, Kind
from tasks.secure_sum.epoch import EpochPublic, holder_points
from tasks.secure_sum.parameters import SumParameters, derive_parameters


@dataclass(frozen=True)
class RoundContext:
    """One (round, attempt). Build it with `RoundContext.of`, which checks that its parts belong together.

    Attributes:
        plan, public, instruction: Verified.
        instruction_digest: Envelope digest of the instruction.
        parameters: Derived from the plan.
        processes: Over how many processes bulk work is spread; changes no byte.
    """

    plan: Agreement = field(repr=False)
    public: EpochPublic = field(repr=False)
    instruction: Instruction
    instruction_digest: str
    parameters: SumParameters = field(repr=False)
    processes: int = 1

    @classmethod
    def of(
        cls,
        plan: Agreement,
        public: EpochPublic,
        instruction: Instruction,
        instruction_digest: str,
        processes: int = 1,
    ) -> RoundContext:
        """Checks that an instruction fits plan and epoch.

        Raises:
            PeerError: `instruction-mismatch` or `too-few-participants`, naming the coordinator.
        """
        peer = plan.coordinator.name
        expected = {
            "study": (public.study, plan.study),
            "session": (instruction.sid_star, public.sid_star),
            "epoch": (instruction.epoch, public.epoch),
            "length": (instruction.length, _expected_length(plan, instruction.kind)),
        }
        for name, (got, wanted) in expected.items():
            if got != wanted:
                raise PeerError("instruction-mismatch", peer, f"the {name} in the instruction is not the expected one.")
        allowed = {site.name for site in plan.contributors}
        participants = list(instruction.participants)
        if participants != sorted(set(participants)) or not set(participants) <= allowed:
            raise PeerError("instruction-mismatch", peer, "participants must be distinct contributors in name order.")
        if len(participants) < plan.threshold.k_min:
            raise PeerError("too-few-participants", peer, "the instruction names fewer participants than k_min.")
        return cls(plan, public, instruction, instruction_digest, derive_parameters(plan), processes)

    @property
    def coordinator(self) -> str:
        """Name of the coordinator, for errors."""
        return self.plan.coordinator.name

    @property
    def points(self) -> dict[str, int]:
        """Sharing point of every key holder."""
        return holder_points(self.plan)

    def header(self, kind: Kind, sender: str, counts: tuple[int, ...], recipient: str = "") -> Header:
        """Returns the header that a blob of this round and attempt has."""
        i = self.instruction
        return Header(kind, i.sid_star, i.round, i.attempt, self.instruction_digest, sender, recipient, counts)


def _expected_length(plan: Agreement, kind: str) -> int | None:
    try:
        return coefficients(plan, kind)
    except PlanError:
        return None
