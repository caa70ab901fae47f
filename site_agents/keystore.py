"""Epoch secrets and the register of signed records: memory only, one record per round.

Invariants: what is here never leaves the machine and is in no backup (a restored holder that still signs could give two
certificates for one round at the small defaults); secrets are erased with the next epoch, with the study's release, or
when the site leaves; `register_record` succeeds for one record per (sid*, round), whatever the attempt, and is durable
(for this folder) before a signature exists; a site accepts one sid* per epoch, and epochs only increase.
"""

from __future__ import annotations

import os
from pathlib import Path

from schemas.errors import OperationError, PeerError
from tasks.storage.folder import FolderStore


class Keystore:
    """The memory folder of one site for one study.

    Args:
        folder: The site's memory folder.
        study: Plan digest.
        rounds_per_epoch: Records that may be signed under one epoch; the noise budget of the shares assumes it.
    """

    def __init__(self, folder: Path, study: str, rounds_per_epoch: int) -> None:
        self._rounds_per_epoch = rounds_per_epoch
        self._folder = folder / study[:32]
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.mkdir(mode=0o700, exist_ok=True)
            status = folder.stat()
        except OSError:
            raise OperationError("memory-folder", "The memory folder cannot be made.", "Check memory_folder.") from None
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise OperationError("memory-folder", "The memory folder is readable by others.", "Make it 0700 and yours.")
        self._files = FolderStore(self._folder)

    def accept_epoch(self, epoch: int, sid: str) -> None:
        """Starts a ceremony: one sid per epoch, epochs increasing.

        Raises:
            PeerError: `epoch-reused` or `epoch-went-back`, naming the coordinator.
        """
        newest = self.newest_epoch()
        if epoch < newest:
            raise PeerError("epoch-went-back", "coordinator", f"epoch {epoch} comes after epoch {newest}.")
        try:
            self._files.put(f"epoch-{epoch:03d}/sid", sid.encode())
        except PeerError:
            raise PeerError("epoch-reused", "coordinator", f"epoch {epoch} was opened with another sid.") from None

    def begin_ceremony(self, epoch: int) -> None:
        """Marks that this process draws the epoch's secrets; a second draw for the same epoch is refused.

        Raises:
            OperationError: `ceremony-interrupted`: fresh secrets after announced ones would equivocate.
        """
        marker = self._folder / f"epoch-{epoch:03d}" / "begun"
        try:
            os.close(os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            raise OperationError(
                "ceremony-interrupted", f"The ceremony of epoch {epoch} broke off here.", "Start the next epoch."
            ) from None

    def newest_epoch(self) -> int:
        """Returns the newest epoch seen, 0 if none."""
        epochs = [int(p.name.removeprefix("epoch-")) for p in self._folder.glob("epoch-*")]
        return max(epochs, default=0)

    def save_secrets(self, epoch: int, sid_star: str, secrets: bytes) -> None:
        """Keeps the secrets of a finished ceremony; earlier epochs' secrets are erased."""
        self._files.put(f"epoch-{epoch:03d}/secrets-{sid_star}", secrets)
        for old in self._folder.glob("epoch-*/secrets-*"):
            if old.parent.name != f"epoch-{epoch:03d}":
                old.unlink()

    def erase_secrets(self) -> None:
        """Erases the secrets of every epoch; the register of signed records stays, so that none is signed twice."""
        for file in self._folder.glob("epoch-*/secrets-*"):
            file.unlink()

    def load_secrets(self, epoch: int, sid_star: str) -> bytes:
        """Returns the secrets of (epoch, sid*).

        Raises:
            OperationError: `epoch-lost`: after a restart without them the site needs a new ceremony.
        """
        data = self._files.get(f"epoch-{epoch:03d}/secrets-{sid_star}")
        if data is None:
            raise OperationError(
                "epoch-lost", f"This site holds no secrets of epoch {epoch}.", "The coordinator starts a new ceremony."
            )
        return data

    def register_record(self, epoch: int, round_: int, record: str) -> None:
        """Registers the only record of this round that the site will ever sign.

        Raises:
            PeerError: `second-record` or `epoch-used-up`, naming the coordinator.
        """
        signed = len(list((self._folder / f"epoch-{epoch:03d}").glob("record-*")))
        if self.registered_record(epoch, round_) is None and signed >= self._rounds_per_epoch:
            raise PeerError("epoch-used-up", "coordinator", f"epoch {epoch} has signed its last record.")
        try:
            self._files.put(f"epoch-{epoch:03d}/record-{round_:04d}", record.encode())
        except PeerError:
            raise PeerError(
                "second-record", "coordinator", f"a second record was proposed for round {round_}."
            ) from None

    def registered_record(self, epoch: int, round_: int) -> str | None:
        """Returns the digest of the record that was signed for the round, or None."""
        data = self._files.get(f"epoch-{epoch:03d}/record-{round_:04d}")
        return data.decode() if data is not None else None
