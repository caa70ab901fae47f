"""One round of honest sites: the sum is exact for every set and length, and every refusal is named."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from schemas.canonical import sha256_hex
from schemas.errors import OperationError, PeerError
from schemas.messages import DecryptionShare, Opening
from tasks.secure_sum import bulk, ckks
from tasks.secure_sum.bulk import SLAB_CHUNKS
from tasks.secure_sum.contribute import contribute
from tasks.secure_sum.opening import result_digest, verify_share
from tasks.secure_sum.verify import PublishedRound, verify_round
from tests.secure_sum.rounds import SITES, expected, signing, values_of
from tests.secure_sum.world import Round, make_context, shared_ceremony, sign


def test_every_active_set_opens_the_same_exact_sum(certified: Round) -> None:
    for number, active in enumerate(combinations(SITES, 3), 1):
        opened = certified.open(certified.request(active, number))
        assert opened.dtype == np.int64
        assert (opened == expected(certified)).all()


@pytest.mark.parametrize("length", [1, 2047, 2048, 2049, SLAB_CHUNKS * 2048 + 5])
def test_lengths_around_chunk_and_slab_edges_open_exactly(length: int, tmp_path: Path) -> None:
    round_ = Round(shared_ceremony(5), make_context(shared_ceremony(5), length), tmp_path)
    for site in SITES:
        round_.contribute(site, values_of(site, length))
    round_.propose()
    round_.certify()
    assert (round_.open(round_.request(tuple(SITES[:3]))) == expected(round_, ())).all()
    assert (
        round_.parts["site-00"].bulk_bytes == len(bulk.bulk_header(round_.context, SITES[0]).encode()) + 6 * length + 96
    )


def test_extremes_zeros_and_the_full_range_open_exactly(tmp_path: Path) -> None:
    context = make_context(shared_ceremony(5), 6)
    top = context.parameters.sum_bound
    round_ = Round(shared_ceremony(5), context, tmp_path)
    rows = [[top, -top, 0, 1, -1, top // 2], [0, 0, 0, -1, 1, top // 2], [0] * 6, [0] * 6, [0] * 6]
    for site, row in zip(SITES, rows, strict=True):
        round_.contribute(site, np.array(row, dtype=np.int64))
    round_.propose()
    round_.certify()
    assert round_.open(round_.request(tuple(SITES[2:]))).tolist() == [top, -top, 0, 0, 0, top // 2 * 2]


def test_single_values_beyond_the_bound_wrap_back_if_the_sum_is_within(tmp_path: Path) -> None:
    round_ = Round(shared_ceremony(5), make_context(shared_ceremony(5), 2), tmp_path)
    huge = 2**63 - 1
    rows = [[huge, -huge - 1], [-huge, huge], [1, 1], [2, 2], [3, 3]]
    for site, row in zip(SITES, rows, strict=True):
        round_.contribute(site, np.array(row, dtype=np.int64))
    round_.propose()
    round_.certify()
    assert round_.open(round_.request(tuple(SITES[:3]))).tolist() == [6, 5]


def test_values_may_come_in_pieces_of_any_size(tmp_path: Path) -> None:
    length = 2 * SLAB_CHUNKS * 2048 + 77
    context = make_context(shared_ceremony(5), length)
    whole = values_of("site-01", length)
    pieces = [whole[:1], whole[1:200_000], whole[200_000:200_000], whole[200_000:]]
    slabs = list(bulk.slabs_of(iter(pieces), length, 2048))
    assert [start for start, _ in slabs] == [0, SLAB_CHUNKS, 2 * SLAB_CHUNKS]
    assert (np.concatenate([slab for _, slab in slabs]) == whole).all()
    for wrong in ([whole[:-1]], [whole, whole[:1]], [whole.astype(np.int32)], []):
        with pytest.raises(OperationError, match="exactly as many int64 coefficients"):
            list(bulk.slabs_of(wrong, length, 2048))
    with pytest.raises(OperationError, match="exactly as many"):
        contribute(context, "site-01", whole[:5], signing("site-01"), tmp_path / "x.bulk")
    assert not (tmp_path / "x.bulk").exists()


def test_a_share_is_the_same_bytes_every_time_and_differs_by_set(certified: Round) -> None:
    first = certified.request(tuple(SITES[:3]), 1)
    again = certified.request(tuple(SITES[:3]), 2)
    other = certified.request(("site-00", "site-01", "site-03"), 3)
    assert certified.share("site-00", first) == certified.share("site-00", first) == certified.share("site-00", again)
    assert certified.share("site-00", first) != certified.share("site-00", other)


def test_the_size_of_a_share_does_not_depend_on_the_length(certified: Round, tmp_path: Path) -> None:
    long = Round(shared_ceremony(5), make_context(shared_ceremony(5), 50_000), tmp_path)
    for site in SITES:
        long.contribute(site, values_of(site, 50_000))
    long.propose()
    long.certify()
    sizes = {len(r.share("site-00", r.request(tuple(SITES[:3])))) for r in (certified, long)}
    assert len(sizes) == 1


def test_masks_cancel_over_the_set_and_over_no_proper_subset(certified: Round) -> None:
    from tasks.secure_sum.partial import _mask

    p = certified.context.parameters
    active = {site: certified.context.points[site] for site in SITES[:3]}
    for index, prime in enumerate(p.data_primes):
        masks = [
            _mask(p, certified.ceremony.secrets[site].keys, site, active, b"label", index).astype(object)
            for site in active
        ]
        assert not (sum(masks) % prime).any()
        for size in (1, 2):
            for subset in combinations(masks, size):
                assert np.count_nonzero(sum(subset) % prime) > 0.99 * p.ring_degree


def test_t_minus_1_shares_open_garbage(certified: Round) -> None:
    from tasks.secure_sum.opening import _read_share
    from tasks.secure_sum.partial import combine_partials
    from tasks.secure_sum.record import read_key_sum

    request = certified.request(tuple(SITES[:3]))
    assert certified.record is not None
    ciphertext = read_key_sum(certified.context, certified.record, certified.key_sum)
    parts = [
        _read_share(certified.context, certified.record_digest, SITES[:3], h, certified.share(h, request))[0]
        for h in SITES[:3]
    ]
    p = certified.context.parameters
    assert combine_partials(p, ciphertext[0], parts) is not None
    for size in (0, 1, 2):
        for subset in combinations(parts, size):
            assert combine_partials(p, ciphertext[0], subset) is None


def test_noise_of_a_key_sum_stays_below_its_bound(certified: Round) -> None:
    from tasks.secure_sum.record import read_key_sum
    from tests.secure_sum.test_ceremony import collective_secret

    p = certified.context.parameters
    assert certified.record is not None
    c0, c1 = read_key_sum(certified.context, certified.record, certified.key_sum)
    secret = collective_secret(certified.ceremony, SITES[:3])
    plain = ckks.lift(p, ckks.inverse(p, ckks.add(p, c0, ckks.multiply(c1, secret, p.data_primes))))
    noise = [v - p.key_delta * round(v / p.key_delta) for v in plain]
    assert max(abs(v) for v in noise) < p.ciphertext_bound
    assert p.threshold * 2**p.smudging_bits + p.ciphertext_bound <= p.key_delta // 4


def test_a_share_of_a_set_without_all_members_opens_nothing(certified: Round) -> None:
    request = certified.request(tuple(SITES[:3]))
    shares = {h: certified.share(h, request) for h in SITES[:2]}
    with pytest.raises(PeerError, match="site-02: its share is missing"):
        certified.open(request, shares)


def test_a_wrong_share_names_the_active_set(certified: Round) -> None:
    from schemas.wire import write_blob
    from tasks.secure_sum.opening import share_header
    from tasks.secure_sum.record import share_bytes

    request = certified.request(tuple(SITES[:3]))
    shares = {h: certified.share(h, request) for h in SITES[:3]}
    header = share_header(certified.context, certified.record_digest, SITES[:3], "site-02")
    junk = bytes(share_bytes(certified.context))
    shares["site-02"] = write_blob(header, junk, certified.ceremony.secrets["site-02"].signing_key)
    verify_share(certified.context, certified.record_digest, request, "site-02", shares["site-02"])
    with pytest.raises(PeerError, match="site-00,site-01,site-02: the shares of this active set do not open"):
        certified.open(request, shares)


def test_a_share_signed_by_another_holder_is_named(certified: Round) -> None:
    request = certified.request(tuple(SITES[:3]))
    with pytest.raises(PeerError, match="the sender in a SHARE blob"):
        verify_share(
            certified.context, certified.record_digest, request, "site-02", certified.share("site-01", request)
        )


def test_the_auditor_recomputes_the_round_from_public_bytes(certified: Round) -> None:
    published = publish(certified)
    assert (verify_round(certified.context, published) == expected(certified)).all()


def publish(certified: Round) -> PublishedRound:
    plan, i = certified.plan, certified.context.instruction
    request = certified.request(tuple(SITES[:3]))
    coordinator = certified.people["coordinator"].signing
    request_bytes, request_digest = sign(request, plan, coordinator)
    shares = {h: certified.share(h, request) for h in request.active_set}
    messages, digests = {}, []
    for holder, blob in shares.items():
        message = DecryptionShare(
            sid_star=i.sid_star,
            round=i.round,
            holder=holder,
            record=certified.record_digest,
            request=request_digest,
            share=sha256_hex(blob),
        )
        messages[holder], digest = sign(message, plan, certified.ceremony.secrets[holder].signing_key)
        digests.append((holder, digest))
    values = certified.open(request, shares)
    bulk_sum = certified.add().read_bytes()
    opening = Opening(
        sid_star=i.sid_star,
        round=i.round,
        attempt=i.attempt,
        record=certified.record_digest,
        request=request_digest,
        shares=tuple(digests),
        bulk_sum=sha256_hex(bulk_sum),
        result=result_digest(values),
        model="0" * 64,
    )
    summed = [site for site in SITES if site != "site-04"]
    return PublishedRound(
        record=certified.record_envelope,
        request=request_bytes,
        opening=sign(opening, plan, coordinator)[0],
        contributions={s: certified.envelopes[s] for s in summed},
        key_blobs={s: certified.key_blobs()[s] for s in summed},
        bulk={s: certified.bulk(s).read_bytes() for s in summed},
        certificate=certified.certificate,
        share_messages=messages,
        shares=shares,
        bulk_sum=bulk_sum,
    )


def test_any_altered_public_byte_fails_the_audit(certified: Round) -> None:
    published = publish(certified)

    def refuse(changed: PublishedRound) -> None:
        with pytest.raises(PeerError):
            verify_round(certified.context, changed)

    def flip(data: bytes, at: int) -> bytes:
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    for name in ("record", "request", "opening", "bulk_sum"):
        data = getattr(published, name)
        refuse(replace(published, **{name: flip(data, len(data) // 2)}))
    for name in ("contributions", "key_blobs", "bulk", "certificate", "share_messages", "shares"):
        table = getattr(published, name)
        for key, data in table.items():
            for at in (0, len(data) // 2, len(data) - 1):
                refuse(replace(published, **{name: table | {key: flip(data, at)}}))
            break


def test_a_shifted_result_or_bulk_sum_fails_the_audit(certified: Round) -> None:
    published = publish(certified)
    from schemas.envelope import open_envelope

    key = certified.plan.coordinator.identity_key
    opening = open_envelope(Opening, published.opening, certified.plan.study, key, "coordinator")
    for change, message in (
        ({"result": "11" * 32}, "published result is not what the shares open"),
        ({"bulk_sum": "11" * 32}, "not the sum of the bulk contributions"),
        ({"request": "11" * 32}, "another record or request"),
        ({"shares": opening.shares[:2]}, "other shares than were published"),
    ):
        signed = sign(opening.model_copy(update=change), certified.plan, certified.people["coordinator"].signing)[0]
        with pytest.raises(PeerError, match=message):
            verify_round(certified.context, replace(published, opening=signed))


def test_public_verification_needs_no_tenseal() -> None:
    code = (
        "import sys; import tasks.secure_sum.verify, tasks.secure_sum.opening, tasks.secure_sum.ceremony, schemas.wire;"
        "assert not {m.split('.')[0] for m in sys.modules} & {'tenseal', 'torch', 'prefect', 'mlflow', 'pandas'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
