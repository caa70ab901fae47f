"""The sums themselves: bulk ciphertexts added again, and opened again from the published shares."""

from __future__ import annotations

from schemas.canonical import sha256_hex
from schemas.errors import PeerError
from schemas.layout import attempt_key, round_key
from tasks.audit.context import AuditContext
from tasks.audit.names import Item
from tasks.audit.registry import AuditFailure, Check, Findings, NotApplicable
from tasks.secure_sum.bulk import add_bulk, verify_bulk
from tasks.secure_sum.opening import open_sum

WITHOUT_BULK = "the ciphertexts were left out of this export: ask the coordinator for the whole one"


def check_bulk(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Verifies every bulk object against its Merkle root, adds the recorded ones again and compares with the sum."""
    if context.omitted:
        return NotApplicable(WITHOUT_BULK)
    items = context.select("bulk")
    if not items:
        return NotApplicable("no bulk ciphertext was sent")
    for item in items:
        with findings.at(item.path):
            if not _is_summed(context, item):
                _check_unsummed(context, item)
    for round_ in context.opened_rounds:
        with findings.at(f"round {round_}"):
            opening = context.opening(round_)
            place = round_key(context.study, round_, None, "bulk-sum.bin")
            same = _add_again(context, round_) == opening.predicate.bulk_sum == context.evidence.digest(place)
            findings.expect(same, place, "is not the sum of the recorded bulk ciphertexts")
    return f"{len(items)} bulk ciphertexts, {len(context.opened_rounds)} sums"


def check_openings(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Opens every sum again from the shares of its active set and compares with the published integers."""
    if not context.opened_rounds:
        return NotApplicable("no sum was opened")
    for round_ in context.opened_rounds:
        with findings.at(f"round {round_}"):
            _check_opening(context, findings, round_)
    if context.omitted:
        return NotApplicable(f"{WITHOUT_BULK}; who answered which request was checked")
    return f"{len(context.opened_rounds)} openings, bit for bit"


def _is_summed(context: AuditContext, item: Item) -> bool:
    if item.round not in context.opened_rounds:
        return False
    record = context.record(item.round).predicate
    return record.attempt == item.attempt and item.site in {site for site, _ in record.contributions}


def _check_unsummed(context: AuditContext, item: Item) -> None:
    """Reads a bulk object that is in no opened sum; one that nobody signed for is an upload that broke off."""
    signed = attempt_key(context.study, item.round, item.attempt, item.site, "contribution.json")
    if context.is_exempt(item) or not context.evidence.exists(signed):
        return
    given = context.contribution(item.round, item.attempt, str(item.site)).predicate
    verify_bulk(context.attempt_context(item.round, item.attempt), given, context.evidence.file(item.path))


def _add_again(context: AuditContext, round_: int) -> str:
    attempt = context.record(round_).predicate.attempt
    contributions = context.recorded(round_)
    paths = {site: attempt_key(context.study, round_, attempt, site, "bulk.bin") for site in contributions}
    sources = {site: (found.predicate, context.evidence.file(paths[site])) for site, found in contributions.items()}
    try:
        return add_bulk(context.round_context(round_), sources, None)
    except PeerError as error:
        raise AuditFailure(paths.get(error.peer, f"round {round_}"), str(error)) from None


def _check_opening(context: AuditContext, findings: Findings, round_: int) -> None:
    opening, record = context.opening(round_), context.record(round_)
    given, place = opening.predicate, opening.path
    header = (given.sid_star, given.round, given.attempt, given.record)
    expected = (record.predicate.sid_star, round_, record.predicate.attempt, record.digest)
    findings.expect(header == expected, place, "is not of this round's record")
    numbers = [item.number for item in context.select("request", round=round_)]
    request = next((r for n in numbers if (r := context.request(round_, n)).digest == given.request), None)
    if request is None:
        raise AuditFailure(place, "names a share request that is not in the evidence")
    holders = tuple(holder for holder, _ in given.shares)
    findings.expect(holders == request.predicate.active_set, place, "is not by exactly the active set of its request")
    shares: dict[str, bytes] = {}
    for holder, digest in given.shares:
        share = context.share(round_, holder, request.predicate.number)
        findings.expect(share.digest == digest, place, f"names another share of {holder}")
        if context.omitted:
            continue
        path = round_key(context.study, round_, holder, f"share-{request.predicate.number}.bin")
        shares[holder] = context.evidence.read(path)
        same = sha256_hex(shares[holder]) == share.predicate.share
        findings.expect(same, path, "is not the share that its holder signed")
    if context.omitted:
        return
    key_sum = context.evidence.read(round_key(context.study, round_, None, "key-sum.bin"))
    bulk_sum = context.evidence.file(round_key(context.study, round_, None, "bulk-sum.bin"))
    opened = open_sum(
        context.round_context(round_), record.predicate, record.digest, request.predicate, key_sum, bulk_sum, shares
    )
    published = round_key(context.study, round_, None, "result.bin")
    data = opened.astype("<i8").tobytes()
    findings.expect(data == context.evidence.read(published), published, "is not what the shares open")
    findings.expect(sha256_hex(data) == given.result, place, "states another result than the shares open")


CHECKS = (
    Check(
        "C19",
        "Every published sum of ciphertexts is the sum of the recorded ones",
        "Each bulk ciphertext is the one its sender signed (Merkle root), and adding them again gives the same sum: "
        "the coordinator neither left out, doubled nor shifted anything.",
        "What is inside a single ciphertext: nobody can open one.",
        check_bulk,
    ),
    Check(
        "C20",
        "Every opened sum follows from its t decryption shares",
        "Opening again from the published shares gives the same integers as the coordinator published.",
        "That the opened sum is of honest values.",
        check_openings,
    ),
)
