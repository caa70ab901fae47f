"""What every store must promise; each implementation inherits the suite."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from schemas.canonical import MAX_JSON_BYTES
from schemas.errors import OperationError, PeerError
from schemas.messages import Refusal
from tasks.storage.base import Store
from tasks.storage.mailbox import read_signed


class StoreSuite:
    """Inherit and provide the fixture ``store`` (no write prefix) and ``site_store`` (write prefix ``sites/a``)."""

    def test_what_was_put_is_read_back(self, store: Store, tmp_path: Path) -> None:
        store.put("sites/a/one.bin", b"content")
        source = tmp_path / "source"
        source.write_bytes(b"x" * 3_000_000)
        store.put_file("sites/a/two.bin", source)
        assert store.get("sites/a/one.bin") == b"content"
        with store.open("sites/a/two.bin") as stream:
            assert stream.read() == source.read_bytes()
        assert store.size("sites/a/two.bin") == 3_000_000
        assert store.exists("sites/a/one.bin")
        assert list(store.list("sites/a")) == ["sites/a/one.bin", "sites/a/two.bin"]

    def test_what_does_not_exist_is_none_and_not_an_error(self, store: Store) -> None:
        assert store.get("sites/a/none") is None
        assert not store.exists("sites/a/none")
        assert store.size("sites/a/none") == 0
        assert list(store.list("sites/a")) == []
        with pytest.raises(OperationError, match="Expected sites/a/none in the store"):
            store.open("sites/a/none")

    def test_the_same_bytes_again_succeed_and_other_bytes_are_refused(self, store: Store) -> None:
        store.put("sites/a/one", b"first")
        store.put("sites/a/one", b"first")
        with pytest.raises(PeerError, match="already holds other bytes") as caught:
            store.put("sites/a/one", b"second")
        assert caught.value.code == "name-taken"
        assert store.get("sites/a/one") == b"first"

    def test_of_many_writers_of_one_name_exactly_one_wins(self, store: Store) -> None:
        outcomes: list[bool] = []

        def write(number: int) -> None:
            try:
                store.put("sites/a/contested", b"%d" % number * 1000)
                outcomes.append(True)
            except PeerError:
                outcomes.append(False)

        threads = [threading.Thread(target=write, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes.count(True) == 1
        assert len(store.get("sites/a/contested") or b"") in (1000, 2000)

    @pytest.mark.parametrize(
        "key",
        ["", "/etc/passwd", "../up", "a/../b", "a//b", "a/", ".hidden", "a/.b", "a\0b", "a b", "a\n", "AAA/é"],
    )
    def test_a_name_that_could_leave_the_store_is_refused(self, store: Store, key: str) -> None:
        with pytest.raises(OperationError, match="Expected a relative name"):
            store.put(key, b"")
        with pytest.raises(OperationError, match="Expected a relative name"):
            store.get(key)

    def test_a_site_writes_only_under_its_own_prefix(self, store: Store, site_store: Store) -> None:
        site_store.put("sites/a/mine", b"1")
        for key in ("sites/b/theirs", "sites/ab/theirs", "coordinator/x", "sites"):
            with pytest.raises(OperationError, match="Expected a name under sites/a/"):
                site_store.put(key, b"1")
        assert list(store.list("sites")) == ["sites/a/mine"]

    def test_a_message_larger_than_any_is_not_read_into_memory(self, store: Store, tmp_path: Path) -> None:
        large = tmp_path / "large"
        large.write_bytes(bytes(MAX_JSON_BYTES + 1))
        store.put_file("sites/a/refusal.json", large)
        with pytest.raises(PeerError, match=f"is larger than {MAX_JSON_BYTES} bytes") as caught:
            read_signed(store, "sites/a/refusal.json", Refusal, "0" * 64, "0" * 64, "a")
        assert (caught.value.code, caught.value.peer) == ("too-large", "a")
