"""The secure sum inside a study: a site that sends other bytes than it signed is left out, and a crash loses no sum."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest

from flows.opening_steps import OpeningSteps
from flows.round_steps import Answers, RoundSteps
from infra.embedded import EmbeddedConsortium, contribute
from schemas.errors import OperationError, PeerError
from schemas.layout import attempt_key, round_key
from site_agents.certifying import Certifying
from site_agents.round import SiteRound
from tasks.audit.keys import read_public_keys
from tasks.audit.verify import verify_evidence
from tasks.storage.folder import FolderStore
from tasks.storage.mailbox import fetch_blob
from tests.simulator import Prepared, change_settings, copy_study, open_consortium


@pytest.fixture
def consortium(study_after_ceremony: Prepared, tmp_path: Path) -> EmbeddedConsortium:
    return open_consortium(copy_study(study_after_ceremony, tmp_path / "study"))


def stored(consortium: EmbeddedConsortium, key: str) -> Path:
    return Path(consortium.coordinator.settings.store) / key


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


def collected_round(consortium: EmbeddedConsortium) -> tuple[RoundSteps, tuple[object, ...]]:
    """Round 1 up to the holders' checks of the sealed shares."""
    steps = RoundSteps(consortium.coordinator, consortium.finished_ceremony(), consortium.lineage, 1, "train")
    instruction, answers = steps.issue(), Answers()
    works = [SiteRound(context, 1, steps.attempt) for context in consortium.sites.values()]
    for work in works:
        contribute(work)
    steps.collect(instruction, answers)
    collected = steps.close(instruction, answers)
    for work in works:
        Certifying(work).check_shares()
    return steps, (instruction, answers, collected, steps.read_checks(collected))


@pytest.mark.parametrize("item", ["bulk.bin", "key.bin"])
def test_a_site_that_sends_other_bytes_than_it_signed_is_left_out_by_name(
    item: str, consortium: EmbeddedConsortium
) -> None:
    steps, arguments = collected_round(consortium)
    site = consortium.plan.sites[2].name
    alter(stored(consortium, attempt_key(consortium.plan.study, 1, 1, site, item)))
    record = OpeningSteps(steps).propose(*arguments)  # type: ignore[arg-type]
    assert record.predicate.dropped == ((site, "invalid"),)
    assert site not in dict(record.predicate.contributions)
    assert arguments[1].invalid[site] in ("bulk-root", "blob-digest")  # type: ignore[attr-defined]


