"""Attacks that use what a party should have forgotten or never reused. Each first succeeds on a weakened copy."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.canonical import encode_parts
from schemas.errors import OperationError, PeerError
from schemas.messages import RecordSignature
from schemas.wire import Header, Kind
from site_agents.keystore import Keystore
from tasks.secure_sum import bulk as bulk_code
from tasks.secure_sum import ckks
from tasks.secure_sum import contribute as contribute_code
from tasks.secure_sum import record as record_code
from tasks.secure_sum import share as share_code
from tasks.secure_sum.ceremony import CeremonyParty
from tasks.secure_sum.context import RoundContext
from tasks.secure_sum.modular import prime_field
from tasks.secure_sum.parameters import derive_parameters
from tasks.secure_sum.partial import ShareKeys, derive_partial
from tasks.secure_sum.sampling import insecure_stream, sample_binomial, sample_ternary
from tasks.secure_sum.shamir import generate_shares
from tests.secure_sum.attack_tools import ACTIVE, full_round
from tests.secure_sum.rounds import LENGTH, SITES, copy_of, signing
from tests.secure_sum.world import Round, make_context, shared_ceremony, sign

# --- restored state --------------------------------------------------------------------------------------------------


def sign_as(round_: Round, holder: str, register: Keystore) -> bytes:
    """What an honest holder does with a proposed record."""
    round_.verify_as(holder)
    register.register_record(1, round_.context.instruction.round, round_.record_digest)
    return signature(round_, holder)


def signature(round_: Round, holder: str) -> bytes:
    """What a colluding holder does with any record."""
    secrets = round_.ceremony.secrets[holder]
    number = round_.context.instruction.round
    message = RecordSignature(sid_star=secrets.sid_star, round=number, holder=holder, record=round_.record_digest)
    return sign(message, round_.plan, secrets.signing_key)[0]


def test_holders_restored_from_a_backup_give_two_certificates_unless_the_register_is_in_no_backup(
    tmp_path: Path,
) -> None:
    """Two of three honest holders come back from last night's backup; two others collude: Q = 4 sign twice."""
    homes = tmp_path / "homes"
    first = full_round(tmp_path)
    first.propose()
    second = copy_of(first, certificate={})
    second.propose(drop=("site-02",))
    registers = {site: Keystore(homes / site / "memory", first.plan.study, 64) for site in SITES[:3]}
    for site in SITES[:3]:
        registers[site].accept_epoch(1, first.context.public.sid)
        registers[site].save_secrets(1, first.context.instruction.sid_star, first.ceremony.secrets[site].to_bytes())
        shutil.copytree(homes / site, tmp_path / "backup-of-everything" / site)
        shutil.copytree(homes / site, tmp_path / "backup" / site, ignore=shutil.ignore_patterns("memory"))
    colluding = {site: signature(first, site) for site in SITES[3:]}
    first.certificate = {site: sign_as(first, site, registers[site]) for site in SITES[:3]} | colluding
    whole = first.open(first.request(ACTIVE))

    def certificate_from(backup: Path) -> dict[str, bytes]:
        found = {site: signature(second, site) for site in SITES[3:]}
        for site in SITES[:2]:
            restored = Keystore(backup / site / "memory", first.plan.study, 64)
            restored.load_secrets(1, first.context.instruction.sid_star)
            found[site] = sign_as(second, site, restored)
        return found

    # Weakened: the backup holds the memory folder. The second certificate is complete and a site is read.
    second.certificate = certificate_from(tmp_path / "backup-of-everything")
    without = second.open(second.request(("site-00", "site-01", "site-03")))
    assert (whole - without == first.values["site-02"]).all()

    # The backup holds no memory folder: the restored holders cannot sign anything of this epoch any more.
    with pytest.raises(OperationError, match="holds no secrets of epoch 1") as caught:
        certificate_from(tmp_path / "backup")
    assert "new ceremony" in caught.value.remedy
    assert list((tmp_path / "backup").rglob("record-*")) == []

    # Holders that were not restored refuse, and keep what they signed.
    for site in SITES[:3]:
        with pytest.raises(PeerError, match="a second record was proposed for round 1"):
            sign_as(second, site, registers[site])
        assert registers[site].registered_record(1, 1) == first.record_digest
    second.certificate = colluding
    with pytest.raises(PeerError, match="fewer signatures than the quorum"):
        second.share("site-00", second.request(ACTIVE))


# --- mixed rounds ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forgetful(RoundContext):
    """A weakened context in which contributions are bound to no round, attempt or instruction."""

    older: RoundContext | None = None

    def header(self, kind: Kind, sender: str, counts: tuple[int, ...], recipient: str = "") -> Header:
        assert self.older is not None
        bound = kind in (Kind.KEY_CIPHERTEXT, Kind.SEALED_SHAMIR, Kind.BULK)
        return (self.older if bound else super()).header(kind, sender, counts, recipient)


