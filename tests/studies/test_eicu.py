"""The eICU loader: pinned files, -1 is missing, public ranges, one side of the split per patient."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra import datasets_eicu
from infra.datasets import attribution, contract_for, demo_plan_parts, load_site_tables
from schemas.errors import OperationError
from schemas.plan import feature_count
from tasks.contract.encoder import encode_features
from tasks.contract.suite import verify_table
from tests.studies.generated import HOSPITALS, sums_digest, write_eicu


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = write_eicu(tmp_path / "eicu")
    monkeypatch.setattr(datasets_eicu, "_SUMS_SHA256", sums_digest(made))
    return made


def test_every_hospital_is_a_site_and_every_stay_with_outcome_and_variables_a_row(folder: Path) -> None:
    tables = load_site_tables("eicu-demo", data_dir=folder)
    assert [table.site for table in tables] == [f"hospital-{number:03d}" for number in HOSPITALS]
    assert [table.table.num_rows for table in tables] == [32] * 4
    assert {table.declared_patients for table in tables} == {30}
    contract = contract_for("eicu-demo")
    assert contract.rows_per_patient == "many"
    verdict = verify_table(contract, tables[0].table)
    cohort = encode_features(contract, tables[0].table)
    assert verdict.passed
    assert cohort.patient_count == 24
    assert cohort.features.shape == (32, feature_count(contract))


def test_minus_one_is_missing_and_a_value_beyond_the_public_range_is_its_end(folder: Path) -> None:
    rows = [row for table in load_site_tables("eicu-demo", data_dir=folder) for row in table.table.to_pylist()]
    for number in datasets_eicu._NUMBERS:
        found = [row[number.name] for row in rows]
        present = [value for value in found if value is not None]
        assert min(present) >= float(number.low)
        assert max(present) <= float(number.high)
        assert -1 not in present
        assert number.name == "age" or None in found
    assert max(row["age"] for row in rows) == 90


def test_a_patient_is_on_one_side_of_the_split_in_all_stays_and_hospitals(folder: Path) -> None:
    splits = []
    for seed in range(12):
        sides: dict[str, set[bool]] = {}
        for table in load_site_tables("eicu-demo", data_dir=folder, split_seed=seed):
            for row in table.table.to_pylist():
                sides.setdefault(row["uniquepid"], set()).add(row["held_out"])
        assert all(len(side) == 1 for side in sides.values())
        held = {patient for patient, side in sides.items() if side == {True}}
        assert len(held) in (18, 19)  # A fifth of 95 patients, each stratum rounded down.
        splits.append(frozenset(held))
    assert len(set(splits)) == 12
    assert any("shared" in held for held in splits)


@pytest.mark.parametrize("name", ["SHA256SUMS", "patient.csv", "apacheapsvar.csv", "apachepredvar.csv"])
def test_a_changed_file_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).write_text((folder / name).read_text() + "\n")
    with pytest.raises(OperationError, match=f"{name} is not the file") as refused:
        load_site_tables("eicu-demo", data_dir=folder)
    assert refused.value.code == "data-changed"


def test_a_missing_folder_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="Expected SHA256SUMS in the data folder"):
        load_site_tables("eicu-demo", data_dir=tmp_path)
    with pytest.raises(OperationError, match="--data-dir"):
        load_site_tables("eicu-demo")


def test_figures_carry_licence_and_citation() -> None:
    text = attribution("eicu-demo")
    for part in ("Open Database License", "doi:10.1038/sdata.2018.178", "PhysioNet"):
        assert part in text


def test_delta_is_below_one_over_the_number_of_patients() -> None:
    parts = demo_plan_parts("eicu-demo", 186, 8, "1")
    assert float(parts.budget.delta) < 1 / 1765
