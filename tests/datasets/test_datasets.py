"""The demo's data: dealt by the stated rule, contracts that the data meet, files believed only by their hash."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra import datasets_uci_heart
from infra.datasets import (
    DATA_SETS,
    attribution,
    central_dp_auc,
    contract_for,
    demo_plan_parts,
    exact_held_out_auc,
    load_site_tables,
    read_cohorts,
    write_site_tables,
)
from infra.datasets_tables import SiteTable
from schemas.canonical import digest_of
from schemas.errors import OperationError, SiteDataError
from schemas.plan import feature_count, update_length
from schemas.threshold import default_threshold
from tasks.contract.encoder import encode_features
from tasks.privacy.accounting import gdp_limit
from tasks.privacy.mechanism import evaluation_mechanism, training_mechanism, verify_plan_within_budget
from tasks.privacy.noise import AesCtrStream
from tasks.server_step import apply_step, initial_state, released_weights
from tasks.training.train import train_sum
from tests.training.plans import make_plan

# Generated rows in the format of the original files; no real row.
HEART = {
    "cleveland": "50.0,1.0,4.0,0,200.0,0.0,0.0,150.0,0.0,1.0,2.0,0.0,3.0,1\n41.0,0.0,1.0,120.0,0,?,1.0,?,?,?,?,?,?,0\n",
    "hungarian": "30,0,2,130,240,0,0,170,0,0,?,?,?,0\n31,1,3,131,?,0,1,171,1,0,1,?,7,4\n",
    "switzerland": "60,1,4,110,0,?,1,100,1,-1.5,3,?,6,2\n",
    "va": "70,1,4,140,0,1,2,90,1,2.5,2,?,?,3\n",
}


@pytest.fixture
def heart_dir(tmp_path, monkeypatch):
    """Four generated files, and the loader pinned to their hashes."""
    folder = tmp_path / "heart"
    folder.mkdir()
    pins = {}
    for site, (stem, _) in datasets_uci_heart._HOSPITALS.items():
        (folder / f"processed.{stem}.data").write_text(HEART[stem])
        pins[site] = (stem, hashlib.sha256(HEART[stem].encode()).hexdigest())
    monkeypatch.setattr(datasets_uci_heart, "_HOSPITALS", pins)
    return folder


def rows_of(tables):
    return {row["patient_id"]: row for t in tables for row in t.table.to_pylist()}


def plan_for(data, tables, rounds=10, epsilon="3"):
    """A plan of four toy sites with the data set's parts (identities do not matter here)."""
    parts = demo_plan_parts(data, len(tables), rounds, epsilon)
    changes = {name: getattr(parts, name) for name in ("contract", "model", "mechanism", "optimizer", "evaluation")}
    return make_plan().model_copy(update=changes | {"budget": parts.budget})


@pytest.mark.parametrize("sites", [4, 5, 12, 32])
def test_every_patient_is_dealt_once_and_every_site_meets_the_contract_shape(sites):
    tables = load_site_tables("breast-cancer", sites)
    names = [t.site for t in tables]
    assert names == sorted(names)
    assert len(names) == sites
    sizes = [t.table.num_rows for t in tables]
    assert sum(sizes) == len(rows_of(tables)) == 569
    assert min(sizes) >= 9
    assert all(t.declared_patients >= t.table.num_rows and t.declared_patients % 10 == 0 for t in tables)


def test_hospitals_differ_in_size_and_in_outcome_rate():
    tables = load_site_tables("breast-cancer")
    sizes = [t.table.num_rows for t in tables]
    rates = [np.mean(t.table.column("malignant").to_pylist()) for t in tables]
    assert max(sizes) > 1.9 * min(sizes)
    assert max(rates) > 0.6
    assert min(rates) < 0.2


def test_split_is_stratified_public_and_the_same_for_any_number_of_hospitals():
    five, twelve = rows_of(load_site_tables("breast-cancer", 5)), rows_of(load_site_tables("breast-cancer", 12))
    assert five == twelve
    held = [row for row in five.values() if row["held_out"]]
    assert (sum(r["malignant"] for r in held), len(held)) == (42, 113)
    other = rows_of(load_site_tables("breast-cancer", 5, split_seed=1))
    assert {p for p, r in other.items() if r["held_out"]} != {p for p, r in five.items() if r["held_out"]}


