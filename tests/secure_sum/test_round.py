"""One round of honest sites: the sum is exact for every set and length, and every refusal is named."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.canonical import sha256_hex
from schemas.errors import OperationError, PeerError
from schemas.wire import write_blob
from tasks.secure_sum import bulk, ckks
from tasks.secure_sum.bulk import add_bulk
from tasks.secure_sum.bulk_blob import SLAB_CHUNKS, BulkForm
from tasks.secure_sum.contribute import contribute
from tasks.secure_sum.opening import _read_share, open_sum, share_header, verify_share
from tasks.secure_sum.partial import _mask, combine_partials
from tasks.secure_sum.record import read_key_sum, share_bytes, verify_certificate, verify_record_public
from tests.secure_sum.rounds import SITES, expected, signing, values_of
from tests.secure_sum.test_ceremony import collective_secret
from tests.secure_sum.world import Round, make_context, shared_ceremony


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
        round_.parts["site-00"].bulk_bytes
        == len(BulkForm.of(round_.context, SITES[0]).header.encode()) + 6 * length + 96
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
    assert list(tmp_path.iterdir()) == []


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


def test_an_outsider_recomputes_the_round_from_public_bytes(certified: Round) -> None:
    request, record = certified.request(tuple(SITES[:3])), certified.record
    assert record is not None
    shares = {holder: certified.share(holder, request) for holder in request.active_set}
    context, digest = certified.context, certified.record_digest
    contributions, key_sum = verify_record_public(context, record, certified.envelopes, certified.key_blobs())
    verify_certificate(context, digest, request, certified.certificate)
    bulk_sum = certified.add().read_bytes()
    bulk_parts: Any = {site: (c, certified.bulk(site).read_bytes()) for site, c in contributions.items()}
    assert set(contributions) == set(SITES) - {"site-04"}
    assert add_bulk(context, bulk_parts, None) == sha256_hex(bulk_sum)
    opened = open_sum(context, record, digest, request, key_sum.blob, bulk_sum, shares)
    assert (opened == expected(certified)).all()


def test_any_altered_public_byte_is_refused(certified: Round) -> None:
    request, record = certified.request(tuple(SITES[:3])), certified.record
    assert record is not None
    shares = {holder: certified.share(holder, request) for holder in request.active_set}
    bulk_sum = certified.add().read_bytes()
    context, digest = certified.context, certified.record_digest

    def flips(data: bytes) -> list[bytes]:
        places = (0, 70, len(data) // 2, len(data) - 1)
        return [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in places]

    for altered in flips(certified.key_sum):
        with pytest.raises(PeerError, match="key sum is not the one"):
            open_sum(context, record, digest, request, altered, bulk_sum, shares)
    for altered in flips(bulk_sum):
        with pytest.raises(PeerError, match="coordinator"):
            open_sum(context, record, digest, request, certified.key_sum, altered, shares)
    for altered in flips(shares["site-01"]):
        with pytest.raises(PeerError, match="site-01"):
            open_sum(context, record, digest, request, certified.key_sum, bulk_sum, shares | {"site-01": altered})
    for altered in flips(certified.key_blobs()["site-02"]):
        with pytest.raises(PeerError, match="site-02"):
            verify_record_public(context, record, certified.envelopes, certified.key_blobs() | {"site-02": altered})
    for altered in flips(certified.envelopes["site-02"]):
        with pytest.raises(PeerError, match="the contribution of site-02 differs"):
            verify_record_public(context, record, certified.envelopes | {"site-02": altered}, certified.key_blobs())
    for altered in flips(certified.certificate["site-02"]):
        with pytest.raises(PeerError, match="signature of site-02 is not the one"):
            verify_certificate(context, digest, request, certified.certificate | {"site-02": altered})


def test_public_verification_needs_no_tenseal() -> None:
    code = (
        "import sys; import tasks.secure_sum.opening, tasks.secure_sum.ceremony, schemas.wire;"
        "assert not {m.split('.')[0] for m in sys.modules} & {'tenseal', 'torch', 'prefect', 'mlflow', 'pandas'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