@pytest.mark.parametrize("swapped", ["longer", "shorter", "gone"])
def test_a_bulk_that_is_swapped_after_its_size_was_seen_is_refused_by_name(
    swapped: str, consortium: EmbeddedConsortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = RoundSteps(consortium.coordinator, consortium.finished_ceremony(), consortium.lineage, 1, "train")
    instruction, answers = steps.issue(), Answers()
    for context in consortium.sites.values():
        contribute(SiteRound(context, 1, steps.attempt))
    site = consortium.plan.sites[2].name
    bulk = attempt_key(consortium.plan.study, 1, 1, site, "bulk.bin")
    path = stored(consortium, bulk)
    signed, real = path.stat().st_size, FolderStore.size

    def size(store: FolderStore, key: str) -> int:
        """The answer of before, and then another object under the name."""
        answer = real(store, key)
        if key == bulk:
            path.unlink()
            if swapped != "gone":
                path.touch()
                os.truncate(path, signed + (1 if swapped == "longer" else -1))
        return answer

    monkeypatch.setattr(FolderStore, "size", size)
    steps.collect(instruction, answers)
    assert answers.invalid == {site: "blob-missing" if swapped == "gone" else "blob-size"}
    assert len(answers.contributions) == len(consortium.sites) - 1


class Endless(io.RawIOBase):
    """An object that its writer replaced by one without an end."""

    taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.taken += len(buffer)
        return len(buffer)


def test_no_more_is_read_of_a_blob_than_was_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, stream = FolderStore(tmp_path / "store"), Endless()
    monkeypatch.setattr(store, "open", lambda _: stream)
    with pytest.raises(PeerError, match=r"general: bulk\.bin does not have the 5000000 bytes") as caught:
        fetch_blob(store, "sites/general/bulk.bin", tmp_path / "bulk.bin", 5_000_000, "general")
    assert (caught.value.code, stream.taken) == ("blob-size", 5_000_001)
    assert not (tmp_path / "bulk.bin").exists()


def test_too_few_honest_uploads_propose_nothing(consortium: EmbeddedConsortium) -> None:
    steps, arguments = collected_round(consortium)
    for site in consortium.plan.sites[:2]:
        alter(stored(consortium, attempt_key(consortium.plan.study, 1, 1, site.name, "bulk.bin")))
    with pytest.raises(OperationError, match="expected at least k_min"):
        OpeningSteps(steps).propose(*arguments)  # type: ignore[arg-type]
    for name in ("record.json", "key-sum.bin", "bulk-sum.bin"):
        assert not stored(consortium, round_key(consortium.plan.study, 1, None, name)).exists()


@pytest.mark.parametrize("lost", [("key-sum.bin", "bulk-sum.bin"), ("bulk-sum.bin",)])
def test_a_coordinator_that_dies_after_its_record_adds_the_same_sums_again(
    lost: tuple[str, ...], consortium: EmbeddedConsortium
) -> None:
    steps, arguments = collected_round(consortium)
    first = OpeningSteps(steps).propose(*arguments)  # type: ignore[arg-type]
    paths = [stored(consortium, round_key(consortium.plan.study, 1, None, name)) for name in lost]
    before = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    again = OpeningSteps(steps).propose(*arguments)  # type: ignore[arg-type]
    assert again.digest == first.digest
    assert [path.read_bytes() for path in paths] == before


def test_a_round_with_bulk_work_over_two_processes_opens(study_after_ceremony: Prepared, tmp_path: Path) -> None:
    prepared = copy_study(study_after_ceremony, tmp_path / "study")
    for home in (prepared.workdir.coordinator, *(prepared.workdir.site(s.name) for s in prepared.plan.sites)):
        change_settings(home, options={"bulk_processes": 2})
    consortium = open_consortium(prepared)
    assert consortium.coordinator.options.bulk_processes == 2
    outcome = consortium.run_round(consortium.finished_ceremony(), 1)
    assert len(outcome.record.predicate.contributions) == 5


def test_a_study_goes_on_without_a_site_that_was_left_out_and_the_audit_names_the_record(
    study_after_ceremony: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = copy_study(study_after_ceremony, tmp_path / "study")
    consortium = open_consortium(prepared)
    site, public, real = consortium.plan.sites[1].name, consortium.finished_ceremony(), OpeningSteps.propose

    def propose(steps: OpeningSteps, *arguments: Any) -> Any:
        if steps.steps.round == 1:
            alter(stored(consortium, attempt_key(consortium.plan.study, 1, 1, site, "bulk.bin")))
        return real(steps, *arguments)

    monkeypatch.setattr(OpeningSteps, "propose", propose)
    assert (site, "invalid") in consortium.run_round(public, 1).record.predicate.dropped
    assert consortium.run_round(public, 2).record.predicate.dropped == ()
    evidence = consortium.release(2, None)
    report = verify_evidence(evidence, read_public_keys(prepared.keys))
    # The auditor cannot tell who altered the bytes, the site or whoever owns the store. It names the record that leaves
    # out what had been collected; an object that was bad on arrival would not have been collected.
    failed = {result.check: result.findings for result in report.results if result.status == "failed"}
    assert set(failed) == {"C16"}
    assert [finding.place.endswith("/round-0001/record.json") for finding in failed["C16"]] == [True]


def test_a_bulk_ciphertext_that_is_bad_on_arrival_is_left_out_and_the_audit_passes(
    study_after_ceremony: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = copy_study(study_after_ceremony, tmp_path / "study")
    consortium = open_consortium(prepared)
    site, public, real = consortium.plan.sites[1].name, consortium.finished_ceremony(), RoundSteps.collect

    def collect(steps: RoundSteps, *arguments: Any) -> Any:
        if steps.round == 1:
            alter(stored(consortium, attempt_key(consortium.plan.study, 1, 1, site, "bulk.bin")))
        return real(steps, *arguments)

    monkeypatch.setattr(RoundSteps, "collect", collect)
    assert consortium.run_round(public, 1).record.predicate.dropped == ((site, "invalid"),)
    evidence = consortium.release(1, None, "stopped by hand")
    report = verify_evidence(evidence, read_public_keys(prepared.keys))
    assert [result.check for result in report.results if result.status == "failed"] == []
