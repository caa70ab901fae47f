"""One hospital that publishes any ledger: no record of a round, witness or signed release depends on it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows.figures import epsilon_of_sites
from flows.release_steps import enter_signed_release, publish_closing, publish_log
from flows.round_steps import RoundOutcome
from infra.embedded import EmbeddedConsortium
from schemas.canonical import sha256_hex
from schemas.envelope import sign_envelope
from schemas.errors import PeerError
from schemas.layout import ledger_key
from schemas.ledger import PrivacyReserved
from schemas.messages import Checkpoint, EpsilonReport, LogPosition
from site_agents.release import SiteRelease
from tasks.audit.export import export_evidence
from tasks.audit.keys import read_public_keys
from tasks.audit.report import CheckResult
from tasks.audit.verify import verify_evidence
from tasks.ledger.chain import sign_entry
from tests.simulator import Prepared, copy_study, open_consortium

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def prepared(study_after_ceremony: Prepared, tmp_path: Path) -> Prepared:
    return copy_study(study_after_ceremony, tmp_path / "study")


@pytest.fixture
def consortium(prepared: Prepared) -> EmbeddedConsortium:
    return open_consortium(prepared)


@pytest.fixture
def hostile(prepared: Prepared) -> str:
    return prepared.plan.sites[3].name


@pytest.fixture
def outcome(consortium: EmbeddedConsortium) -> RoundOutcome:
    return consortium.run_round(consortium.finished_ceremony(), 1)


def overspent(consortium: EmbeddedConsortium, hostile: str) -> bytes:
    """Signs the next entry of the site's ledger: a charge whose figures contradict each other."""
    ledger = consortium.sites[hostile].ledger
    body = ledger.find(consortium.plan.study, "privacy-reserved")[-1].body
    assert isinstance(body, PrivacyReserved)
    body = body.model_copy(update={"event": body.event.model_copy(update={"runs": (("1", "1", 0),)})})
    entries, key = ledger.entries(), consortium.sites[hostile].home.identity.signing
    return sign_entry(key, hostile, len(entries), sha256_hex(entries[-1]), consortium.plan.study, body, NOW)


def write(consortium: EmbeddedConsortium, key: str, data: bytes) -> Path:
    path = Path(consortium.coordinator.settings.store) / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_slice(consortium: EmbeddedConsortium, hostile: str, first: int, data: bytes) -> Path:
    return write(consortium, ledger_key(consortium.plan.study, hostile, False, f"entries-{first:06d}.jsonl"), data)


def reports(consortium: EmbeddedConsortium, up_to: int | None = None) -> dict[str, EpsilonReport]:
    return {report.site: report for report in epsilon_of_sites(consortium.coordinator, "training", up_to)}


def close(consortium: EmbeddedConsortium, hostile: str, checkpoint: bytes | None) -> list[SiteRelease]:
    """Releases after round 1: the others publish their checkpoints, the hostile site the one given."""
    coordinator = consortium.coordinator
    enter_signed_release(coordinator, consortium.lineage, 1, None, None, "no more rounds")
    publish_log(coordinator)
    others = [SiteRelease(context) for name, context in consortium.sites.items() if name != hostile]
    for site in others:
        site.verify()
        site.publish_checkpoint()
    if checkpoint is not None:
        write(consortium, ledger_key(consortium.plan.study, hostile, False, "checkpoint.json"), checkpoint)
    publish_closing(coordinator)
    return others


def failures(consortium: EmbeddedConsortium, prepared: Prepared) -> dict[str, CheckResult]:
    home, identity = consortium.coordinator.home, consortium.coordinator.identity
    evidence = export_evidence(consortium.coordinator.store, prepared.plan, home / "evidence", identity.signing)
    report = verify_evidence(evidence, read_public_keys(prepared.keys))
    return {result.check: result for result in report.results if result.status == "failed"}


