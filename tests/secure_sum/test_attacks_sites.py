"""Attacks of malicious contributors and key holders. Each first succeeds on a weakened copy, then fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from schemas.errors import PeerError
from tasks.secure_sum import ckks
from tasks.secure_sum import contribute as contribute_code
from tasks.secure_sum import record as record_code
from tasks.secure_sum.bulk import verify_bulk
from tasks.secure_sum.epoch import holder_points
from tasks.secure_sum.modular import prime_field
from tasks.secure_sum.record import find_shamir_faults, open_shamir_share
from tasks.secure_sum.sampling import insecure_stream, sample_binomial
from tasks.secure_sum.shamir import lagrange_at_zero
from tests.secure_sum.attack_tools import (
    ACTIVE,
    copy_contribution,
    decrypt_key,
    full_round,
    opened_sum,
    read_key,
    replace_key,
    residues_under,
)
from tests.secure_sum.rounds import LENGTH, SITES, signing, values_of
from tests.secure_sum.test_ceremony import collective_secret
from tests.secure_sum.world import Round, make_context, shared_ceremony, sign


def test_a_crafted_key_ciphertext_breaks_the_ckks_half_and_leaves_updates_closed(tmp_path: Path) -> None:
    """(0, 2^k) turns one honest opening into the collective secret: this is why the Shamir half exists."""
    round_ = full_round(tmp_path)
    p = round_.context.parameters
    shift = 164
    crafted = np.zeros((2, len(p.data_primes), p.ring_degree), dtype=np.uint64)
    for row, prime in zip(crafted[1], p.data_primes, strict=True):
        row[:] = pow(2, shift, prime)  # the constant polynomial 2^k, transformed
    replace_key(round_, "site-03", contribute_code._encrypt_key(round_.context, np.zeros(2048, dtype=np.int64)))
    replace_key(round_, "site-04", crafted)
    round_.propose(drop=("site-02",))
    round_.certify()
    stolen = [(v + (1 << shift - 1)) >> shift for v in opened_sum(round_, ACTIVE)]
    secret = collective_secret(round_.ceremony, list(ACTIVE))
    truth = ckks.lift(p, ckks.inverse(p, secret)[:, : p.bulk_degree])
    hits = sum(a == b for a, b in zip(stolen, truth, strict=True))
    assert hits > 0.97 * len(truth)  # the CKKS half alone is lost

    # With the collective secret every s' opens; the update stays closed without the Shamir half.
    half = decrypt_key(round_, read_key(round_, "site-00"))
    assert int(np.abs(half).max()) <= 42
    guess = residues_under(round_, "site-00", half)
    assert not np.array_equal(guess, round_.values["site-00"])
    spread = np.abs(guess * p.bulk_delta).astype(float) / p.bulk_modulus
    assert 0.15 < float(spread.mean()) < 0.35  # uniform: the mean of |x| / q is 1/4


def test_the_whole_key_would_open_the_update(tmp_path: Path) -> None:
    """The check above can fail: with both halves the same code reads the update."""
    round_ = Round(shared_ceremony(5), make_context(shared_ceremony(5), LENGTH), tmp_path)
    site, values = "site-00", values_of("site-00", LENGTH)
    parts = contribute_code.contribute(
        round_.context, site, values, signing(site), round_.bulk(site), insecure_stream(5)
    )
    round_.parts[site] = parts
    round_.envelopes[site] = sign(round_.message(site, parts), round_.plan, signing(site))[0]
    stream = insecure_stream(5)
    first, second = sample_binomial(stream, 2048), sample_binomial(stream, 2048)
    assert np.array_equal(residues_under(round_, site, first + second), values)
    assert not np.array_equal(residues_under(round_, site, first), values)


def test_a_scaled_replay_of_an_older_key_ciphertext_breaks_the_ckks_half_only(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    older, newer = full_round(tmp_path / "1"), full_round(tmp_path / "2", round=2)
    p = older.context.parameters
    victim, factor = read_key(older, "site-00"), 32
    zero = contribute_code._encrypt_key(newer.context, np.zeros(2048, dtype=np.int64))
    fields = [prime_field(prime) for prime in p.data_primes]
    scaled = np.stack(
        [
            np.stack([f.canonical(f.scale(f.balanced(row), factor)) for f, row in zip(fields, half, strict=True)])
            for half in victim
        ]
    )
    replace_key(newer, "site-03", zero)
    replace_key(newer, "site-04", ckks.add(p, scaled, zero))
    newer.propose(drop=("site-02",))
    newer.certify()

    # The opened value is 32 s' of the old round plus two small halves, modulo Q: s' reads off.
    half = decrypt_key(older, victim)
    q = p.data_modulus
    shifted = {k: (factor * k * p.key_delta + q // 2) % q - q // 2 for k in range(-7, 8)}
    guesses = [min(shifted, key=lambda k, v=v: abs(v - shifted[k])) for v in opened_sum(newer, ACTIVE)]
    hits = sum(g == h for g, h in zip(guesses, half.tolist(), strict=True))
    assert hits > 0.8 * len(guesses)

    # Nothing is published from such a round, and the older update needs s'' as well.
    with pytest.raises(PeerError, match=r"does not open with the summed keys|do not open the record"):
        newer.open(newer.request(ACTIVE))
    assert not np.array_equal(residues_under(older, "site-00", half), older.values["site-00"])


def test_t_minus_1_colluding_holders_learn_nothing_about_a_half_key(tmp_path: Path) -> None:
    """Two holders' shares of site-00 fit every candidate for the third."""
    round_ = full_round(tmp_path)
    opened = round_.opened()
    field = prime_field(round_.context.parameters.bulk_modulus)
    points = holder_points(round_.plan)
    shares = {
        points[h]: open_shamir_share(
            round_.ceremony.secrets[h], round_.context, opened["site-00"], round_.parts["site-00"].shamir[h]
        )
        for h in SITES[3:]
    }
    for share in shares.values():
        assert abs(float(share.astype(float).mean()) / field.prime - 0.5) < 0.05
    # Any candidate half key extends the two shares to a polynomial of degree 2.
    candidate = 41
    weights = lagrange_at_zero(field.prime, [1, 4, 5])
    third = (candidate - weights[4] * int(shares[4][0]) - weights[5] * int(shares[5][0])) * pow(
        weights[1], -1, field.prime
    )
    assert (
        weights[1] * third + weights[4] * int(shares[4][0]) + weights[5] * int(shares[5][0]) - candidate
    ) % field.prime == 0


