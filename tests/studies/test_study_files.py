"""The study files of the repository give the plans and rows that the published figures were made with."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import datasets_eicu, datasets_uci_heart
from infra.studies.dealing import deal_table, site_name
from infra.studies.definitions import STUDIES, StudyDefinition, find_study
from infra.studies.running import derive_recipe, load_tables
from infra.studies.skeleton import SkeletonOptions, write_skeleton
from infra.studies.study_file import derive_parts, read_study
from schemas.errors import ConsiliumError, OperationError, SiteDataError
from schemas.mapping import SiteMapping
from schemas.yaml_files import model_from_plain, parse_yaml
from site_agents.cohort.mapping import map_batches
from tasks.contract.arrow import collect_table
from tasks.contract.encoder import encode_features
from tests.studies.generated import sums_digest, write_eicu

STUDY_FILES = Path(__file__).parents[2] / "studies"
FILES = {"heart": STUDY_FILES / "uci-heart" / "study.yaml", "eicu": STUDY_FILES / "eicu-demo" / "study.yaml"}


@pytest.mark.parametrize("name", FILES)
def test_a_study_file_has_the_recipe_of_the_published_figures(name: str) -> None:
    written = find_study(str(FILES[name]))
    assert replace(written, written=None) == STUDIES[name]
    for epsilon in STUDIES[name].targets:
        assert derive_recipe(written, epsilon) == derive_recipe(STUDIES[name], epsilon)


def _assert_same_cohorts(written: StudyDefinition, pinned: StudyDefinition, folder: Path) -> None:
    assert written.written is not None
    contract = written.written.contract
    ours, theirs = load_tables(written, folder, 3), load_tables(pinned, folder, 3)
    assert [t.site for t in ours] == [t.site for t in theirs]
    for mine, reference in zip(ours, theirs, strict=True):
        assert mine.mapping is not None
        mapping = model_from_plain(SiteMapping, parse_yaml(mine.mapping, "mapping"), "mapping")
        table = collect_table(contract, map_batches(contract, mapping, mine.table.to_batches()))
        found, expected = encode_features(contract, table), encode_features(contract, reference.table)
        for part in ("features", "labels", "patients", "held_out"):
            np.testing.assert_array_equal(getattr(found, part), getattr(expected, part), err_msg=mine.site)


def _without_sites(definition: StudyDefinition) -> StudyDefinition:
    assert definition.written is not None
    file = definition.written.file.model_copy(update={"sites": {}})
    return replace(definition, written=replace(definition.written, file=file))


def test_query_and_mapping_of_eicu_give_its_loaders_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_eicu(tmp_path / "eicu")
    monkeypatch.setattr(datasets_eicu, "_SUMS_SHA256", sums_digest(folder))
    _assert_same_cohorts(_without_sites(find_study(str(FILES["eicu"]))), STUDIES["eicu"], folder)


def test_query_and_mapping_of_heart_give_the_rows_of_its_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)
    for stem in ("cleveland", "hungarian", "switzerland", "va"):
        point = ".0" if stem == "cleveland" else ""
        choices = ("01", "1234", "0", "0", "01?", "012?", "0", "01?", "0", "123?", "0123?", "367?", "01234")
        lines = []
        for _ in range(12):
            sex, cp, _, _, fbs, ecg, _, exang, _, slope, ca, thal, num = (rng.choice(list(c)) for c in choices)
            pressure, chol = rng.choice(["120", "0", "?"]), rng.choice(["233", "0", "?"])
            coded = [v if v == "?" else v + point for v in (sex, cp, pressure, chol, fbs, ecg)]
            rest = [v if v == "?" else v + point for v in (exang, slope, ca, thal)]
            lines.append(",".join([f"{rng.integers(30, 80)}{point}", *coded, "150", rest[0], ".7", *rest[1:], num]))
        (tmp_path / f"processed.{stem}.data").write_text("\n".join(lines) + "\n")
    digests = {
        stem: hashlib.sha256((tmp_path / f"processed.{stem}.data").read_bytes()).hexdigest()
        for stem, _ in datasets_uci_heart._HOSPITALS.values()
    }
    monkeypatch.setattr(datasets_uci_heart, "_sha256_of", digests.__getitem__)
    _assert_same_cohorts(find_study(str(FILES["heart"])), STUDIES["heart"], tmp_path)


@pytest.mark.parametrize(
    ("value", "name"), [("St. Mary's 2", "st-mary-s-2"), ("7", "site-7"), ("NORTH", "north"), (" a ", "a")]
)
def test_values_of_the_site_column_become_site_names(value: str, name: str) -> None:
    assert site_name(value) == name


def _study(folder: Path, rows: str, **changes: str) -> Path:
    (folder / "rows.csv").write_text(rows)
    simulation = {"data": "rows.csv", "site_column": "clinic"} | changes
    (folder / "study.yaml").write_text(
        "title: t\npurpose: p\nbudget: {epsilon: 3, delta: 1e-5}\nsimulation:\n"
        + "".join(f"  {key}: {value}\n" for key, value in simulation.items())
    )
    (folder / "contract.yaml").write_text(
        "contract: c\nversion: 1\ncolumns:\n  id: {kind: identifier, role: patient_id}\n"
        "  died: {kind: boolean, role: label}\n  age: {kind: number, range: [0, 120]}\n"
    )
    return folder / "study.yaml"


@pytest.mark.parametrize(
    ("rows", "changes", "code", "message"),
    [
        ("id,clinic,died,age\np1,north,1,\n", {"site_column": "hospital"}, "site-column", "no column hospital"),
        ("id,clinic,died,age\n", {}, "site-column", "no rows"),
        ("id,clinic,died,age\np1,,1,30\n", {}, "site-names", "Some rows name no site"),
        ("id,clinic,died,age\np1,a.b,1,30\np2,a-b,1,30\n", {}, "site-names", "distinct site names"),
        ("id,clinic,died,age\np1,north,1,400\n", {}, "contract-violated", r"Site north: .*range:age"),
        ("id,clinic,died,age\np1,north,maybe,40\n", {}, "contract-violated", r"Site north: .*type:died"),
        ("id,clinic,died,age\np1,north,1,40\n", {"row_column": "id"}, "row-column", "has a column id already"),
        ("id,clinic,died,age\np1,north,1,40\n", {"mapping": "absent.yaml"}, "yaml-unreadable", "absent"),
    ],
)
def test_a_table_that_cannot_be_dealt_is_refused_without_quoting_it(
    tmp_path: Path, rows: str, changes: dict[str, str], code: str, message: str
) -> None:
    study, contract = read_study(_study(tmp_path, rows, **changes))
    with pytest.raises(ConsiliumError, match=message) as caught:
        deal_table(study, contract, tmp_path)
    assert isinstance(caught.value, OperationError | SiteDataError)
    assert caught.value.code == code
    assert "maybe" not in str(caught.value)
    assert "400" not in str(caught.value)


def test_the_noise_follows_from_the_budget_and_the_divisor_from_declared_patients(tmp_path: Path) -> None:
    study, contract = read_study(_study(tmp_path, "id,clinic,died,age\np1,north,1,40\n"))
    parts = derive_parts(study, contract, [100, 200])
    assert (parts.mechanism.noise_multiplier, parts.mechanism.rounds) == ("4.39745", 10)
    assert (parts.optimizer.divisor, parts.optimizer.learning_rate) == ("300", "0.15")
    local = {"mode": "local", "rounds": "2", "local": {"steps": "5", "learning_rate": "0.1", "update_norm": "1"}}
    sampled = study.model_copy(update={"mechanism": {"sampling_probability": "0.25", "rounds": "20"}})
    assert derive_parts(sampled, contract, [100]).mechanism.noise_multiplier == "2.064382"
    parts = derive_parts(study.model_copy(update={"mechanism": local}), contract, [100, 200])
    assert (parts.mechanism.noise_multiplier, parts.optimizer.kind, parts.optimizer.divisor) == (
        "4.39745",
        "sgd",
        "300",
    )


def _skeleton(folder: Path, **changes: object) -> SkeletonOptions:
    given: dict[str, object] = {
        "sample": folder / "sample.csv",
        "site_column": "clinic",
        "outcome": "dead",
        "positive": "",
        "patient_id": "id",
        "out": folder / "new",
    }
    return SkeletonOptions(**(given | changes))  # type: ignore[arg-type]


SAMPLE = "id,clinic,dead,age,ward,when,note\np1,n,yes,41,icu,2024-01-02,abc\np2,s,no,77,er,2024-01-03,def\n"


def test_a_private_sample_is_not_quoted_in_the_public_contract(tmp_path: Path) -> None:
    (tmp_path / "sample.csv").write_text(SAMPLE)
    written = write_skeleton(_skeleton(tmp_path))
    contract = (tmp_path / "new" / "contract.yaml").read_text()
    for private in ("41", "77", "icu", "p1", "2024"):
        assert private not in contract
    assert [point.rpartition(" ")[2] for point in written.open_points] == ["age", "ward", "when", "note"]
    with pytest.raises(ConsiliumError, match="a range has two ends"):
        read_study(tmp_path / "new" / "study.yaml")


def test_what_is_missing_is_asked_for_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "sample.csv").write_text(SAMPLE)
    asked = []

    def ask(question: str) -> str:
        asked.append(question)
        return "0:120" if "range" in question else "icu, er, ward"

    written = write_skeleton(_skeleton(tmp_path, ignore=("when", "note")), ask)
    assert (len(asked), written.open_points) == (2, ())
    _, contract = read_study(tmp_path / "new" / "study.yaml")
    assert [(c.name, c.minimum, c.codes) for c in contract.features] == [
        ("age", "0", ()),
        ("ward", None, ("icu", "er", "ward")),
    ]


def test_the_skeleton_says_how_reviewers_are_named(tmp_path: Path) -> None:
    (tmp_path / "sample.csv").write_text(SAMPLE)
    write_skeleton(_skeleton(tmp_path, ignore=("when", "note"), ranges={"age": ("0", "120")}), lambda _: "icu, er")
    file = tmp_path / "new" / "study.yaml"
    assert read_study(file)[0].reviewers == ()
    named = file.read_text().replace("# reviewers:", "reviewers:").replace("# release:", "release:")
    file.write_text(named.replace("64 digits", "0a" * 32))
    study, _ = read_study(file)
    assert [reviewer.name for reviewer in study.reviewers] == ["dr-example"]
    assert study.release.reviewers_needed == 1


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"outcome": "age"}, "skeleton-outcome"),
        ({"outcome": "absent"}, "skeleton-column"),
        ({"positive": "perhaps"}, "skeleton-outcome"),
        ({"ranges": {"size": ("0", "1")}}, "skeleton-column"),
    ],
)
def test_a_skeleton_that_would_not_fit_is_refused(tmp_path: Path, changes: dict[str, object], code: str) -> None:
    (tmp_path / "sample.csv").write_text(SAMPLE)
    with pytest.raises(OperationError) as caught:
        write_skeleton(_skeleton(tmp_path, **changes))
    assert caught.value.code == code
    assert not (tmp_path / "new").exists()


def test_a_schema_without_rows_is_enough(tmp_path: Path) -> None:
    schema = pa.schema([("id", pa.string()), ("clinic", pa.string()), ("dead", pa.bool_()), ("age", pa.float64())])
    pq.write_table(schema.empty_table(), tmp_path / "sample.parquet")
    written = write_skeleton(_skeleton(tmp_path, sample=tmp_path / "sample.parquet", ranges={"age": ("0", "120")}))
    assert (written.features, written.open_points) == (("age",), ())
    _, contract = read_study(tmp_path / "new" / "study.yaml")
    assert contract.split is not None
