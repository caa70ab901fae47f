"""A log that was edited, cut, reordered, forged or broke a rule is refused, with the entry and the rule named."""

from __future__ import annotations

import base64
import json
from fractions import Fraction

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.canonical import canonical_bytes
from schemas.envelope import envelope_digest, sign_envelope
from schemas.errors import EvidenceError
from schemas.ledger import (
    NO_STUDY,
    Body,
    CohortRegistered,
    FilterState,
    InstructionIssued,
    KeyCeremony,
    PlanApproved,
    PrivacyCommitted,
    RecordProposed,
    RecordSigned,
    Refused,
    ShareReleased,
    SumOpened,
)
from schemas.messages import Checkpoint, LogPosition
from tasks.ledger.chain import read_entry
from tasks.ledger.merkle import EMPTY_ROOT, merkle_root
from tasks.ledger.verify import roots_at, verify_log, verify_positions
from tasks.privacy.accounting import exact, format_decimal, gdp_cost, gdp_limit
from tests.ledger.logs import COHORT, KEY, KEY_HEX, OWNER, STUDY, read_state, reserved, round_bodies, sign_log
from tests.privacy.plans import digest, make_mechanism

LOG = sign_log(round_bodies(3))
EVENT = make_mechanism().event()
COST = gdp_cost(EVENT)
# Frozen: payloads of a registration and of a reservation, digest of an envelope. Never edited, only added to.
FROZEN = {
    "statement": (
        '{"_type":"https://in-toto.io/Statement/v1","predicate":{"body":{"cohort":"' + COHORT + '","delta":"1e-5",'
        '"epsilon":"3","kind":"cohort-registered"},"owner":"general-hospital","previous":"' + "0" * 64 + '",'
        '"sequence":0,"software":"consilium 0.1.0","time":"2026-01-02T03:04:05Z"},'
        '"predicateType":"urn:consilium:ledger-entry:v1",'
        '"subject":[{"digest":{"sha256":"' + "0" * 64 + '"},"name":"study"}]}'
    ),
    "registration": "df299e3b3cab560ab4db21ce67b98afa3f7c372311666d71839721fa985c3617",
    "reserved": (
        '{"_type":"https://in-toto.io/Statement/v1","predicate":{"body":{"after":{"data":"training","kind":"g'
        'dp","limit":"0.517129884509","spent":"0.051712815049127"},"before":{"data":"training","kind":"gdp","'
        'limit":"0.517129884509","spent":"0"},"cohort":"4fbbd7cfa827894e12f0da1f1db0ada8048bcf26b911343eda4e7'
        'f769d644d7f","event":{"clip_norm":"1","contribution_bound":"test","data":"training","dimension":31,"'
        'divisor":"100","effective_sigma":"288191.2832","honest_assumed":2,"id_column":"patient","kind":"gaus'
        'sian","local_sigma":"203782.01063","max_sites_per_patient":2,"neighboring_relation":"add-or-remove-o'
        'ne","noise_scope":"distributed","rng":"os-seeded-aes-ctr","runs":[["1","4.39745",1]],"sampler":"disc'
        'rete-gaussian","scale_bits":16,"sensitivity":65536,"sites_in_sum":4,"unit":"patient"},"instruction":'
        '"d65d78111136c30e6fd10dbdf18147e138abe630659b5aae553a41a3b6975e2c","kind":"privacy-reserved","round"'
        ':1},"owner":"general-hospital","previous":"000000000000000000000000000000000000000000000000000000000'
        '0000000","sequence":0,"software":"consilium 0.1.0","time":"2026-01-02T03:04:05Z"},"predicateType":"u'
        'rn:consilium:ledger-entry:v1","subject":[{"digest":{"sha256":"409552aa4c12702e3c8503589d94878170c8df'
        'ac6e8da1f266fb341ac60edaea"},"name":"study"}]}'
    ),
}


def head() -> list[tuple[str, Body]]:
    return round_bodies(0)


def refuse(envelopes: list[bytes], code: str, index: int | None = None) -> EvidenceError:
    with pytest.raises(EvidenceError, match=r"log: ") as caught:
        verify_log(envelopes, OWNER, KEY_HEX)
    assert caught.value.code == code
    if index is not None:
        assert caught.value.message.startswith(f"Entry {index} of {OWNER}'s log:")
    return caught.value


