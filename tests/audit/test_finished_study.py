"""A whole study under audit: verified as it is, and every manipulation found by the check that should find it."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from schemas.envelope import Predicate, envelope_digest, sign_envelope
from schemas.layout import attempt_key, ledger_key, plan_key, release_key, round_key
from schemas.messages import Contribution, Instruction, ModelRelease, Opening, Record, ShareRequest
from tasks.audit.checks.files import check_manifest
from tasks.audit.context import AuditContext
from tasks.audit.evidence import EvidenceFolder
from tasks.audit.keys import PublicKeys, read_public_keys
from tasks.audit.names import MANIFEST, parse_name
from tasks.audit.registry import Findings, run_check
from tasks.audit.report import AuditReport, CheckResult
from tasks.audit.verify import CHECKS
from tasks.identity import Identity, load_identity
from tests.audit.studies import reseal
from tests.conftest import FinishedStudy

ACCOUNTANTS = ("C27", "C28")  # Seconds each, and they read nothing but what C24 to C26 read.


class Tampered:
    """A copy of the evidence that a dishonest coordinator may rewrite and sign again."""

    def __init__(self, folder: Path, finished: FinishedStudy) -> None:
        self.folder = folder
        self.study = finished.prepared.plan.study
        self.plan = finished.prepared.plan
        self.coordinator: Identity = load_identity(finished.prepared.workdir.coordinator / "identity.json")
        self.keys: PublicKeys = read_public_keys(finished.keys)

    def path(self, name: str) -> Path:
        return self.folder / name

    def context(self) -> AuditContext:
        return AuditContext(EvidenceFolder(self.folder), self.keys)

    def audit(self) -> dict[str, CheckResult]:
        """Returns the failed checks, without the independent accountants."""
        context = self.context()
        results = [run_check(check, context) for check in CHECKS if check.number not in ACCOUNTANTS]
        return {result.check: result for result in results if result.status == "failed"}

    def sign(self, name: str, message: Predicate) -> str:
        data = sign_envelope(message, self.study, self.coordinator.signing)
        self.path(name).write_bytes(data)
        return envelope_digest(data)

    def seal(self, derive: bool = False) -> None:
        reseal(self.folder, self.study, self.coordinator, derive)

    def flip(self, name: str, offset: int) -> None:
        data = bytearray(self.path(name).read_bytes())
        data[offset] ^= 1 << (offset % 8)
        self.path(name).write_bytes(data)

    @contextmanager
    def kept(self, *names: str) -> Iterator[None]:
        """Puts the named files and the manifest back afterwards."""
        before = {n: self.path(n).read_bytes() if self.path(n).exists() else None for n in (*names, MANIFEST)}
        try:
            yield
        finally:
            for name, data in before.items():
                if data is None:
                    self.path(name).unlink(missing_ok=True)
                else:
                    self.path(name).write_bytes(data)


@pytest.fixture(scope="module")
def evidence(finished_study: FinishedStudy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tampered]:
    folder = tmp_path_factory.mktemp("audit") / "evidence"
    tampered = Tampered(Path(shutil.copytree(finished_study.evidence, folder)), finished_study)
    yield tampered
    assert tampered.audit() == {}, "a test did not put the evidence back"


def test_every_check_verifies_a_finished_study_without_importing_what_an_auditor_would_have_to_trust(
    finished_study: FinishedStudy,
) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tasks.audit.keys import read_public_keys\n"
        "from tasks.audit.verify import verify_evidence\n"
        "report = verify_evidence(Path(sys.argv[1]), read_public_keys(Path(sys.argv[2])))\n"
        "print(report.model_dump_json())\n"
        "heavy = {'torch', 'opacus', 'tenseal', 'prefect', 'mlflow', 'boto3', 'pyarrow', 'pandas',"
        " 'great_expectations', 'matplotlib', 'sklearn'}\n"
        "found = heavy & {name.split('.')[0] for name in sys.modules}\n"
        "sys.exit(f'imported {sorted(found)}' if found else 0)\n"
    )
    command = [sys.executable, "-c", program, str(finished_study.evidence), str(finished_study.keys)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    report = AuditReport.model_validate_json(done.stdout)
    assert report.passed, [finding for result in report.results for finding in result.findings]
    unanswered = [result.check for result in report.results if result.status == "not-applicable"]
    assert [n for n in unanswered if n not in ("C33", "C34")] == ["C32"], "no MLflow, no question; nobody decided yet"


def _one_of_each_kind(folder: Path) -> list[str]:
    kinds: dict[str, str] = {}
    for path in EvidenceFolder(folder).paths:
        item = parse_name(path)
        if item is not None:
            kinds[item.kind] = path
    return sorted(kinds.values())


def _named_by_manifest_check(evidence: Tampered) -> set[str]:
    findings = Findings()
    with findings.at(MANIFEST):
        check_manifest(evidence.context(), findings)
    return {finding.place for finding in findings.items}


def test_flipping_a_byte_in_every_file_names_every_file(evidence: Tampered) -> None:
    """First, last and a random byte of each file; the manifest and the plan, which carry the rest, stay whole."""
    chance = random.Random(1)
    carriers = {MANIFEST, plan_key(evidence.study)}
    names = [name for name in EvidenceFolder(evidence.folder).paths if name not in carriers]
    with evidence.kept(*names):
        for choose in (lambda size: 0, lambda size: size - 1, chance.randrange):
            for name in names:
                evidence.flip(name, choose(evidence.path(name).stat().st_size))
            assert _named_by_manifest_check(evidence) == set(names)


def test_flipping_a_single_byte_names_the_file(evidence: Tampered) -> None:
    chance = random.Random(2)
    for name in [MANIFEST, *_one_of_each_kind(evidence.folder)]:
        size = evidence.path(name).stat().st_size
        for offset in {0, size - 1, chance.randrange(size)}:
            with evidence.kept(name):
                evidence.flip(name, offset)
                assert name in _named_by_manifest_check(evidence), f"{name} at {offset}"


def test_every_kind_of_file_is_bound_by_more_than_the_manifest(evidence: Tampered) -> None:
    """Attack: the coordinator flips a byte and signs a new manifest over it."""
    chance = random.Random(3)
    names = _one_of_each_kind(evidence.folder)
    assert len(names) > 30
    for name in names:
        with evidence.kept(name):
            evidence.flip(name, chance.randrange(evidence.path(name).stat().st_size))
            evidence.seal()
            failed = evidence.audit()
            # Without its plan nothing says whose manifest it is.
            assert "C02" not in failed or name == plan_key(evidence.study)
            places = "\n".join(f.place for result in failed.values() for f in result.findings)
            assert name in places, f"{name}: {sorted(failed)} at {places}"


def _edit_epsilon(evidence: Tampered) -> None:
    name = release_key(evidence.study, "release.json")
    release = evidence.context().release.predicate
    lower = tuple(report.model_copy(update={"collusion": "0.1"}) for report in release.epsilon)
    evidence.sign(name, release.model_copy(update={"epsilon": lower}))


def _edit_auc(evidence: Tampered) -> None:
    name = release_key(evidence.study, "release.json")
    release = evidence.context().release.predicate
    metrics = tuple((key, "0.999000" if key == "auc" else value) for key, value in release.metrics)
    evidence.sign(name, release.model_copy(update={"metrics": metrics}))


def _swap_model(evidence: Tampered) -> None:
    weights = evidence.path(release_key(evidence.study, "weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    release: ModelRelease = evidence.context().release.predicate
    evidence.sign(
        release_key(evidence.study, "release.json"),
        release.model_copy(update={"weights": envelope_digest(weights.read_bytes())}),
    )


def _shift_a_sum(evidence: Tampered) -> None:
    """A coordinator alone can add a known ciphertext to the bulk sum; here it shifts the published integers."""
    result = evidence.path(round_key(evidence.study, 1, None, "result.bin"))
    result.write_bytes((7).to_bytes(8, "little") + result.read_bytes()[8:])
    opening: Opening = evidence.context().opening(1).predicate
    evidence.sign(
        round_key(evidence.study, 1, None, "opening.json"),
        opening.model_copy(update={"result": envelope_digest(result.read_bytes())}),
    )


def _leave_a_site_out(evidence: Tampered) -> None:
    record: Record = evidence.context().record(1).predicate
    kept, left = record.contributions[:-1], record.contributions[-1][0]
    dropped = tuple(sorted([*record.dropped, (left, "silent")]))
    evidence.sign(
        round_key(evidence.study, 1, None, "record.json"),
        record.model_copy(update={"contributions": kept, "dropped": dropped}),
    )


def _sum_below_k_min(evidence: Tampered) -> None:
    record: Record = evidence.context().record(1).predicate
    dropped = tuple((site, "silent") for site, _ in record.contributions[2:])
    evidence.sign(
        round_key(evidence.study, 1, None, "record.json"),
        record.model_copy(update={"contributions": record.contributions[:2], "dropped": dropped}),
    )


def _replay_a_contribution(evidence: Tampered) -> None:
    site = evidence.plan.sites[0].name
    source = evidence.path(attempt_key(evidence.study, 1, 1, site, "contribution.json"))
    evidence.path(attempt_key(evidence.study, 2, 1, site, "contribution.json")).write_bytes(source.read_bytes())


def _certify_below_quorum(evidence: Tampered) -> None:
    request: ShareRequest = evidence.context().request(1, 1).predicate
    evidence.sign(
        round_key(evidence.study, 1, None, "request-1.json"),
        request.model_copy(update={"certificate": request.certificate[:3]}),
    )


def _ask_a_smaller_set(evidence: Tampered) -> None:
    request: ShareRequest = evidence.context().request(1, 1).predicate
    evidence.sign(
        round_key(evidence.study, 1, None, "request-1.json"),
        request.model_copy(update={"active_set": request.active_set[:2]}),
    )


def _ask_for_another_model(evidence: Tampered) -> None:
    instruction: Instruction = evidence.context().instruction(2, 1).predicate
    evidence.sign(
        attempt_key(evidence.study, 2, 1, None, "instruction.json"),
        instruction.model_copy(update={"model": "ab" * 32}),
    )


def _cut_a_ledger(evidence: Tampered) -> None:
    """The checkpoint goes with the entries; the closing that everybody witnessed still names it."""
    site = evidence.plan.sites[1].name
    slices = sorted(evidence.path(ledger_key(evidence.study, site, False, "")).glob("entries-*.jsonl"))
    slices[-1].unlink()
    evidence.path(ledger_key(evidence.study, site, False, "checkpoint.json")).unlink()


def _hide_a_reservation(evidence: Tampered) -> None:
    site = evidence.plan.sites[1].name
    slices = sorted(evidence.path(ledger_key(evidence.study, site, False, "")).glob("entries-*.jsonl"))
    for path in slices[1:]:
        path.unlink()


def _move_a_contribution(evidence: Tampered) -> None:
    """The coordinator signs a contribution in a site's place."""
    site = evidence.plan.sites[0].name
    given: Contribution = evidence.context().contribution(1, 1, site).predicate
    evidence.sign(attempt_key(evidence.study, 1, 1, site, "contribution.json"), given)


