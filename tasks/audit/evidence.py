"""The evidence folder as bytes: read only, regular files only, nothing followed out of it."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from tasks.audit.registry import AuditFailure

_PIECE = 1 << 18


class EvidenceFolder:
    """Files by their path relative to the folder (POSIX form)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._digests: dict[str, str] = {}
        self._buffer = memoryview(bytearray(_PIECE))
        files: list[str] = []
        irregular: list[str] = []
        for folder, folders, names in os.walk(root, followlinks=False):
            at = Path(folder)
            links = [name for name in folders if (at / name).is_symlink()]
            inside = at.relative_to(root).as_posix()
            prefix = "" if inside == "." else f"{inside}/"
            for name in (*names, *links):
                regular = stat.S_ISREG((at / name).lstat().st_mode)
                path = prefix + name
                shown = os.fsencode(path).decode("utf-8", "backslashreplace")
                # A name that no reader can print alike is no name of the protocol.
                (files if regular and shown == path else irregular).append(shown)
        self.paths = tuple(sorted(files))
        self._known = frozenset(files)
        # A link or device could show an auditor other bytes than the next one.
        self.irregular = tuple(sorted(irregular))

    def exists(self, path: str) -> bool:
        """Tells whether `path` is a regular file of the evidence."""
        return path in self._known

    def read(self, path: str) -> bytes:
        """Returns the bytes of a file.

        Raises:
            AuditFailure: it is missing.
        """
        if not self.exists(path):
            raise AuditFailure(path, "is missing")
        return (self.root / path).read_bytes()

    def file(self, path: str) -> Path:
        """Returns where a file lies, for streaming.

        Raises:
            AuditFailure: it is missing.
        """
        if not self.exists(path):
            raise AuditFailure(path, "is missing")
        return self.root / path

    def digest(self, path: str) -> str:
        """Returns the SHA-256 (hex) of a file, streamed once."""
        if path not in self._digests:
            with self.file(path).open("rb", buffering=0) as source:
                hashed = hashlib.sha256()
                while size := source.readinto(self._buffer):
                    hashed.update(self._buffer[:size])
                self._digests[path] = hashed.hexdigest()
        return self._digests[path]
