"""A hospital that spoils sums may cost a round, and never stops the study.

It answers with wrong shares, contributes what does not fit together, or replaces what it sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from flows.active_sets import choose_active_set
from flows.departures import TooFewRemain, verify_rounds_live
from flows.opening_steps import OpeningSteps
from flows.round import share_and_open, verify_can_go_on
from flows.round_steps import Answers, EpochLost, RoundOutcome, RoundSteps
from flows.waiting import SiteRuns
from infra.embedded import EmbeddedConsortium, Faults, contribute, open_by_active_sets
from schemas.errors import OperationError
from schemas.layout import attempt_key, ceremony_key, round_key
from schemas.messages import Record, ShareRequest
from schemas.threshold import default_threshold
from schemas.wire import Kind, pack_residues, residue_width, write_blob
from site_agents.certifying import Certifying
from site_agents.round import SiteRound
from tasks.audit.keys import read_public_keys
from tasks.audit.verify import verify_evidence
from tasks.rounds import MAXIMUM_REQUESTS, read_instruction, read_opening, read_request
from tasks.secure_sum import contribute as contributing
from tasks.secure_sum.ceremony import ceremony_blob_bytes
from tasks.secure_sum.context import RoundContext
from tasks.secure_sum.epoch import EpochSecrets
from tasks.secure_sum.opening import share_blob_bytes, share_header
from tasks.secure_sum.record import key_ciphertext_bytes, key_sum_bytes, sealed_shamir_bytes
from tasks.secure_sum.share import make_share
from tasks.secure_sum.transcript import pack_rows
from tasks.storage.mailbox import Signed
from tests.simulator import Prepared, change_settings, copy_study, open_consortium


@pytest.fixture
def prepared(study_after_ceremony: Prepared, tmp_path: Path) -> Prepared:
    return copy_study(study_after_ceremony, tmp_path / "study")


def lie_about_shares(monkeypatch: pytest.MonkeyPatch, *liars: str) -> None:
    """Lets these holders answer requests with blobs of the right form, correctly signed, full of random residues."""

    def make(
        secrets: EpochSecrets, context: RoundContext, record: Record, digest: str, request: ShareRequest, *rest: Any
    ) -> bytes:
        if secrets.name not in liars:
            return make_share(secrets, context, record, digest, request, *rest)
        p = context.parameters
        random = np.random.default_rng()
        part = np.stack([random.integers(0, prime, p.bulk_degree, dtype=np.uint64) for prime in p.data_primes])
        shamir = random.integers(0, p.bulk_modulus, p.bulk_degree, dtype=np.uint64)
        body = pack_rows(part, p.data_primes) + pack_residues(shamir, residue_width(p.bulk_modulus))
        header = share_header(context, digest, list(request.active_set), secrets.name)
        return write_blob(header, body, secrets.signing_key)

    monkeypatch.setattr("site_agents.certifying.make_share", make)


def contribute_what_does_not_fit(monkeypatch: pytest.MonkeyPatch, liar: str, shift: int) -> None:
    """Lets `liar` seal valid Shamir shares of another key than the one that it encrypted under."""
    honest = contributing._seal_shares

    def seal(context: RoundContext, sender: str, secret: Any, *rest: Any) -> dict[str, bytes]:
        return honest(context, sender, secret + shift if sender == liar else secret, *rest)

    monkeypatch.setattr(contributing, "_seal_shares", seal)


def asked_sets(consortium: EmbeddedConsortium, round_: int) -> list[tuple[str, ...]]:
    found = (read_request(consortium.coordinator.store, consortium.plan, round_, n) for n in range(1, 17))
    return [request.predicate.active_set for request in found if request is not None]


def audited(consortium: EmbeddedConsortium, prepared: Prepared, evaluation: RoundOutcome | None = None) -> list[Any]:
    """Releases after one opened round and returns the audit's failed checks."""
    evidence = consortium.release(1, evaluation, "the other rounds were spoiled")
    report = verify_evidence(evidence, read_public_keys(prepared.keys))
    return [result for result in report.results if result.status == "failed"]


