"""A log in the store is read in sequence, once, no further than it verifies, and never more of it than a limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.errors import EvidenceError, PeerError
from schemas.layout import ledger_key
from schemas.ledger import PrivacyReserved
from schemas.messages import Checkpoint, LogPosition
from tasks.ledger.merkle import merkle_root
from tasks.storage.folder import FolderStore
from tasks.study_log import PublishedLog
from tests.ledger.logs import KEY_HEX, OWNER, STUDY, round_bodies, sign_log

LOG = sign_log(round_bodies(3))


def put(store: FolderStore, first: int, entries: list[bytes]) -> Path:
    key = ledger_key(STUDY, OWNER, False, f"entries-{first:06d}.jsonl")
    store.put(key, b"".join(entry + b"\n" for entry in entries))
    return store.root / key


def checkpoint(size: int) -> Checkpoint:
    return Checkpoint(owner=OWNER, position=LogPosition(size=size, root=merkle_root(LOG[:size])))


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


def test_a_log_grows_by_slices_and_none_is_read_twice(store: FolderStore) -> None:
    log = PublishedLog(store, STUDY, OWNER, KEY_HEX)
    assert log.read() == ()
    first = put(store, 0, LOG[:6])
    assert len(log.read()) == 6
    first.unlink()
    put(store, 6, LOG[6:])
    assert [entry.sequence for _, entry in log.read()] == list(range(len(LOG)))
    log.verify(checkpoint(len(LOG)))


def test_what_lies_beyond_a_gap_is_not_read(store: FolderStore) -> None:
    put(store, 0, LOG[:6])
    put(store, 7, LOG[7:])
    put(store, 999_999, [b"nonsense"])
    log = PublishedLog(store, STUDY, OWNER, KEY_HEX)
    assert len(log.read()) == 6
    with pytest.raises(EvidenceError, match="expected at least 8 entries, got 6"):
        log.verify(checkpoint(8))


@pytest.mark.parametrize("later", [[b""], [LOG[5]], [LOG[6], LOG[6]], [b"nonsense"], []])
def test_a_slice_that_does_not_follow_refuses_the_log_every_time(store: FolderStore, later: list[bytes]) -> None:
    put(store, 0, LOG[:6])
    log = PublishedLog(store, STUDY, OWNER, KEY_HEX)
    assert len(log.read()) == 6
    put(store, 6, later)
    for _ in range(2):
        with pytest.raises(EvidenceError, match=f"{OWNER}'s log"):
            log.read()
    log.verify(checkpoint(6))
    with pytest.raises(EvidenceError, match=f"{OWNER}'s log"):
        log.verify(checkpoint(8))


def test_a_slice_that_ends_inside_an_entry_is_refused(store: FolderStore) -> None:
    store.put(ledger_key(STUDY, OWNER, False, "entries-000000.jsonl"), LOG[0])
    with pytest.raises(EvidenceError, match="does not end with a whole entry"):
        PublishedLog(store, STUDY, OWNER, KEY_HEX).read()


def test_a_checkpoint_is_verified_without_what_follows_it(store: FolderStore) -> None:
    put(store, 0, LOG[:6])
    put(store, 6, [b"nonsense"])
    PublishedLog(store, STUDY, OWNER, KEY_HEX).verify(checkpoint(6))
    forged = Checkpoint(owner=OWNER, position=LogPosition(size=6, root="ab" * 32))
    with pytest.raises(EvidenceError, match="the first 6 entries are not those of the signed position"):
        PublishedLog(store, STUDY, OWNER, KEY_HEX).verify(forged)
    of_another = checkpoint(6).model_copy(update={"owner": "another"})
    with pytest.raises(EvidenceError, match=f"is not of {OWNER}'s log"):
        PublishedLog(store, STUDY, OWNER, KEY_HEX).verify(of_another)


def test_all_slices_together_are_bounded(store: FolderStore) -> None:
    sizes = [len(put(store, first, LOG[first : first + 2]).read_bytes()) for first in range(0, len(LOG), 2)]
    whole = PublishedLog(store, STUDY, OWNER, KEY_HEX, limit=sum(sizes))
    assert any(isinstance(entry.body, PrivacyReserved) for _, entry in whole.read())
    for _ in range(2):
        assert len(whole.read()) == len(LOG)
    with pytest.raises(PeerError, match="is larger than") as caught:
        PublishedLog(store, STUDY, OWNER, KEY_HEX, limit=sum(sizes) - 1).read()
    assert (caught.value.code, caught.value.peer) == ("too-large", OWNER)