def test_dealing_is_pinned():
    """Another deal is another demo: this digest changes only together with the rule in the module's text."""
    dealt = {t.site: t.table.column("patient_id").to_pylist() for t in load_site_tables("breast-cancer")}
    assert digest_of(dealt) == "1948142c592eb403259207ba963da52ee15cb2f8a2c43ad3ff30cb383e0ea0a4"


def test_breast_cancer_tables_pass_their_contract_after_a_round_trip(tmp_path):
    tables = load_site_tables("breast-cancer", 4)
    for table in tables:
        (tmp_path / table.site).mkdir()
    paths = write_site_tables(tables, lambda site: tmp_path / site)
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in paths.values())
    assert not list(tmp_path.rglob("*.partial"))
    cohorts = read_cohorts(contract_for("breast-cancer"), paths)
    assert [c.patient_count for c in cohorts] == [t.table.num_rows for t in tables]
    assert cohorts[0].features.shape[1] == feature_count(contract_for("breast-cancer")) == 30


def test_site_whose_table_breaks_the_contract_is_refused(tmp_path):
    tables = load_site_tables("breast-cancer", 4)
    broken = tables[0].table.to_pylist()
    broken[0]["mean_radius"] = 3000.0
    paths = write_site_tables([replace(tables[0], table=type(tables[0].table).from_pylist(broken))], lambda _: tmp_path)
    with pytest.raises(SiteDataError, match="range:mean_radius"):
        read_cohorts(contract_for("breast-cancer"), paths)


def test_heart_files_are_read_as_documented(heart_dir):
    rows = rows_of(load_site_tables("uci-heart", data_dir=heart_dir))
    first = rows["cleveland-0001"]
    assert (first["trestbps"], first["chol"], first["cp"], first["thal"]) == (None, 200.0, "asymptomatic", "normal")
    assert (first["sex"], first["exang"], first["diseased"]) == (True, False, True)
    second = rows["cleveland-0002"]
    assert [second[n] for n in ("chol", "fbs", "thalach", "slope", "ca")] == [None] * 5
    assert second["diseased"] is False
    assert rows["switzerland-0001"]["oldpeak"] == -1.5
    assert (rows["va-0001"]["restecg"], rows["va-0001"]["chol"]) == ("hypertrophy", None)
    assert [t.site for t in load_site_tables("uci-heart", 4, heart_dir)] == list(datasets_uci_heart._HOSPITALS)


def test_heart_tables_meet_their_contract(heart_dir, tmp_path):
    tables = load_site_tables("uci-heart", data_dir=heart_dir)
    for table in tables:
        (tmp_path / table.site).mkdir()
    cohorts = read_cohorts(contract_for("uci-heart"), write_site_tables(tables, lambda site: tmp_path / site))
    assert sum(c.patient_count for c in cohorts) == 6
    assert cohorts[0].features.shape[1] == feature_count(contract_for("uci-heart")) == 29


def test_missing_folder_or_file_names_the_four_files(tmp_path, heart_dir):
    with pytest.raises(OperationError, match=r"Expected processed\.cleveland\.data in the data folder"):
        load_site_tables("uci-heart", data_dir=tmp_path / "nowhere")
    (heart_dir / "processed.va.data").unlink()
    with pytest.raises(OperationError, match=r"Expected processed\.va\.data in the data folder"):
        load_site_tables("uci-heart", data_dir=heart_dir)


def test_altered_copy_is_refused_by_its_hash(heart_dir):
    path = heart_dir / "processed.hungarian.data"
    path.write_text(path.read_text().replace("?", "-9"))
    with pytest.raises(OperationError, match=r"processed\.hungarian\.data is not the original file") as caught:
        load_site_tables("uci-heart", data_dir=heart_dir)
    assert caught.value.code == "data-changed"


