"""One table, six sources, the same rows; and each source refused by name when it is not what it should be."""

from __future__ import annotations

import datetime as dt
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import csv

from infra.postgres import find_postgres_programs, start_postgres
from schemas.errors import SiteDataError
from site_agents.cohort.reader import LocalData, read_batches, read_table
from site_agents.cohort.sources.base import BATCH_ROWS, wanted_columns
from site_agents.cohort.sources.opening import open_source
from tasks.contract.suite import check_batches
from tests.contract.tables import clinic_contract, clinic_table

ROWS = 3 * BATCH_ROWS + 17


def stays() -> pa.Table:
    """Enough rows for several batches, with an order that can be checked."""
    return pa.table(
        {
            "id": [f"p{n}" for n in range(ROWS)],
            "age": pa.array([None if n % 7 == 0 else n / 4 for n in range(ROWS)], pa.float64()),
            "died": pa.array([n % 3 == 0 for n in range(ROWS)]),
            "note": ['a "quoted", long\nnote'] * ROWS,
        }
    )


def _parquet(folder: Path) -> Path:
    pq.write_table(stays(), folder / "stays.parquet", row_group_size=50_000)
    return folder / "stays.parquet"


def _dataset(folder: Path) -> Path:
    for part in range(3):
        name = folder / "stays" / f"year={2020 + part}"
        name.mkdir(parents=True)
        length = ROWS - 2 * BATCH_ROWS if part == 2 else BATCH_ROWS
        pq.write_table(stays().slice(part * BATCH_ROWS, length), name / "part.parquet")
    return folder / "stays"


def _csv(folder: Path) -> Path:
    csv.write_csv(stays(), folder / "stays.csv")
    return folder / "stays.csv"


def _described_csv(folder: Path) -> Path:
    csv.write_csv(stays(), folder / "stays.txt", csv.WriteOptions(include_header=False, delimiter=";"))
    (folder / "source.yaml").write_text(
        "format: consilium/source/1\nkind: csv\npath: stays.txt\ndelimiter: ;\ncolumn_names: [id, age, died, note]\n"
    )
    return folder / "source.yaml"


def _sqlite(folder: Path) -> Path:
    with closing(sqlite3.connect(folder / "stays.sqlite")) as database:
        database.execute("CREATE TABLE stays (id TEXT, age REAL, died BOOLEAN, note TEXT)")
        database.executemany("INSERT INTO stays VALUES (?, ?, ?, ?)", _rows())
        database.commit()
    (folder / "source.yaml").write_text("kind: sql\nurl: sqlite:///stays.sqlite\ntable: stays\n")
    return folder / "source.yaml"


def _duckdb(folder: Path) -> Path:
    _parquet(folder)
    (folder / "source.yaml").write_text(
        "kind: sql\nurl: duckdb://\nquery: |\n  SELECT *, 'x:y' AS extra FROM 'stays.parquet'\n"
        "  WHERE age::int > -1 OR age IS NULL;\n"
    )
    return folder / "source.yaml"


def _rows() -> list[tuple[object, ...]]:
    return list(zip(*(column.to_pylist() for column in stays().columns), strict=True))


