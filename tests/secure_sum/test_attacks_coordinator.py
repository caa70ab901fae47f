"""Attacks of an active coordinator (with colluding sites). Each first succeeds on a weakened copy, then fails."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.envelope import envelope_digest
from schemas.errors import PeerError
from site_agents.keystore import Keystore
from tasks.secure_sum import share as share_code
from tasks.secure_sum.context import RoundContext
from tasks.secure_sum.contribute import contribute
from tasks.secure_sum.opening import _read_share, open_key
from tasks.secure_sum.partial import combine_partials
from tasks.secure_sum.record import add_key_ciphertexts, read_key_sum
from tasks.secure_sum.sampling import insecure_stream, sample_binomial
from tests.secure_sum.rounds import LENGTH, SITES, copy_of, signing, values_of
from tests.secure_sum.world import Round, make_context, shared_ceremony, sign

ACTIVE = tuple(SITES[:3])


def second_record(certified: Round, drop: tuple[str, ...]) -> Round:
    """The same contributions, another set: what an equivocating coordinator proposes."""
    other = copy_of(certified, certificate={})
    other.propose(drop)
    return other


def test_equivocation_on_the_contributor_set_recovers_a_site_only_without_the_certificate(
    certified: Round, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = second_record(certified, drop=("site-03",))
    with monkeypatch.context() as weak:
        weak.setattr(share_code, "verify_certificate", lambda *_: None)
        shown = second_record(certified, drop=())
        full = shown.open(shown.request(ACTIVE))
        without = other.open(other.request(ACTIVE))
    assert (full - without == certified.values["site-03"]).all()

    # Only the certificate of the first record exists: no share for the second one leaves.
    with pytest.raises(PeerError, match="fewer signatures than the quorum"):
        other.share("site-00", other.request(ACTIVE))
    replayed = copy_of(other, certificate=dict(certified.certificate))
    with pytest.raises(PeerError, match="its signature is for another record"):
        replayed.share("site-00", replayed.request(ACTIVE))
    register = Keystore(tmp_path / "memory", certified.plan.study, 64)
    register.register_record(1, 1, certified.record_digest)
    with pytest.raises(PeerError, match="a second record was proposed for round 1"):
        register.register_record(1, 1, other.record_digest)
    assert register.registered_record(1, 1) == certified.record_digest


def certificates_possible(honest: int, colluding: int, quorum: int, restored: int) -> bool:
    """Whether two records can both get a quorum when `restored` honest holders sign twice."""
    for choice in product((0, 1), repeat=honest - restored):
        first = colluding + restored + choice.count(0)
        second = colluding + restored + choice.count(1)
        if first >= quorum and second >= quorum:
            return True
    return False


@pytest.mark.parametrize(("holders", "colluding", "quorum"), [(5, 2, 4), (4, 1, 3), (16, 8, 13)])
def test_two_certificates_need_an_honest_holder_that_signs_twice(holders: int, colluding: int, quorum: int) -> None:
    assert not certificates_possible(holders - colluding, colluding, quorum, restored=0)
    # A weaker quorum, or enough holders restored from an old backup, give two certificates.
    assert certificates_possible(holders - colluding, colluding, (holders + colluding) // 2, restored=0)
    assert any(certificates_possible(holders - colluding, colluding, quorum, restored=r) for r in (1, 2, 3))


def test_a_second_attempt_after_a_drop_out_is_the_same_attack_and_fails_alike(
    certified: Round, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = tuple(s for s in SITES if s != "site-03")
    later = Round(
        certified.ceremony, make_context(certified.ceremony, LENGTH, attempt=2, participants=people), tmp_path
    )
    for site in people:
        later.contribute(site, certified.values[site])
    later.propose()
    first = second_record(certified, drop=())
    with monkeypatch.context() as weak:
        weak.setattr(share_code, "verify_certificate", lambda *_: None)
        difference = first.open(first.request(ACTIVE)) - later.open(later.request(ACTIVE))
    assert (difference == certified.values["site-03"]).all()

    register = Keystore(tmp_path / "memory", certified.plan.study, 64)
    register.register_record(1, 1, first.record_digest)
    with pytest.raises(PeerError, match="a second record was proposed for round 1"):
        register.register_record(1, later.context.instruction.round, later.record_digest)
    with pytest.raises(PeerError, match="fewer signatures than the quorum"):
        later.share("site-00", later.request(ACTIVE))


def test_a_forged_key_sum_opens_one_key_half_unless_holders_add_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_ = Round(shared_ceremony(5), make_context(shared_ceremony(5), LENGTH), tmp_path)
    for site in SITES:
        round_.contribute(site, values_of(site, LENGTH))
    victim = "site-03"
    stream = insecure_stream(77)
    parts = contribute(round_.context, victim, values_of(victim, LENGTH), signing(victim), round_.bulk(victim), stream)
    round_.parts[victim] = parts
    round_.envelopes[victim] = sign(round_.message(victim, parts), round_.plan, signing(victim))[0]
    secret_half = sample_binomial(insecure_stream(77), 2048)
    round_.propose()
    honest = round_.record
    assert honest is not None
    alone = add_key_ciphertexts(round_.context, {victim: round_.opened()[victim]}, round_.key_blobs())
    forged = copy_of(round_, record=honest.model_copy(update={"key_sum": alone.digest}), key_sum=alone.blob)
    assert forged.record is not None
    forged.record_digest = sign(forged.record, round_.plan, signing("coordinator"))[1]
    with monkeypatch.context() as weak:
        weak.setattr(share_code, "verify_certificate", lambda *_: None)
        request = forged.request(ACTIVE)
        parts_of = [
            _read_share(forged.context, forged.record_digest, list(ACTIVE), h, forged.share(h, request))[0]
            for h in ACTIVE
        ]
    body = read_key_sum(forged.context, forged.record, forged.key_sum)[0]
    assert (combine_partials(forged.context.parameters, body, parts_of) == secret_half).all()

    for holder in SITES:
        with pytest.raises(PeerError, match="names another sum of the key ciphertexts"):
            forged.verify_as(holder)


def relu_update(model: int, patients: Any) -> Any:
    """The gradient sum of one hidden unit: a patient counts if its features reach the unit's threshold."""
    return patients[patients.sum(axis=1) > model].sum(axis=0)


