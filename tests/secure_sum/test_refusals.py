"""What a site, a holder and the coordinator refuse, each by name and with nothing changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import PeerError, PlanError
from schemas.messages import RecordSignature
from tasks.secure_sum.bulk import add_bulk, verify_bulk
from tasks.secure_sum.context import RoundContext
from tasks.secure_sum.contribute import contribute
from tasks.secure_sum.opening import open_sum
from tasks.secure_sum.record import (
    find_shamir_faults,
    verify_certificate,
    verify_contribution,
    verify_record,
    verify_record_form,
)
from tasks.secure_sum.transcript import unpack_rows
from tests.secure_sum.rounds import LENGTH, SITES, copy_of, signing, values_of
from tests.secure_sum.world import Round, make_context, shared_ceremony, sign


def test_an_instruction_that_does_not_fit_is_refused(certified: Round) -> None:
    c = make_context(shared_ceremony(5))
    for change, message in (
        ({"sid_star": "00" * 32}, "session"),
        ({"epoch": 2}, "epoch"),
        ({"length": 7}, "length"),
        ({"participants": ("site-01", "site-00", "site-02", "site-03")}, "name order"),
        ({"participants": (*SITES[:4], "stranger")}, "distinct contributors"),
        ({"participants": tuple(SITES[:3])}, "fewer participants than k_min"),
    ):
        with pytest.raises(PeerError, match=message) as caught:
            RoundContext.of(c.plan, c.public, c.instruction.model_copy(update=change), "00" * 32)
        assert caught.value.peer == "coordinator"


def test_only_participants_with_their_pinned_key_contribute(certified: Round, tmp_path: Path) -> None:
    values = values_of("site-00", LENGTH)
    with pytest.raises(PlanError, match="not a participant"):
        contribute(certified.context, "coordinator", values, signing("coordinator"), tmp_path / "a")
    with pytest.raises(PlanError, match="not the one in the plan"):
        contribute(certified.context, "site-00", values, signing("site-01"), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_does_not_account_for_everybody_is_refused(certified: Round) -> None:
    record = certified.record
    assert record is not None
    for change, message in (
        ({"round": 9}, "does not belong to this instruction"),
        ({"attempt": 2}, "does not belong to this instruction"),
        ({"instruction": "00" * 32}, "does not belong to this instruction"),
        ({"dropped": ()}, "every participant exactly once"),
        ({"contributions": tuple(reversed(record.contributions))}, "every participant exactly once"),
        ({"contributions": (*record.contributions[:1], *record.contributions)}, "every participant exactly once"),
        (
            {"contributions": record.contributions[:1], "dropped": tuple((s, "silent") for s in SITES[1:])},
            "fewer contributions than k_min",
        ),
    ):
        with pytest.raises(PeerError, match=message):
            verify_record_form(certified.context, record.model_copy(update=change))


def test_a_holder_refuses_a_record_that_lists_another_contribution_of_its_own(certified: Round) -> None:
    arguments = certified.envelopes, certified.key_blobs(), certified.shamir_blobs("site-00")
    secrets, record = certified.ceremony.secrets["site-00"], certified.record
    assert record is not None
    for own in (None, certified.envelopes["site-01"]):
        with pytest.raises(PeerError, match="another contribution of this site"):
            verify_record(secrets, certified.context, record, *arguments, own)


def test_a_sealed_share_that_does_not_open_is_found_and_named(certified: Round) -> None:
    blobs = certified.shamir_blobs("site-00")
    secrets = certified.ceremony.secrets["site-00"]
    assert find_shamir_faults(secrets, certified.context, certified.opened(), blobs) == ()
    broken = blobs | {"site-03": certified.parts["site-03"].shamir["site-01"], "site-02": blobs["site-02"][:-1]}
    del broken["site-01"]
    found = find_shamir_faults(secrets, certified.context, certified.opened(), broken)
    assert found == ("site-01", "site-02", "site-03")
    with pytest.raises(PeerError, match="site-01: the share that it sealed for this holder is missing"):
        certified.share("site-00", certified.request(tuple(SITES[:3])), shamir_blobs=broken)


def test_a_certificate_needs_q_valid_signatures_on_this_record(certified: Round) -> None:
    check = certified.context, certified.record_digest
    request = certified.request(tuple(SITES[:3]))
    verify_certificate(*check, request, certified.certificate)
    few = request.model_copy(update={"certificate": request.certificate[:3]})
    with pytest.raises(PeerError, match="fewer signatures than the quorum"):
        verify_certificate(*check, few, certified.certificate)
    twice = request.model_copy(update={"certificate": (request.certificate[0], *request.certificate[:3])})
    with pytest.raises(PeerError, match="distinct key holders"):
        verify_certificate(*check, twice, certified.certificate)
    other = copy_of(certified)
    for wrong in ({"record": "00" * 32}, {"round": 2}, {"holder": "site-01"}):
        statement = {
            "sid_star": certified.context.instruction.sid_star,
            "round": 1,
            "holder": "site-02",
            "record": certified.record_digest,
        } | wrong
        key = certified.ceremony.secrets["site-02"].signing_key
        other.certificate["site-02"] = sign(RecordSignature(**statement), certified.plan, key)[0]
        with pytest.raises(PeerError, match="site-02: its signature is for another record"):
            verify_certificate(*check, other.request(tuple(SITES[:3])), other.certificate)
    other.certificate["site-02"] = sign(
        RecordSignature(sid_star="00" * 32, round=1, holder="site-02", record=certified.record_digest),
        certified.plan,
        signing("site-02"),
    )[0]
    with pytest.raises(PeerError, match="site-02: RecordSignature is not signed by the pinned key"):
        verify_certificate(*check, other.request(tuple(SITES[:3])), other.certificate)


def test_a_request_must_name_exactly_t_holders_of_this_record(certified: Round) -> None:
    good = certified.request(tuple(SITES[:3]))
    for change, message in (
        ({"record": "00" * 32}, "another record"),
        ({"active_set": tuple(SITES[:2])}, "exactly t holders"),
        ({"active_set": tuple(SITES[:4])}, "exactly t holders"),
        ({"active_set": ("site-00", "site-00", "site-01")}, "distinct key holders"),
        ({"active_set": tuple(SITES[2:])}, "does not contain this holder"),
    ):
        with pytest.raises(PeerError, match=message):
            certified.share("site-00", good.model_copy(update=change))


def test_a_key_sum_that_the_record_does_not_name_is_refused(certified: Round) -> None:
    altered = certified.key_sum[:-1] + bytes([certified.key_sum[-1] ^ 1])
    with pytest.raises(PeerError, match="key sum is not the one that the record names"):
        certified.share("site-00", certified.request(tuple(SITES[:3])), key_sum=altered)


def test_altered_bulk_is_named_and_leaves_no_sum(certified: Round, tmp_path: Path) -> None:
    opened = certified.opened()
    for site in SITES:
        data = certified.bulk(site).read_bytes()
        for at in (0, 120, len(data) // 2, len(data) - 70, len(data) - 1):
            altered = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            with pytest.raises(PeerError, match=site):
                verify_bulk(certified.context, opened[site], altered)
            sources: Any = {s: (opened[s], certified.bulk(s)) for s in SITES} | {site: (opened[site], altered)}
            with pytest.raises(PeerError, match=site):
                add_bulk(certified.context, sources, tmp_path / "sum")
            assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="at least one"):
        add_bulk(certified.context, {}, tmp_path / "sum")


def test_a_bulk_sum_that_is_short_or_shifted_is_refused(certified: Round) -> None:
    request = certified.request(tuple(SITES[:3]))
    shares = {h: certified.share(h, request) for h in SITES[:3]}
    data = certified.add().read_bytes()
    record = certified.record
    assert record is not None
    for altered, message in (
        (data[:-1], "exact length"),
        (data[:200] + bytes([data[200] ^ 1]) + data[201:], "SHA-256 of a BULK_SUM|not below its modulus|does not open"),
    ):
        with pytest.raises(PeerError, match=message):
            open_sum(certified.context, record, certified.record_digest, request, certified.key_sum, altered, shares)


def test_contributions_of_other_rounds_attempts_and_instructions_are_refused(certified: Round) -> None:
    for change in ({"round": 2}, {"attempt": 2}, {"model": "22" * 32}):
        other = make_context(shared_ceremony(5), LENGTH, **change)
        with pytest.raises(PeerError, match="site-00: its contribution does not answer this instruction"):
            verify_contribution(other, certified.envelopes["site-00"], "site-00")


def test_a_site_that_was_not_asked_does_not_contribute(certified: Round) -> None:
    people = tuple(SITES[:4])
    context = make_context(shared_ceremony(5), LENGTH, participants=people)
    with pytest.raises(PeerError, match="site-04: it is not a participant of this instruction"):
        verify_contribution(context, certified.envelopes["site-04"], "site-04")


def test_secrets_of_another_epoch_sign_and_open_nothing(certified: Round) -> None:
    secrets = replace(certified.ceremony.secrets["site-00"], epoch=2)
    arguments = certified.envelopes, certified.key_blobs(), certified.shamir_blobs("site-00")
    assert certified.record is not None
    with pytest.raises(PeerError, match="coordinator: this holder's secrets belong to another epoch"):
        verify_record(secrets, certified.context, certified.record, *arguments, certified.envelopes["site-00"])


def test_bulk_that_is_missing_or_ends_while_it_is_read_is_named(certified: Round, tmp_path: Path) -> None:
    message = certified.opened()["site-02"]
    with pytest.raises(PeerError, match="site-02: its bulk blob cannot be read"):
        verify_bulk(certified.context, message, tmp_path / "missing")
    request = certified.request(tuple(SITES[:3]))
    shares = {h: certified.share(h, request) for h in SITES[:3]}
    record, digest = certified.record, certified.record_digest
    assert record is not None
    with pytest.raises(PeerError, match="coordinator: its bulk blob cannot be read"):
        open_sum(certified.context, record, digest, request, certified.key_sum, tmp_path / "missing", shares)

    class Shrinking(type(tmp_path)):  # type: ignore[misc]
        """A file that is cut by its owner after its size was checked."""

        def stat(self, **_: Any) -> Any:
            return certified.bulk("site-02").stat()

    shrunk = Shrinking(tmp_path / "shrunk")
    shrunk.write_bytes(certified.bulk("site-02").read_bytes()[:-100])
    with pytest.raises(PeerError, match="site-02: a bulk blob ended while it was read"):
        verify_bulk(certified.context, message, shrunk)
    assert [path.name for path in tmp_path.iterdir()] == ["shrunk"]


def test_packed_rows_of_another_length_are_refused() -> None:
    with pytest.raises(PeerError, match="site-00: packed residues do not have their exact length"):
        unpack_rows(bytes(13), (2**31 - 1,), 3, "site-00")
