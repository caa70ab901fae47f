"""What was asked, answered, recorded, certified and shared in every round."""

from __future__ import annotations

from schemas.canonical import digest_of
from schemas.layout import attempt_key, round_key
from schemas.messages import Collected, Instruction, Record, SharesChecked
from schemas.statistics import QUESTION_ROUND, coefficients
from tasks.audit.context import AuditContext
from tasks.audit.registry import Check, Findings, NotApplicable
from tasks.audit.signed import Signed
from tasks.secure_sum.record import (
    open_contributions,
    verify_certificate,
    verify_record_form,
    verify_record_public,
)

MAXIMUM_REQUESTS = 16


def check_instructions(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Checks every instruction against the plan, the ceremony, the round before and its own first attempt."""
    if not context.rounds:
        return NotApplicable("no round was begun")
    last = _last_round(context)
    train = [r for r in context.rounds if r < last]
    findings.expect(
        train == list(range(1, len(train) + 1)), "rounds", "the training rounds are not 1, 2, … in sequence"
    )
    previous: str | None = None
    epoch = 0
    count = 0
    for round_ in context.rounds:
        with findings.at(f"round {round_}"):
            attempts = context.attempts(round_)
            findings.expect(
                attempts == tuple(range(1, len(attempts) + 1)) != (), f"round {round_}", "its attempts are not 1, 2, …"
            )
            for attempt in attempts:
                instruction = context.instruction(round_, attempt)
                _check_instruction(context, findings, instruction, round_, attempt, previous)
                findings.expect(instruction.predicate.epoch >= epoch, instruction.path, "returns to an earlier epoch")
                epoch = max(epoch, instruction.predicate.epoch)
                count += 1
            if round_ in context.opened_rounds:
                previous = context.opening(round_).digest
    return f"{count} instructions, {len(context.rounds)} rounds"


def _last_round(context: AuditContext) -> int:
    return QUESTION_ROUND if context.question is not None else context.study_plan.mechanism.rounds + 1


def _check_instruction(
    context: AuditContext,
    findings: Findings,
    instruction: Signed[Instruction],
    round_: int,
    attempt: int,
    previous: str | None,
) -> None:
    plan, asked, place = context.plan, instruction.predicate, instruction.path
    last = _last_round(context)
    people, contributors = list(asked.participants), {site.name for site in plan.contributors}
    expected = "statistics" if context.question is not None else "evaluate" if round_ == last else "train"
    length = coefficients(plan, expected)
    findings.expect((asked.round, asked.attempt) == (round_, attempt), place, "is for another round or attempt")
    findings.expect(round_ <= last, place, "is for a round that the plan does not have")
    findings.expect((asked.kind, asked.length) == (expected, length), place, "asks for another kind or length")
    findings.expect(people == sorted(set(people)), place, "its participants are not distinct and in order")
    findings.expect(set(people) <= contributors, place, "asks a site that does not contribute")
    findings.expect(len(people) >= plan.threshold.k_min, place, "asks fewer than k_min sites")
    findings.expect(asked.previous_opening == previous, place, "does not follow from the last opening")
    findings.expect(asked.sid_star == context.epoch(asked.epoch).sid_star, place, "is not for its key ceremony")
    if context.question is not None:
        findings.expect(asked.model == digest_of(context.question.query), place, "is for another query than the plan's")
    if attempt > 1:
        first = context.instruction(round_, 1).predicate
        same = first.model_copy(update={"attempt": attempt, "participants": asked.participants}) == asked
        findings.expect(same, place, "differs from the first attempt in more than attempt and participants")


def check_answers(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Checks every contribution and refusal, and that the record names what became of every participant."""
    contributions, refusals = context.select("contribution"), context.select("refusal")
    if not contributions and not refusals:
        return NotApplicable("no site answered")
    for item in (*contributions, *refusals):
        with findings.at(item.path):
            if not context.is_exempt(item):
                _check_answer(context, findings, str(item.site), item.round, item.attempt, item.kind)
    for round_ in context.recorded_rounds:
        with findings.at(f"round {round_}"):
            _check_participants(context, findings, round_)
    return f"{len(contributions)} contributions, {len(refusals)} refusals"


def _check_answer(context: AuditContext, findings: Findings, site: str, round_: int, attempt: int, kind: str) -> None:
    asked = context.instruction(round_, attempt)
    if kind == "refusal":
        refusal = context.refusal(round_, attempt, site)
        said = (refusal.predicate.sender, refusal.predicate.instruction)
        findings.expect(said == (site, asked.digest), refusal.path, "refuses another instruction or in another name")
        other = attempt_key(context.study, round_, attempt, site, "contribution.json")
        findings.expect(not context.evidence.exists(other), other, "answers an attempt that the site refused")
        return
    contribution = context.contribution(round_, attempt, site)
    given, place = contribution.predicate, contribution.path
    header = (given.sid_star, given.round, given.attempt, given.instruction, given.sender)
    expected = (asked.predicate.sid_star, round_, attempt, asked.digest, site)
    findings.expect(header == expected, place, "answers another instruction or in another name")
    findings.expect(site in asked.predicate.participants, place, "comes from a site that was not asked")
    holders = [holder.name for holder in context.plan.key_holders]
    findings.expect([holder for holder, _ in given.shamir] == holders, place, "has not one share per key holder")
    findings.expect(given.verdict.passed, place, "was sent though the data contract was violated")


def _check_participants(context: AuditContext, findings: Findings, round_: int) -> None:
    record = context.record(round_)
    given = record.predicate
    asked = context.instruction(round_, given.attempt).predicate
    for site, reason in given.dropped:
        refused = context.evidence.exists(attempt_key(context.study, round_, given.attempt, site, "refusal.json"))
        if reason == "refused":
            findings.expect(refused, record.path, f"says that {site} refused, but there is no signed refusal")
    senders = [sender for sender, _ in given.contributions]
    dropped = [site for site, _ in given.dropped]
    everybody = sorted([*senders, *dropped]) == sorted(asked.participants)
    findings.expect(everybody, record.path, "a participant is neither in the sum nor named as dropped")


def check_records(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Checks every record: its contributions, k_min, the re-added key ciphertexts, and that it is the only one."""
    if not context.recorded_rounds:
        return NotApplicable("no record was proposed")
    total = 0
    for round_ in context.opened_rounds:
        findings.expect(round_ in context.recorded_rounds, f"round {round_}", "was opened without a record")
    for round_ in context.recorded_rounds:
        with findings.at(f"round {round_}"):
            total += _check_record(context, findings, round_)
    counted = f"{len(context.recorded_rounds)} records, {total} contributions"
    if context.omitted:
        return NotApplicable(f"{counted}; their key ciphertexts were left out of this export and not added again")
    return counted


def _check_record(context: AuditContext, findings: Findings, round_: int) -> int:
    record = context.record(round_)
    given, place = record.predicate, record.path
    instruction = context.instruction(round_, given.attempt)
    asked = instruction.predicate
    header = (given.sid_star, given.epoch, given.round, given.instruction)
    findings.expect(
        header == (asked.sid_star, asked.epoch, round_, instruction.digest), place, "is not of this round's instruction"
    )
    findings.expect(given.attempt == max(context.attempts(round_)), place, "was followed by another attempt")
    senders = [sender for sender, _ in given.contributions]
    findings.expect(senders == sorted(set(senders)), place, "its senders are not distinct and in order")
    findings.expect(set(senders) <= set(asked.participants), place, "sums a site that was not asked")
    findings.expect(len({digest for _, digest in given.contributions}) == len(senders), place, "sums a message twice")
    enough = len(senders) >= context.plan.threshold.k_min
    findings.expect(enough, place, f"sums fewer than k_min = {context.plan.threshold.k_min} contributions")
    contributions = context.recorded(round_)
    envelopes = {site: found.data for site, found in contributions.items()}
    paths = {site: attempt_key(context.study, round_, given.attempt, site, "key.bin") for site in contributions}
    if context.omitted:
        verify_record_form(context.round_context(round_), given)
        open_contributions(context.round_context(round_), given, envelopes)
    else:
        blobs = {site: context.evidence.read(path) for site, path in paths.items()}
        verify_record_public(context.round_context(round_), given, envelopes, blobs)
    _check_collected(context, findings, record)
    return len(senders)


def _check_collected(context: AuditContext, findings: Findings, record: Signed[Record]) -> None:
    """Checks that nobody was left out after the collection closed, unless a holder found its shares faulty."""
    given = record.predicate
    path = attempt_key(context.study, given.round, given.attempt, None, "collected.json")
    collected = context.from_coordinator(path, Collected)
    header = (collected.predicate.sid_star, collected.predicate.round, collected.predicate.attempt)
    findings.expect(header == (given.sid_star, given.round, given.attempt), path, "is of another round or attempt")
    findings.expect(collected.predicate.instruction == given.instruction, path, "is of another instruction")
    faulty: set[str] = set()
    for item in context.select("shares-checked", round=given.round, attempt=given.attempt):
        with findings.at(item.path):
            checked = context.from_holder(item.path, SharesChecked, str(item.site), given.epoch).predicate
            said = (checked.sid_star, checked.round, checked.attempt, checked.holder, checked.collected)
            expected = (given.sid_star, given.round, given.attempt, item.site, collected.digest)
            findings.expect(said == expected, item.path, "is about another collection or in another name")
            faulty |= set(checked.faulty)
    left_out = set(collected.predicate.contributions) - set(given.contributions)
    findings.expect(
        {sender for sender, _ in left_out} <= faulty, record.path, "leaves out a collected contribution without a fault"
    )
    added = set(given.contributions) - set(collected.predicate.contributions)
    findings.expect(not added, record.path, "sums a contribution that was not collected")


def check_certificates(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Checks that holders signed this record and no other, and that every request carries Q of their signatures."""
    requests = context.select("request")
    signatures = context.select("record-signature")
    if not requests and not signatures:
        return NotApplicable("no record was certified")
    for item in signatures:
        with findings.at(item.path):
            record = context.record(item.round)
            given = context.record_signature(item.round, str(item.site)).predicate
            said = (given.sid_star, given.round, given.holder, given.record)
            expected = (record.predicate.sid_star, item.round, item.site, record.digest)
            findings.expect(said == expected, item.path, "signs another record of this round")
    for round_ in sorted({item.round for item in requests}):
        with findings.at(f"round {round_}"):
            _check_requests(context, findings, round_)
    return f"{len(signatures)} signatures, {len(requests)} certificates of at least Q"


def _check_requests(context: AuditContext, findings: Findings, round_: int) -> None:
    plan, record = context.plan, context.record(round_)
    holders = {site.name for site in plan.key_holders}
    numbers = sorted(item.number for item in context.select("request", round=round_))
    in_sequence = numbers == list(range(1, len(numbers) + 1)) and len(numbers) <= MAXIMUM_REQUESTS
    findings.expect(in_sequence, f"round {round_}", f"its share requests are not 1, 2, … up to {MAXIMUM_REQUESTS}")
    sets: set[tuple[str, ...]] = set()
    for number in numbers:
        request = context.request(round_, number)
        asked, place = request.predicate, request.path
        said = (asked.sid_star, asked.round, asked.record, asked.number)
        findings.expect(
            said == (record.predicate.sid_star, round_, record.digest, number), place, "asks for another record"
        )
        signers = [holder for holder, _ in asked.certificate]
        distinct = signers == sorted(set(signers)) and set(signers) <= holders
        findings.expect(distinct, place, "its certificate is not of distinct key holders in order")
        quorum = len(signers) >= plan.threshold.certificate_quorum
        findings.expect(
            quorum, place, f"its certificate has fewer than Q = {plan.threshold.certificate_quorum} signatures"
        )
        active = asked.active_set
        valid = list(active) == sorted(set(active)) and set(active) <= holders and len(active) == plan.threshold.t
        findings.expect(valid, place, f"its active set is not of t = {plan.threshold.t} distinct key holders")
        findings.expect(active not in sets, place, "asks the same active set a second time")
        sets.add(active)
        certificate = {}
        for holder, digest in asked.certificate:
            signature = context.record_signature(round_, holder)
            findings.expect(signature.digest == digest, place, f"names another signature of {holder}")
            certificate[holder] = signature.data
        with findings.at(place):
            verify_certificate(context.round_context(round_), record.digest, asked, certificate)


def check_shares(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Checks that every decryption share answers a certified request that names its holder, and was released once."""
    shares = context.select("share")
    if not shares:
        return NotApplicable("no decryption share was released")
    for item in shares:
        with findings.at(item.path):
            holder = str(item.site)
            record, request = context.record(item.round), context.request(item.round, item.number)
            given = context.share(item.round, holder, item.number).predicate
            said = (given.sid_star, given.round, given.holder, given.record, given.request)
            expected = (record.predicate.sid_star, item.round, holder, record.digest, request.digest)
            findings.expect(said == expected, item.path, "answers another request or in another name")
            findings.expect(holder in request.predicate.active_set, item.path, "comes from outside the active set")
            blob = round_key(context.study, item.round, holder, f"share-{item.number}.bin")
            findings.expect(context.exists(blob), blob, "is missing")
    return f"{len(shares)} shares, each the only one of its holder for a record and active set"


CHECKS = (
    Check(
        "C14",
        "Every instruction is the plan's next step",
        "The coordinator asked for what the plan says, in sequence, under the right key ceremony, for the model after "
        "the last opening; a later attempt changed only who takes part.",
        "That the asked sites were all that could have answered.",
        check_instructions,
    ),
    Check(
        "C15",
        "Every answer is a site's own, and every participant is accounted for",
        "Contributions and refusals are signed by their senders for exactly this instruction; a record's drop-outs are "
        "named, and a refusal that it names was signed.",
        "That contributed values are honest: a site can poison its own update. That a silent site was really silent.",
        check_answers,
    ),
    Check(
        "C16",
        "Every sum is of one record with at least k_min contributions",
        "There is one record per round; its contributions are those collected, without duplicates, and its sum of key "
        "ciphertexts was added again and is the same.",
        "That the contributors were honest.",
        check_records,
    ),
    Check(
        "C17",
        "Every record was certified by Q holders before a share was asked for",
        "Q distinct key holders signed this record and, by their ledgers, no other of the round.",
        "That a holder whose memory was restored from a snapshot did not sign twice outside the evidence.",
        check_certificates,
    ),
    Check(
        "C18",
        "Every decryption share answers a certified request, once",
        "Each holder released at most one share per record and active set, and only when it was in the set of t.",
        "That a share never left by another way than the store.",
        check_shares,
    ),
)
