"""A steward sees what fails, why and in how many rows; what may leave says pass or fail per rule and nothing else."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import great_expectations as gx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from pyarrow import csv

from infra.cli import main
from schemas.contract import ContractVerdict
from tasks.contract.engine import expectation_suite
from tests.contract.wards import CONTRACT, MAPPING, raw_batch, ward_contract


@pytest.fixture
def ward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "contract.yaml").write_bytes(CONTRACT)
    (tmp_path / "mapping.yaml").write_bytes(MAPPING)
    csv.write_csv(pa.Table.from_batches([raw_batch()]), "cohort.csv")
    return tmp_path


def check(*more: str, data: str = "cohort.csv") -> Result:
    command = ["site", "contract", "check", "--contract", "contract.yaml", "--data", data, "--mapping", "mapping.yaml"]
    return CliRunner().invoke(main, [*command, *more])


def test_a_table_that_fits_passes_every_rule(ward: Path) -> None:
    result = check()
    assert result.exit_code == 0, result.output
    assert "all 58 rules passed" in " ".join(result.output.split())
    assert "4 rows of 4 patients" in result.output


def test_what_fails_is_said_with_column_rows_and_remedy_and_without_a_value(ward: Path) -> None:
    csv.write_csv(pa.Table.from_batches([raw_batch(EKG=["1", "2", "17", "4711", "1"], TEMP=["98"] * 5)]), "cohort.csv")
    result = check()
    assert result.exit_code == 10
    text = " ".join(result.output.split())
    assert "codes:rhythm │ rhythm │ FAILED │ 2 │ expected: all codes are among no, yes, af; a code is not in" in text
    assert "1 to correct, of 58 rules" in text
    assert "4711" not in text
    assert "finite" not in text


def test_one_unreadable_value_at_the_end_is_found_and_its_row_is_said(ward: Path) -> None:
    good = raw_batch(FALL=[f"{i}" for i in range(5)])
    rows = [good.set_column(1, "FALL", pa.array([f"{n}-{i}" for i in range(5)])) for n in range(200)]
    csv.write_csv(pa.Table.from_batches([*rows, raw_batch(TEMP=["98", "98", "98", "98", "secret"])]), "cohort.csv")
    result = check()
    assert result.exit_code == 10
    assert "type:temp │ temp │ FAILED │ first: row 1,005 │" in " ".join(result.output.split())
    assert "secret" not in result.output


def test_the_json_keeps_what_may_leave_apart(ward: Path) -> None:
    csv.write_csv(pa.Table.from_batches([raw_batch(EKG=["1", "2", "17", "4711", "1"])]), "cohort.csv")
    result = check("--json")
    assert result.exit_code == 10
    report = json.loads(result.stdout)
    leaves = ContractVerdict.model_validate_json(json.dumps(report["may_leave"]))
    assert not leaves.passed
    assert [r.rule for r in leaves.rules if not r.passed] == ["codes:rhythm"]
    assert set(report["may_leave"]) == {"suite_digest", "engine_version", "rules"}
    assert all(set(rule) == {"rule", "passed"} for rule in report["may_leave"]["rules"])
    assert report["private"]["rows"] == 4
    assert [f["rows"] for f in report["private"]["findings"] if not f["passed"]] == [2]


def test_rules_that_could_not_be_judged_are_not_called_failures(ward: Path) -> None:
    csv.write_csv(pa.Table.from_batches([raw_batch(CHOL=None)]), "cohort.csv")
    result = check("--all")
    lines = {line.split("│")[1].strip(): line for line in result.output.splitlines() if line.count("│") > 4}
    assert "FAILED" in lines["present:chol"]
    assert "not judged" in lines["range:chol"]
    assert "passed" in lines["range:age"]


def test_a_bad_mapping_or_contract_is_refused_before_the_table_is_read(ward: Path) -> None:
    (ward / "mapping.yaml").write_bytes(MAPPING.replace(b"unit: months", b"unit: kg"))
    result = check(data="no-such-table.csv")
    assert result.exit_code in (10, 14)
    (ward / "cohort.csv").write_bytes(b"nonsense,\xff\xfe\n")
    result = check()
    assert result.exit_code == 10
    assert "Error (mapping-unit): Column age is given in kg, which is no measure of years" in result.output
    (ward / "contract.yaml").write_bytes(CONTRACT.replace(b"outcomes: [death_date, grade]", b"outcomes: [chol]"))
    result = check()
    assert result.exit_code == 12
    assert "Error (label-leak)" in result.output
    assert "To act: the study coordinator." in result.output


def test_the_hospitals_settings_name_data_and_mapping(ward: Path) -> None:
    home = ward / "home"
    home.mkdir()
    settings = {
        "name": "ward",
        "store": "store",
        "data": str(ward / "cohort.csv"),
        "mapping": str(ward / "mapping.yaml"),
    }
    settings |= {"studies": [], "prefect_api_url": "http://localhost", "epsilon": "1", "delta": "1e-5"}
    (home / "config.json").write_text(json.dumps({"format": "consilium/site/1"} | settings))
    arguments = ["site", "contract", "check", "--contract", "contract.yaml"]
    assert CliRunner().invoke(main, [*arguments, "--home", "home"]).exit_code == 0
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 14
    assert "Error (nothing-to-check)" in result.output


def test_the_pages_of_great_expectations_stay_here_and_load_nothing(ward: Path) -> None:
    csv.write_csv(pa.Table.from_batches([raw_batch(EKG=["1", "2", "17", "4711", "1"])]), "cohort.csv")
    result = check("--docs", "report")
    assert result.exit_code == 10
    assert "keep it here" in " ".join(result.output.split())
    assert {p.name for p in Path("report").iterdir()} == {"index.html", "suite.html", "suite.json"}
    for path in Path("report").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        page = path.read_text()
        assert "http" not in page.replace("http-equiv", "")
        assert "<script" not in page
        assert "4711" not in page
    page = Path("report/index.html").read_text()
    assert page.count("fa-times") >= 2  # The style that draws it, and the rule that failed.
    assert "Content-Security-Policy" in page


def test_the_written_suite_is_one_that_great_expectations_opens_and_runs(ward: Path) -> None:
    result = CliRunner().invoke(main, ["contract", "suite", "contract.yaml", "--out", "suite.json"])
    assert result.exit_code == 0
    plain = json.loads(Path("suite.json").read_text())
    suite = gx.ExpectationSuite(name=plain["name"], expectations=plain["expectations"])
    ours = expectation_suite(ward_contract())
    assert [(e.configuration.type, e.meta) for e in suite.expectations] == [
        (e.configuration.type, e.meta) for e in ours.expectations
    ]
    from site_agents.cohort.mapping import map_batches
    from tests.contract.wards import ward_mapping

    frame = pa.Table.from_batches(map_batches(ward_contract(), ward_mapping(), [raw_batch()])).to_pandas()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("s").add_dataframe_asset("a")
    batch = asset.add_batch_definition_whole_dataframe("w").get_batch({"dataframe": frame})
    assert batch.validate(suite).success
    frame.loc[0, "age"] = 400.0
    failed = [
        r.expectation_config.meta["rule"] for r in batch_of(asset, frame).validate(suite).results if not r.success
    ]
    assert failed == ["range:age"]


def batch_of(asset: object, frame: object) -> object:
    return asset.get_batch_definition("w").get_batch({"dataframe": frame})  # type: ignore[attr-defined]


def test_a_contract_is_explained_in_words(ward: Path) -> None:
    result = CliRunner().invoke(main, ["contract", "show", "contract.yaml"])
    assert result.exit_code == 0
    assert "True where grade is above 0" in result.output
    assert "| pressures" not in result.output
    assert "| rule:pressures | sbp, dbp | sbp is above dbp | rows contradict" in result.output
    plain = json.loads(CliRunner().invoke(main, ["contract", "show", "contract.yaml", "--json"]).stdout)
    assert len(plain["rules"]) == 58


def test_a_hostile_contract_cannot_script_its_page(ward: Path) -> None:
    hostile = CONTRACT.replace(b"Stays of adults", b"'<script>alert(1)</script> [x](javascript:x) | a'")
    (ward / "contract.yaml").write_bytes(hostile)
    assert CliRunner().invoke(main, ["contract", "show", "contract.yaml", "--html", "page.html"]).exit_code == 0
    page = Path("page.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "default-src 'none'" in page
    assert "\\<script\\>alert(1)" in CliRunner().invoke(main, ["contract", "show", "contract.yaml"]).output


def test_a_parquet_table_needs_no_mapping_if_it_is_the_contracts(ward: Path) -> None:
    from site_agents.cohort.mapping import map_batches
    from tests.contract.wards import ward_mapping

    pq.write_table(pa.Table.from_batches(map_batches(ward_contract(), ward_mapping(), [raw_batch()])), "c.parquet")
    command = ["site", "contract", "check", "--contract", "contract.yaml", "--data", "c.parquet"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
