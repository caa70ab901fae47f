"""Attacks on key holders and on the library underneath. Each first succeeds on a weakened copy, then fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.canonical import sha256_hex
from schemas.errors import PeerError
from schemas.wire import Kind, read_blob
from tasks.secure_sum import ckks
from tasks.secure_sum import partial as partial_code
from tasks.secure_sum import record as record_code
from tasks.secure_sum import transcript as rules
from tasks.secure_sum.ceremony import derive_public_epoch
from tasks.secure_sum.epoch import holder_points
from tasks.secure_sum.modular import prime_field
from tasks.secure_sum.parameters import derive_parameters
from tasks.secure_sum.partial import derive_partial, derive_smudging
from tasks.secure_sum.sampling import insecure_stream, sample_ternary
from tasks.secure_sum.shamir import lagrange_at_zero
from tests.secure_sum.attack_tools import (
    ACTIVE,
    full_round,
)
from tests.secure_sum.rounds import SITES, signing
from tests.secure_sum.world import shared_ceremony


def test_a_rogue_key_takes_over_unless_shares_were_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    ceremony = shared_ceremony(5)
    plan, p = ceremony.plan, derive_parameters(ceremony.plan)
    primes = ckks.ring_primes(p)
    moduli = np.array(primes, dtype=np.uint64)[:, None]
    public = ceremony.public()
    # The last mover sees all b_i, knows a, and chooses its own so that the sum is a key that it alone holds.
    mine = sample_ternary(insecure_stream(1), p.ring_degree)
    product = ckks.multiply(public.public_key[1], ckks.transform(p, mine, primes), primes)
    target = (moduli - product) % moduli
    size = rules.packed_size(primes, p.ring_degree)
    others = np.zeros_like(target)
    for name in SITES[:4]:
        header = rules.ceremony_header(plan, public.sid, Kind.PUBLIC_SHARE, name)
        body = read_blob(ceremony.blobs["public-share", name], header, size, plan.site(name).identity_key, name)
        others = (others + rules.unpack_rows(body, primes, p.ring_degree, name)) % moduli
    rogue = (target + moduli - others) % moduli
    blob = rules.write_public_share(plan, public.sid, "site-04", rogue, signing("site-04"))
    from schemas.messages import KeyOpen
    from tests.secure_sum.test_ceremony import predicate, resign

    message = predicate(ceremony, "key-open", "site-04", KeyOpen).model_copy(update={"public_share": sha256_hex(blob)})
    attacked = resign(ceremony, "key-open", "site-04", message)
    attacked.blobs = ceremony.blobs | {("public-share", "site-04"): blob}
    seen: dict[str, Any] = {}
    real = rules.sum_public_key
    with monkeypatch.context() as weak:
        weak.setattr(rules, "verify_key_opens", lambda *_: None)
        weak.setattr(rules, "sum_public_key", lambda *args: seen.setdefault("key", real(*args)))
        weak.setattr(rules, "verify_self_tests", lambda *_: None)
        with pytest.raises(PeerError, match="transcript"):
            derive_public_epoch(plan, 1, attacked.envelopes, attacked.blobs)
    assert (seen["key"][0] == target).all()  # everybody would encrypt to the rogue's own key
    with pytest.raises(PeerError, match="site-04: the opened public share is not the committed one"):
        attacked.public()


def toy(parameters: Any, bits: int) -> Any:
    """Smudging small enough for the attacks to be run in a test."""
    return parameters.model_copy(update={"smudging_bits": bits})


def parts_of_two_sets(p: Any, monkeypatch: pytest.MonkeyPatch | None) -> tuple[Any, ...]:
    """Parts of site-00 in two sets, and the truth; points are large, as in libraries that let parties choose them.

    With points 1..n the ratio of two Lagrange coefficients is a small fraction and the leak is slower.
    """
    ceremony = shared_ceremony(5)
    points = {site: int(sha256_hex(site.encode())[:13], 16) for site in SITES}
    secrets = ceremony.secrets["site-00"]
    c1 = ckks.expand_common(p, "aa" * 32, "bb" * 32)[:3]
    first = {s: points[s] for s in ("site-00", "site-01", "site-02")}
    second = {s: points[s] for s in ("site-00", "site-03", "site-04")}
    if monkeypatch is not None:
        monkeypatch.setattr(partial_code, "_mask", lambda p_, *_: np.zeros(p_.ring_degree, dtype=np.int64))

    def part(active: dict[str, int]) -> Any:
        return derive_partial(p, secrets.keys, "site-00", active, c1, b"label", lambda x: ckks.inverse(p, x))

    product = ckks.multiply(secrets.keys.sigma, c1, p.data_primes)
    truth = ckks.inverse(p, product)[0, : p.bulk_degree]
    return part(first)[0], part(second)[0], truth, first, second


def solve(prime: int, left: int, right: int, first: int, second: int) -> int:
    """From h = l x + e and h' = l' x + e' (mod p, small e, e') recovers x by a reduced basis in dimension 2."""
    ratio = second * pow(first, -1, prime) % prime  # e' - ratio e = h' - ratio h
    target = (right - ratio * left) % prime
    u, v = (prime, 0), (ratio, 1)  # lattice of (ratio * k mod p, k): e' = target + ratio e
    while True:
        if u[0] ** 2 + u[1] ** 2 < v[0] ** 2 + v[1] ** 2:
            u, v = v, u
        m = round((u[0] * v[0] + u[1] * v[1]) / (v[0] ** 2 + v[1] ** 2))
        if m == 0:
            break
        u = (u[0] - m * v[0], u[1] - m * v[1])
    # Closest lattice vector to (-target, 0); the difference is (e', e).
    determinant = u[0] * v[1] - u[1] * v[0]
    a = round(-target * v[1] / determinant)
    b = round(target * u[1] / determinant)
    error = a * u[1] + b * v[1]
    return (left - error) * pow(first, -1, prime) % prime


def recovered(p: Any, monkeypatch: pytest.MonkeyPatch | None) -> int:
    one, two, truth, first, second = parts_of_two_sets(p, monkeypatch)
    prime = p.data_primes[0]
    weights = [lagrange_at_zero(prime, sorted(s.values()))[s["site-00"]] for s in (first, second)]
    hits = 0
    for h, h2, t in zip(one[:200].tolist(), two[:200].tolist(), truth[:200].tolist(), strict=True):
        hits += solve(prime, h, h2, *weights) == t
    return hits


def test_two_active_sets_leak_a_key_share_only_without_zero_sum_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    p = toy(derive_parameters(shared_ceremony(5).plan), 20)
    with monkeypatch.context() as weak:
        assert recovered(p, weak) > 190
    assert recovered(p, None) == 0


def test_averaging_re_sends_removes_the_smudging_only_if_it_is_drawn_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    p = toy(derive_parameters(shared_ceremony(5).plan), 6)
    noise = shared_ceremony(5).secrets["site-00"].keys.noise

    def average(fresh: bool, rounds: int = 400) -> Any:
        total = np.zeros(p.bulk_degree)
        for number in range(rounds):
            label = b"share" + (number.to_bytes(4, "big") if fresh else b"")
            row = derive_smudging(p, noise, ACTIVE, label)[0]
            total += prime_field(p.data_primes[0]).balanced(row)
        return total / rounds

    assert float(np.abs(average(fresh=True)).mean()) < 2.0  # 37 / sqrt(400): the part without noise shows
    assert float(np.abs(average(fresh=False)).mean()) > 28.0  # unchanged: a uniform box of +-64


def test_the_self_test_is_no_decryption_oracle(tmp_path: Path) -> None:
    """A self-test on a ciphertext taken as bytes opens anything; the real one derives its ciphertext itself."""
    round_ = full_round(tmp_path)
    p = round_.context.parameters
    points = holder_points(round_.plan)
    active = {s: points[s] for s in ACTIVE}
    _, victim = record_code._read_key(
        round_.context, round_.opened()["site-00"], round_.parts["site-00"].key_ciphertext
    )

    def weak_self_test(holder: str) -> Any:
        keys = round_.ceremony.secrets[holder].keys
        return derive_partial(p, keys, holder, active, victim[1], b"self-test", lambda x: ckks.inverse(p, x))

    opened = partial_code.combine_partials(p, victim[0], [weak_self_test(h) for h in active])
    assert opened is not None
    assert int(np.abs(opened).max()) <= 42  # s' of site-00

    one, two = (ckks.self_test_ciphertext(p, round_.context.public.public_key, "11" * 32, k) for k in (0, 1))
    assert (one[1] != two[1]).any()
    published = {key: blob for key, blob in round_.ceremony.blobs.items() if key[0].startswith("self-test")}
    parts = []
    for name in ACTIVE:
        header = rules.ceremony_header(round_.plan, round_.context.public.sid, Kind.SELF_TEST, name, number=1)
        size = rules.packed_size(p.data_primes, p.bulk_degree)
        body = read_blob(published["self-test-1", name], header, size, round_.plan.site(name).identity_key, name)
        parts.append(rules.unpack_rows(body, p.data_primes, p.bulk_degree, name))
    assert partial_code.combine_partials(p, victim[0], parts) is None


def test_a_context_made_public_still_decrypts_and_ours_never_held_a_secret() -> None:
    import tenseal as ts

    from tasks.secure_sum.ckks_seal import public_tenseal_context

    private = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[56, 56, 56, 32])
    private.global_scale = 2**40
    vector = ts.ckks_vector(private, [1.5])
    private.make_context_public()
    assert private.data.decryptor() is not None  # the trap: it still decrypts
    assert vector.size() == 1

    ceremony = shared_ceremony(5)
    ours = public_tenseal_context(derive_parameters(ceremony.plan), ceremony.public())
    assert ours.is_public()
    ours.global_scale = 2**40
    assert ts.ckks_vector(ours, [1.0, 2.0]).size() == 2
    with pytest.raises(Exception, match="doesn't support decryption"):
        ours.data.decryptor()


def test_seal_loads_a_nan_scale_and_our_format_has_none() -> None:
    import tenseal.sealapi as seal

    from tasks.secure_sum.ckks_seal import _MemoryFile, encode_ciphertext, seal_parameters

    p = derive_parameters(shared_ceremony(5).plan)
    context = seal.SEALContext(seal_parameters(p), True, seal.SEC_LEVEL_TYPE.TC128)
    rows = ckks.expand_common(p, "aa" * 32, "bb" * 32)[:3]
    data = bytearray(encode_ciphertext(np.stack([rows, rows]), context.first_parms_id()))
    place = 16 + 32 + 1 + 24
    assert np.frombuffer(data[place : place + 8], dtype="<f8")[0] == 1.0
    data[place : place + 8] = np.array([np.nan]).tobytes()
    ciphertext = seal.Ciphertext(context)
    with _MemoryFile() as file:
        file.write(bytes(data))
        ciphertext.load(context, file.path)
    assert np.isnan(ciphertext.scale)  # why bytes from outside never reach a SEAL loader
    shape = (2, len(p.data_primes), p.ring_degree)
    body = rules.packed_size(p.data_primes, p.ring_degree) * 2
    assert body == 2 * shape[1] * shape[2] * 7  # a key ciphertext is residues and nothing else
