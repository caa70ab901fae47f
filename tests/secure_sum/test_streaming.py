"""Bulk work is streamed and spread: the same bytes for any number of processes, and a few slabs of memory."""

from __future__ import annotations

import resource
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.canonical import sha256_hex
from schemas.errors import OperationError, PeerError
from tasks.ledger.merkle import MerkleFrontier, hash_leaf, merkle_root
from tasks.secure_sum.bulk import add_bulk, add_slab, encrypt_bulk, open_bulk, verify_bulk
from tasks.secure_sum.bulk_blob import SLAB_CHUNKS, BulkForm, BulkInput
from tasks.secure_sum.context import RoundContext
from tasks.secure_sum.sampling import insecure_stream
from tasks.secure_sum.spread import spread
from tests.secure_sum.rounds import SITES, expected, signing, values_of
from tests.secure_sum.world import Round, make_context, shared_ceremony

SLAB = SLAB_CHUNKS * 2048
SLAB_BYTES = 8 * SLAB


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Round:
    """A certified round of three slabs and a bit."""
    round_ = Round(shared_ceremony(5), make_context(shared_ceremony(5), 3 * SLAB + 77), tmp_path_factory.mktemp("wide"))
    for site in SITES:
        round_.contribute(site, values_of(site, 3 * SLAB + 77))
    round_.propose()
    round_.certify()
    return round_


def sources(round_: Round) -> Any:
    return {site: (message, round_.bulk(site)) for site, message in round_.opened().items()}


def test_the_bytes_do_not_depend_on_the_number_of_processes(wide: Round, tmp_path: Path) -> None:
    contexts = [wide.context, replace(wide.context, processes=2)]
    key, values = np.arange(2048) % 85 - 42, values_of("site-00", 3 * SLAB + 77)
    files = [tmp_path / str(number) for number in range(4)]
    for context, path in zip(contexts, files, strict=False):
        encrypt_bulk(context, "site-00", key, values, signing("site-00"), path, insecure_stream(1))
    assert files[0].read_bytes() == files[1].read_bytes()
    digests = [add_bulk(c, sources(wide), path) for c, path in zip(contexts, files[2:], strict=True)]
    assert digests == [sha256_hex(files[2].read_bytes())] * 2
    assert files[2].read_bytes() == files[3].read_bytes()
    request = wide.request(tuple(SITES[:3]))
    spread_round = replace(wide, context=contexts[1])
    assert (spread_round.open(request) == expected(wide, ())).all()
    assert (wide.open(request) == expected(wide, ())).all()


def test_a_fault_found_in_another_process_is_named_as_if_it_were_found_here(wide: Round, tmp_path: Path) -> None:
    data = bytearray(wide.bulk("site-03").read_bytes())
    form = BulkForm.of(wide.context, "site-03")
    at = form.slab_place(2)[0]
    data[at : at + 6] = b"\xff" * 6
    broken = tmp_path / "broken"
    broken.write_bytes(data)
    parts = sources(wide) | {"site-03": (wide.opened()["site-03"], broken)}
    messages = []
    for processes in (1, 2):
        context = replace(wide.context, processes=processes)
        with pytest.raises(PeerError, match="site-03: a residue is not below its modulus") as caught:
            add_bulk(context, parts, tmp_path / "sum")
        messages.append((caught.value.code, caught.value.peer, str(caught.value)))
        with pytest.raises(PeerError, match="site-03: a residue is not below its modulus"):
            verify_bulk(context, *parts["site-03"])
    assert messages[0] == messages[1]
    assert list(tmp_path.iterdir()) == [broken]


def die(_: int) -> int:
    import os

    os._exit(9)


def test_a_process_that_dies_is_an_operation_that_failed() -> None:
    with pytest.raises(OperationError, match="process that computes on bulk ciphertexts died"):
        list(spread(die, ((n,) for n in range(9)), 2))


def double(number: int) -> int:
    return 2 * number


def test_items_are_drawn_only_as_fast_as_results_are_taken() -> None:
    drawn: list[int] = []

    def items() -> Iterator[tuple[int]]:
        for number in range(50):
            drawn.append(number)
            yield (number,)

    results = spread(double, items(), 2)
    assert next(results) == 0
    assert len(drawn) == 4
    assert list(results) == [2 * n for n in range(1, 50)]