def forget_rounds(weak: pytest.MonkeyPatch) -> None:
    """Removes the round from everything that binds a contribution: headers, HPKE, the expansion of a_k."""

    def older(context: RoundContext) -> RoundContext:
        return context.older if isinstance(context, Forgetful) and context.older is not None else context

    real_info, real_verify, real_of = (
        contribute_code.shamir_info,
        record_code.verify_contribution,
        bulk_code.BulkCipher.of,
    )
    weak.setattr(record_code, "shamir_info", lambda context, *names: real_info(older(context), *names))
    weak.setattr(record_code, "verify_contribution", lambda context, *rest: real_verify(older(context), *rest))
    weak.setattr(bulk_code.BulkCipher, "of", classmethod(lambda _, context, key: real_of(older(context), key)))


@pytest.mark.parametrize("changes", [{"round": 2}, {"round": 2, "attempt": 3}])
def test_a_later_round_reopens_older_contributions_unless_they_are_bound_to_their_round(
    changes: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round 2 'sums' the contributions of round 1 without one site; the difference is that site's update."""
    old = full_round(tmp_path)
    old.propose()
    old.certify()
    whole = old.open(old.request(ACTIVE))
    context = make_context(old.ceremony, LENGTH, **changes)
    parts = {name: getattr(context, name) for name in ("plan", "public", "instruction", "instruction_digest")}

    def replayed(given: RoundContext) -> Round:
        round_ = copy_of(old, context=given, certificate={}, folder=tmp_path)
        round_.bulk = old.bulk  # type: ignore[method-assign]
        return round_

    with monkeypatch.context() as weak:
        forget_rounds(weak)
        weak.setattr("tests.secure_sum.world.verify_contribution", record_code.verify_contribution)
        again = replayed(Forgetful(**parts, parameters=context.parameters, older=old.context))
        again.propose(drop=("site-03",))
        again.certify()
        difference = whole - again.open(again.request(ACTIVE))
    assert (difference == old.values["site-03"]).all()

    real = replayed(context)
    with pytest.raises(PeerError, match="site-00: its contribution does not answer this instruction"):
        real.propose(drop=("site-03",))
    real.record, real.record_digest = again.record, again.record_digest
    for holder in SITES:
        with pytest.raises(PeerError, match=r"does not answer this instruction|another contribution"):
            real.verify_as(holder)
        sealed = old.shamir_blobs(holder)
        found = record_code.find_shamir_faults(old.ceremony.secrets[holder], context, old.opened(), sealed)
        assert found == tuple(SITES)
    assert real.certificate == {}


# --- kept noise key --------------------------------------------------------------------------------------------------

TOY = 64  # ring degree at which the last step, linear algebra over the integers, fits a test


@dataclass
class ToyCeremony:
    """One ceremony's public side and the share keys of three holders, in a ring of degree 64."""

    parameters: Any
    seed: str
    secret: Any
    public_key: Any
    keys: dict[str, ShareKeys]


def toy_ceremony(number: int, noise: dict[str, bytes]) -> ToyCeremony:
    """A ceremony with fresh keys of every kind but the noise keys, which are given."""
    derived = derive_parameters(shared_ceremony(5).plan)
    p = derived.model_copy(update={"ring_degree": TOY, "bulk_degree": TOY})
    primes, stream = ckks.ring_primes(p), insecure_stream(100 + number)
    seed = f"{number:02d}" * 32
    common = ckks.expand_common(p, seed, seed)
    secret = sum(sample_ternary(stream, TOY) for _ in SITES)
    error = sum(sample_binomial(stream, TOY) for _ in SITES)
    moduli = np.array(primes, dtype=np.uint64)[:, None]
    body = ckks.multiply(common, ckks.transform(p, secret, primes), primes) + ckks.transform(p, error, primes)
    public = np.stack([(moduli - body % moduli) % moduli, common])
    rows = ckks.transform(p, secret, p.data_primes)
    shares = [
        list(generate_shares(prime_field(prime), row.view(np.int64), 3, 3, stream))
        for prime, row in zip(p.data_primes, rows, strict=True)
    ]
    masks = {(a, b): stream.read(32) for a in ACTIVE for b in ACTIVE if a != b}
    keys = {
        name: ShareKeys(
            sigma=np.stack([row[index].view(np.uint64) for row in shares]),
            sent={other: masks[name, other] for other in ACTIVE if other != name},
            received={other: masks[other, name] for other in ACTIVE if other != name},
            noise=noise[name],
        )
        for index, name in enumerate(ACTIVE)
    }
    return ToyCeremony(p, seed, secret, public, keys)


def residual(ceremony: ToyCeremony, number: int, label: bytes) -> tuple[Any, Any]:
    """What anybody computes from a published self-test: its noise, and the public randomness u that it multiplies."""
    p, points = ceremony.parameters, {name: index for index, name in enumerate(ACTIVE, 1)}
    body, other = ckks.self_test_ciphertext(p, ceremony.public_key, ceremony.seed, number)
    total = ckks.inverse(p, body)
    for name in ACTIVE:
        part = derive_partial(p, ceremony.keys[name], name, points, other, label, lambda x: ckks.inverse(p, x))
        total = ckks.add(p, total, part)
    message = ckks.self_test_message(p, ceremony.seed, number)
    noise = [v - p.key_delta * int(m) for v, m in zip(ckks.lift(p, total), message, strict=True)]
    zero = np.zeros_like(ceremony.public_key)
    zero[1] = 1  # encrypts under b = 0, a = 1: c_1 is u itself
    _, spread = ckks.self_test_ciphertext(p, zero, ceremony.seed, number)
    return noise, np.array(ckks.lift(p, ckks.inverse(p, spread)), dtype=np.int64)


def rotations(polynomial: Any) -> Any:
    """The matrix of multiplication by a polynomial modulo X^N + 1."""
    columns = [np.concatenate([-polynomial[TOY - k :], polynomial[: TOY - k]]) for k in range(TOY)]
    return np.stack(columns, axis=1)


def solve_errors(one: ToyCeremony, two: ToyCeremony, labels: Any) -> tuple[Any, Any] | None:
    """Solves u_2 E_2 - u_1 E_1 = difference of residuals for the key errors; None if the noise did not cancel."""
    matrix, target = [], []
    for number in range(4):
        (left, u_one), (right, u_two) = (residual(c, number, labels(c, number)) for c in (one, two))
        difference = [a - b for a, b in zip(left, right, strict=True)]
        if max(map(abs, difference)) > 1 << 40:
            return None
        matrix.append(np.hstack([-rotations(u_one), rotations(u_two)]))
        target += difference
    found = np.linalg.lstsq(np.vstack(matrix).astype(float), np.array(target, dtype=float), rcond=None)[0]
    errors = np.rint(found).astype(np.int64)
    return errors[:TOY], errors[TOY:]


def test_a_noise_key_kept_for_a_second_ceremony_gives_the_collective_key_unless_labels_name_the_ceremony() -> None:
    """The same smudging twice cancels: the self-tests of two ceremonies become linear equations in the key errors."""
    noise = {name: bytes([index]) * 32 for index, name in enumerate(ACTIVE)}
    one, two = toy_ceremony(1, noise), toy_ceremony(2, noise)

    found = solve_errors(one, two, lambda _, number: b"self-test-share" + bytes([number]))  # weakened: no ceremony
    assert found is not None
    for ceremony, error in zip((one, two), found, strict=True):
        prime = ceremony.parameters.data_primes[0]
        ring = prime_field(prime)
        transformed = ckks.transform(ceremony.parameters, error, (prime,))[0]
        left = ring.reduce(-(ceremony.public_key[0, 0] + transformed).view(np.int64))
        inverse = [pow(int(value), -1, prime) for value in ceremony.public_key[1, 0]]
        stolen = ring.mul(left, ring.balanced(np.array(inverse, dtype=np.uint64)))
        truth = ring.balanced(ckks.transform(ceremony.parameters, ceremony.secret, (prime,))[0])
        assert ((stolen - truth) % prime == 0).all()  # the whole collective secret key

    def label(ceremony: ToyCeremony, number: int) -> bytes:
        return encode_parts("self-test-share", bytes.fromhex(ceremony.seed), bytes.fromhex(ceremony.seed), number)

    # Even with the kept key nothing cancels, because every label names its ceremony ...
    assert solve_errors(one, two, label) is None
    # ... and no holder keeps one: a ceremony draws every key afresh.
    plan = shared_ceremony(5).plan
    parties = [CeremonyParty.begin(plan, epoch, "site-00", signing("site-00")) for epoch in (1, 2)]
    assert parties[0]._noise != parties[1]._noise
    assert all(parties[0]._sent[other] != parties[1]._sent[other] for other in parties[0]._sent)


def test_the_labels_of_shares_and_self_tests_name_their_session(certified: Round) -> None:
    labels = set()
    for sid in ("11" * 32, "22" * 32):
        context = make_context(certified.ceremony, LENGTH)
        object.__setattr__(context, "instruction", context.instruction.model_copy(update={"sid_star": sid}))
        labels |= {share_code.share_label(context, "33" * 32), share_code.share_label(context, "44" * 32)}
    assert len(labels) == 4