def test_a_signed_entry_that_breaks_a_rule_stops_neither_the_record_of_a_round_nor_the_release(
    prepared: Prepared, consortium: EmbeddedConsortium, outcome: RoundOutcome, hostile: str
) -> None:
    honest = reports(consortium, 1)
    size = consortium.sites[hostile].publish_ledger().size
    write_slice(consortium, hostile, size, overspent(consortium, hostile) + b"\n")
    assert reports(consortium, 1) == {site: report for site, report in honest.items() if site != hostile}
    for other in close(consortium, hostile, None):
        other.witness()
    failed = failures(consortium, prepared)
    assert set(failed) >= {"C10", "C11", "C25", "C26"}
    assert {f.place for f in failed["C26"].findings} == {f"ledger of {hostile}"}
    assert {f.place for f in failed["C10"].findings} == {f"ledger of {hostile}"}
    assert f"Entry {size} of {hostile}'s log" in failed["C10"].findings[0].reason


def test_a_slice_beyond_a_gap_is_not_read(consortium: EmbeddedConsortium, outcome: RoundOutcome, hostile: str) -> None:
    honest = reports(consortium, 1)
    write_slice(consortium, hostile, 999_999, overspent(consortium, hostile) + b"\n")
    write_slice(consortium, hostile, 999_998, b"nonsense\n")
    assert reports(consortium, 1) == honest
    assert set(honest) == {site.name for site in consortium.plan.contributors}


def test_an_entry_that_is_repeated_out_of_its_place_is_not_reported_as_truth(
    consortium: EmbeddedConsortium, outcome: RoundOutcome, hostile: str
) -> None:
    ledger = consortium.sites[hostile].ledger
    honest, size = reports(consortium, 1), consortium.sites[hostile].publish_ledger().size
    charge = ledger.find(consortium.plan.study, "privacy-reserved")[-1]
    write_slice(consortium, hostile, size, (ledger.entries()[charge.sequence] + b"\n") * 50)
    assert reports(consortium, 1) == {site: report for site, report in honest.items() if site != hostile}
    checkpoint = Checkpoint(owner=hostile, position=LogPosition(size=size + 1, root="ab" * 32))
    signed = sign_envelope(checkpoint, consortium.plan.study, consortium.sites[hostile].home.identity.signing)
    write(consortium, ledger_key(consortium.plan.study, hostile, False, "checkpoint.json"), signed)
    other = SiteRelease(next(context for name, context in consortium.sites.items() if name != hostile))
    with pytest.raises(PeerError, match=f"its log does not verify: Entry {size} of {hostile}'s log: it says") as caught:
        other.verify_log(hostile, consortium.plan.site(hostile).identity_key, coordinator=False)
    assert caught.value.code == "log-forked"


def test_a_checkpoint_that_does_not_fit_its_log_keeps_nobody_from_witnessing_and_the_audit_names_its_owner(
    prepared: Prepared, consortium: EmbeddedConsortium, outcome: RoundOutcome, hostile: str
) -> None:
    size = consortium.sites[hostile].publish_ledger().size
    checkpoint = Checkpoint(owner=hostile, position=LogPosition(size=size, root="ab" * 32))
    signing = consortium.sites[hostile].home.identity.signing
    others = close(consortium, hostile, sign_envelope(checkpoint, consortium.plan.study, signing))
    for other in others:
        other.witness()
    failed = failures(consortium, prepared)
    assert "C11" in failed
    assert {f.place for result in failed.values() for f in result.findings} == {f"ledger of {hostile}"}


def test_entries_after_a_listed_checkpoint_keep_nobody_from_witnessing(
    prepared: Prepared, consortium: EmbeddedConsortium, outcome: RoundOutcome, hostile: str
) -> None:
    size = consortium.sites[hostile].publish_ledger().size
    checkpoint = consortium.sites[hostile].ledger.sign_checkpoint(consortium.plan.study)
    others = close(consortium, hostile, checkpoint)
    write_slice(consortium, hostile, size, b"nonsense\n")
    for other in others:
        other.witness()
    failed = failures(consortium, prepared)
    assert {f.place for f in failed["C11"].findings} == {f"ledger of {hostile}"}
