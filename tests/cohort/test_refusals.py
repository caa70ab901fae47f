"""A table that does not fit costs nothing: the refusal says which rules and no more, and the round goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from flows.round_steps import RoundSteps
from infra.embedded import EmbeddedConsortium, contribute
from schemas.contract import ContractViolation
from schemas.envelope import open_envelope
from schemas.errors import SiteDataError
from schemas.messages import Refusal
from site_agents.round import SiteRound
from tasks.ledger.budget import budget_state
from tests.simulator import Prepared, change_settings, copy_study, open_consortium

SECRET = 987654.25
Change = Callable[[pa.Table], pa.Table]


@pytest.fixture
def prepared(study_after_ceremony: Prepared, tmp_path: Path) -> Prepared:
    return copy_study(study_after_ceremony, tmp_path / "study")


def with_first(name: str, value: object) -> Change:
    def change(table: pa.Table) -> pa.Table:
        values = [value, *table.column(name).to_pylist()[1:]]
        return table.set_column(table.column_names.index(name), name, pa.array(values, table.schema.field(name).type))

    return change


def as_text(name: str) -> Change:
    def change(table: pa.Table) -> pa.Table:
        values = pa.array([f"about {value}" for value in table.column(name).to_pylist()])
        return table.set_column(table.column_names.index(name), name, values)

    return change


def bad_tables(prepared: Prepared) -> dict[str, Change]:
    contract = prepared.plan.contract
    number = next(c.name for c in contract.features if c.kind == "number")
    patient, label = (contract.column_with_role(role) for role in ("patient_id", "label"))
    assert patient is not None
    assert label is not None
    return {
        f"present:{number}": lambda table: table.drop_columns([number]),
        f"type:{number}": as_text(number),
        f"range:{number}": with_first(number, SECRET),
        f"complete:{label.name}": with_first(label.name, None),
        f"complete:{patient.name}": with_first(patient.name, None),
        f"unique:{patient.name}": lambda table: pa.concat_tables([table, table.slice(3, 1)]),
        "cohort:rows": lambda table: table.slice(0, 0),
    }


def rewrite(prepared: Prepared, site: str, change: Change) -> Path:
    path = prepared.workdir.site(site) / "cohort.parquet"
    table = pq.read_table(path)
    pq.write_table(change(table), path)
    return path


def refusal_of(consortium: EmbeddedConsortium, site: str) -> tuple[Refusal, bytes]:
    work = SiteRound(consortium.sites[site], 1, 1)
    data = consortium.sites[site].outbox.stored(work.mine("refusal.json"))
    assert data is not None
    entry = consortium.plan.site(site)
    return open_envelope(Refusal, data, consortium.plan.study, entry.identity_key, site), data


def assert_nothing_was_charged(consortium: EmbeddedConsortium, site: str) -> None:
    ledger = consortium.sites[site].ledger
    assert ledger.find(consortium.plan.study, "privacy-reserved") == []
    assert budget_state(ledger).training.spent == "0"
    assert consortium.sites[site].outbox.stored(f"private/{consortium.plan.study}/values-0001") is None


def test_every_site_with_a_bad_table_refuses_by_rule_and_is_charged_nothing(prepared: Prepared) -> None:
    site = prepared.plan.sites[0].name
    path = prepared.workdir.site(site) / "cohort.parquet"
    good = path.read_bytes()
    consortium = open_consortium(prepared)
    RoundSteps(consortium.coordinator, consortium.finished_ceremony(), consortium.lineage, 1, "train").issue()
    work = SiteRound(consortium.sites[site], 1, 1)
    from site_agents.contributing import Contributing

    work.read()
    for rule, change in bad_tables(prepared).items():
        path.write_bytes(good)
        rewrite(prepared, site, change)
        with pytest.raises(ContractViolation) as caught:
            Contributing(work).validate()
        assert f"{rule} (" in caught.value.message
        assert "987654" not in str(caught.value)
        assert rule in [r.rule for r in caught.value.verdict.rules if not r.passed]
        assert_nothing_was_charged(consortium, site)
    path.write_bytes(good)
    assert Contributing(work).validate().passed


def test_the_refusal_carries_rules_and_no_value_and_the_round_goes_on_without_the_site(prepared: Prepared) -> None:
    site = prepared.plan.sites[0].name
    number = next(c.name for c in prepared.plan.contract.features if c.kind == "number")
    rewrite(prepared, site, with_first(number, SECRET))
    consortium = open_consortium(prepared)
    outcome = consortium.run_round(consortium.finished_ceremony(), 1)
    assert outcome.record.predicate.dropped == ((site, "refused"),)
    assert len(outcome.record.predicate.contributions) == len(prepared.plan.sites) - 1
    refusal, data = refusal_of(consortium, site)
    assert (refusal.code, refusal.detail) == ("contract-violated", "")
    assert refusal.verdict is not None
    assert [r.rule for r in refusal.verdict.rules if not r.passed] == [f"range:{number}"]
    assert b"987654" not in data
    assert_nothing_was_charged(consortium, site)


def test_a_mapped_csv_trains_like_the_table_it_came_from(prepared: Prepared) -> None:
    site = prepared.plan.sites[0].name
    path = prepared.workdir.site(site) / "cohort.parquet"
    table = pq.read_table(path)
    number = next(c.name for c in prepared.plan.contract.features if c.kind == "number")
    csv.write_csv(table.rename_columns([f"X {name}" for name in table.column_names]), path.with_name("ward.csv"))
    lines = "".join(f"  {name}: {{from: X {name}}}\n" for name in table.column_names if name != number)
    mapping = path.with_name("mapping.yaml")
    mapping.write_text(f"columns:\n{lines}  {number}: {{from: X {number}, missing: [-1]}}\n")
    home = prepared.workdir.site(site)
    change_settings(home, data=str(path.with_name("ward.csv")), mapping=str(mapping))
    consortium = open_consortium(prepared)
    RoundSteps(consortium.coordinator, consortium.finished_ceremony(), consortium.lineage, 1, "train").issue()
    assert contribute(SiteRound(consortium.sites[site], 1, 1)) is None
    from site_agents.cohort.reader import LocalData, read_table
    from tasks.contract.encoder import encode_features

    contract = prepared.plan.contract
    mapped = encode_features(contract, read_table(LocalData(str(path.with_name("ward.csv")), str(mapping)), contract))
    assert mapped.features.tolist() == encode_features(contract, table).features.tolist()


def test_a_mapping_that_feeds_the_outcome_to_a_feature_is_refused_and_free(prepared: Prepared) -> None:
    site = prepared.plan.sites[0].name
    number = next(c.name for c in prepared.plan.contract.features if c.kind == "number")
    label = prepared.plan.contract.column_with_role("label")
    assert label is not None
    home = prepared.workdir.site(site)
    (home / "mapping.yaml").write_text(f"columns:\n  {number}: {label.name}\n")
    change_settings(home, mapping=str(home / "mapping.yaml"))
    consortium = open_consortium(prepared)
    RoundSteps(consortium.coordinator, consortium.finished_ceremony(), consortium.lineage, 1, "train").issue()
    error = contribute(SiteRound(consortium.sites[site], 1, 1))
    assert isinstance(error, SiteDataError)
    assert error.code == "label-leak"
    assert_nothing_was_charged(consortium, site)
