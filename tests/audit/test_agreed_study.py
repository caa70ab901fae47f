"""What the audit finds in evidence that somebody changed: outsiders first, then the coordinator, who can sign anew."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from schemas.canonical import canonical_bytes
from schemas.envelope import sign_envelope
from schemas.errors import EvidenceError, OperationError
from schemas.layout import approval_key, ledger_key, plan_key
from schemas.messages import Checkpoint, LogPosition, PlanApproval
from tasks.audit.export import export_evidence
from tasks.audit.keys import public_keys_document, read_public_keys
from tasks.audit.names import MANIFEST
from tasks.audit.report import AuditReport, render_report
from tasks.audit.verify import CHECKS, verify_evidence
from tests.audit.studies import AgreedStudy, make_agreed_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> AgreedStudy:
    return make_agreed_study(tmp_path_factory.mktemp("agreed"))


def failed(report: AuditReport) -> set[str]:
    return {result.check for result in report.results if result.status == "failed"}


def places(report: AuditReport) -> str:
    return "\n".join(f.place for result in report.results for f in result.findings)


def test_untouched_evidence_is_verified_and_says_what_did_not_apply(study: AgreedStudy) -> None:
    report = study.audit(study.evidence)
    assert failed(report) == set(), [f for r in report.results for f in r.findings]
    assert report.passed
    assert report.exit_code == 0
    assert report.result("C07").status == "checked"
    assert report.result("C16").status == "not-applicable"
    assert [r.check for r in report.results] == [f"C{n:02d}" for n in range(1, len(CHECKS) + 1)]


def test_without_a_key_file_the_identity_check_fails(study: AgreedStudy) -> None:
    report = verify_evidence(study.evidence, None)
    assert failed(report) == {"C01"}
    assert report.exit_code == 15


def test_a_key_file_with_another_key_names_the_site(study: AgreedStudy) -> None:
    keys = study.keys.model_copy(update={"sites": {**study.keys.sites, "north": "ab" * 32}})
    report = verify_evidence(study.evidence, keys)
    assert failed(report) == {"C01"}
    assert "north" in places(report)


def test_flipping_a_byte_in_any_file_is_found_and_named(study: AgreedStudy, tmp_path: Path) -> None:
    folder = study.copy(tmp_path)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        original = path.read_bytes()
        name = path.relative_to(folder).as_posix()
        for offset in {0, len(original) // 3, len(original) - 1}:
            for bit in (0x01, 0x80):
                changed = bytearray(original)
                changed[offset] ^= bit
                path.write_bytes(changed)
                report = study.audit(folder)
                assert not report.passed, f"{name} at {offset}"
                assert name in places(report), f"{name} at {offset}"
        path.write_bytes(original)
    assert study.audit(folder).passed


def test_a_missing_an_added_and_a_linked_file_are_each_named(study: AgreedStudy, tmp_path: Path) -> None:
    folder = study.copy(tmp_path)
    gone = folder / approval_key(study.plan.study, "south")
    saved = gone.read_bytes()
    gone.unlink()
    assert "C02" in failed(study.audit(folder))
    gone.symlink_to(tmp_path / "elsewhere.json")
    (tmp_path / "elsewhere.json").write_bytes(saved)
    report = study.audit(folder)
    assert any(f.reason == "is not a regular file" for f in report.result("C02").findings)
    gone.unlink()
    gone.write_bytes(saved)
    extra = folder / f"coordinator/{study.plan.study}/notes.txt"
    extra.write_text("hello")
    report = study.audit(folder)
    assert {"C02", "C03"} <= failed(report)
    assert "notes.txt" in places(report)
    study.seal(folder)
    assert failed(study.audit(folder)) == {"C03"}


def test_a_deleted_approval_is_found_though_the_coordinator_signed_a_new_manifest(
    study: AgreedStudy, tmp_path: Path
) -> None:
    folder = study.copy(tmp_path)
    (folder / approval_key(study.plan.study, "south")).unlink()
    study.seal(folder)
    report = study.audit(folder)
    assert "C02" not in failed(report)
    assert "C07" in failed(report)
    assert "sites/south" in places(report)


def test_an_approval_forged_with_the_coordinators_key_is_found(study: AgreedStudy, tmp_path: Path) -> None:
    folder = study.copy(tmp_path)
    forged = PlanApproval(participant="south", role="site")
    target = folder / approval_key(study.plan.study, "south")
    target.write_bytes(sign_envelope(forged, study.plan.study, study.coordinator.signing))
    study.seal(folder)
    assert "C07" in failed(study.audit(folder))


def test_a_plan_changed_after_approval_is_found(study: AgreedStudy, tmp_path: Path) -> None:
    folder = study.copy(tmp_path)
    changed = study.plan.model_copy(update={"title": "Another study"})
    (folder / plan_key(study.plan.study)).write_bytes(canonical_bytes(changed))
    study.seal(folder)
    report = study.audit(folder)
    assert "C06" in failed(report)
    assert plan_key(study.plan.study) in places(report)


def test_a_message_in_another_encoding_of_the_same_content_is_found(study: AgreedStudy, tmp_path: Path) -> None:
    folder = study.copy(tmp_path)
    path = folder / approval_key(study.plan.study, "south")
    path.write_text(json.dumps(json.loads(path.read_bytes()), indent=1))
    study.seal(folder)
    report = study.audit(folder)
    assert "C04" in failed(report)
    assert "sites/south" in places(report)


def _ledger(study: AgreedStudy, folder: Path, site: str, item: str = "entries-000000.jsonl") -> Path:
    return folder / ledger_key(study.plan.study, site, False, item)


def test_a_truncated_ledger_is_found_by_its_checkpoint(study: AgreedStudy, tmp_path: Path) -> None:
    folder = study.copy(tmp_path)
    entries = _ledger(study, folder, "east")
    entries.write_bytes(entries.read_bytes().split(b"\n")[0] + b"\n")
    study.seal(folder)
    report = study.audit(folder)
    assert "C11" in failed(report)
    assert "ledger of east" in places(report)


def test_reordered_and_removed_entries_break_the_chain(study: AgreedStudy, tmp_path: Path) -> None:
    folder = study.copy(tmp_path)
    entries = _ledger(study, folder, "east")
    first, second = entries.read_bytes().splitlines()
    for altered in ([second, first], [second]):
        entries.write_bytes(b"".join(line + b"\n" for line in altered))
        study.seal(folder)
        assert {"C10", "C11"} <= failed(study.audit(folder))


def test_a_checkpoint_of_another_log_is_found(study: AgreedStudy, tmp_path: Path) -> None:
    folder = study.copy(tmp_path)
    target = _ledger(study, folder, "east", "checkpoint.json")
    target.write_bytes(_ledger(study, folder, "west", "checkpoint.json").read_bytes())
    study.seal(folder)
    report = study.audit(folder)
    assert "C11" in failed(report)
    fork = Checkpoint(owner="east", position=LogPosition(size=1, root="cd" * 32))
    target.write_bytes(sign_envelope(fork, study.plan.study, study.identities["east"].signing))
    study.seal(folder)
    assert "C11" in failed(study.audit(folder))


def test_a_ledger_entry_without_its_message_is_found(study: AgreedStudy, tmp_path: Path) -> None:
    folder = study.copy(tmp_path)
    other = PlanApproval(participant="south", role="coordinator")
    target = folder / approval_key(study.plan.study, "south")
    target.write_bytes(sign_envelope(other, study.plan.study, study.identities["south"].signing))
    study.seal(folder)
    assert {"C07", "C13"} <= failed(study.audit(folder))


def test_objects_of_another_study_are_refused(study: AgreedStudy, tmp_path: Path) -> None:
    folder = study.copy(tmp_path)
    other = folder / plan_key("ab" * 32)
    other.parent.mkdir(parents=True)
    other.write_bytes((folder / plan_key(study.plan.study)).read_bytes())
    study.seal(folder)
    report = study.audit(folder)
    assert not report.passed
    assert report.study == ""


def test_an_empty_folder_is_not_verified(study: AgreedStudy, tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="holds no evidence"):
        study.audit(tmp_path)
    with pytest.raises(OperationError, match="Expected an evidence folder"):
        study.audit(tmp_path / "nowhere")


def test_a_mistyped_key_file_is_the_readers_own_mistake(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match=r"There is no file keys\.json"):
        read_public_keys(tmp_path / "keys.json")


def test_the_report_is_printed_whole_and_goes_through_json(study: AgreedStudy, tmp_path: Path) -> None:
    folder = study.copy(tmp_path)
    (folder / MANIFEST).unlink()
    report = study.audit(folder)
    out = io.StringIO()
    render_report(report, Console(file=out, width=160))
    text = out.getvalue()
    assert "NOT verified" in text
    assert all(check.number in text for check in CHECKS)
    assert f"{MANIFEST}: is missing" in text
    assert AuditReport.model_validate_json(report.model_dump_json()) == report


def test_an_export_repeats_itself_and_never_replaces_anything_else(study: AgreedStudy, tmp_path: Path) -> None:
    key = study.coordinator.signing
    out = export_evidence(study.store, study.plan, tmp_path / "evidence", key)
    before = (out / MANIFEST).read_bytes()
    (out / "stray").write_text("x")
    export_evidence(study.store, study.plan, out, key)
    assert (out / MANIFEST).read_bytes() == before
    assert not (out / "stray").exists()
    foreign = tmp_path / "diary"
    foreign.mkdir()
    (foreign / "page.txt").write_text("mine")
    with pytest.raises(OperationError, match="not an export of this study"):
        export_evidence(study.store, study.plan, foreign, key)
    assert (foreign / "page.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["diary", "evidence"]


def test_a_key_file_is_read_back_and_nonsense_is_refused(study: AgreedStudy, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(public_keys_document(study.plan)))
    assert read_public_keys(path) == study.keys
    for text in ("", "[]", '{"format":"consilium/public-keys/1"}', path.read_text().replace('"sites"', '"seats"')):
        path.write_text(text)
        with pytest.raises(EvidenceError, match="Expected a public-key document"):
            read_public_keys(path)