def test_a_dead_model_given_to_the_others_reads_one_site_unless_contributions_are_bound_to_their_instruction(
    tmp_path: Path,
) -> None:
    """Everybody but the victim gets a model whose unit never fires: the others contribute zero."""
    ceremony, live, dead = shared_ceremony(5), -(10**6), 10**9
    patients = {site: np.random.default_rng(i).integers(-1000, 1000, (30, LENGTH)) for i, site in enumerate(SITES)}
    honest = make_context(ceremony, LENGTH)
    other = make_context(ceremony, LENGTH, model="99" * 32)
    (tmp_path / "weak").mkdir()
    (tmp_path / "real").mkdir()

    def attacked(folder: Path, told_victim: RoundContext) -> Round:
        round_ = Round(ceremony, honest, folder)
        for site in SITES[:4]:
            round_.contribute(site, relu_update(dead, patients[site]))
        victim = Round(ceremony, told_victim, folder)
        victim.contribute("site-04", relu_update(live, patients["site-04"]))
        round_.parts |= victim.parts
        round_.envelopes |= victim.envelopes
        return round_

    # Weakened: the digest that every header carries does not cover the model.
    weak = attacked(tmp_path / "weak", replace(other, instruction_digest=honest.instruction_digest))
    weak.propose()
    weak.certify()
    stolen = weak.open(weak.request(ACTIVE))
    assert (stolen == patients["site-04"].sum(axis=0)).all()

    real = attacked(tmp_path / "real", other)
    with pytest.raises(PeerError, match="site-04: its contribution does not answer this instruction"):
        real.propose()
    listed = tuple((site, envelope_digest(real.envelopes[site])) for site in SITES)
    assert weak.record is not None
    real.record = weak.record.model_copy(update={"contributions": listed, "dropped": ()})
    for holder in SITES[:4]:
        with pytest.raises(PeerError, match="site-04: its contribution does not answer this instruction"):
            real.verify_as(holder)
    victim = Round(ceremony, other, tmp_path, record=real.record, envelopes=real.envelopes, parts=real.parts)
    with pytest.raises(PeerError, match="coordinator: the record does not belong to this instruction"):
        victim.verify_as("site-04")
    assert real.certificate == victim.certificate == {}


def test_summing_the_shares_that_arrived_would_open_another_set(
    certified: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator withholds one site's sealed shares: a sum over fewer keys is a key by subtraction."""
    request = certified.request(ACTIVE)
    withheld = {h: {s: b for s, b in certified.shamir_blobs(h).items() if s != "site-02"} for h in ACTIVE}
    assert certified.record is not None
    whole = open_key(
        certified.context,
        certified.record,
        certified.record_digest,
        request,
        certified.key_sum,
        {h: certified.share(h, request) for h in ACTIVE},
    )
    with monkeypatch.context() as weak:
        real = share_code._add_shamir

        def lenient(secrets: Any, context: Any, contributions: Any, blobs: Any) -> Any:
            return real(secrets, context, {s: c for s, c in contributions.items() if s in blobs}, blobs)

        weak.setattr(share_code, "_add_shamir", lenient)
        partial = open_key(
            certified.context,
            certified.record,
            certified.record_digest,
            request,
            certified.key_sum,
            {h: certified.share(h, request, shamir_blobs=withheld[h]) for h in ACTIVE},
        )
    difference = whole - partial
    assert int(np.abs(difference).max()) <= 42  # exactly the half-key s'' of site-02
    assert abs(float(difference.var()) - 21) < 4
    for holder in ACTIVE:
        with pytest.raises(PeerError, match="site-02: the share that it sealed for this holder is missing"):
            certified.share(holder, request, shamir_blobs=withheld[holder])
