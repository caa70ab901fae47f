"""A hospital's own names, units, codes, words, dates and missing values become the contract's; the rest is refused."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import SiteDataError
from schemas.mapping import ColumnMapping, SiteMapping
from site_agents.cohort.converting import BatchConverter
from site_agents.cohort.mapping import map_batches, read_mapping, verify_mapping
from site_agents.cohort.units import conversion
from tasks.contract.arrow import arrow_schema, collect_table
from tasks.contract.encoder import encode_features
from tasks.contract.selection import split_patients
from tasks.contract.suite import check_batches, describe_failures
from tests.contract.tables import clinic_contract, clinic_table
from tests.contract.wards import MAPPING, raw_batch, ward_contract, ward_mapping


def mapped(*batches: pa.RecordBatch, mapping: SiteMapping | None = None) -> pa.Table:
    return collect_table(ward_contract(), map_batches(ward_contract(), mapping or ward_mapping(), iter(batches)))


def failures(*batches: pa.RecordBatch, mapping: SiteMapping | None = None) -> list[str]:
    contract = ward_contract()
    report = check_batches(contract, map_batches(contract, mapping or ward_mapping(), batches))
    return [line.split(" ")[0] for line in describe_failures(contract, report.verdict)]


def test_a_foreign_table_becomes_the_contracts_table():
    table = mapped(raw_batch())
    assert table.schema == arrow_schema(ward_contract())
    # The fifth patient is a child: not in the cohort.
    assert table.column("pid").to_pylist() == ["A\x1f1", "A\x1f2", "B\x1f1", "B\x1f2"]
    assert table.column("age").to_pylist() == pytest.approx([60, 20, 100, 40])
    assert table.column("chol").to_pylist() == [
        pytest.approx(201.1, abs=0.1),
        None,
        None,
        pytest.approx(274.5, abs=0.1),
    ]
    assert table.column("temp").to_pylist() == [pytest.approx(37), None, pytest.approx(40), pytest.approx(35)]
    assert table.column("smoker").to_pylist() == [True, False, None, True]
    assert table.column("rhythm").to_pylist() == ["no", "yes", "af", None]
    assert table.column("admitted").to_pylist()[1:3] == [dt.datetime(2020, 2, 29), dt.datetime(2021, 4, 3, 9, 5)]
    assert table.column("ill").to_pylist() == [False, True, True, True]
    split = ward_contract().split
    assert split is not None
    assert table.column("out").equals(split_patients(split, table.column("pid")))
    report = check_batches(ward_contract(), table.to_batches())
    assert report.verdict.passed
    assert (report.rows, report.patients) == (4, 4)
    assert encode_features(ward_contract(), table).patient_count == 4


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(5)), cut=st.integers(0, 5))
def test_batches_and_row_order_do_not_matter(order, cut):
    whole = pa.Table.from_batches([raw_batch()]).take(order).combine_chunks()
    parts = [b for piece in (whole.slice(0, cut), whole.slice(cut)) for b in piece.to_batches()]
    first, second = (
        encode_features(ward_contract(), mapped(raw_batch())),
        encode_features(ward_contract(), mapped(*parts)),
    )
    assert first.features.tolist() == second.features.tolist()
    assert first.labels.tolist() == second.labels.tolist()


BAD_ROWS = {
    "type:age": {"ALTER": ["720", "240", "1200", "480", "old"]},
    "type:chol": {"CHOL": ["5,2", "0", "0", "7.1.1", "-1"]},
    "type:smoker": {"RAUCHER": ["J", "n", None, "perhaps", "N"]},
    "type:admitted": {
        "AUFNAHME": ["31.02.2020 08:30", "01.03.2020 00:00", "1.4.2021 9:05", "1.1.2024 0:00", "1.1.2015 0:00"]
    },
    "codes:rhythm": {"EKG": ["1", "2", "3", "4", "1"]},
    "range:age": {"ALTER": ["720", "240", "1200", "4800", "120"]},
    "complete:admitted": {"AUFNAHME": ["01.02.2020 08:30", None, "3.4.2021 9:05", "1.1.2024 0:00", "1.1.2015 0:00"]},
    "complete:pid": {"FALL": ["1", None, "1", "2", "3"]},
    "missing:temp": {"TEMP": [None, None, "?", "95", "98"]},
    "keys:pid+admitted": {"FALL": ["1", "1", "1", "2", "3"], "AUFNAHME": ["01.02.2020 08:30"] * 5},
    "rule:pressures": {"SYS": ["70", "130", None, "110", "90"]},
    "rule:smokers-have-a-pressure": {"SYS": ["120", "130", None, None, "90"]},
    "rule:order": {"ENTLASSUNG": ["31.01.2020", None, "?", "31.12.2025", None]},
    "future:left": {"ENTLASSUNG": ["02.02.2020", None, "?", "31.12.2990", None]},
    "range:admitted": {
        "AUFNAHME": ["01.02.2020 08:30", "29.02.2020 00:00", "3.4.2021 9:05", "01.01.2025 00:00", "05.05.2015 05:05"]
    },
    "present:chol": {"CHOL": None},
    "complete:ill": {"GRAD": ["0", "2", "-9.0", "4", "0"]},
    "finite:temp": {"TEMP": ["98.6", None, "nan", "95", "98"]},
}


@pytest.mark.parametrize("rule", BAD_ROWS)
def test_each_violation_is_refused_by_its_rule_and_no_other(rule: str):
    assert failures(raw_batch(**BAD_ROWS[rule])) == [rule]


def test_one_bad_row_in_the_last_batch_is_found_and_counted_for_the_steward():
    good = [raw_batch(FALL=[f"{i}-{j}" for j in range(5)]) for i in range(40)]
    bad = raw_batch(FALL=[f"x{j}" for j in range(5)], EKG=["1", "2", "3", "9", "1"])
    report = check_batches(ward_contract(), map_batches(ward_contract(), ward_mapping(), [*good, bad]))
    broken = [f for f in report.findings if not f.passed]
    assert [(f.rule, f.columns, f.rows) for f in broken] == [("codes:rhythm", ("rhythm",), 1)]
    assert set(report.verdict.model_dump()) == {"suite_digest", "engine_version", "rules"}


def test_a_type_that_breaks_in_one_batch_breaks_the_column():
    bad = raw_batch(FALL=["x1", "x2", "x3", "x4", "x5"], TEMP=["98", "warm", "98", "98", "98"])
    assert failures(raw_batch(), bad) == ["type:temp"]
    assert failures(bad, raw_batch()) == ["type:temp"]
    table = mapped(raw_batch(), bad)
    assert "warm" not in str(table.to_pydict())


@settings(max_examples=15, deadline=None)
@given(bad=st.integers(0, 14))
def test_the_steward_learns_where_the_first_unreadable_value_stands(bad: int):
    values = ["98.6"] * 15
    values[bad] = "warm"
    values[14] = "warm"
    places: dict[str, int] = {}
    batches = [raw_batch(TEMP=values[at : at + 5]) for at in (0, 5, 10)]
    list(map_batches(ward_contract(), ward_mapping(), batches, places))
    assert places == {"temp": bad + 1}


def test_duplicates_across_batches_are_found():
    assert failures(raw_batch(), raw_batch()) == ["keys:pid+admitted"]
    contract = clinic_contract()
    twice = pa.RecordBatch.from_pydict(clinic_table().to_pydict())
    report = check_batches(contract, map_batches(contract, None, [twice, twice]))
    assert [line.split(" ")[0] for line in describe_failures(contract, report.verdict)] == ["unique:patient_id"]


def test_an_empty_cohort_and_an_empty_file_are_refused():
    assert failures(raw_batch(ALTER=["1", "2", "3", "4", "5"])) == ["cohort:rows"]
    assert failures(raw_batch().slice(0, 0)) == ["cohort:rows"]
    assert failures()[0] == "present:pid"


@pytest.mark.parametrize(("keep", "temperatures"), [("first", [98.0, 99.0]), ("last", [100.0, 101.0])])
def test_one_row_of_each_patient_is_the_first_or_the_last_in_time(keep: str, temperatures: list[float]):
    raw = raw_batch(
        HAUS=["A", "B", "A", "B", "A"],
        FALL=["1", "1", "1", "1", "1"],
        AUFNAHME=["02.01.2020 00:00", "01.01.2021 00:00", "01.01.2020 00:00", "01.01.2022 00:00", "03.01.2020 00:00"],
        ENTLASSUNG=[None] * 5,
        ALTER=["480"] * 5,
        TEMP=["97", "99", "98", "101", "100"],
    )
    mapping = ward_mapping(MAPPING + b"rows: {keep: " + keep.encode() + b"}\n")
    for batches in ([raw], [raw.slice(i, 1) for i in range(5)]):
        table = mapped(*batches, mapping=mapping)
        fahrenheit = [t * 9 / 5 + 32 for t in table.column("temp").to_pylist()]
        assert fahrenheit == pytest.approx(temperatures)


def test_typed_sources_are_mapped_like_text():
    contract = clinic_contract()
    raw = pa.RecordBatch.from_pydict(
        {
            "id": pa.array([4.0, 2.0, 1.0, 3.0]),
            "died": pa.array([1, 0, 0, 1], pa.int8()),
            "held_out": pa.array(["0", "0", "1", "0"]),
            "age": pa.array([Decimal(n) for n in (60, 0, 120, 30)], pa.decimal128(12, 2)),
            "chol": pa.array([50.0, -1.0, 350.0, 650.0]),
            "smoker": pa.array(["TRUE", "false", None, ""]),
            "rhythm": pa.array([3, 1, 999, 2]),
        }
    )
    mapping = SiteMapping(
        columns={
            "patient_id": ColumnMapping(source=("id",)),
            "chol": ColumnMapping(missing=("-1",)),
            "rhythm": ColumnMapping(codes={"1": "sinus", "2": "af", "3": "paced"}, missing=("999",)),
        }
    )
    table = collect_table(contract, map_batches(contract, mapping, [raw]))
    expected = clinic_table(patient_id=["4", "2", "1", "3"]).select([c.name for c in contract.columns])
    assert table.to_pydict() == expected.to_pydict()


def test_a_fraction_is_never_cut_from_an_identifier_or_a_code():
    contract = clinic_contract()
    raw = pa.RecordBatch.from_pydict(clinic_table(patient_id=[1.5, 2.0, 3.0, 4.0]).to_pydict())
    report = check_batches(contract, map_batches(contract, None, [raw]))
    assert [line.split(" ")[0] for line in describe_failures(contract, report.verdict)] == ["type:patient_id"]


def test_a_column_that_a_hospital_does_not_record_is_missing_everywhere():
    contract = clinic_contract()
    raw = pa.RecordBatch.from_pydict(clinic_table(smoker=None, chol=None).to_pydict())
    absent = ColumnMapping(absent=True)
    report = check_batches(
        contract, map_batches(contract, SiteMapping(columns={"smoker": absent, "chol": absent}), [raw])
    )
    assert [line.split(" ")[0] for line in describe_failures(contract, report.verdict)] == ["missing:chol"]


@pytest.mark.parametrize(
    ("unit", "given", "expected"),
    [
        ("mg/dl", {"unit": "mmol/l", "molar_mass": "386.65 g/mol"}, (38.665, 0)),
        ("mg/dl", {"unit": "g/l"}, (100, 0)),
        ("degC", {"unit": "degF"}, (5 / 9, -160 / 9)),
        ("degC", {"unit": "K"}, (1, -273.15)),
        ("10^9/l", {"unit": "1/ul"}, (0.001, 0)),
        ("%", {"unit": "dimensionless"}, (100, 0)),
        ("years", {"unit": "months"}, (1 / 12, 0)),
        ("mmHg", {"unit": "kPa"}, (7.50062, 0)),
        ("points", {"scale": 2.5}, (2.5, 0)),
        ("points", {"unit": "points"}, (1, 0)),
    ],
)
def test_units_are_converted_by_scale_and_offset(unit, given, expected):
    column = clinic_contract().columns[3].model_copy(update={"unit": unit})
    assert conversion(column, ColumnMapping(**given)) == pytest.approx(expected, rel=1e-5)


BAD_MAPPINGS = {
    "mapping-contract": (b"contract: ward", b"contract: heart", "for contract heart, and the study's is ward"),
    "mapping-columns": (b"  sbp: SYS", b"  spb: SYS", "has not or derives itself: spb"),
    "mapping-unit": (b"unit: months", b"unit: kg", "age is given in kg, which is no measure of years"),
    "mapping-field": (b"sbp: SYS", b"sbp: {from: SYS, codes: {a: b}}", "sbp is of kind number and cannot have codes"),
    "mapping-codes": (b'"3": af', b'"3": vf', "rhythm is mapped to codes that the contract does not list: vf"),
    "mapping-date-format": (b'"%d.%m.%Y"', b'"%d.%m."', "left has a date format that cannot be read back"),
    "label-leak": (b"sbp: SYS", b"sbp: GRAD", "sbp is filled from an outcome column"),
    "yaml-fields": (b"sbp: SYS", b"sbp: {form: SYS}", "form"),
}


@pytest.mark.parametrize("code", BAD_MAPPINGS)
def test_a_mapping_that_cannot_be_right_is_refused_before_any_row(code: str, tmp_path):
    old, new, match = BAD_MAPPINGS[code]
    assert old in MAPPING
    (tmp_path / "mapping.yaml").write_bytes(MAPPING.replace(old, new))
    with pytest.raises(SiteDataError, match=match) as refused:
        verify_mapping(ward_contract(), read_mapping(tmp_path / "mapping.yaml"))
    assert refused.value.code == code


@pytest.mark.parametrize("unit", ["furlongs_per_dog", "mg/", "__import__('os')", "dB"])
def test_an_unknown_unit_is_refused_with_the_way_out(unit: str):
    with pytest.raises(SiteDataError, match="is given in"):
        conversion(clinic_contract().columns[4], ColumnMapping(unit=unit))


def test_a_declared_outcome_is_no_feature_whatever_the_hospital_calls_its_feature():
    with pytest.raises(SiteDataError, match="sbp is filled from an outcome column"):
        verify_mapping(ward_contract(), ward_mapping(MAPPING.replace(b"sbp: SYS", b"sbp: Death_Date")))


ODD = [
    pa.array([1.5, None]),
    pa.array([float("nan"), 1e300]),
    pa.array([b"secret", None], pa.binary()),
    pa.array([["secret"], None]),
    pa.array([{"secret": 1}, None]),
    pa.array([Decimal("1.5"), None]),
    pa.array([dt.date(2020, 1, 1), None]),
    pa.array([dt.datetime(2020, 1, 1), None], pa.timestamp("ns", "UTC")),
    pa.array([dt.timedelta(1), None]),
    pa.array([True, None]),
    pa.array(["secret", "\x1f\x00"]).dictionary_encode(),
    pa.array([2**62 + 1, None], pa.uint64()),
    pa.array(["secret", ""], pa.string_view()),
    pa.array(["01.02.2020", "1e400"]),
    pa.nulls(2),
]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), keep=st.sampled_from(["all", "first", "last"]))
def test_whatever_a_table_holds_it_is_mapped_or_left_to_the_check_and_never_breaks_the_stream(data, keep):
    names = ward_mapping().source_columns(ward_contract())
    mapping = ward_mapping().model_copy(update={"rows": ward_mapping().rows.model_copy(update={"keep": keep})})
    raw = raw_batch().slice(0, 2)
    columns = [
        raw.column(name) if data.draw(st.booleans()) else ODD[data.draw(st.integers(0, len(ODD) - 1))] for name in names
    ]
    batch = pa.RecordBatch.from_arrays(columns, names=list(names))
    table = mapped(raw, batch, raw.slice(0, 0), mapping=mapping)
    assert set(table.column_names) <= {c.name for c in ward_contract().columns}


def test_a_column_named_twice_is_not_guessed():
    raw = pa.RecordBatch.from_arrays(
        [*raw_batch().columns, pa.array(["1"] * 5)], names=[*raw_batch().schema.names, "SYS"]
    )
    assert failures(raw) == ["present:sbp"]


def test_only_the_named_columns_are_asked_for():
    assert "UNUSED" not in ward_mapping().source_columns(ward_contract())
    assert set(BatchConverter(ward_contract(), ward_mapping(), {}).convert(raw_batch()).column_names) == {
        c.name for c in ward_contract().columns
    } - {"ill", "out"}
