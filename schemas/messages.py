"""Every signed message between a site and the coordinator, in the order in which a study sends them.

All of them travel as `schemas.envelope` envelopes whose subject is the study id. Bulk bytes travel beside them
(`schemas.wire`) and are named by digest. "Envelope digest" is SHA-256 over the stored envelope bytes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from schemas.canonical import Decimal, Digest, Extended, HexKey, Name, Strict
from schemas.contract import ContractVerdict
from schemas.envelope import Predicate

# --- agreement -------------------------------------------------------------------------------------------------------


class PlanApproval(Predicate):
    """A participant agrees to the plan that is the statement's subject. Signed by identity key."""

    participant: Name
    role: Literal["coordinator", "site"]


# --- checkpoints -----------------------------------------------------------------------------------------------------


class LogPosition(Strict):
    """Size and RFC 6962 root of a ledger or study log; 0 and the empty-tree root before the first entry."""

    size: int = Field(ge=0)
    root: Digest


class Checkpoint(Predicate):
    """A signed position of the log owned by `owner`."""

    owner: Name
    position: LogPosition


class Closing(Predicate):
    """The coordinator lists the checkpoints (log owner, envelope digest, by owner) that close the study's logs.

    A site that published none in time, or one that its log does not fit, is not listed; the list is what everybody
    witnesses.
    """

    checkpoints: tuple[tuple[Name, Digest], ...]


class Witness(Predicate):
    """`witness` verified every log that `closing` (envelope digest) lists, up to the checkpoint listed."""

    witness: Name
    closing: Digest
    seen: tuple[tuple[Name, Digest], ...]


# --- key ceremony (all signed by identity key; one message per phase and holder) -------------------------------------


class CeremonyInstruction(Predicate):
    """The coordinator opens epoch `epoch`. `sid` is the digest over plan, epoch, parameters and roster."""

    epoch: int = Field(ge=1)
    sid: Digest
    parameters: Digest


class NonceCommit(Predicate):
    """Commits to the seed nonce and announces the fresh epoch keys."""

    sid: Digest
    sender: Name
    commitment: Digest
    epoch_signing_key: HexKey
    epoch_hpke_key: str = Field(pattern=r"^[0-9a-f]{2432}$")


class NonceOpen(Predicate):
    sid: Digest
    sender: Name
    nonce: HexKey


class KeyCommit(Predicate):
    """Commits to b_i = -(a s_i + e_i)."""

    sid: Digest
    sender: Name
    commitment: Digest


class KeyOpen(Predicate):
    """Opens b_i (blob digest) and names the sealed sharing (Shamir share and mask key) for each other holder."""

    sid: Digest
    sender: Name
    blinding: HexKey
    public_share: Digest
    sealed: tuple[tuple[Name, Digest], ...]


class SelfTest(Predicate):
    """Names the sender's decryption shares (blob digests) of the deterministic self-test ciphertexts, in order."""

    sid: Digest
    sender: Name
    shares: tuple[Digest, ...]


class TranscriptSignature(Predicate):
    """The sender saw exactly these ceremony messages; `transcript` is derived from all envelope digests."""

    sid: Digest
    sender: Name
    transcript: Digest
    sid_star: Digest


# --- one round -------------------------------------------------------------------------------------------------------


class Instruction(Predicate):
    """Asks the participants for one contribution. Signed by the coordinator's identity key.

    A later attempt equals the first but for `attempt` and `participants`.

    Attributes:
        kind: ``train`` (one clipped-gradient sum), ``evaluate`` (held-out histogram) or ``statistics`` (a question).
        round: 1-based over the study; evaluation follows the last training round.
        model: Digest of the model state that the site must hold (see `tasks.server_step`); of the query of a question.
        previous_opening: Envelope digest of the opening that led to `model`; None before the first step.
        length: Number of coefficients of the contribution.
        log: Position of the study log, witnessed by everybody who answers.
    """

    kind: Literal["train", "evaluate", "statistics"]
    sid_star: Digest
    epoch: int = Field(ge=1)
    round: int = Field(ge=1)
    attempt: int = Field(ge=1)
    participants: tuple[Name, ...]
    model: Digest
    previous_opening: Digest | None
    length: int = Field(ge=1)
    log: LogPosition


class Contribution(Predicate):
    """What a site contributes: digests of everything it uploads. Signed by the site's identity key.

    Attributes:
        instruction: Envelope digest of the instruction answered.
        key_ciphertext: SHA-256 of the key-ciphertext blob (CKKS half).
        shamir: (holder, SHA-256 of the sealed-share blob) for every key holder, in name order (Shamir half).
        bulk_root: Merkle root over the bulk chunks.
        bulk_bytes: Size of the bulk object.
        ledger: The site's ledger position after its reservation; witnessed through the certified record.
        verdict: Contract verdict, pass or fail per rule.
    """

    sid_star: Digest
    round: int = Field(ge=1)
    attempt: int = Field(ge=1)
    instruction: Digest
    sender: Name
    key_ciphertext: Digest
    shamir: tuple[tuple[Name, Digest], ...]
    bulk_root: Digest
    bulk_bytes: int = Field(ge=1)
    ledger: LogPosition
    verdict: ContractVerdict


class Refusal(Predicate):
    """A site declines an instruction. `detail` is fixed text for the code, or requested/spent/limit of a budget.

    The instruction's digest is that of the *bytes as received*, so that a refusal of a forged instruction also has one.
    """

    instruction: Digest
    sender: Name
    code: str = Field(pattern=r"^[a-z0-9-]{1,64}$")
    detail: str = Field(max_length=400)
    ledger: LogPosition
    verdict: ContractVerdict | None = None