@pytest.mark.parametrize("sites", range(4, 17))
def test_one_set_of_sixteen_is_without_the_one_or_two_that_answer_wrongly(sites: int) -> None:
    numbers = default_threshold(sites)
    holders = [f"holder-{number:02}" for number in range(numbers.certificate_quorum)]
    for count in (1, 2) if len(holders) - 2 >= numbers.t else (1,):
        for wrong in combinations(holders, count):
            asked: list[tuple[str, ...]] = []
            while (chosen := choose_active_set(holders, numbers.t, asked)) and set(chosen) & set(wrong):
                asked.append(chosen)
            assert chosen is not None
            assert len(asked) < MAXIMUM_REQUESTS


def test_where_there_are_few_sets_each_of_them_is_asked_once() -> None:
    asked: list[tuple[str, ...]] = []
    while chosen := choose_active_set("abcde", 3, asked):
        asked.append(chosen)
    assert asked[0] == ("a", "b", "c")
    assert sorted(asked) == list(combinations("abcde", 3))
    assert choose_active_set("ab", 3, ()) is None


@pytest.mark.parametrize("liars", [1, 2])
def test_holders_that_answer_with_wrong_shares_do_not_stop_a_round(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, liars: int
) -> None:
    consortium = open_consortium(prepared)
    names = [holder.name for holder in prepared.plan.key_holders]
    wrong = names[:liars]
    lie_about_shares(monkeypatch, *wrong)

    outcome = consortium.run_round(consortium.finished_ceremony(), 1)

    assert not set(wrong) & {holder for holder, _ in outcome.opening.predicate.shares}
    sets = asked_sets(consortium, 1)
    assert len(sets) == len(set(sets)) <= (3 if liars == 1 else 10)
    assert audited(consortium, prepared) == []