@pytest.mark.parametrize("make", [_parquet, _dataset, _csv, _described_csv, _sqlite, _duckdb])
def test_every_source_streams_the_same_rows_in_order(tmp_path, make):
    source = open_source(make(tmp_path))
    assert set(source.column_names()) >= {"id", "age", "died", "note"}
    batches = list(source.read({"age", "id", "absent"}))
    assert len(batches) > 3
    assert max(batch.num_rows for batch in batches) <= BATCH_ROWS
    assert {tuple(sorted(batch.schema.names)) for batch in batches} == {("age", "id")}
    found = {row["id"]: row["age"] for batch in batches for row in batch.to_pylist()}
    expected = dict(zip(stays()["id"].to_pylist(), stays()["age"].to_pylist(), strict=True))
    assert {k: None if v is None else float(v) for k, v in found.items()} == expected
    assert list(found) == list(expected)


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that PostgreSQL's own user may pass through."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(find_postgres_programs() is None, reason="PostgreSQL is not installed")
def test_a_real_postgresql_is_read_through_a_cursor_and_cannot_be_written(public_folder, tmp_path):
    import psycopg2
    import sqlalchemy as sa

    cluster = start_postgres(public_folder / "postgres", log=public_folder / "log", databases=("icu",))
    try:
        url = sa.make_url(cluster.url("icu", driver="postgresql"))
        with closing(psycopg2.connect(cluster.url("icu", driver="postgresql"))) as connection:
            with connection.cursor() as cursor:
                cursor.execute(
                    'CREATE SCHEMA w; CREATE TABLE w.stays (id text, age numeric(9,2), seen timestamp, "S" int)'
                )
                cursor.execute(
                    f"INSERT INTO w.stays SELECT 'p' || n, CASE WHEN n % 7 <> 0 THEN n / 4.0 END, "
                    f"'2024-05-06 07:08:09', n FROM generate_series(0, {ROWS - 1}) AS n ORDER BY n"
                )
            connection.commit()
        password = tmp_path / "password"
        password.write_text(f"{url.password or 'unused'}\nnot this line\n")
        password.chmod(0o600)
        plain = url.set(password=None).render_as_string(hide_password=False)
        spec = tmp_path / "source.yaml"
        spec.write_text(f"kind: sql\nurl: {plain}\npassword_file: password\ntable: w.stays\n")
        source = open_source(spec)
        assert source.column_names() == ("id", "age", "seen", "S")
        batches = list(source.read())
        assert sum(batch.num_rows for batch in batches) == ROWS
        assert len(batches) > 3
        rows = {row["id"]: row for row in batches[0].to_pylist()}
        assert rows["p1"] == {"id": "p1", "age": 0.25, "seen": dt.datetime(2024, 5, 6, 7, 8, 9), "S": 1}
        spec.write_text(
            f'kind: sql\nurl: {plain}\npassword_file: password\nquery: SELECT id, "S"::text AS s FROM w.stays\n'
        )
        assert open_source(spec).column_names() == ("id", "s")
        spec.write_text(
            f"kind: sql\nurl: {plain}\npassword_file: password\n"
            "query: WITH gone AS (DELETE FROM w.stays RETURNING id) SELECT id FROM gone\n"
        )
        with pytest.raises(SiteDataError, match="does not answer this table or query"):
            list(open_source(spec).read())
        with closing(psycopg2.connect(cluster.url("icu", driver="postgresql"))) as connection:
            with connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM w.stays")
                assert cursor.fetchone() == (ROWS,)
    finally:
        cluster.stop()
    with pytest.raises(SiteDataError, match="does not answer, or does not let this user in") as caught:
        open_source(spec).column_names()
    assert caught.value.code == "data-source-down"


def test_sqlite_and_duckdb_files_cannot_be_written_and_are_not_made(tmp_path):
    spec = _sqlite(tmp_path)
    spec.write_text("kind: sql\nurl: sqlite:///absent.sqlite\ntable: stays\n")
    with pytest.raises(SiteDataError, match=r"Expected a database absent\.sqlite"):
        open_source(spec).column_names()
    assert not (tmp_path / "absent.sqlite").exists()
    import duckdb

    with duckdb.connect(str(tmp_path / "c.duckdb")) as database:
        database.execute("CREATE TABLE stays AS SELECT 1 AS id, DATE '2024-01-02' AS day")
    spec.write_text("kind: sql\nurl: duckdb:///c.duckdb\ntable: stays\n")
    assert [b.to_pylist() for b in open_source(spec).read()] == [[{"id": 1, "day": dt.date(2024, 1, 2)}]]
    for query in ("DROP TABLE stays", "SELECT 1) AS x; DROP TABLE stays; SELECT * FROM (SELECT 1"):
        spec.write_text(f"kind: sql\nurl: duckdb:///c.duckdb\nquery: {query}\n")
        with pytest.raises(SiteDataError, match="does not answer"):
            list(open_source(spec).read())
    with duckdb.connect(str(tmp_path / "c.duckdb"), read_only=True) as database:
        assert database.execute("SELECT count(*) FROM stays").fetchone() == (1,)


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("kind: sql\nurl: postgresql://u:secret@h/db\ntable: t\n", "source-settings", "names no password"),
        ("kind: sql\nurl: mysql://u@h/db\ntable: t\n", "source-settings", "postgresql, duckdb, sqlite"),
        ("kind: sql\nurl: nonsense\ntable: t\n", "source-settings", "postgresql, duckdb, sqlite"),
        ("kind: sql\nurl: sqlite:///x\n", "source-settings", "either a table or a query"),
        ("kind: sql\nurl: sqlite:///x\ntable: a\nquery: b\n", "source-settings", "either a table or a query"),
        ("kind: fhir\n", "yaml-fields", "source"),
        ("kind: csv\npath: a.csv\nsurprise: 1\n", "yaml-fields", "surprise"),
        ("kind: csv\npath: absent.csv\n", "data-missing", r"absent\.csv"),
        ("kind: parquet\npath: absent\n", "data-missing", "absent"),
    ],
)
def test_a_source_file_that_does_not_fit_is_refused_without_its_credentials(tmp_path, text, code, message):
    spec = tmp_path / "source.yaml"
    spec.write_text(text)
    with pytest.raises(SiteDataError, match=message) as caught:
        open_source(spec).column_names()
    assert caught.value.code == code
    assert "secret" not in str(caught.value)


