"""What an export adds and what it may leave out; every lie about either is found."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.cli import main
from infra.evidence import open_published_study
from schemas.canonical import canonical_bytes, parse_canonical
from schemas.envelope import open_envelope, sign_envelope
from schemas.layout import attempt_key, round_key
from schemas.messages import EvidenceManifest
from schemas.plan import StudyPlan
from tasks.audit.context import AuditContext
from tasks.audit.evidence import EvidenceFolder
from tasks.audit.export import export_evidence
from tasks.audit.keys import read_public_keys
from tasks.audit.names import BULK_KINDS, CRATE, MANIFEST, parse_name, proofs_name
from tasks.audit.proofs import ConsistencyProofs
from tasks.audit.registry import run_check
from tasks.audit.report import CheckResult
from tasks.audit.verify import CHECKS
from tasks.identity import Identity
from tests.audit.studies import reseal
from tests.conftest import FinishedStudy

NEEDS_MORE = {"C32", "C33", "C34"}  # Reviewers' decisions, MLflow and a question, which this study has not.


@dataclass(frozen=True)
class Export:
    folder: Path
    plan: StudyPlan
    coordinator: Identity
    keys: Path

    def copy(self, folder: Path) -> Export:
        return Export(Path(shutil.copytree(self.folder, folder)), self.plan, self.coordinator, self.keys)

    @property
    def manifest(self) -> EvidenceManifest:
        data, key = (self.folder / MANIFEST).read_bytes(), self.coordinator.identity_key
        return open_envelope(EvidenceManifest, data, self.plan.study, key, self.plan.coordinator.name)

    def sign(self, manifest: EvidenceManifest) -> None:
        data = sign_envelope(manifest, self.plan.study, self.coordinator.signing)
        (self.folder / MANIFEST).write_bytes(data)

    def audit(self) -> dict[str, CheckResult]:
        context = AuditContext(EvidenceFolder(self.folder), read_public_keys(self.keys))
        return {check.number: run_check(check, context) for check in CHECKS if check.number not in ("C27", "C28")}

    def failed(self) -> dict[str, str]:
        results = self.audit().values()
        return {r.check: f"{r.findings[0].place}: {r.findings[0].reason}" for r in results if r.status == "failed"}


def _export(finished: FinishedStudy, folder: Path, without_bulk: bool) -> Export:
    study = open_published_study(finished.prepared.workdir.root)
    export_evidence(study.store, study.plan, folder, study.identity.signing, without_bulk=without_bulk)
    return Export(folder, study.plan, study.identity, finished.keys)


@pytest.fixture(scope="module")
def small(finished_study: FinishedStudy, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return _export(finished_study, tmp_path_factory.mktemp("small") / "evidence", without_bulk=True)


@pytest.fixture(scope="module")
def whole(finished_study: FinishedStudy, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return _export(finished_study, tmp_path_factory.mktemp("whole") / "evidence", without_bulk=False)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_an_export_without_bulk_is_small_and_says_which_checks_it_could_not_answer(small: Export) -> None:
    results = small.audit()
    unanswered = {number for number, result in results.items() if result.status == "not-applicable"}
    assert unanswered - NEEDS_MORE == {"C16", "C19", "C20"}
    assert not [result for result in results.values() if result.status == "failed"]
    assert "left out of this export" in results["C19"].detail
    assert "140 of them left out" in results["C05"].detail
    left = {item.kind for path in EvidenceFolder(small.folder).paths if (item := parse_name(path)) is not None}
    assert left & BULK_KINDS == set()


def test_an_export_without_bulk_is_a_fifth_of_the_whole(small: Export, whole: Export) -> None:
    assert 5 * size_of(small.folder) < size_of(whole.folder)
    assert dict(small.manifest.omitted).items() <= dict(whole.manifest.files).items()


def test_a_signed_message_cannot_be_left_out_as_if_it_were_a_ciphertext(small: Export, tmp_path: Path) -> None:
    attacked = small.copy(tmp_path / "evidence")
    name = attempt_key(attacked.plan.study, 1, 1, attacked.plan.sites[0].name, "contribution.json")
    (attacked.folder / name).unlink()
    manifest = attacked.manifest
    listed = dict(manifest.files)
    omitted = tuple(sorted([*manifest.omitted, (name, listed.pop(name))]))
    attacked.sign(EvidenceManifest(files=tuple(sorted(listed.items())), omitted=omitted))
    assert "is not a ciphertext that may be" in attacked.failed()["C02"]


def test_ciphertexts_are_left_out_all_or_none(whole: Export, tmp_path: Path) -> None:
    attacked = whole.copy(tmp_path / "evidence")
    name = round_key(attacked.plan.study, 1, None, "bulk-sum.bin")
    listed = dict(attacked.manifest.files)
    (attacked.folder / name).unlink()
    attacked.sign(
        EvidenceManifest(files=tuple((p, d) for p, d in listed.items() if p != name), omitted=((name, listed[name]),))
    )
    assert "is there though the ciphertexts were left out" in attacked.failed()["C02"]


def test_a_digest_of_a_left_out_ciphertext_must_be_the_one_that_its_sender_signed(
    small: Export, tmp_path: Path
) -> None:
    attacked = small.copy(tmp_path / "evidence")
    name = attempt_key(attacked.plan.study, 1, 1, attacked.plan.sites[0].name, "key.bin")
    manifest = attacked.manifest
    forged = tuple((path, "ab" * 32 if path == name else digest) for path, digest in manifest.omitted)
    attacked.sign(manifest.model_copy(update={"omitted": forged}))
    assert attacked.failed()["C05"] == f"{name}: is not what the signed message names"


def test_a_forged_consistency_proof_is_found(whole: Export, tmp_path: Path) -> None:
    attacked = whole.copy(tmp_path / "evidence")
    owner = attacked.plan.coordinator.name
    path = attacked.folder / proofs_name(owner)
    proofs = parse_canonical(ConsistencyProofs, path.read_bytes(), "the proofs")
    longest = max(proofs.proofs, key=len)
    assert longest
    forged = tuple(("cd" * 32, *proof[1:]) if proof == longest else proof for proof in proofs.proofs)
    path.write_bytes(canonical_bytes(proofs.model_copy(update={"proofs": forged})))
    reseal(attacked.folder, attacked.plan.study, attacked.coordinator, derive=False)
    failed = attacked.failed()
    assert "does not lead from size" in failed["C30"]
    assert "C02" not in failed


def test_a_position_that_is_kept_out_of_the_proofs_is_missed(whole: Export, tmp_path: Path) -> None:
    attacked = whole.copy(tmp_path / "evidence")
    path = attacked.folder / proofs_name(attacked.plan.sites[0].name)
    proofs = parse_canonical(ConsistencyProofs, path.read_bytes(), "the proofs")
    shorter = proofs.model_copy(update={"positions": proofs.positions[1:], "proofs": proofs.proofs[1:]})
    path.write_bytes(canonical_bytes(shorter))
    reseal(attacked.folder, attacked.plan.study, attacked.coordinator, derive=False)
    assert "is not about the positions that were signed" in attacked.failed()["C30"]


@pytest.mark.parametrize("edit", ["epsilon", "spaces", "not JSON"])
def test_a_crate_that_says_more_or_less_than_the_messages_is_found(whole: Export, tmp_path: Path, edit: str) -> None:
    attacked = whole.copy(tmp_path / "evidence")
    path = attacked.folder / CRATE
    crate = json.loads(path.read_bytes())
    if edit == "epsilon":
        next(e for e in crate["@graph"] if e["@id"] == "#epsilon-training")["value"] = "0.5"
        path.write_bytes(canonical_bytes(crate))
    elif edit == "spaces":
        path.write_text(json.dumps(crate, indent=1))
    else:
        path.write_text("{")
    reseal(attacked.folder, attacked.plan.study, attacked.coordinator, derive=False)
    failed = attacked.failed()
    assert set(failed) == {"C31"}
    assert failed["C31"].startswith(CRATE)


def test_the_crate_names_requester_agreement_validation_execution_and_disclosure(whole: Export) -> None:
    crate = json.loads((whole.folder / CRATE).read_bytes())
    entities = {entity["@id"]: entity for entity in crate["@graph"]}
    assert len(entities) == len(crate["@graph"])
    assert entities[CRATE]["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.2"}
    root = entities["./"]
    assert root["conformsTo"] == {"@id": "https://w3id.org/5s-crate/0.4"}
    phases = {
        entities[part["@id"]].get("additionalType", {}).get("@id", "").rpartition("#")[2] for part in root["mentions"]
    }
    assert phases == {"", "ValidationCheck", "SignOff", "DisclosureCheck"}
    for entity in crate["@graph"]:
        for value in entity.values():
            for reference in value if isinstance(value, list) else [value]:
                if isinstance(reference, dict) and not reference["@id"].startswith("https://w3id.org/"):
                    assert reference["@id"] in entities, f"{entity['@id']} refers to {reference['@id']}"
    listed = dict(whole.manifest.files)
    files = [entity for entity in crate["@graph"] if entity["@type"] == "File"]
    assert len(files) > 30
    assert all(entity["sha256"] == listed[entity["@id"]] for entity in files)
    assert float(entities["#epsilon-training"]["value"]) <= 3


def test_the_export_command_writes_evidence_that_verifies(finished_study: FinishedStudy, tmp_path: Path) -> None:
    root = str(finished_study.prepared.workdir.root)
    result = CliRunner().invoke(main, ["audit", "export", root, "--out", str(tmp_path / "out"), "--without-bulk"])
    assert result.exit_code == 0, result.output
    assert "files" in result.output
    assert (tmp_path / "out" / CRATE).is_file()


def test_the_export_command_refuses_a_folder_that_is_no_coordinators_home(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["audit", "export", str(tmp_path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 14
    assert "Error (not-a-coordinator)" in result.output
