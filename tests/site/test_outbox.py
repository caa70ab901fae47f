"""What a site decided once it answers for ever, whatever happened in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from site_agents.outbox import Outbox
from tasks.storage.folder import FolderStore


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store", write_prefix="sites/a")


@pytest.fixture
def outbox(tmp_path: Path, store: FolderStore) -> Outbox:
    return Outbox(tmp_path / "outbox", store)


def test_a_second_answer_is_the_first_one_and_nothing_is_produced_again(outbox: Outbox, store: FolderStore) -> None:
    produced: list[int] = []

    def produce() -> bytes:
        produced.append(1)
        return b"answer %d" % len(produced)

    assert outbox.answer("sites/a/x", produce) == b"answer 1"
    assert outbox.answer("sites/a/x", produce) == b"answer 1"
    assert produced == [1]
    assert store.get("sites/a/x") == b"answer 1"


def test_an_answer_is_durable_before_it_leaves(tmp_path: Path) -> None:
    class Broken(FolderStore):
        def put_file(self, key: str, source: Path) -> None:
            raise ConnectionError

    first = Outbox(tmp_path / "outbox", Broken(tmp_path / "nowhere"))
    with pytest.raises(ConnectionError):
        first.answer("sites/a/x", lambda: b"decided")
    store = FolderStore(tmp_path / "store")
    again = Outbox(tmp_path / "outbox", store)
    assert again.answer("sites/a/x", lambda: b"something else") == b"decided"
    assert store.get("sites/a/x") == b"decided"


def test_a_folder_is_decided_whole_or_not_at_all(outbox: Outbox) -> None:
    def broken(folder: Path) -> None:
        (folder / "key.bin").write_bytes(b"first half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        outbox.decide_folder("sites/a/attempt-01", broken)
    assert outbox.stored("sites/a/attempt-01/key.bin") is None

    def whole(folder: Path) -> None:
        (folder / "key.bin").write_bytes(b"second")
        (folder / "contribution.json").write_bytes(b"{}")

    assert outbox.decide_folder("sites/a/attempt-01", whole)
    assert not outbox.decide_folder("sites/a/attempt-01", broken)
    assert outbox.stored("sites/a/attempt-01/key.bin") == b"second"


def test_private_values_are_never_under_a_name_that_is_sent(outbox: Outbox, store: FolderStore) -> None:
    outbox.decide("private/study/values-0001", lambda: b"secret")
    assert list(store.list("private")) == []
    with pytest.raises(Exception, match="Expected a name under sites/a/"):
        outbox.send("private/study/values-0001")
