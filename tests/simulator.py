"""An honest consortium in one process, with switches: drop a site, replay, forge, alter a table, restart anybody.

Real keys, real encryption, real ledgers; only the waiting is left out (`infra.embedded`).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from infra.demo.options import DemoOptions
from infra.demo.prepare import prepare_study, write_participant_settings
from infra.demo.workdir import Workdir
from infra.embedded import EmbeddedConsortium
from schemas.messages import Instruction
from schemas.options import RunOptions
from schemas.plan import StudyPlan


@dataclass(frozen=True)
class Prepared:
    """A prepared study on disk."""

    workdir: Workdir
    plan: StudyPlan

    @property
    def keys(self) -> Path:
        return self.workdir.public_keys


class InsecureRecordedStream:
    """Noise that a test can replay: AES-CTR under a key derived from (site, kind, round). Never outside tests."""

    def __init__(self, site: str, instruction: Instruction) -> None:
        label = f"{site}/{instruction.kind}/{instruction.round}".encode()
        key = label.ljust(32, b"\0")[:32]
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def random_bytes(self, n: int) -> bytes:
        return self._stream.update(bytes(n))


def prepare(folder: Path, rounds: int = 2, sites: int = 5, **changes: object) -> Prepared:
    """Prepares a study on the breast-cancer table in `folder`."""
    options = replace(
        DemoOptions(data="breast-cancer", workdir=folder, sites=sites, rounds=rounds, epsilon="3", delta="1e-5"),
        **changes,
    )
    folder.mkdir(parents=True, exist_ok=True)
    workdir = Workdir(folder)
    plan, _ = prepare_study(options, workdir)
    write_participant_settings(workdir, plan, "http://unused.invalid/api", folder / "memory", RunOptions())
    (folder / "memory").mkdir(mode=0o700, exist_ok=True)
    return Prepared(workdir, plan)


def copy_study(prepared: Prepared, folder: Path) -> Prepared:
    """Copies a study with everything its parties hold to `folder`, as if it had always been there."""
    shutil.copytree(prepared.workdir.root, folder)
    copied = Prepared(Workdir(folder), prepared.plan)
    for site in prepared.plan.sites:
        home = copied.workdir.site(site.name)
        memory = str(folder / "memory" / site.name)
        change_settings(home, store=str(folder / "store"), data=str(home / "cohort.parquet"), memory_folder=memory)
    change_settings(copied.workdir.coordinator, store=str(folder / "store"))
    return copied


def open_consortium(prepared: Prepared, insecure_recorded_noise: bool = False) -> EmbeddedConsortium:
    """Opens all parties; called again on the same study, it is a restart of everybody."""
    homes = {site.name: prepared.workdir.site(site.name) for site in prepared.plan.sites}
    if insecure_recorded_noise:
        return EmbeddedConsortium(prepared.workdir.coordinator, homes, InsecureRecordedStream)
    return EmbeddedConsortium(prepared.workdir.coordinator, homes)


def change_settings(home: Path, **changes: object) -> None:
    """Edits a config.json."""
    path = home / "config.json"
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))