def test_a_resumed_coordinator_goes_on_with_the_set_after_the_one_that_did_not_open(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    consortium = open_consortium(prepared)
    names = [holder.name for holder in prepared.plan.key_holders]
    with monkeypatch.context() as patch:
        lie_about_shares(patch, names[0])
        with pytest.raises(OperationError, match="no further active set"):
            consortium.run_round(consortium.finished_ceremony(), 1, faults=Faults(unwilling=names[3:]))
    before = asked_sets(consortium, 1)
    resumed = open_consortium(prepared)

    outcome = resumed.run_round(resumed.finished_ceremony(), 1)

    assert asked_sets(resumed, 1)[: len(before)] == before
    assert names[0] not in [holder for holder, _ in outcome.opening.predicate.shares]


class Agents:
    """In place of the sites' flow runs: whoever is asked to run answers the requests that are there."""

    def __init__(self, holders: dict[str, Certifying]) -> None:
        self.holders = holders

    async def revive(self, sites: list[str]) -> None:
        for site in sites:
            self.holders[site].certify()
            self.holders[site].share()


def test_the_flow_asks_another_set_once_everybody_had_time_to_certify(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"share_deadline_seconds": 5, "certify_deadline_seconds": 5, "poll_interval_seconds": 0.01}
    change_settings(prepared.workdir.coordinator, options=options)
    consortium = open_consortium(prepared)
    names = [holder.name for holder in prepared.plan.key_holders]
    lie_about_shares(monkeypatch, *names[1:3])
    steps, instruction, answers, closed, holders = collected(consortium)
    assert all(holder.check_shares() for holder in holders.values())
    record = OpeningSteps(steps).propose(instruction, answers, closed, steps.read_checks(closed))
    assert all(holders[name].certify() for name in names[:4])
    signatures = OpeningSteps(steps).read_signatures(record)
    assert len(signatures) == 4  # without the fifth, every three of them have a liar
    runs = cast(SiteRuns, Agents(holders))

    asyncio.run(share_and_open.fn(steps, instruction, record, signatures, runs))

    opening = read_opening(consortium.coordinator.store, consortium.plan, 1)
    assert opening is not None
    assert [holder for holder, _ in opening.predicate.shares] == [names[0], *names[3:]]


@pytest.mark.parametrize("shift", [1, 1 << 30])
def test_a_contribution_that_does_not_fit_together_costs_its_round_and_not_the_study(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    consortium = open_consortium(prepared)
    public, liar = consortium.finished_ceremony(), prepared.plan.contributors[3].name
    consortium.run_round(public, 1)
    lineage = consortium.lineage
    with monkeypatch.context() as patch:
        contribute_what_does_not_fit(patch, liar, shift)
        with pytest.raises(OperationError, match="no further active set"):
            consortium.run_round(public, 2)
    steps = RoundSteps(consortium.coordinator, public, lineage, 2, "train")
    with pytest.raises(EpochLost, match="does not open") as caught:
        verify_can_go_on(steps)
    assert caught.value.code == "sum-spoiled"
    assert caught.value.who_must_act == "the named hospitals"
    assert liar in caught.value.message
    assert len(asked_sets(consortium, 2)) == 10  # every three of five
    resumed = open_consortium(prepared)
    with pytest.raises(EpochLost):
        verify_can_go_on(RoundSteps(resumed.coordinator, public, lineage, 2, "train"))

    resumed.lineage = lineage
    evaluation = resumed.run_round(resumed.run_ceremony(2), 3, "evaluate")
    assert audited(resumed, prepared, evaluation) == []


def test_a_wrong_share_beside_silent_holders_is_waited_for_and_does_not_end_the_round(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    consortium = open_consortium(prepared)
    names = [holder.name for holder in prepared.plan.key_holders]
    lie_about_shares(monkeypatch, names[0])
    public, before = consortium.finished_ceremony(), consortium.lineage
    with pytest.raises(OperationError, match=f"silent: {names[3]}, {names[4]}") as caught:
        consortium.run_round(public, 1, faults=Faults(unwilling=names[3:]))
    assert caught.value.code == "no-active-set"
    verify_can_go_on(RoundSteps(consortium.coordinator, public, before, 1, "train"))


def test_rounds_that_are_spoiled_again_and_again_end_the_study_and_say_so(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_settings(prepared.workdir.coordinator, options={"dead_rounds_in_a_row": 1})
    consortium = open_consortium(prepared)
    contribute_what_does_not_fit(monkeypatch, prepared.plan.contributors[3].name, 1)
    with pytest.raises(OperationError):
        consortium.run_round(consortium.finished_ceremony(), 1)
    with pytest.raises(TooFewRemain, match="nobody said that a key share was lost") as caught:
        verify_rounds_live(consortium.coordinator, 2, 2)
    assert caught.value.code == "rounds-keep-dying"
    assert prepared.plan.contributors[3].name in caught.value.message
    assert "unnamed" not in caught.value.message


Replace = Callable[[EmbeddedConsortium, str], None]


def _overwrite(consortium: EmbeddedConsortium, site: str, *items: str) -> None:
    for item in items:
        key = attempt_key(consortium.plan.study, 1, 1, site, item)
        path = Path(consortium.coordinator.settings.store) / key
        path.unlink()
        path.write_bytes(b"other bytes than those that were signed")


def replace_shares(consortium: EmbeddedConsortium, site: str) -> None:
    _overwrite(consortium, site, *(f"shamir-{holder.name}.bin" for holder in consortium.plan.key_holders))


def replace_contribution(consortium: EmbeddedConsortium, site: str) -> None:
    _overwrite(consortium, site, "contribution.json")


def replace_key(consortium: EmbeddedConsortium, site: str) -> None:
    _overwrite(consortium, site, "key.bin")


def enlarge_shares(consortium: EmbeddedConsortium, site: str) -> None:
    for holder in consortium.plan.key_holders:
        key = attempt_key(consortium.plan.study, 1, 1, site, f"shamir-{holder.name}.bin")
        path = Path(consortium.coordinator.settings.store) / key
        path.write_bytes(path.read_bytes() + b"\0")


def collected(
    consortium: EmbeddedConsortium,
) -> tuple[RoundSteps, Signed[Any], Answers, Signed[Any], dict[str, Certifying]]:
    steps = RoundSteps(consortium.coordinator, consortium.finished_ceremony(), consortium.lineage, 1, "train")
    instruction, answers = steps.issue(), Answers()
    works = {name: SiteRound(context, 1, 1) for name, context in consortium.sites.items()}
    assert [contribute(work) for work in works.values()] == [None] * len(works)
    steps.collect(instruction, answers)
    closed = steps.close(instruction, answers)
    return steps, instruction, answers, closed, {name: Certifying(work) for name, work in works.items()}


@pytest.mark.parametrize("attack", [replace_shares, replace_contribution, replace_key, enlarge_shares])
@pytest.mark.parametrize("moment", ["collected", "checked", "proposed", "certified"])
def test_what_is_replaced_after_the_collection_closed_leaves_out_its_sender_or_nobody(
    prepared: Prepared, attack: Replace, moment: str
) -> None:
    consortium = open_consortium(prepared)
    steps, instruction, answers, closed, holders = collected(consortium)
    opening, site = OpeningSteps(steps), prepared.plan.contributors[3].name
    if moment == "collected":
        attack(consortium, site)
    assert all(holder.check_shares() for name, holder in holders.items())
    if moment == "checked":
        attack(consortium, site)
    record = opening.propose(instruction, answers, closed, steps.read_checks(closed))
    if moment == "proposed":
        attack(consortium, site)
    assert all(holder.certify() for holder in holders.values())
    if moment == "certified":
        attack(consortium, site)
    open_by_active_sets(opening, holders, instruction, record, ())

    left_out = moment == "collected" or (moment == "checked" and attack in (replace_contribution, replace_key))
    assert record.predicate.dropped == (((site, "invalid"),) if left_out else ())
    assert steps.recompute()[1].opening is not None


def test_a_holder_that_names_everybody_else_faulty_is_not_heard(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    consortium = open_consortium(prepared)
    steps, instruction, answers, closed, holders = collected(consortium)
    *others, liar = [holder.name for holder in prepared.plan.key_holders]
    for name, holder in holders.items():
        with monkeypatch.context() as patch:
            if name == liar:
                patch.setattr("site_agents.certifying.find_shamir_faults", lambda *_: tuple(others))
            assert holder.check_shares()
    assert steps.read_checks(closed)[liar] == tuple(others)

    record = OpeningSteps(steps).propose(instruction, answers, closed, steps.read_checks(closed))

    assert record.predicate.dropped == ()


def test_a_share_larger_than_any_is_not_read_and_its_sender_is_left_out(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    consortium = open_consortium(prepared)
    liar, honest = prepared.plan.contributors[3].name, contributing._seal_shares

    def seal(context: RoundContext, sender: str, *rest: Any) -> dict[str, bytes]:
        sealed = honest(context, sender, *rest)
        return {holder: blob + bytes(sender == liar) for holder, blob in sealed.items()}

    monkeypatch.setattr(contributing, "_seal_shares", seal)
    steps, _, answers, _, _ = collected(consortium)
    assert answers.invalid == {liar: "too-large"}
    consortium.run_round(steps.public, 1)


def test_the_sizes_that_readers_allow_are_those_of_what_was_sent(prepared: Prepared) -> None:
    consortium = open_consortium(prepared)
    public, store, study = consortium.finished_ceremony(), consortium.coordinator.store, prepared.plan.study
    consortium.run_round(public, 1)
    instruction = read_instruction(store, prepared.plan, 1, 1)
    assert instruction is not None
    context = RoundContext.of(prepared.plan, public, instruction.predicate, instruction.digest)
    names = [holder.name for holder in prepared.plan.key_holders]
    one, other = names[:2]
    sizes = {
        attempt_key(study, 1, 1, one, "key.bin"): key_ciphertext_bytes(context, one),
        attempt_key(study, 1, 1, one, f"shamir-{other}.bin"): sealed_shamir_bytes(context, one, other),
        round_key(study, 1, one, "share-1.bin"): share_blob_bytes(context, one),
        round_key(study, 1, None, "key-sum.bin"): key_sum_bytes(context),
        ceremony_key(study, 1, one, "public-share.bin"): ceremony_blob_bytes(prepared.plan, Kind.PUBLIC_SHARE, one),
        ceremony_key(study, 1, one, f"sealed-{other}.bin"): ceremony_blob_bytes(
            prepared.plan, Kind.SEALED_KEY, one, other
        ),
        ceremony_key(study, 1, one, "self-test-1.bin"): ceremony_blob_bytes(prepared.plan, Kind.SELF_TEST, one),
    }
    assert {key: store.size(key) for key in sizes} == sizes