def test_an_honest_log_verifies_and_reports_its_totals() -> None:
    report = verify_log(LOG, OWNER, KEY_HEX)
    assert report.size == len(LOG) == 14
    assert report.root == merkle_root(LOG)
    assert report.events(STUDY) == (EVENT,) * 3
    assert report.events(digest("another study")) == ()
    training, held_out = report.filters
    assert exact(training.spent) == 3 * COST
    assert exact(held_out.spent) == 0
    assert verify_log([], OWNER, KEY_HEX).root == EMPTY_ROOT


@pytest.mark.parametrize("index", range(len(LOG)))
def test_an_entry_taken_out_is_missed(index: int) -> None:
    cut = LOG[:index] + LOG[index + 1 :]
    if index < len(LOG) - 1:
        refuse(cut, "wrong-sequence", index)
    checkpoint = Checkpoint(owner=OWNER, position=LogPosition(size=len(LOG), root=merkle_root(LOG)))
    with pytest.raises(EvidenceError, match=r"log: "):
        verify_log(cut, OWNER, KEY_HEX, checkpoint)


def test_two_entries_swapped_are_noticed() -> None:
    refuse([*LOG[:4], LOG[5], LOG[4], *LOG[6:]], "wrong-sequence", 4)


@given(st.integers(0, len(LOG) - 1), st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_any_byte_changed_is_noticed_at_its_entry(index: int, offset: int, mask: int) -> None:
    data = bytearray(LOG[index])
    data[offset % len(data)] ^= mask
    with pytest.raises(EvidenceError, match=f"Entry {index} of"):
        verify_log([*LOG[:index], bytes(data), *LOG[index + 1 :]], OWNER, KEY_HEX)


def test_an_entry_signed_anew_by_its_owner_breaks_the_chain_behind_it() -> None:
    bodies = round_bodies(3)
    bodies[2] = (STUDY, reserved(EVENT, 1, "0", instruction=digest("another instruction")))
    rewritten = sign_log(bodies)
    refuse([*LOG[:2], rewritten[2], *LOG[3:]], "broken-chain", 3)


def test_a_past_rewritten_as_a_whole_does_not_fit_a_witnessed_checkpoint() -> None:
    bodies = round_bodies(3)
    bodies[2] = (STUDY, reserved(EVENT, 1, "0", instruction=digest("another instruction")))
    rewritten = sign_log(bodies)
    verify_log(rewritten, OWNER, KEY_HEX)
    checkpoint = Checkpoint(owner=OWNER, position=LogPosition(size=8, root=merkle_root(LOG[:8])))
    verify_log(LOG, OWNER, KEY_HEX, checkpoint)
    with pytest.raises(EvidenceError, match="the first 8 entries are not those") as caught:
        verify_log(rewritten, OWNER, KEY_HEX, checkpoint)
    assert caught.value.code == "position-mismatch"


def test_a_truncated_tail_shows_against_a_checkpoint() -> None:
    checkpoint = Checkpoint(owner=OWNER, position=LogPosition(size=len(LOG), root=merkle_root(LOG)))
    verify_log(LOG[:9], OWNER, KEY_HEX)
    with pytest.raises(EvidenceError, match="expected at least 14 entries, got 9") as caught:
        verify_log(LOG[:9], OWNER, KEY_HEX, checkpoint)
    assert caught.value.code == "truncated"
    other = checkpoint.model_copy(update={"owner": "another-hospital"})
    with pytest.raises(EvidenceError, match=f"not of {OWNER}'s log"):
        verify_log(LOG, OWNER, KEY_HEX, other)


def test_positions_in_contributions_are_checked_against_the_whole_log() -> None:
    roots = roots_at(LOG, range(len(LOG) + 1))
    positions = [LogPosition(size=size, root=root) for size, root in roots.items()]
    verify_positions(LOG, OWNER, positions)
    with pytest.raises(EvidenceError, match="not those of the signed position"):
        verify_positions(LOG, OWNER, [positions[3], LogPosition(size=5, root=roots[4])])
    with pytest.raises(EvidenceError, match="at least 14 entries, got 13"):
        verify_positions(LOG[:-1], OWNER, positions)
    with pytest.raises(EvidenceError, match="at most 14"):
        roots_at(LOG, [15])


def test_a_log_signed_by_another_key_or_for_another_owner_is_not_believed() -> None:
    foreign = Ed25519PrivateKey.generate()
    refuse(sign_log(round_bodies(1), key=foreign), "bad-signature", 0)
    refuse(sign_log(round_bodies(1), owner="another-hospital"), "wrong-owner", 0)


@pytest.mark.parametrize(
    "alter",
    [
        lambda envelope: json.dumps(envelope, indent=1).encode(),
        lambda envelope: canonical_bytes(envelope | {"note": "x"}),
        lambda envelope: canonical_bytes(envelope | {"signatures": envelope["signatures"] * 2}),
        lambda envelope: canonical_bytes(
            envelope | {"signatures": [envelope["signatures"][0] | {"keyid": digest("other")}]}
        ),
        lambda envelope: b"[]",
        lambda envelope: b"\xff\xfe",
        lambda envelope: b"",
    ],
)
def test_bytes_that_are_not_the_one_canonical_envelope_are_refused(alter) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(EvidenceError) as caught:
        read_entry(alter(json.loads(LOG[0])), OWNER, KEY_HEX)
    assert caught.value.code in ("not-canonical", "bad-signature")


@pytest.mark.parametrize(
    "alter",
    [
        lambda s: s.replace('"sequence":0', '"sequence":0.0'),
        lambda s: s.replace('"sequence":0', '"sequence":-1'),
        lambda s: s.replace('"sequence":0', '"sequence":9007199254740993'),
        lambda s: s.replace('"sequence":0', '"sequence":0,"sequence":0'),
        lambda s: s.replace('"sequence":0', '"sequence": 0'),
        lambda s: s.replace('"kind":"cohort-registered"', '"kind":"cohort-forgiven"'),
        lambda s: s.replace('"name":"study"', '"name":"model"'),
        lambda s: s.replace('"owner"', '"note":1,"owner"'),
        lambda s: s.replace("general-hospital", "\\u0067eneral-hospital"),
        lambda s: s.replace("consilium 0.1.0", "\\ud800"),
        lambda s: s.replace("ledger-entry", "checkpoint"),
    ],
)
def test_a_signed_payload_that_is_not_one_canonical_known_entry_is_refused(alter) -> None:  # type: ignore[no-untyped-def]
    """An unknown kind of entry is refused, never skipped: it could hide a spent budget."""
    assert read_entry(sign_payload(FROZEN["statement"]), OWNER, KEY_HEX)[0] == NO_STUDY
    changed = alter(FROZEN["statement"])
    assert changed != FROZEN["statement"]
    with pytest.raises(EvidenceError) as caught:
        read_entry(sign_payload(changed), OWNER, KEY_HEX)
    assert caught.value.code in ("not-canonical", "malformed")


def sign_payload(text: str) -> bytes:
    """An envelope around any payload, correctly signed."""
    payload = text.encode()
    pae = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    signature = {"keyid": KEY_HEX, "sig": base64.b64encode(KEY.sign(pae)).decode()}
    return canonical_bytes(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [signature],
        }
    )