def test_a_copied_contribution_counts_twice_unless_shares_are_bound_to_their_sender(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weak").mkdir()
    (tmp_path / "real").mkdir()
    with monkeypatch.context() as weak:
        for module in (contribute_code, record_code):
            weak.setattr(module, "shamir_info", lambda *_: b"same for everybody")
        round_ = full_round(tmp_path / "weak")
        copy_contribution(round_, "site-00", "site-04", rerandomise=True)
        round_.propose()
        round_.certify()
        doubled = 2 * round_.values["site-00"] + sum(round_.values[s] for s in SITES[1:4])
        assert (round_.open(round_.request(ACTIVE)) == doubled).all()
    round_ = full_round(tmp_path / "real")
    copy_contribution(round_, "site-00", "site-04", rerandomise=True)
    verify_bulk(round_.context, round_.opened()["site-04"], round_.bulk("site-04"))
    round_.propose()
    for holder in SITES:
        blobs = round_.shamir_blobs(holder)
        faults = find_shamir_faults(round_.ceremony.secrets[holder], round_.context, round_.opened(), blobs)
        assert faults == ("site-04",)
        with pytest.raises(PeerError, match="site-04: a sealed share of the record does not open"):
            round_.verify_as(holder)


def test_a_key_ciphertext_copied_byte_for_byte_is_refused(tmp_path: Path) -> None:
    round_ = full_round(tmp_path)
    copy_contribution(round_, "site-00", "site-04", rerandomise=False)
    with pytest.raises(PeerError, match="site-00,site-04: two key ciphertexts are the same"):
        round_.propose()


def test_a_negated_contribution_cancels_a_site_under_ckks_alone_and_not_with_the_shamir_half(tmp_path: Path) -> None:
    round_ = full_round(tmp_path)
    p = round_.context.parameters
    _, victim = record_code._read_key(
        round_.context, round_.opened()["site-00"], round_.parts["site-00"].key_ciphertext
    )
    moduli = np.array(p.data_primes, dtype=np.uint64)[:, None]
    negated = np.stack([(moduli - half) % moduli for half in victim])
    replace_key(round_, "site-04", negated)
    # CKKS half alone: both cancel, and the sum of the others' halves opens without the victim's.
    assert not ckks.add(p, victim, negated).any()
    # The thief cannot make Shamir shares of -s'' for a key it does not know: the halves no longer fit the bulk.
    round_.propose()
    round_.certify()
    with pytest.raises(PeerError, match=r"does not open with the summed keys|do not open the record"):
        round_.open(round_.request(ACTIVE))


def test_a_contribution_of_another_round_or_attempt_is_refused_by_header(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    old, new = full_round(tmp_path / "a"), full_round(tmp_path / "b", round=2)
    site = "site-02"
    new.parts[site] = old.parts[site]
    new.envelopes[site] = sign(new.message(site, old.parts[site]), new.plan, signing(site))[0]
    message = new.opened()[site]
    with pytest.raises(PeerError, match=r"site-02: the round in a BULK blob"):
        verify_bulk(new.context, message, old.bulk(site))
    with pytest.raises(PeerError, match=r"site-02: the round in a KEY_CIPHERTEXT blob"):
        record_code.verify_key_ciphertext(new.context, message, old.parts[site].key_ciphertext)
    assert find_shamir_faults(
        new.ceremony.secrets["site-00"], new.context, new.opened(), new.shamir_blobs("site-00")
    ) == (site,)