def test_a_password_that_others_can_read_is_refused(tmp_path):
    (tmp_path / "password").write_text("secret\n")
    (tmp_path / "password").chmod(0o644)
    spec = tmp_path / "source.yaml"
    spec.write_text("kind: sql\nurl: postgresql://u@localhost:1/db\npassword_file: password\ntable: t\n")
    with pytest.raises(SiteDataError, match="Others can read password") as caught:
        open_source(spec).column_names()
    assert "secret" not in str(caught.value)


def test_a_database_that_is_down_is_named(tmp_path):
    spec = tmp_path / "source.yaml"
    spec.write_text("kind: sql\nurl: postgresql://u@127.0.0.1:1/db\ntable: t\nconnect_timeout_seconds: 2\n")
    with pytest.raises(SiteDataError, match="the postgresql source does not answer") as caught:
        list(open_source(spec).read())
    assert caught.value.code == "data-source-down"


@pytest.mark.parametrize(
    "head", [b"PAR1", b"PK\x03\x04rest", b"\x1f\x8b\x08", b"SQLite format 3\0", b"a,b\n\0,1\n", b""]
)
def test_a_csv_that_is_something_else_is_refused(tmp_path, head):
    path = tmp_path / "a.csv"
    path.write_bytes(head)
    with pytest.raises(SiteDataError, match=r"a\.csv is not what its name says") as caught:
        read_table(path, clinic_contract())
    assert caught.value.code == "data-format"


@pytest.mark.parametrize(
    "bad", [b"p9,true,false,1\n", b'p9,true,false,"1,2,true,sinus\n', b"\xff\xfe,true,false,1,60,,\n"]
)
def test_one_bad_row_at_the_end_of_a_long_file_is_found_and_not_quoted(tmp_path, bad):
    path = tmp_path / "a.csv"
    csv.write_csv(clinic_table(), path)
    body = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(body[0] + b"".join(body[1:]) * 40_000 + bad)
    with pytest.raises(SiteDataError, match="a row that does not fit its header line") as caught:
        read_table(path, clinic_contract())
    assert caught.value.code == "data-row"
    assert "p9" not in str(caught.value)


def test_a_number_that_does_not_parse_in_the_last_block_only_is_refused_by_column(tmp_path):
    path = tmp_path / "a.csv"
    csv.write_csv(clinic_table(), path)
    body = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(body[0] + b"".join(body[1:]) * 40_000 + b"p9,true,false,sixty,60,true,sinus\n")
    verdict = check_batches(clinic_contract("many"), read_batches(path, clinic_contract("many"))).verdict
    assert [r.rule for r in verdict.rules if not r.passed and r.rule.startswith("type")] == ["type:age"]


def test_a_damaged_parquet_file_in_a_dataset_is_refused(tmp_path):
    folder = _dataset(tmp_path)
    (folder / "year=2021" / "part.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(SiteDataError, match="stays is not what its name says"):
        list(open_source(folder).read())


def test_an_empty_folder_is_no_table(tmp_path):
    with pytest.raises(SiteDataError, match="Expected the site's table"):
        open_source(tmp_path).column_names()


def test_fingerprint_covers_rows_description_and_mapping(tmp_path):
    spec = _described_csv(tmp_path)
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text("a")
    seen = {LocalData(str(spec), str(mapping)).fingerprint(), LocalData(str(spec)).fingerprint()}
    mapping.write_text("b")
    seen.add(LocalData(str(spec), str(mapping)).fingerprint())
    spec.write_text(spec.read_text().replace("note", "remark"))
    seen.add(LocalData(str(spec)).fingerprint())
    with (tmp_path / "stays.txt").open("a") as out:
        out.write("p,1,true,x\n")
    seen.add(LocalData(str(spec)).fingerprint())
    assert len(seen) == 5
    assert "" not in seen
    mapping.unlink()
    assert LocalData(str(spec), str(mapping)).fingerprint() == ""


def test_a_dataset_is_fingerprinted_by_every_file(tmp_path):
    folder = _dataset(tmp_path)
    before = open_source(folder).fingerprint()
    (folder / "year=2022" / "part.parquet").rename(folder / "year=2022" / "other.parquet")
    assert open_source(folder).fingerprint() != before


@given(st.lists(st.sampled_from("abcd")), st.none() | st.sets(st.sampled_from("abcde")))
def test_a_column_named_twice_is_never_read(present, columns):
    wanted = wanted_columns(present, columns)
    assert all(present.count(name) == 1 for name in wanted)
    assert set(wanted) == {n for n in present if present.count(n) == 1 and (columns is None or n in columns)}


def test_reading_parquet_needs_no_database_library(tmp_path):
    import subprocess

    pq.write_table(clinic_table(), tmp_path / "a.parquet")
    code = (
        "import sys; from site_agents.cohort.sources.opening import open_source;"
        f"list(open_source({str(tmp_path / 'a.parquet')!r}).read());"
        "assert not {'sqlalchemy', 'duckdb', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
