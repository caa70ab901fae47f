"""Binary objects: each is the one that a signed message names."""

from __future__ import annotations

from collections.abc import Iterator

from schemas.layout import attempt_key, ceremony_key, release_key, round_key
from schemas.messages import KeyOpen, SelfTest
from tasks.audit.context import AuditContext
from tasks.audit.names import Item
from tasks.audit.registry import Check, Findings


def check_blobs(context: AuditContext, findings: Findings) -> str:
    """Compares every binary object with the digest in the signed message that names it."""
    named: dict[str, str] = {}
    for item in context.items:
        with findings.at(item.path):
            if context.is_exempt(item):
                continue
            listed = dict(_names(context, item))
            named.update(listed)
            for path in listed:
                # A site uploads what it names before the message that names it: a sealed share does not go unnoticed.
                there = item.site is None or context.exists(path)
                findings.expect(there, path, "is named by a signed message and is missing")
    for item in (*context.items, *context.omitted_items):
        if item.form != "blob" or item.kind == "bulk" or context.is_exempt(item):
            continue
        if item.path in named:
            same = context.digest(item.path) == named[item.path]
            findings.expect(same, item.path, "is not what the signed message names")
        else:
            # What a crash leaves behind: uploaded or added, and nothing signed after it.
            unfinished = not context.evidence.exists(_naming_path(context, item))
            findings.expect(unfinished, item.path, "no signed message names it")
    left_out = f", {len(context.omitted)} of them left out (digests as listed)" if context.omitted else ""
    return f"{len(named)} binary objects{left_out}"


def _names(context: AuditContext, item: Item) -> Iterator[tuple[str, str]]:
    """Yields (path, digest) of the binary objects that one message names."""
    study, site, epoch, round_ = context.study, item.site, item.epoch, item.round
    if item.kind == "key-open":
        opened = context.from_site(item.path, KeyOpen, str(site)).predicate
        yield ceremony_key(study, epoch, site, "public-share.bin"), opened.public_share
        for holder, digest in opened.sealed:
            yield ceremony_key(study, epoch, site, f"sealed-{holder}.bin"), digest
    elif item.kind == "self-test":
        for number, digest in enumerate(context.from_site(item.path, SelfTest, str(site)).predicate.shares, start=1):
            yield ceremony_key(study, epoch, site, f"self-test-{number}.bin"), digest
    elif item.kind == "contribution":
        given = context.contribution(round_, item.attempt, str(site)).predicate
        yield attempt_key(study, round_, item.attempt, site, "key.bin"), given.key_ciphertext
        for holder, digest in given.shamir:
            yield attempt_key(study, round_, item.attempt, site, f"shamir-{holder}.bin"), digest
    elif item.kind == "share":
        share = context.share(round_, str(site), item.number).predicate
        yield round_key(study, round_, site, f"share-{item.number}.bin"), share.share
    elif item.kind == "record":
        yield round_key(study, round_, None, "key-sum.bin"), context.record(round_).predicate.key_sum
    elif item.kind == "opening":
        opening = context.opening(round_).predicate
        yield round_key(study, round_, None, "bulk-sum.bin"), opening.bulk_sum
        yield round_key(study, round_, None, "result.bin"), opening.result
    elif item.kind == "release":
        yield release_key(study, "weights.safetensors"), context.release.predicate.weights


_NAMED_BY = {
    "public-share": "key-open.json",
    "sealed": "key-open.json",
    "self-test-share": "self-test.json",
    "key": "contribution.json",
    "shamir": "contribution.json",
    "key-sum": "record.json",
    "bulk-sum": "opening.json",
    "result": "opening.json",
    "weights": "release.json",
}


def _naming_path(context: AuditContext, item: Item) -> str:
    name = f"share-{item.number}.json" if item.kind == "share-blob" else _NAMED_BY[item.kind]
    return f"{item.path.rsplit('/', 1)[0]}/{name}"


CHECKS = (
    Check(
        "C05",
        "Every binary object is the one that a signed message names",
        "Ciphertexts, shares, sums and weights are those that their senders signed for.",
        "That their content is well formed: the checks on rounds recompute with it. Bulk objects are named by Merkle "
        "root and are read in C19.",
        check_blobs,
    ),
)
