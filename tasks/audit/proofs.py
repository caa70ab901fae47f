"""Consistency proofs between the positions of a log that somebody signed, for whoever kept one of them.

A hospital that remembers the size and root of one instruction can check by one short proof that the log it is shown
today still begins with the log it saw then, without the entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from schemas.canonical import Digest, Name, Strict
from schemas.messages import LogPosition
from tasks.audit.context import AuditContext
from tasks.audit.registry import AuditFailure, Findings


class SignedPosition(Strict):
    """A position of a log and the messages (paths in the evidence) that carry it, each signed."""

    position: LogPosition
    signed_in: tuple[str, ...]


class ConsistencyProofs(Strict):
    """The signed positions of one log by size, and an RFC 6962 consistency proof from each to the next.

    Attributes:
        proofs: One list of nodes (hex) for each pair of neighbours.
    """

    format: str = "consilium/consistency/1"
    owner: Name
    positions: tuple[SignedPosition, ...]
    proofs: tuple[tuple[Digest, ...], ...]


def signed_positions(context: AuditContext, findings: Findings) -> Iterator[tuple[str, str, LogPosition]]:
    """Yields (log owner, place, position) of every position inside an instruction or an answer."""
    coordinator = context.plan.coordinator.name
    for item in context.items:
        with findings.at(item.path):
            if context.is_exempt(item):
                continue
            if item.kind == "instruction":
                yield coordinator, item.path, context.instruction(item.round, item.attempt).predicate.log
            elif item.kind == "contribution" and item.site is not None:
                found = context.contribution(item.round, item.attempt, item.site)
                yield item.site, item.path, found.predicate.ledger
            elif item.kind == "refusal" and item.site is not None:
                yield item.site, item.path, context.refusal(item.round, item.attempt, item.site).predicate.ledger


def collect_positions(context: AuditContext) -> dict[str, tuple[SignedPosition, ...]]:
    """Returns, for every participant with a log, its signed positions by size, checkpoints included.

    Raises:
        AuditFailure: a message does not verify, or two name different roots for one size.
    """
    findings = Findings()
    found: dict[str, dict[int, tuple[LogPosition, list[str]]]] = {}
    positions = list(signed_positions(context, findings))
    positions += [(owner, path, position) for owner, path, position in _checkpoints(context)]
    if findings.items:
        raise AuditFailure(findings.items[0].place, findings.items[0].reason)
    for owner, place, position in positions:
        known, places = found.setdefault(owner, {}).setdefault(position.size, (position, []))
        if known != position:
            raise AuditFailure(place, "names another root than an earlier message for the same size of the log")
        places.append(place)
    return {
        owner: tuple(
            SignedPosition(position=position, signed_in=tuple(sorted(places)))
            for _, (position, places) in sorted(by_size.items())
        )
        for owner, by_size in found.items()
    }


def derive_proofs(context: AuditContext, owner: str, positions: tuple[SignedPosition, ...]) -> ConsistencyProofs:
    """Derives the consistency proofs between neighbouring positions of a verified log.

    Raises:
        AuditFailure: the log does not verify or never had one of the positions.
    """
    tree = context.tree(owner)
    sizes = [found.position.size for found in positions]
    if sizes and sizes[-1] > tree.size:
        raise AuditFailure(f"ledger of {owner}", "is shorter than a position that was signed")
    proofs = tuple(tree.prove_consistency(old, new) if old else () for old, new in pairwise(sizes))
    return ConsistencyProofs(owner=owner, positions=positions, proofs=proofs)


def _checkpoints(context: AuditContext) -> Iterator[tuple[str, str, LogPosition]]:
    for owner in context.participants:
        if context.has_log(owner):
            for checkpoint in context.log(owner).checkpoints:
                yield owner, checkpoint.path, checkpoint.predicate.position
