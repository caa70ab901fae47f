"""A remembered verdict is about bytes: another file, another content or another contract is judged anew."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from infra.datasets import contract_for, load_site_tables, write_site_tables
from schemas.errors import SiteDataError
from site_agents.cohort import checking
from site_agents.cohort.checking import check_cohort


@pytest.fixture
def table(tmp_path: Path) -> Path:
    tables = load_site_tables("breast-cancer", 4)[:1]
    (tmp_path / tables[0].site).mkdir()
    return write_site_tables(tables, lambda site: tmp_path / site)[tables[0].site]


def test_an_unchanged_file_gets_the_same_verdict_without_a_second_check(table: Path) -> None:
    contract = contract_for("breast-cancer")
    checking._VERDICTS.clear()
    first = check_cohort(table, contract)
    assert first.verdict.passed
    assert first.patients == pq.read_table(table).num_rows
    assert check_cohort(table, contract) is first


def test_a_changed_file_is_checked_again_and_a_refusal_is_never_remembered(table: Path) -> None:
    contract = contract_for("breast-cancer")
    good = table.read_bytes()
    first = check_cohort(table, contract)
    broken = pq.read_table(table).drop_columns([contract.features[0].name])
    pq.write_table(broken, table)
    for _ in range(2):
        with pytest.raises(SiteDataError, match="contract"):
            check_cohort(table, contract)
    table.write_bytes(good)
    assert check_cohort(table, contract) == first


def test_another_contract_judges_the_same_bytes_anew(table: Path) -> None:
    contract = contract_for("breast-cancer")
    check_cohort(table, contract)
    narrow = contract.columns[-1].model_copy(update={"minimum": "0", "maximum": "0.0001"})
    stricter = contract.model_copy(update={"columns": (*contract.columns[:-1], narrow)})
    with pytest.raises(SiteDataError, match="range"):
        check_cohort(table, stricter)


def test_memory_is_bounded(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "_REMEMBERED", 1)
    contract = contract_for("breast-cancer")
    check_cohort(table, contract)
    check_cohort(table, contract.model_copy(update={"version": "2"}))
    assert len(checking._VERDICTS) == 1


def test_what_is_no_file_is_left_to_the_reader_to_name(tmp_path: Path) -> None:
    with pytest.raises(SiteDataError, match="Expected the site's table") as refused:
        check_cohort(tmp_path / "cohort.parquet", contract_for("breast-cancer"))
    assert refused.value.code == "data-missing"