class Collected(Predicate):
    """The coordinator has stopped collecting and asks the holders to check the sealed shares addressed to them."""

    sid_star: Digest
    round: int
    attempt: int
    instruction: Digest
    contributions: tuple[tuple[Name, Digest], ...]


class SharesChecked(Predicate):
    """A holder tried to open the sealed shares of all collected contributions; `faulty` senders are to be left out.

    Signed by the holder's epoch key, before any record is proposed.
    """

    sid_star: Digest
    round: int
    attempt: int
    holder: Name
    collected: Digest
    faulty: tuple[Name, ...]


class Record(Predicate):
    """The coordinator proposes which contributions are summed; its envelope digest is what holders certify (R).

    Signing it states that every listed bulk root verified.

    Attributes:
        contributions: (sender, envelope digest), strictly increasing by sender.
        dropped: (site, reason code) for every participant that is not in the sum; reasons: silent, refused, invalid.
        key_sum: D, digest of the sum of the key ciphertexts.
    """

    sid_star: Digest
    epoch: int = Field(ge=1)
    round: int = Field(ge=1)
    attempt: int = Field(ge=1)
    instruction: Digest
    contributions: tuple[tuple[Name, Digest], ...]
    dropped: tuple[tuple[Name, Literal["silent", "refused", "invalid"]], ...]
    key_sum: Digest


class RecordSignature(Predicate):
    """A key holder certifies the only record of this round it ever signs. Signed by the holder's epoch key."""

    sid_star: Digest
    round: int
    holder: Name
    record: Digest


class ShareRequest(Predicate):
    """The coordinator asks an active set for decryption shares of a certified record.

    Attributes:
        record: Envelope digest of the record.
        certificate: (holder, envelope digest of its RecordSignature), at least Q, in name order.
        active_set: Exactly t key holders, in name order.
        number: 1..16, which set for this record.
    """

    sid_star: Digest
    round: int
    record: Digest
    certificate: tuple[tuple[Name, Digest], ...]
    active_set: tuple[Name, ...]
    number: int = Field(ge=1, le=16)


class DecryptionShare(Predicate):
    """Names the holder's share blob (CKKS half and Shamir half). Signed by the holder's epoch key."""

    sid_star: Digest
    round: int
    holder: Name
    record: Digest
    request: Digest
    share: Digest


class Opening(Predicate):
    """The coordinator publishes the opened sum of a round.

    Attributes:
        request: Envelope digest of the share request whose set answered completely.
        shares: (holder, envelope digest of its DecryptionShare), exactly the active set.
        bulk_sum: SHA-256 of the published bulk-sum blob.
        result: SHA-256 of the opened integers (int64 little-endian bytes).
        model: Digest of the model state after the server step; for evaluate, the unchanged model.
    """

    sid_star: Digest
    round: int
    attempt: int
    record: Digest
    request: Digest
    shares: tuple[tuple[Name, Digest], ...]
    bulk_sum: Digest
    result: Digest
    model: Digest


# --- release ---------------------------------------------------------------------------------------------------------


class EpsilonReport(Strict):
    """Cumulative epsilon of one site (see `tasks.privacy.accounting`); decimal strings, rounded up."""

    site: Name
    events: int
    collusion: Decimal
    outsider: Decimal
    fallback: Decimal


class ModelRelease(Predicate):
    """The released model and what it cost. Signed by the coordinator's identity key; an entry of the study log.

    Attributes:
        rounds: Training rounds that were opened.
        model: Digest of the final model state.
        weights: SHA-256 of ``weights.safetensors``.
        evaluation: Envelope digest of the evaluation's opening, or None if there was none.
        metrics: Released metrics (name, decimal string) derived from the opened histogram only.
        epsilon: Training cost per site, in name order; `evaluation_epsilon` likewise for the held-out patients.
        complete: False if the study ended before its last planned round; `reason` says why.
    """

    rounds: int = Field(ge=0)
    model: Digest
    weights: Digest
    evaluation: Digest | None
    metrics: tuple[tuple[str, Decimal], ...]
    epsilon: tuple[EpsilonReport, ...]
    evaluation_epsilon: tuple[EpsilonReport, ...]
    complete: bool
    reason: str = Field(max_length=200)


class StatisticsRelease(Predicate):
    """The answer to a question. Signed by the coordinator's identity key; an entry of every log of the question.

    Attributes:
        query: Digest of the query.
        opening: Envelope digest of the opening that it follows from.
        participants: Sites in the sum, in name order.
        figures: (name, value, low, high) with 95 % intervals for the noise, decimal strings, in the query's order.
        epsilon: What one site's patient was charged in the collusion reading; purely epsilon if `pure`, else at the
            plan's delta.
    """

    query: Digest
    opening: Digest
    participants: tuple[Name, ...]
    figures: tuple[tuple[str, Decimal, Decimal, Decimal], ...]
    epsilon: Decimal
    pure: bool


class EvidenceManifest(Predicate, Extended):
    """Every file of an evidence folder: (path, SHA-256), sorted by path. Signed by the coordinator.

    `omitted` lists likewise the ciphertexts that were left out of an export without bulk; all of them or none.
    """

    LATER: ClassVar[tuple[str, ...]] = ("omitted",)

    files: tuple[tuple[str, Digest], ...]
    omitted: tuple[tuple[str, Digest], ...] = ()