MANIPULATIONS: dict[str, tuple[Callable[[Tampered], None], str]] = {
    "edited epsilon": (_edit_epsilon, "C26"),
    "edited AUC": (_edit_auc, "C23"),
    "swapped model": (_swap_model, "C22"),
    "shifted sum": (_shift_a_sum, "C20"),
    "site left out of a record": (_leave_a_site_out, "C17"),
    "record below k_min": (_sum_below_k_min, "C16"),
    "replayed contribution": (_replay_a_contribution, "C15"),
    "certificate below Q": (_certify_below_quorum, "C17"),
    "active set below t": (_ask_a_smaller_set, "C17"),
    "different model to the sites": (_ask_for_another_model, "C21"),
    "ledger cut with its checkpoint": (_cut_a_ledger, "C11"),
    "reservations hidden": (_hide_a_reservation, "C12"),
    "contribution signed by the coordinator": (_move_a_contribution, "C15"),
}


@pytest.mark.parametrize("name", MANIPULATIONS)
def test_a_manipulation_by_the_coordinator_is_found_by_its_check(
    name: str, evidence: Tampered, tmp_path: Path, finished_study: FinishedStudy
) -> None:
    manipulate, check = MANIPULATIONS[name]
    tampered = Tampered(Path(shutil.copytree(evidence.folder, tmp_path / "evidence")), finished_study)
    manipulate(tampered)
    tampered.seal(derive=True)
    failed = tampered.audit()
    assert check in failed, f"{name}: only {sorted(failed)}"
    assert "C02" not in failed
