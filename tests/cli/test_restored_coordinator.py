"""A coordinator whose disk died goes on from a backup, and two copies of one never open a round twice."""

from __future__ import annotations

import shutil
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.embedded import EmbeddedConsortium
from infra.settings import load_settings
from schemas.errors import OperationError
from schemas.options import CoordinatorSettings
from tasks.audit.keys import read_public_keys
from tasks.audit.verify import verify_evidence
from tests.cli.parties import (
    Consortium,
    refused,
    run,
    signed_by_coordinator,
)


def test_a_lost_coordinator_goes_on_from_its_oldest_backup_and_the_audit_finds_nothing(
    approved: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = {site: approved.home(site) for site in approved.sites}
    restored = _restored(approved, "restored")
    opened = approved.opened()
    public = opened.run_ceremony()
    opened.run_round(public, 1)
    with monkeypatch.context() as patch:
        patch.setattr("flows.opening_steps.OpeningSteps._publish_sums", _disk_died)
        with pytest.raises(OSError, match="the disk died"):
            opened.run_round(public, 2)
    log = opened.coordinator.log.entries()
    shutil.rmtree(approved.coordinator)
    decided = signed_by_coordinator(approved)
    assert [name for name in decided if name.endswith("round-0002/record.json")]

    resumed = EmbeddedConsortium(restored, homes)
    published = [entry for entry in resumed.coordinator.log.entries() if entry in log]
    assert len(published) >= len(log) - 1, "at most what came after the last instruction is entered anew"
    for round_ in (1, 2):
        resumed.run_round(resumed.finished_ceremony(), round_)
    evidence = resumed.release(2, resumed.run_round(public, 3, "evaluate"))
    # Nothing that was decided before was decided again: one record and one opening per round.
    assert decided.items() <= signed_by_coordinator(approved).items()
    for site in approved.sites:
        charges = resumed.sites[site].ledger.find(approved_study(restored), "privacy-reserved")
        assert [entry.body.round for entry in charges] == [1, 2, 3]  # type: ignore[union-attr]
    assert verify_evidence(evidence, read_public_keys(restored / "public-keys.json")).passed


def test_a_folder_of_backups_keeps_the_newest_and_is_never_in_the_store(approved: Consortium) -> None:
    home, folder = str(approved.coordinator), approved.folder / "backups"
    command = ("coordinator", "backup", "--home", home, "--keep", "2", "--folder")
    folder.mkdir(mode=0o700)
    older = [folder / f"coordinator-2026010{day}T000000Z.tar.gz" for day in (1, 2, 3)]
    for path in (*older, folder / "notes.txt"):
        path.touch()
    run(*command, str(folder))
    kept = sorted(path.name for path in folder.iterdir())
    assert len(kept) == 3
    assert older[2].name in kept
    assert "notes.txt" in kept
    (made,) = set(kept) - {older[2].name, "notes.txt"}
    assert (folder / made).stat().st_mode & 0o077 == 0
    with tarfile.open(folder / made) as content:
        assert {"identity.json", "config.json", "plan.json"} <= set(content.getnames())
    folder.chmod(0o755)
    assert refused(*command, str(folder)).code == "backup-exposed"
    assert refused(*command, str(approved.folder / "store" / "backups")).code == "backup-in-store"
    one = ("coordinator", "backup", "--home", home, "--out", str(approved.folder / "store" / "one.tar.gz"))
    assert refused(*one).code == "backup-in-store"
    assert len(list(folder.iterdir())) == 3


def test_a_restored_log_that_nobody_can_complete_is_refused(approved: Consortium) -> None:
    old = _restored(approved, "old")
    opened = approved.opened()
    opened.run_round(opened.run_ceremony(), 1)
    homes = {site: approved.home(site) for site in approved.sites}
    for path in (approved.folder / "store" / "coordinator" / approved.study / "ledger").iterdir():
        path.unlink()
    with pytest.raises(OperationError, match="study log is shorter than what this coordinator has published"):
        EmbeddedConsortium(old, homes)


def _disk_died(*_: object) -> None:
    raise OSError("the disk died")


def approved_study(home: Path) -> str:
    return load_settings(CoordinatorSettings, home / "config.json").study


def test_two_homes_of_one_coordinator_open_a_round_once_and_the_one_that_fell_behind_is_refused(
    approved: Consortium,
) -> None:
    opened = approved.opened()
    public = opened.run_ceremony()
    homes = {site: approved.home(site) for site in approved.sites}
    copy = EmbeddedConsortium(_restored(approved, "copy"), homes)
    # Entries name the second in which they were made: two homes that enter the same in the same second write one log.
    copy.coordinator.log.clock = lambda: datetime.now(UTC) + timedelta(minutes=1)
    first = opened.run_round(public, 1)
    again = copy.run_round(public, 1)
    assert (again.record.digest, again.opening.digest) == (first.record.digest, first.opening.digest)
    opened.run_round(public, 2)
    with pytest.raises(OperationError, match="another copy of this home went on") as caught:
        EmbeddedConsortium(approved.folder / "copy", homes)
    assert caught.value.code == "log-forked"
    EmbeddedConsortium(approved.coordinator, homes)


def _restored(approved: Consortium, name: str) -> Path:
    archive, folder = approved.folder / f"{name}.tar.gz", approved.folder / name
    command = ("coordinator", "backup", "--home", str(approved.coordinator), "--out", str(archive))
    run(*command)
    assert archive.stat().st_mode & 0o077 == 0
    assert refused(*command).code == "backup-exists"
    with tarfile.open(archive) as content:
        content.extractall(folder, filter="data")
    return folder
