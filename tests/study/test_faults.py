"""What a study does when somebody drops out, lies, replays, or runs out of budget. State is looked at afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.opening_steps import OpeningSteps
from flows.round_steps import Answers, BudgetExhausted, RoundSteps
from infra.embedded import EmbeddedConsortium, Faults, contribute
from schemas.canonical import canonical_bytes, sha256_hex
from schemas.envelope import sign_envelope
from schemas.errors import BudgetError, OperationError, PeerError, PlanError, SiteDataError
from schemas.layout import attempt_key, plan_key, round_key
from schemas.messages import Instruction, Record, ShareRequest
from site_agents.certifying import Certifying
from site_agents.context import open_context
from site_agents.contributing import Contributing
from site_agents.home import exclusive, open_home
from site_agents.round import SiteRound
from tasks.audit.keys import read_public_keys
from tasks.audit.verify import verify_evidence
from tasks.rounds import read_instruction, read_record
from tasks.server_step import state_digest
from tests.simulator import Prepared, change_settings, copy_study, open_consortium, prepare


@pytest.fixture
def prepared(study_after_ceremony: Prepared, tmp_path: Path) -> Prepared:
    return copy_study(study_after_ceremony, tmp_path / "study")


@pytest.fixture
def consortium(prepared: Prepared) -> EmbeddedConsortium:
    return open_consortium(prepared)


def first_site(consortium: EmbeddedConsortium) -> str:
    return consortium.plan.sites[0].name


def kinds(consortium: EmbeddedConsortium, site: str) -> list[str]:
    return [entry.body.kind for entry in consortium.sites[site].ledger.entries_for(consortium.plan.study)]


def spent(consortium: EmbeddedConsortium, site: str) -> int:
    return kinds(consortium, site).count("privacy-reserved")


def forge_instruction(consortium: EmbeddedConsortium, instruction: Instruction, replace_stored: bool = True) -> None:
    """Publishes another instruction, correctly signed, over the stored one (a store owner can do that)."""
    key = attempt_key(consortium.plan.study, instruction.round, instruction.attempt, None, "instruction.json")
    path = Path(consortium.coordinator.settings.store) / key
    path.parent.mkdir(parents=True, exist_ok=True)
    if replace_stored:
        path.unlink(missing_ok=True)
    path.write_bytes(sign_envelope(instruction, consortium.plan.study, consortium.coordinator.identity.signing))


def test_a_table_that_violates_the_contract_is_refused_before_anything_is_reserved_and_the_round_goes_on(
    prepared: Prepared,
) -> None:
    consortium = open_consortium(prepared)
    public = consortium.finished_ceremony()
    site = first_site(consortium)
    data = prepared.workdir.site(site) / "cohort.parquet"
    table = pq.read_table(data)
    feature = prepared.plan.contract.features[0].name
    pq.write_table(table.drop_columns([feature]), data)

    outcome = consortium.run_round(public, 1)

    record = outcome.record.predicate
    assert (site, "refused") in record.dropped
    assert len(record.contributions) == 4
    assert "refused" in kinds(consortium, site)
    assert spent(consortium, site) == 0


def test_a_budget_that_would_be_exceeded_is_refused_with_requested_spent_and_limit(prepared: Prepared) -> None:
    site = prepared.plan.sites[0].name
    change_settings(prepared.workdir.site(site), epsilon="0.1")
    consortium = open_consortium(prepared)
    public = consortium.finished_ceremony()
    steps = RoundSteps(consortium.coordinator, public, consortium.lineage, 1, "train")
    steps.issue()
    work = SiteRound(consortium.sites[site], 1, 1)

    error = contribute(work)

    assert isinstance(error, BudgetError)
    assert error.code == "budget-exceeded"
    for word in ("requested", "spent", "limit"):
        assert word in str(error)
    assert spent(consortium, site) == 0


def test_a_study_whose_sites_are_out_of_budget_ends_with_the_last_model(prepared: Prepared) -> None:
    for site in prepared.plan.sites[:3]:
        change_settings(prepared.workdir.site(site.name), epsilon="2.2")
    consortium = open_consortium(prepared)
    public = consortium.finished_ceremony()
    consortium.run_round(public, 1)
    before = state_digest(consortium.lineage.state)

    with pytest.raises(BudgetExhausted, match="budget is used up"):
        consortium.run_round(public, 2)

    evidence = consortium.release(1, None, "the privacy budget is used up")
    assert state_digest(consortium.lineage.state) == before
    report = verify_evidence(evidence, read_public_keys(prepared.keys))
    assert [result.check for result in report.results if result.status == "failed"] == []


def test_a_plan_changed_by_one_byte_is_refused(prepared: Prepared) -> None:
    path = prepared.workdir.store / plan_key(prepared.plan.study)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    home = open_home(prepared.workdir.site(prepared.plan.sites[0].name))

    with pytest.raises(PeerError, match="not those that this site approved") as caught:
        open_context(home, prepared.plan.study)
    assert caught.value.code == "plan-changed"


def test_a_plan_that_this_site_never_approved_is_refused(prepared: Prepared) -> None:
    site = prepared.plan.sites[0].name
    change_settings(prepared.workdir.site(site), studies=[])
    with pytest.raises(PlanError, match="not approved"):
        open_context(open_home(prepared.workdir.site(site)), prepared.plan.study)


def test_an_unsigned_instruction_is_refused_and_nothing_is_spent(consortium: EmbeddedConsortium) -> None:
    public = consortium.finished_ceremony()
    RoundSteps(consortium.coordinator, public, consortium.lineage, 1, "train").issue()
    site = first_site(consortium)
    key = attempt_key(consortium.plan.study, 1, 1, None, "instruction.json")
    path = Path(consortium.coordinator.settings.store) / key
    stranger = consortium.sites[consortium.plan.sites[1].name].home.identity.signing
    real = read_instruction(consortium.coordinator.store, consortium.plan, 1, 1)
    assert real is not None
    path.unlink()
    path.write_bytes(sign_envelope(real.predicate, consortium.plan.study, stranger))

    error = contribute(SiteRound(consortium.sites[site], 1, 1))

    assert isinstance(error, PeerError)
    assert error.code == "bad-signature"
    assert spent(consortium, site) == 0


def test_a_replayed_instruction_returns_the_stored_bytes_and_spends_nothing(consortium: EmbeddedConsortium) -> None:
    public = consortium.finished_ceremony()
    consortium.run_round(public, 1)
    site = first_site(consortium)
    folder = Path(consortium.coordinator.settings.store) / "sites" / site / consortium.plan.study / "round-0001"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    reserved = spent(consortium, site)
    shutil.rmtree(folder)

    again = SiteRound(consortium.sites[site], 1, 1)
    assert contribute(again) is None
    holder = Certifying(again)
    holder.check_shares()
    holder.certify()
    holder.share()

    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert spent(consortium, site) == reserved


def test_an_instruction_for_a_model_that_does_not_follow_is_refused(consortium: EmbeddedConsortium) -> None:
    public = consortium.finished_ceremony()
    steps = RoundSteps(consortium.coordinator, public, consortium.lineage, 1, "train")
    real = steps.issue().predicate
    forge_instruction(consortium, real.model_copy(update={"model": "ab" * 32}))
    site = first_site(consortium)

    error = contribute(SiteRound(consortium.sites[site], 1, 1))

    assert error is not None
    assert error.code == "wrong-model"
    assert spent(consortium, site) == 0


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"participants": ("hospital-a",)}, "not-a-participant"),
        ({"length": 7}, "wrong-length"),
        ({"kind": "evaluate"}, "wrong-length"),
        ({"round": 99}, "wrong-round"),
    ],
)
def test_an_instruction_that_the_plan_does_not_foresee_is_refused(
    consortium: EmbeddedConsortium, change: dict[str, object], code: str
) -> None:
    public = consortium.finished_ceremony()
    real = RoundSteps(consortium.coordinator, public, consortium.lineage, 1, "train").issue().predicate
    forged = real.model_copy(update=change)
    key = attempt_key(consortium.plan.study, 1, 1, None, "instruction.json")
    path = Path(consortium.coordinator.settings.store) / key
    path.unlink()
    path.write_bytes(sign_envelope(forged, consortium.plan.study, consortium.coordinator.identity.signing))
    site = first_site(consortium)

    error = contribute(SiteRound(consortium.sites[site], 1, 1))

    assert error is not None
    assert error.code == code
    assert spent(consortium, site) == 0


def collected_round(consortium: EmbeddedConsortium) -> tuple[RoundSteps, Answers, Record]:
    public = consortium.finished_ceremony()
    steps = RoundSteps(consortium.coordinator, public, consortium.lineage, 1, "train")
    instruction = steps.issue()
    for context in consortium.sites.values():
        assert contribute(SiteRound(context, 1, 1)) is None
    answers = Answers()
    steps.collect(instruction, answers)
    collected = steps.close(instruction, answers)
    for context in consortium.sites.values():
        Certifying(SiteRound(context, 1, 1)).check_shares()
    record = OpeningSteps(steps).propose(instruction, answers, collected, steps.read_checks(collected))
    return steps, answers, record.predicate


def publish_record(consortium: EmbeddedConsortium, record: Record) -> None:
    path = Path(consortium.coordinator.settings.store) / round_key(consortium.plan.study, 1, None, "record.json")
    path.unlink()
    path.write_bytes(sign_envelope(record, consortium.plan.study, consortium.coordinator.identity.signing))


def test_a_request_to_certify_a_single_sites_contribution_is_refused(consortium: EmbeddedConsortium) -> None:
    _, _, record = collected_round(consortium)
    first, *others = record.contributions
    dropped = tuple((site, "silent") for site, _ in others)
    publish_record(consortium, record.model_copy(update={"contributions": (first,), "dropped": dropped}))
    holder = Certifying(SiteRound(consortium.sites[consortium.plan.sites[1].name], 1, 1))

    with pytest.raises(PeerError, match="fewer contributions than k_min") as caught:
        holder.certify()
    assert caught.value.code == "below-k-min"
    assert "record-signed" not in kinds(consortium, consortium.plan.sites[1].name)


def test_a_second_record_for_a_round_is_refused_even_after_a_restart(
    prepared: Prepared, consortium: EmbeddedConsortium
) -> None:
    _, _, record = collected_round(consortium)
    site = consortium.plan.sites[1].name
    Certifying(SiteRound(consortium.sites[site], 1, 1)).certify()
    last = record.contributions[-1][0]
    smaller = record.model_copy(update={"contributions": record.contributions[:-1], "dropped": ((last, "silent"),)})
    publish_record(consortium, smaller)

    restarted = open_consortium(prepared)
    with pytest.raises(PeerError, match="second record was proposed for round 1") as caught:
        Certifying(SiteRound(restarted.sites[site], 1, 1)).certify()
    assert caught.value.code == "second-record"
    assert kinds(restarted, site).count("record-signed") == 1


def test_no_share_leaves_before_a_certificate(consortium: EmbeddedConsortium) -> None:
    steps, _, _ = collected_round(consortium)
    record = read_record(consortium.coordinator.store, consortium.plan, 1)
    assert record is not None
    holders = [site.name for site in consortium.plan.key_holders][:3]
    request = ShareRequest(
        sid_star=steps.public.sid_star,
        round=1,
        record=record.digest,
        certificate=(),
        active_set=tuple(holders),
        number=1,
    )
    consortium.coordinator.store.put(
        round_key(consortium.plan.study, 1, None, "request-1.json"),
        sign_envelope(request, consortium.plan.study, consortium.coordinator.identity.signing),
    )

    with pytest.raises(PeerError, match="fewer signatures than the quorum Q") as caught:
        Certifying(SiteRound(consortium.sites[holders[0]], 1, 1)).share()
    assert caught.value.code == "certificate"
    assert "share-released" not in kinds(consortium, holders[0])


def test_a_site_that_is_silent_in_training_is_dropped_and_recorded(consortium: EmbeddedConsortium) -> None:
    public = consortium.finished_ceremony()
    site = first_site(consortium)
    outcome = consortium.run_round(public, 1, faults=Faults(silent=[site]))
    assert outcome.record.predicate.dropped == ((site, "silent"),)
    assert spent(consortium, site) == 0


def test_a_holder_that_is_gone_at_decryption_is_replaced_by_another_active_set(consortium: EmbeddedConsortium) -> None:
    public = consortium.finished_ceremony()
    unwilling = first_site(consortium)
    outcome = consortium.run_round(public, 1, faults=Faults(unwilling=[unwilling]))
    assert unwilling not in [holder for holder, _ in outcome.opening.predicate.shares]
    assert len(outcome.record.predicate.contributions) == 5


def test_too_few_contributions_stop_the_round_and_name_who_is_missing(consortium: EmbeddedConsortium) -> None:
    public = consortium.finished_ceremony()
    silent = [site.name for site in consortium.plan.sites[:2]]
    with pytest.raises(OperationError, match="k_min = 4") as caught:
        consortium.run_round(public, 1, faults=Faults(silent=silent))
    for name in silent:
        assert name in str(caught.value)
    assert read_record(consortium.coordinator.store, consortium.plan, 1) is None


def test_two_agents_on_one_folder_are_refused(prepared: Prepared) -> None:
    home = open_home(prepared.workdir.site(prepared.plan.sites[0].name))
    with exclusive(home), pytest.raises(OperationError, match="already runs on this folder"), exclusive(home):
        pass


def test_a_site_that_lost_its_epoch_secrets_says_so_and_neither_signs_nor_contributes(
    prepared: Prepared, consortium: EmbeddedConsortium
) -> None:
    public = consortium.finished_ceremony()
    RoundSteps(consortium.coordinator, public, consortium.lineage, 1, "train").issue()
    site = first_site(consortium)
    shutil.rmtree(prepared.workdir.root / "memory" / site)
    restarted = open_consortium(prepared)

    error = contribute(SiteRound(restarted.sites[site], 1, 1))

    assert isinstance(error, OperationError)
    assert error.code == "epoch-lost"
    assert spent(restarted, site) == 0


def test_a_resumed_study_gives_the_same_model_as_an_uninterrupted_one_with_the_same_noise(tmp_path: Path) -> None:
    prepared = prepare(tmp_path / "one", rounds=3)
    other = copy_study(prepared, tmp_path / "two")
    straight = open_consortium(prepared, insecure_recorded_noise=True)
    straight.run_study()

    broken = open_consortium(other, insecure_recorded_noise=True)
    public = broken.run_ceremony()
    broken.run_round(public, 1)
    steps = RoundSteps(broken.coordinator, public, broken.lineage, 2, "train")
    steps.issue()
    for context in list(broken.sites.values())[:2]:
        contribute(SiteRound(context, 2, 1))

    resumed = open_consortium(other, insecure_recorded_noise=True)
    for round_ in (1, 2, 3):
        resumed.run_round(public, round_)
    resumed.run_round(public, 4, "evaluate")

    assert state_digest(resumed.lineage.state) == state_digest(straight.lineage.state)
    assert all(spent(resumed, site.name) == 4 for site in prepared.plan.sites)


def test_the_contract_error_names_rule_and_column_but_no_value(prepared: Prepared) -> None:
    consortium = open_consortium(prepared)
    public = consortium.finished_ceremony()
    RoundSteps(consortium.coordinator, public, consortium.lineage, 1, "train").issue()
    site = first_site(consortium)
    data = prepared.workdir.site(site) / "cohort.parquet"
    table = pq.read_table(data)
    feature = prepared.plan.contract.features[0].name
    position = table.column_names.index(feature)
    planted = pa.array([987654.25, *table.column(feature).to_pylist()[1:]])
    pq.write_table(table.set_column(position, feature, planted), data)

    contributing = Contributing(SiteRound(consortium.sites[site], 1, 1))
    with pytest.raises(SiteDataError, match=feature) as caught:
        contributing.validate()
    assert "987654" not in str(caught.value)


def test_the_study_id_is_the_digest_of_the_plan(prepared: Prepared) -> None:
    assert prepared.plan.study == sha256_hex(canonical_bytes(prepared.plan))


def test_a_site_that_declared_the_wrong_size_refuses_before_it_is_charged(
    prepared: Prepared, consortium: EmbeddedConsortium
) -> None:
    public = consortium.finished_ceremony()
    RoundSteps(consortium.coordinator, public, consortium.lineage, 1, "train").issue()
    site = first_site(consortium)
    data = prepared.workdir.site(site) / "cohort.parquet"
    table = pq.read_table(data)
    identifier = prepared.plan.contract.column_with_role("patient_id")
    assert identifier is not None
    position = table.column_names.index(identifier.name)
    copies = [
        table.set_column(position, identifier.name, pa.array([f"copy-{k}-{i}" for i in range(table.num_rows)]))
        for k in range(4)
    ]
    pq.write_table(pa.concat_tables(copies).cast(table.schema), data)

    error = contribute(SiteRound(consortium.sites[site], 1, 1))

    assert isinstance(error, SiteDataError)
    assert error.code == "cohort-size"
    assert str(4 * table.num_rows) not in str(error)
    assert spent(consortium, site) == 0


def test_a_ledger_restored_from_a_backup_is_refused(prepared: Prepared, consortium: EmbeddedConsortium) -> None:
    public = consortium.finished_ceremony()
    site = first_site(consortium)
    home = prepared.workdir.site(site)
    backup = (home / "ledger.sqlite").read_bytes()
    consortium.run_round(public, 1)
    for path in home.glob("ledger.sqlite*"):
        path.unlink()
    (home / "ledger.sqlite").write_bytes(backup)

    with pytest.raises(OperationError, match="shorter than what this site has published"):
        open_context(open_home(home), prepared.plan.study)
