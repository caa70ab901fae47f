"""The folder store keeps the promises of a store, and a full disk is one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.errors import PeerError
from tasks.storage.folder import FolderStore
from tasks.storage.names import LARGEST_READ
from tests.storage.suite import StoreSuite


class TestFolderStore(StoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> FolderStore:
        return FolderStore(tmp_path / "store")

    @pytest.fixture
    def site_store(self, tmp_path: Path) -> FolderStore:
        return FolderStore(tmp_path / "store", write_prefix="sites/a")


def test_a_store_without_space_says_so_and_leaves_nothing_behind(tmp_path: Path) -> None:
    # A file size limit is the one way to run out of space that needs no file system of our own.
    script = """
import resource, signal, sys
from pathlib import Path
from schemas.errors import OperationError
from tasks.storage.folder import FolderStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    FolderStore(Path(sys.argv[1])).put("sites/a/large", b"x" * 5000)
except OperationError as error:
    print(error.code, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "store")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "store-full The store has no space left. Free space and run the command again."
    assert [p for p in (tmp_path / "store").rglob("*") if p.is_file()] == []


def test_a_pipe_a_link_or_a_huge_file_in_place_of_an_object_is_refused_at_once(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    store.put("sites/a/real", b"1")
    folder = tmp_path / "store" / "sites" / "a"
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("/etc/passwd")
    with (folder / "huge").open("wb") as out:
        out.truncate(LARGEST_READ + 1)
    for name, message in (("pipe", "not a plain file"), ("link", "not a plain file"), ("huge", "is larger than")):
        with pytest.raises(PeerError, match=message):
            store.get(f"sites/a/{name}")
    assert not store.exists("sites/a/pipe")
    assert not store.exists("sites/a/link")
    assert list(store.list("sites/a")) == ["sites/a/huge", "sites/a/real"]