@contextmanager
def peak_bytes(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def mapped_values(folder: Path, length: int) -> Any:
    """Values in a file, as a site holds an update that is larger than its memory."""
    values = np.memmap(folder / "values", dtype=np.int64, mode="w+", shape=(length,))
    values[:] = values_of("site-00", length)
    values.flush()
    del values
    return np.memmap(folder / "values", dtype=np.int64, mode="r", shape=(length,))


def test_contributing_adding_and_opening_hold_a_few_slabs(tmp_path: Path) -> None:
    length = 24 * SLAB + 5
    context = make_context(shared_ceremony(5), length)
    values = mapped_values(tmp_path, length)
    round_ = Round(shared_ceremony(5), context, tmp_path)
    round_.contribute("site-00", values)  # builds every table
    limit = 8 * SLAB_BYTES
    with peak_bytes(limit):
        round_.contribute("site-00", values)
    key = np.zeros(2048, dtype=np.int64)
    encrypt_bulk(context, "site-00", key, values, signing("site-00"), tmp_path / "zero", insecure_stream(3))
    form = BulkForm.of(context, "site-00")
    message = round_.opened()["site-00"]
    with peak_bytes(limit):
        add_bulk(context, {"site-00": (message, round_.bulk("site-00"))}, tmp_path / "sum")
    body = (tmp_path / "zero").read_bytes()[form.slab_place(0)[0] : -96]
    head = BulkForm.of(context, "").header.encode()
    blob = tmp_path / "blob"
    blob.write_bytes(head + body + bytes.fromhex(sha256_hex(head + body)))
    del body
    place = 0
    with peak_bytes(limit):
        for slab in open_bulk(context, key, blob, 1):
            assert (slab == values[place : place + slab.size]).all()
            place += slab.size
    assert place == length


def test_adding_needs_the_same_memory_and_few_open_files_whatever_the_number_of_sites(wide: Round) -> None:
    blob = BulkInput(BulkForm.of(wide.context, "site-00"), wide.bulk("site-00"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 128), hard))
    try:
        with peak_bytes(8 * SLAB_BYTES):
            hashes, body = add_slab((blob,) * 300, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    one = np.frombuffer(add_slab((blob,), 0)[1][:6] + b"\0\0", dtype="<u8")[0]
    three_hundred = np.frombuffer(body[:6] + b"\0\0", dtype="<u8")[0]
    assert int(three_hundred) == 300 * int(one) % wide.context.parameters.bulk_modulus
    assert len(hashes) == 300


class Pipe:
    """A stream that can only be read on, as an object store gives it."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def read(self, size: int) -> bytes:
        self._at += size
        return self._data[self._at - size : self._at]


def test_a_sum_opens_from_a_stream_that_is_read_once(wide: Round) -> None:
    from tasks.secure_sum.opening import open_sum

    request = wide.request(tuple(SITES[:3]))
    shares = {holder: wide.share(holder, request) for holder in request.active_set}
    data = wide.add().read_bytes()

    def attempt(given: bytes, digest: str | None = None) -> Any:
        pipe: Any = Pipe(given)
        record: Any = wide.record
        return open_sum(wide.context, record, wide.record_digest, request, wide.key_sum, pipe, shares, digest)

    assert (attempt(data, sha256_hex(data)) == expected(wide, ())).all()
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: attempt(data, "00" * 32), "coordinator: the bulk sum is not the one that was signed"),
        (lambda: attempt(data[:-1]), "does not have its exact length"),
        (lambda: attempt(data + b"\0"), "does not have its exact length"),
        (lambda: attempt(data[: len(data) // 2]), "does not have its exact length"),
        (lambda: attempt(data[:-1] + bytes([data[-1] ^ 1])), "SHA-256 of a BULK_SUM blob does not match"),
    ]
    for attack, message in refused:
        with pytest.raises(PeerError, match=message):
            attack()


@given(st.lists(st.binary(max_size=4), max_size=70))
def test_the_frontier_has_the_root_of_the_whole_tree(leaves: list[bytes]) -> None:
    frontier = MerkleFrontier()
    frontier.extend(hash_leaf(leaf) for leaf in leaves)
    assert frontier.root() == merkle_root(leaves)


def test_a_full_disk_leaves_nothing_behind(wide: Round, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tasks.secure_sum.bulk.os.fsync", full)
    with pytest.raises(OperationError, match=r"bulk file could not be written \(No space left on device\)"):
        add_bulk(wide.context, sources(wide), tmp_path / "sum")
    with pytest.raises(OperationError, match=r"bulk file could not be written \(No space left on device\)"):
        Round(wide.ceremony, wide.context, tmp_path).contribute("site-00", wide.values["site-00"])
    assert list(tmp_path.iterdir()) == []


def test_a_context_never_asks_for_more_processes_than_slabs(certified: Round, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a short sum must not start processes")

    monkeypatch.setattr("tasks.secure_sum.spread.ProcessPoolExecutor", refuse)
    context: RoundContext = replace(certified.context, processes=8)
    assert (replace(certified, context=context).open(certified.request(tuple(SITES[:3]))) == expected(certified)).all()
