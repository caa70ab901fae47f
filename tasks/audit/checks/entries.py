"""The logs and the messages, compared in both directions."""

from __future__ import annotations

from schemas.ledger import Body
from tasks.audit.context import AuditContext
from tasks.audit.epochs import epochs_that_count
from tasks.audit.names import Item
from tasks.audit.registry import Check, Findings

Fact = tuple[str, ...]

# What an entry of each kind states about a message.
_FIELDS: dict[str, tuple[str, ...]] = {
    "plan-approved": ("approval",),
    "key-ceremony": ("epoch", "sid_star"),
    "instruction-issued": ("round", "attempt", "instruction"),
    "record-proposed": ("round", "record", "dropped"),
    "sum-opened": ("round", "opening", "model"),
    "privacy-committed": ("round", "contribution"),
    "record-signed": ("round", "record"),
    "share-released": ("round", "record", "request", "share"),
    "refused": ("instruction", "code"),
    "review-decided": ("review",),
}
# Entered before the message is sent: a crash in between leaves the entry alone. It is the site's own word, bound by its
# checkpoint, and hiding the message would hide nothing that the entry does not say. Not so a refusal: a coordinator
# that drops it and calls the site silent would pass.
_ENTRY_FIRST = frozenset({"record-signed", "share-released"})
# Entered after the message was sent: a crash in between leaves the message alone. What counts for privacy is the
# reservation, and check C24 demands it for every contribution.
_MESSAGE_FIRST = frozenset({"privacy-committed", "key-ceremony"})


def check_agreement(context: AuditContext, findings: Findings) -> str:
    """Compares every log with the messages of its owner."""
    compared = 0
    for owner in context.participants:
        with findings.at(f"ledger of {owner}"):
            if owner == context.plan.coordinator.name or context.has_log(owner):
                compared += _compare(context, owner, findings)
    return f"{compared} entries have their message and the reverse"


def _compare(context: AuditContext, owner: str, findings: Findings) -> int:
    messages = _messages(context, owner, findings)
    log = context.log(owner)
    entries: dict[Fact, str] = {}
    for place, entry in log.about(context.study):
        fact = _entry_fact(entry.body)
        if fact is not None:
            findings.expect(fact not in entries, place, f"repeats an earlier entry ({fact[0]})")
            entries[fact] = place
    if owner == context.plan.coordinator.name:
        # The study log may enter everybody's approval, and must enter the coordinator's own.
        for site in context.plan.sites:
            entries.pop(("plan-approved", context.approval(site.name).digest), None)
    for fact in sorted(set(entries) - set(messages)):
        findings.expect(fact[0] in _ENTRY_FIRST, entries[fact], f"no message matches this entry ({fact[0]})")
    for fact in sorted(set(messages) - set(entries)):
        # A site that was gone at the end did not publish its last entries; check C11 names it.
        tolerated = log.checkpoint is None or (fact[0] in _MESSAGE_FIRST and owner != context.plan.coordinator.name)
        findings.expect(tolerated, messages[fact], f"has no matching entry in the ledger of {owner} ({fact[0]})")
    return len(set(entries) & set(messages))


def _entry_fact(body: Body) -> Fact | None:
    fields = _FIELDS.get(body.kind)
    return None if fields is None else (body.kind, *(str(getattr(body, field)) for field in fields))


def _messages(context: AuditContext, owner: str, findings: Findings) -> dict[Fact, str]:
    """Returns what the owner's messages state, and where."""
    site = None if owner == context.plan.coordinator.name else owner
    facts: dict[Fact, str] = {}
    for item in context.items:
        if item.site != site:
            continue
        with findings.at(item.path):
            fact = None if context.is_exempt(item) else _message_fact(context, owner, item)
            if fact is not None:
                facts[tuple(str(part) for part in fact)] = item.path
    return facts


def _message_fact(context: AuditContext, owner: str, item: Item) -> tuple[object, ...] | None:
    round_, attempt = item.round, item.attempt
    match item.kind:
        case "approval":
            return "plan-approved", context.approval(owner).digest
        case "transcript" | "ceremony-instruction" if item.epoch in epochs_that_count(context, owner):
            return "key-ceremony", item.epoch, context.epoch(item.epoch).sid_star
        case "instruction":
            return "instruction-issued", round_, attempt, context.instruction(round_, attempt).digest
        case "record":
            record = context.record(round_)
            return "record-proposed", round_, record.digest, record.predicate.dropped
        case "opening":
            opening = context.opening(round_)
            return "sum-opened", round_, opening.digest, opening.predicate.model
        case _:
            return _answer_fact(context, owner, item)


def _answer_fact(context: AuditContext, site: str, item: Item) -> tuple[object, ...] | None:
    round_ = item.round
    match item.kind:
        case "review-decision":
            return "review-decided", context.review(item).digest
        case "contribution":
            return "privacy-committed", round_, context.contribution(round_, item.attempt, site).digest
        case "refusal":
            refusal = context.refusal(round_, item.attempt, site).predicate
            return "refused", refusal.instruction, refusal.code
        case "record-signature":
            return "record-signed", round_, context.record_signature(round_, site).predicate.record
        case "share":
            share = context.share(round_, site, item.number).predicate
            return "share-released", round_, share.record, share.request, share.share
        case _:
            return None


CHECKS = (
    Check(
        "C13",
        "Logs and messages agree",
        "Every message has its entry; every instruction, record, opening, approval, ceremony and contribution entry "
        "has its message.",
        "That a message was sent for each entry on refusals, record signatures and shares: a site that stops between "
        "entry and upload leaves the entry alone.",
        check_agreement,
    ),
)
