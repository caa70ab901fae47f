"""Whose evidence this is, and whether it is whole: keys, manifest, names, canonical form."""

from __future__ import annotations

from collections.abc import Mapping

from schemas.envelope import Predicate, read_unverified
from schemas.errors import EvidenceError
from schemas.ledger import LedgerEntry
from schemas.messages import EvidenceManifest
from schemas.statistics import parse_agreement
from tasks.audit.context import AuditContext
from tasks.audit.names import BULK_KINDS, CRATE, MANIFEST, Item, parse_name, proofs_owner
from tasks.audit.registry import AuditFailure, Check, Findings


def check_identity(context: AuditContext, findings: Findings) -> str:
    """Compares the plan's identity keys with the auditor's own list."""
    keys = context.keys
    if keys is None:
        findings.add("public keys", "no key file from outside the evidence was given, so nothing ties it to anybody")
        return ""
    plan = context.plan
    if keys.study is not None:
        findings.expect(keys.study == context.study, "public keys", "the key file is for another study")
    coordinator = (keys.coordinator.name, keys.coordinator.key)
    findings.expect(
        coordinator == (plan.coordinator.name, plan.coordinator.identity_key),
        plan.coordinator.name,
        "the plan's coordinator is not the one in the key file",
    )
    _compare_keys(findings, "site", {site.name: site.identity_key for site in plan.sites}, keys.sites)
    reviewers = {reviewer.name: reviewer.identity_key for reviewer in context.reviewers}
    _compare_keys(findings, "reviewer", reviewers, keys.reviewers)
    return f"{1 + len(plan.sites) + len(reviewers)} identity keys"


def _compare_keys(findings: Findings, role: str, planned: Mapping[str, str], known: Mapping[str, str]) -> None:
    for name, key in planned.items():
        findings.expect(name in known, name, f"is a {role} in the plan but not in the key file")
        findings.expect(known.get(name, key) == key, name, "has another key in the key file")
    for name in sorted(set(known) - set(planned)):
        findings.add(name, f"is a {role} in the key file but not in the plan")


def check_manifest(context: AuditContext, findings: Findings) -> str:
    """Compares every file with the signed list."""
    evidence = context.evidence
    for path in evidence.irregular:
        findings.add(path, "is not a regular file")
    manifest = context.from_coordinator(MANIFEST, EvidenceManifest).predicate
    listed = dict(manifest.files)
    paths = [path for path, _ in manifest.files]
    findings.expect(paths == sorted(set(paths)), MANIFEST, "its paths are not distinct and in order")
    for path in evidence.paths:
        if path == MANIFEST:
            continue
        if path not in listed:
            findings.add(path, "is not in the manifest")
        elif evidence.digest(path) != listed[path]:
            findings.add(path, "does not have the digest that the manifest lists")
    for path in sorted(set(listed) - set(evidence.paths)):
        findings.add(path, "is in the manifest but missing")
    omitted = _check_omitted(context, findings, manifest)
    return f"{len(listed)} files" + (f", {omitted} ciphertexts left out and listed" if omitted else "")


def _check_omitted(context: AuditContext, findings: Findings, manifest: EvidenceManifest) -> int:
    """Checks that what was left out is ciphertexts only, and all of them."""
    if not manifest.omitted:
        return 0
    paths = [path for path, _ in manifest.omitted]
    findings.expect(paths == sorted(set(paths)), MANIFEST, "the paths left out are not distinct and in order")
    for path in paths:
        item = parse_name(path)
        leavable = item is not None and item.kind in BULK_KINDS and item.study == context.study
        findings.expect(leavable, path, "was left out, and is not a ciphertext that may be")
        findings.expect(not context.evidence.exists(path), path, "is said to be left out, and is there")
    # Leaving out some of them would hide which.
    for item in context.items:
        findings.expect(item.kind not in BULK_KINDS, item.path, "is there though the ciphertexts were left out")
    return len(paths)


def check_names(context: AuditContext, findings: Findings) -> str:
    """Refuses files that no part of the protocol writes, and files of another study or an unknown site."""
    plan = context.plan
    sites, reviewers = {site.name for site in plan.sites}, {reviewer.name for reviewer in context.reviewers}
    for path in context.evidence.paths:
        if path == MANIFEST:
            continue
        item = parse_name(path)
        if item is None:
            derived = path == CRATE or proofs_owner(path) in context.participants
            findings.expect(derived, path, "is not a name that the protocol uses")
            continue
        findings.expect(item.study == plan.study, path, "belongs to another study")
        findings.expect(item.site is None or item.site in sites, path, "belongs to a site that is not in the plan")
        known = reviewers if item.kind == "review-decision" else {"", *sites}
        findings.expect(item.peer in known, path, "names a site or reviewer that is not in the plan")
    return f"{len(context.items)} names"


def check_canonical(context: AuditContext, findings: Findings) -> str:
    """Re-encodes every signed message from its parsed content and compares byte for byte."""
    count = 0
    for item in context.items:
        with findings.at(item.path):
            if context.is_exempt(item) or item.form == "blob":
                continue
            count += _reencode_file(context, item)
    with findings.at(MANIFEST):
        _reencode(MANIFEST, EvidenceManifest, context.evidence.read(MANIFEST), context.study)
    return f"{count + 1} messages and entries"


def _reencode_file(context: AuditContext, item: Item) -> int:
    data = context.evidence.read(item.path)
    if item.form == "plan":
        parse_agreement(data, "the plan")
        return 1
    if item.form == "entries":
        lines = data.split(b"\n")
        if lines.pop() != b"" or not lines:
            raise AuditFailure(item.path, "does not end with a whole entry")
        for number, line in enumerate(lines, start=1):
            # A site's ledger runs over all its studies: the statement's subject is not always this one.
            _reencode(f"{item.path}, line {number}", LedgerEntry, line, None)
        return len(lines)
    assert not isinstance(item.form, str)
    _reencode(item.path, item.form, data, context.study)
    return 1


def _reencode(place: str, model: type[Predicate], data: bytes, study: str | None) -> None:
    try:
        subject, _ = read_unverified(model, data, f"the {model.__name__}")
    except EvidenceError as error:
        raise AuditFailure(place, error.message) from None
    if study is not None and subject != study:
        raise AuditFailure(place, "is about another study")


CHECKS = (
    Check(
        "C01",
        "Identity keys are those of the key file",
        "Every signature below was made with a key that the auditor got from the institutions themselves.",
        "That the key file is right: its owner must have obtained it outside the evidence.",
        check_identity,
    ),
    Check(
        "C02",
        "Files are exactly those of the signed manifest",
        "No file was changed, added or removed since the coordinator signed the export.",
        "That the coordinator exported everything that exists; the logs and positions below speak to that.",
        check_manifest,
    ),
    Check(
        "C03",
        "Every file name is one that the protocol uses",
        "Nothing lies in the evidence that no check looks at.",
        "Anything about the content of the files.",
        check_names,
    ),
    Check(
        "C04",
        "Every message is the canonical encoding of its content",
        "There is one reading of every signed message: re-encoding what was parsed gives the same bytes.",
        "That a message is true or was signed by the right key.",
        check_canonical,
    ),
)
