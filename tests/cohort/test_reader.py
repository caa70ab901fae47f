"""The reader takes the contract's columns from Parquet or CSV, and refuses other files without quoting them."""

from __future__ import annotations

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from schemas.errors import SiteDataError
from site_agents.cohort.reader import read_table
from tasks.contract.encoder import encode_features
from tasks.contract.suite import check_table
from tests.contract.tables import clinic_contract, clinic_table


def test_parquet_and_csv_of_the_same_cohort_encode_alike(tmp_path):
    contract = clinic_contract()
    pq.write_table(clinic_table(), tmp_path / "a.parquet")
    csv.write_csv(clinic_table(), tmp_path / "a.csv")
    cohorts = []
    for name in ("a.parquet", "a.csv"):
        table = read_table(tmp_path / name, contract)
        assert check_table(contract, table).passed
        cohorts.append(encode_features(contract, table))
    assert cohorts[0].features.tolist() == cohorts[1].features.tolist()
    assert cohorts[0].labels.tolist() == cohorts[1].labels.tolist()


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_columns_outside_the_contract_are_not_read(tmp_path, suffix):
    table = clinic_table(name=["Ann", "Bob", "Cem", "Dia"])
    path = tmp_path / f"a.{suffix}"
    pq.write_table(table, path) if suffix == "parquet" else csv.write_csv(table, path)
    assert set(read_table(path, clinic_contract()).column_names) == {c.name for c in clinic_contract().columns}


def test_csv_field_of_another_type_reaches_the_check_and_fails_there_by_name(tmp_path):
    path = tmp_path / "a.csv"
    csv.write_csv(clinic_table(age=["60", "0", "secret-age", "30"]), path)
    verdict = check_table(clinic_contract(), read_table(path, clinic_contract()))
    assert "type:age" in [r.rule for r in verdict.rules if not r.passed]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_missing_column_is_the_checks_to_report(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    table = clinic_table(age=None)
    pq.write_table(table, path) if suffix == "parquet" else csv.write_csv(table, path)
    verdict = check_table(clinic_contract(), read_table(path, clinic_contract()))
    assert "present:age" in [r.rule for r in verdict.rules if not r.passed]


def test_column_named_twice_is_not_guessed(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("patient_id,died,held_out,age,age,chol,smoker,rhythm\np1,true,false,1,2,100,true,af\n")
    verdict = check_table(clinic_contract(), read_table(path, clinic_contract()))
    assert "present:age" in [r.rule for r in verdict.rules if not r.passed]


def test_absent_file_names_the_remedy(tmp_path):
    with pytest.raises(SiteDataError, match=r"Expected the site's table at none\.parquet") as caught:
        read_table(tmp_path / "none.parquet", clinic_contract())
    assert caught.value.code == "data-missing"
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b"patient_id,died\nsecret-row,true\n"),
        ("a.csv", b"patient_id,died\nsecret-row,true,surplus\n"),
        ("a.csv", b""),
        ("a.csv", b"PAR1\x00\xff\xfe\x00secret-row"),
        ("a.xlsx", b"secret-row"),
    ],
)
def test_file_that_is_not_what_its_name_says_is_refused_without_quoting_it(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SiteDataError, match=r"Export the table again|Convert the table") as caught:
        read_table(tmp_path / name, clinic_contract())
    assert caught.value.code == "data-format"
    assert "secret-row" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_the_stewards_to_correct(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(clinic_table(), path)
    path.chmod(0)
    with pytest.raises(SiteDataError, match="cannot be read"):
        read_table(path, clinic_contract())


def test_one_bad_row_at_the_end_of_a_csv_is_found(tmp_path):
    path = tmp_path / "a.csv"
    csv.write_csv(pa.concat_tables([clinic_table()] * 3), path)
    with path.open("a") as out:
        out.write("p9,true,false,200,100,true,af\n")
    verdict = check_table(clinic_contract("many"), read_table(path, clinic_contract()))
    assert [r.rule for r in verdict.rules if not r.passed] == ["range:age"]
