"""Evidence in dishonest hands: a cheap copy of a study's export, with every party's keys to lie with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from schemas.canonical import canonical_bytes, sha256_hex
from schemas.envelope import Predicate, envelope_digest, sign_envelope
from schemas.layout import ledger_key
from schemas.ledger import LedgerEntry
from schemas.messages import Checkpoint, EvidenceManifest, LogPosition
from schemas.plan import StudyPlan
from tasks.audit.context import AuditContext
from tasks.audit.evidence import EvidenceFolder
from tasks.audit.keys import PublicKeys, read_public_keys
from tasks.audit.names import MANIFEST
from tasks.audit.registry import run_check
from tasks.audit.report import CheckResult
from tasks.audit.verify import CHECKS
from tasks.identity import Identity, load_identity
from tasks.ledger.merkle import MerkleTree
from tests.simulator import Prepared

Edit = Callable[[str, LedgerEntry], LedgerEntry | None]


class Forger:
    """A copy whose files are links to the original until they are written: nothing else may write into it.

    What was verified before on the honest evidence, and rests on no file that was touched, is remembered.
    """

    def __init__(self, honest: AuditContext, prepared: Prepared, folder: Path) -> None:
        self.folder = Path(shutil.copytree(honest.evidence.root, folder, copy_function=os.link))
        self.prepared = prepared
        self.plan: StudyPlan = prepared.plan
        self.study = self.plan.study
        self.sites = [site.name for site in self.plan.sites]
        self.keys: PublicKeys = read_public_keys(prepared.keys)
        self.honest = honest
        self.touched: set[str] = set()

    def identity(self, owner: str) -> Identity:
        workdir = self.prepared.workdir
        home = workdir.coordinator if owner == self.plan.coordinator.name else workdir.site(owner)
        return load_identity(home / "identity.json")

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write(self, name: str, data: bytes) -> str:
        """Replaces or adds a file, without writing through a link; returns its SHA-256."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.touched.add(name)
        return sha256_hex(data)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink()
        self.touched.add(name)

    def names(self, part: str) -> list[str]:
        """Returns the names with `part` in them."""
        found = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
        return sorted(name for name in found if part in name)

    def sign(self, name: str, message: Predicate, by: str = "") -> str:
        """Signs a message in the coordinator's name, or with another party's key; returns the envelope's digest."""
        data = sign_envelope(message, self.study, self.identity(by or self.plan.coordinator.name).signing)
        self.write(name, data)
        return envelope_digest(data)

    def log_folder(self, owner: str) -> str:
        return ledger_key(self.study, owner, owner == self.plan.coordinator.name, "")

    def rewrite_log(self, owner: str, edit: Edit) -> None:
        """Signs a whole log anew with its owner's key, with edited or left-out entries and a new checkpoint."""
        key, previous, envelopes = self.identity(owner).signing, "0" * 64, []
        for _, subject, entry in self.honest.log(owner).entries:
            edited = edit(subject, entry)
            if edited is not None:
                changes = {"previous": previous, "sequence": len(envelopes)}
                envelopes.append(sign_envelope(edited.model_copy(update=changes), subject, key))
                previous = envelope_digest(envelopes[-1])
        for name in self.names(self.log_folder(owner) + "entries-"):
            self.remove(name)
        self.write(self.log_folder(owner) + "entries-000000.jsonl", b"".join(data + b"\n" for data in envelopes))
        position = LogPosition(size=len(envelopes), root=MerkleTree(envelopes).root())
        self.sign(self.log_folder(owner) + "checkpoint.json", Checkpoint(owner=owner, position=position), owner)

    def seal(self) -> None:
        """Signs a new manifest over whatever is there: what a dishonest coordinator can always do."""
        names = [name for name in self.names("") if name != MANIFEST]
        files = tuple((name, sha256_hex(self.read(name))) for name in names)
        self.sign(MANIFEST, EvidenceManifest(files=files))

    def edit_json(self, name: str, edit: Callable[[dict[str, object]], None]) -> None:
        content = json.loads(self.read(name))
        edit(content)
        self.write(name, canonical_bytes(content))

    def context(self) -> AuditContext:
        """Opens the copy; what no touched file can have changed is taken from the honest evidence."""
        context = AuditContext(EvidenceFolder(self.folder), self.keys)
        if any(name.endswith("/plan.json") for name in self.touched):
            return context
        if not any("/ceremony/" in name for name in self.touched):
            for epoch in self.honest.epochs:
                context.remember(("epoch", epoch), partial(self.honest.epoch, epoch), "")
        for owner in self.honest.participants:
            if not any(name.startswith(self.log_folder(owner)) for name in self.touched):
                context.remember(("log", owner), partial(self.honest.log, owner), "")
        return context

    def results(self, *numbers: str) -> dict[str, CheckResult]:
        """Runs the named checks."""
        context = self.context()
        return {check.number: run_check(check, context) for check in CHECKS if check.number in numbers}
