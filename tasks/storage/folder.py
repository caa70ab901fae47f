"""A create-only object store in a folder: what the embedded consortium uses in place of S3.

Invariants: a name once written keeps its bytes; writing the same bytes again succeeds, other bytes are refused; an
object appears whole or not at all (temporary file, fsync, link).
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from schemas.errors import OperationError, PeerError
from tasks.storage.names import LARGEST_READ, name_taken, owner_of, too_large, verify_name


class FolderStore:
    """Objects as files under `root`. Optionally refuses writes outside `write_prefix` (a site's own prefix)."""

    def __init__(self, root: Path, write_prefix: str = "") -> None:
        self.root = root
        self.write_prefix = write_prefix

    def put(self, key: str, data: bytes) -> None:
        """Creates `key` with `data`; does nothing if it already holds exactly these bytes.

        Raises:
            PeerError: `name-taken` if the name holds other bytes.
            OperationError: `store-full`, `store-unwritable`.
        """
        self._create(key, (data,))

    def put_file(self, key: str, source: Path) -> None:
        """Like `put` for the content of a local file, streamed."""
        with source.open("rb") as read:
            self._create(key, iter(partial(read.read, 1 << 20), b""))

    def get(self, key: str, limit: int = LARGEST_READ) -> bytes | None:
        """Returns the bytes of `key`, at most `limit` of them, or None if it does not exist (yet).

        Raises:
            PeerError: `not-an-object` for a link, a pipe or another irregular file, `too-large` beyond `limit`.
        """
        handle = self._open_regular(key)
        if handle is None:
            return None
        with handle:
            if os.fstat(handle.fileno()).st_size > limit:
                raise too_large(key, limit)
            return handle.read()

    def open(self, key: str) -> IO[bytes]:
        """Opens `key` for streaming.

        Raises:
            OperationError: `object-missing`.
        """
        handle = self._open_regular(key)
        if handle is None:
            raise OperationError("object-missing", f"Expected {key} in the store.")
        return handle

    def exists(self, key: str) -> bool:
        return self._is_regular(self._path(key))

    def size(self, key: str) -> int:
        """Returns the size in bytes of `key`; 0 if it does not exist."""
        path = self._path(key)
        return path.lstat().st_size if self._is_regular(path) else 0

    def list(self, prefix: str) -> Iterator[str]:
        """Yields the names under `prefix` in order."""
        base = self._path(prefix)
        for path in sorted(base.rglob("*")):
            if self._is_regular(path) and not path.name.startswith("."):
                yield path.relative_to(self.root).as_posix()

    def _create(self, key: str, blocks: Iterable[bytes]) -> None:
        target = self._path(key, write=True)
        temporary = self._temporary(target)
        try:
            with temporary.open("wb") as out:
                for block in blocks:
                    out.write(block)
                out.flush()
                os.fsync(out.fileno())
            self._publish(temporary, target, key)
        except OSError as error:
            raise _explain(error) from None
        finally:
            temporary.unlink(missing_ok=True)

    def _open_regular(self, key: str) -> IO[bytes] | None:
        # The folder's owner is not trusted: a pipe would block the reader for ever, a link would show it another file.
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            raise PeerError("not-an-object", owner_of(key), f"{key} is not a plain file.") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise PeerError("not-an-object", owner_of(key), f"{key} is not a plain file.")
        return os.fdopen(descriptor, "rb")

    @staticmethod
    def _is_regular(path: Path) -> bool:
        try:
            return stat.S_ISREG(path.lstat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _path(self, key: str, write: bool = False) -> Path:
        verify_name(key, self.write_prefix if write else None)
        return self.root / key

    def _temporary(self, target: Path) -> Path:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _explain(error) from None
        return target.parent / f".{secrets.token_hex(8)}.part"

    def _publish(self, temporary: Path, target: Path, key: str) -> None:
        try:
            os.link(temporary, target)
        except FileExistsError:
            if not _same_bytes(temporary, target):
                raise name_taken(key) from None
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _same_bytes(left: Path, right: Path) -> bool:
    with left.open("rb") as a, right.open("rb") as b:
        while True:
            block_a, block_b = a.read(1 << 20), b.read(1 << 20)
            if block_a != block_b:
                return False
            if not block_a:
                return True


def _explain(error: OSError) -> OperationError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OperationError("store-full", "The store has no space left.", "Free space and run the command again.")
    return OperationError("store-unwritable", f"The store cannot be written ({error.strerror}).", "Check its folder.")