def test_download_that_fails_asks_for_the_folder(monkeypatch, tmp_path):
    import pooch

    def no_network(*_, **__):
        raise ConnectionError

    monkeypatch.setattr(pooch, "retrieve", no_network)
    with pytest.raises(OperationError, match="name their folder with --data-dir"):
        load_site_tables("uci-heart")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("other",), "Expected one of breast-cancer, uci-heart"),
        (("breast-cancer", 3), "Expected 4 to 32 sites, got 3"),
        (("breast-cancer", 33), "Expected 4 to 32 sites"),
        (("uci-heart", 5), "Expected the four hospitals"),
    ],
)
def test_wrong_request_names_the_remedy(arguments, match):
    with pytest.raises(OperationError, match=match):
        load_site_tables(*arguments)


def test_breast_cancer_takes_no_folder(tmp_path):
    with pytest.raises(OperationError, match="comes with scikit-learn"):
        load_site_tables("breast-cancer", data_dir=tmp_path)


@pytest.mark.parametrize("data", DATA_SETS)
@pytest.mark.parametrize(("epsilon", "rounds"), [("1", 5), ("3", 10), ("8", 20)])
def test_plan_parts_spend_the_budget_and_no_more(data, epsilon, rounds):
    plan = plan_for(data, range(4), rounds, epsilon)
    verify_plan_within_budget(plan)
    limit = float(gdp_limit(epsilon, "1e-5"))
    assert 0.999 * limit <= rounds / float(plan.mechanism.noise_multiplier) ** 2 <= limit
    assert 0.999 * limit <= 1 / float(plan.evaluation.noise_multiplier) ** 2 <= limit
    assert ("Open Database License (ODbL)" if data == "eicu-demo" else "CC BY 4.0") in attribution(data)


def test_demo_reaches_central_dp_and_097_on_the_fixed_split():
    """Five hospitals, two honest assumed, every share added: the claim of the README at epsilon 3."""
    tables = load_site_tables("breast-cancer")
    cohorts = [encode_features(contract_for("breast-cancer"), t.table) for t in tables]
    plan = plan_for("breast-cancer", tables).model_copy(update={"threshold": default_threshold(5)})
    found = [federated_auc(plan, cohorts, AesCtrStream(bytes([run]) * 32)) for run in range(3)]
    central = central_dp_auc(plan, cohorts, stream_factory=lambda: AesCtrStream(b"c" * 32))
    assert np.mean(found) >= 0.97
    assert np.mean(found) >= central - 0.006


def federated_auc(plan, cohorts, stream):
    """One study without encryption: every site's own sum and noise share, added exactly."""
    mechanism = training_mechanism(plan)
    state = initial_state(plan)
    for _ in range(plan.mechanism.rounds):
        shares = [mechanism.add_noise(train_sum(plan, c, state.weights), stream) for c in cohorts]
        state = apply_step(plan, state, np.sum(shares, axis=0))
    return exact_held_out_auc(plan, cohorts, released_weights(state))


def test_central_reference_has_the_noise_of_exactly_one_share():
    plan = plan_for("breast-cancer", range(4))
    mechanism = training_mechanism(plan)
    central = replace(mechanism, honest=1)
    expected = float(plan.mechanism.noise_multiplier) * mechanism.sensitivity
    assert float(central.local_sigma) == pytest.approx(expected, rel=1e-6)
    assert float(mechanism.local_sigma) == pytest.approx(expected / 2**0.5, rel=1e-6)
    noise = central.add_noise(np.zeros(update_length(plan), np.int64), AesCtrStream(b"k" * 32))
    assert np.abs(noise).max() < 6 * expected
    assert evaluation_mechanism(plan).dimension == 20


def test_unwritable_folder_is_the_operators_to_correct(tmp_path):
    table = load_site_tables("breast-cancer", 4)[0]
    with pytest.raises(OperationError, match="cannot be written"):
        write_site_tables([SiteTable("x", table.table, 10)], lambda _: tmp_path / "absent")


def test_written_table_is_parquet_with_the_contract_columns(tmp_path):
    table = load_site_tables("breast-cancer", 4)[0]
    path = write_site_tables([table], lambda _: tmp_path)[table.site]
    assert pq.read_schema(path).names == [c.name for c in contract_for("breast-cancer").columns]