@given(st.text(max_size=40), st.integers(0, 2**53 - 1))
@settings(max_examples=100, deadline=None)
def test_the_quick_encoder_agrees_with_rfc_8785(text: str, number: int) -> None:
    """Whatever is signed through the RFC 8785 encoder is read back, quotes, controls and large numbers included."""
    if any(0xD800 <= ord(c) <= 0xDFFF for c in text):
        return
    body = Refused(instruction=digest(1), code=text)
    data = sign_log([(STUDY, body)])[0]
    assert read_entry(data, OWNER, KEY_HEX)[1].body == body
    epoch = KeyCeremony(epoch=number, sid_star=digest(2))
    assert read_entry(sign_log([(STUDY, epoch)])[0], OWNER, KEY_HEX)[1].body == epoch


# --- rules of the bodies ---------------------------------------------------------------------------------------------

FIRST = reserved(EVENT, 1, "0")
SECOND = reserved(EVENT, 2, format_decimal(COST))
COMMIT = PrivacyCommitted(instruction=FIRST.instruction, round=1, contribution=digest("c"))
SIGNED = RecordSigned(round=1, record=digest("record"))
LIMIT = format_decimal(gdp_limit("3", "1e-5"))


def state(spent: object, limit: str = LIMIT, data: str = "training") -> FilterState:
    text = spent if isinstance(spent, str) else format_decimal(spent)  # type: ignore[arg-type]
    return FilterState(data=data, spent=text, limit=limit)  # type: ignore[arg-type]


def share(number: int, record: str = SIGNED.record) -> ShareReleased:
    return ShareReleased(round=1, record=record, request=digest("request", number), share=digest("share", number))


BROKEN: dict[str, tuple[str, list[Body]]] = {
    "a commit without a reservation": ("reserve-first", [COMMIT]),
    "a commit of another round": ("reserve-first", [FIRST, COMMIT.model_copy(update={"round": 2})]),
    "two contributions to one instruction": (
        "committed-twice",
        [FIRST, COMMIT, COMMIT.model_copy(update={"contribution": digest("d")})],
    ),
    "one instruction reserved twice": (
        "reserved-twice",
        [FIRST, reserved(EVENT, 1, format_decimal(COST))],
    ),
    "a cost left out of the total": ("filter-after", [FIRST.model_copy(update={"after": FIRST.before})]),
    "a cost made smaller": (
        "filter-after",
        [FIRST.model_copy(update={"after": state(COST - Fraction(1, 10**15))})],
    ),
    "a total that was reset": ("filter-before", [FIRST, reserved(EVENT, 2, "0")]),
    "a total of the wrong patients": (
        "filter-part",
        [FIRST.model_copy(update={"before": state("0", data="held-out"), "after": state(COST, data="held-out")})],
    ),
    "a limit above the budget": (
        "filter-limit",
        [FIRST.model_copy(update={"before": state("0", "99"), "after": state(COST, "99")})],
    ),
    "a limit that grows within an entry": ("filter-limit", [FIRST.model_copy(update={"before": state("0", "0.1")})]),
    "another cohort than the registered one": (
        "cohort-mismatch",
        [FIRST.model_copy(update={"cohort": digest("another name for the same patients")})],
    ),
    "an event that contradicts itself": (
        "event-inconsistent",
        [FIRST.model_copy(update={"event": EVENT.model_copy(update={"local_sigma": "1000"})})],
    ),
    "a total that would exhaust memory": (
        "event-inconsistent",
        [FIRST.model_copy(update={"before": state("1e999")})],
    ),
    "another delta for the same data": (
        "delta-fixed",
        [CohortRegistered(cohort=COHORT, epsilon="3", delta="1e-4")],
    ),
    "a budget that means nothing": ("budget-malformed", [CohortRegistered(cohort=COHORT, epsilon="-1", delta="1e-5")]),
    "a second record of a round": ("second-record", [SIGNED, RecordSigned(round=1, record=digest("other"))]),
    "the same record signed twice": ("second-record", [SIGNED, SIGNED]),
    "a share of another record": ("second-record", [SIGNED, share(1, digest("other"))]),
    "shares of two records": ("second-record", [share(1), share(2, digest("other"))]),
    "a record signed after answering another": ("second-record", [share(1, digest("other")), SIGNED]),
    "one request answered twice": ("shared-twice", [SIGNED, share(1), share(1)]),
    "a seventeenth share": ("too-many-shares", [SIGNED, *(share(n) for n in range(17))]),
    "a contribution after the record": ("round-closed", [FIRST, SIGNED, COMMIT]),
    "a reservation after the record": ("round-closed", [SIGNED, FIRST]),
    "a plan approved twice": ("plan-twice", [PlanApproved(approval=digest("again"))]),
    "an epoch that returns": (
        "epoch-order",
        [KeyCeremony(epoch=2, sid_star=digest(1)), KeyCeremony(epoch=2, sid_star=digest(2))],
    ),
    "a record before any instruction": ("instruction-first", [RecordProposed(round=1, record=digest(1), dropped=())]),
    "an attempt after the record": (
        "attempt-after-record",
        [
            InstructionIssued(round=1, attempt=1, instruction=digest(1)),
            RecordProposed(round=1, record=digest(1), dropped=()),
            InstructionIssued(round=1, attempt=2, instruction=digest(2)),
        ],
    ),
    "a sum opened without a record": ("record-first", [SumOpened(round=1, opening=digest(1), model=digest(2))]),
    "a round opened twice": (
        "opened-twice",
        [
            InstructionIssued(round=1, attempt=1, instruction=digest(1)),
            RecordProposed(round=1, record=digest(1), dropped=()),
            SumOpened(round=1, opening=digest(1), model=digest(2)),
            SumOpened(round=1, opening=digest(3), model=digest(4)),
        ],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_signed_and_chained_log_that_breaks_a_rule_is_refused(name: str) -> None:
    code, bodies = BROKEN[name]
    log = sign_log(head() + [(STUDY, body) for body in bodies])
    refuse(log, code, len(log) - 1)
    before = read_state(log[:-1])
    size, spent = before.size, dict(before.rules.spent)
    with pytest.raises(EvidenceError):
        before.accept(log[-1])
    assert (before.size, before.rules.spent) == (size, spent), "the refused entry left no trace"


def test_nothing_about_a_study_comes_before_its_plan() -> None:
    other = digest("unapproved study")
    refuse(sign_log([*head(), (other, FIRST)]), "plan-first", 2)
    verify_log(sign_log([*head(), (other, Refused(instruction=digest(1), code="bad-signature"))]), OWNER, KEY_HEX)


def test_no_reservation_without_a_registered_budget() -> None:
    refuse(sign_log([head()[1], (STUDY, FIRST)]), "cohort-first", 1)


def test_totals_may_reach_the_limit_and_never_pass_it() -> None:
    bodies = round_bodies(11)
    tenth = 2 + 4 * 10
    assert exact(verify_log(sign_log(bodies[:tenth]), OWNER, KEY_HEX).filters[0].spent) <= exact(LIMIT)
    refuse(sign_log(bodies), "filter-overspent", tenth)


def test_a_new_registration_keeps_what_was_spent() -> None:
    bodies = [*round_bodies(2), (NO_STUDY, CohortRegistered(cohort=digest("more patients"), epsilon="8", delta="1e-5"))]
    again = reserved(EVENT, 9, "0", epsilon="8", cohort=digest("more patients"))
    refuse(sign_log([*bodies, (STUDY, again)]), "filter-before")
    kept = reserved(EVENT, 9, format_decimal(2 * COST), epsilon="8", cohort=digest("more patients"))
    verify_log(sign_log([*bodies, (STUDY, kept)]), OWNER, KEY_HEX)


def test_training_and_held_out_totals_are_separate() -> None:
    held_out = make_mechanism(data="held-out", noise_multiplier="1.390616").event()
    log = sign_log([*round_bodies(10), (STUDY, reserved(held_out, 11, "0"))])
    training, other = verify_log(log, OWNER, KEY_HEX).filters
    assert exact(training.spent) == 10 * COST
    assert exact(other.spent) == gdp_cost(held_out)


def test_a_later_attempt_commits_the_stored_values_without_a_second_charge() -> None:
    later = PrivacyCommitted(instruction=digest("attempt 2"), round=1, contribution=digest("c2"))
    report = verify_log(sign_log([*head(), (STUDY, FIRST), (STUDY, COMMIT), (STUDY, later)]), OWNER, KEY_HEX)
    assert exact(report.filters[0].spent) == COST


def test_the_bytes_of_entries_are_frozen() -> None:
    """Ed25519 is deterministic: these bytes never change, or old ledgers would not verify."""
    data = sign_payload(FROZEN["statement"])
    study, entry = read_entry(data, OWNER, KEY_HEX)
    assert study == NO_STUDY
    assert entry.body == head()[0][1]
    assert sign_envelope(entry, NO_STUDY, KEY) == data
    assert envelope_digest(data) == FROZEN["registration"]
    assert sign_envelope(entry.model_copy(update={"body": FIRST}), STUDY, KEY) == sign_payload(FROZEN["reserved"])
