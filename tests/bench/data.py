"""`make bench-data`: what a contract check costs, beside reading the same bytes with pyarrow alone.

The table has 30 columns (an id, an outcome, a split, 20 numbers, 5 codes, 2 booleans) and one row per patient. The
check is a site's own: source, mapping with a unit and a code map, every rule of the contract with Great Expectations.
Scanning means decoding every column of every batch and dropping it. Each step runs in a process of its own, one thread.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv
from rich import box
from rich.console import Console
from rich.table import Table

from schemas.contract import Column, DataContract
from site_agents.cohort.checking import check_cohort
from site_agents.cohort.reader import LocalData
from tasks.contract.suite import warm_engine
from tests.bench.__main__ import describe_machine
from tests.bench.measure import Cost, measure

CASES = (
    ("parquet", 1_000_000),
    ("dataset", 1_000_000),
    ("csv", 1_000_000),
    ("sqlite", 1_000_000),
    ("parquet", 10_000_000),
)
MOST_BYTES = 2 << 30
CHUNK = 100_000
CODES = ("a", "b", "c", "d")
MAPPING = """format: consilium/mapping/1
columns:
  number_0: {from: NUMBER_LB, unit: lb}
  code_0: {from: CODE, codes: {1: a, 2: b, 3: c, 4: d}}
"""


@dataclass(frozen=True)
class Measured:
    """One source of one size."""

    source: str
    rows: int
    scan: Cost
    check: Cost


def bench_contract() -> DataContract:
    """Returns the contract of 30 columns."""
    numbers = [
        Column(name=f"number_{n}", kind="number", unit="kg", minimum="0", maximum="1000", max_missing="0.5")
        for n in range(20)
    ]
    return DataContract(
        name="bench",
        version="1",
        columns=(
            Column(name="patient_id", kind="identifier", role="patient_id"),
            Column(name="died", kind="boolean", role="label"),
            Column(name="held_out", kind="boolean", role="held_out"),
            *numbers,
            *(Column(name=f"code_{n}", kind="code", codes=CODES) for n in range(5)),
            *(Column(name=f"flag_{n}", kind="boolean") for n in range(2)),
        ),
    )


def generate(rows: int) -> Iterator[pa.Table]:
    """Yields the hospital's table in chunks, in the hospital's names, units and codes."""
    rng = np.random.default_rng(7)
    for start in range(0, rows, CHUNK):
        size = min(CHUNK, rows - start)
        columns: dict[str, object] = {
            "patient_id": [f"p{n:09d}" for n in range(start, start + size)],
            "died": rng.random(size) < 0.2,
            "held_out": rng.random(size) < 0.2,
            "NUMBER_LB": rng.random(size) * 500,
        }
        columns |= {f"number_{n}": pa.array(rng.random(size) * 1000, mask=rng.random(size) < 0.1) for n in range(1, 20)}
        columns["CODE"] = pa.array(rng.integers(1, 5, size).astype(str))
        columns |= {f"code_{n}": pa.array(np.array(CODES)[rng.integers(0, 4, size)]) for n in range(1, 5)}
        columns |= {f"flag_{n}": rng.random(size) < 0.5 for n in range(2)}
        yield pa.table(columns)


def write(source: str, rows: int, folder: Path) -> Path:
    """Writes the table and returns what a site's `data` would be."""
    if source == "dataset":
        for number, table in enumerate(generate(rows)):
            (folder / "table" / f"part={number}").mkdir(parents=True)
            pq.write_table(table, folder / "table" / f"part={number}" / "rows.parquet")
        return folder / "table"
    if source == "sqlite":
        return _write_sqlite(rows, folder)
    path = folder / f"table.{source}"
    schema = next(generate(1)).schema
    writer = pq.ParquetWriter(path, schema) if source == "parquet" else csv.CSVWriter(path, schema)
    with writer:
        for table in generate(rows):
            writer.write_table(table)
    return path


def _write_sqlite(rows: int, folder: Path) -> Path:
    names = next(generate(1)).column_names
    with closing(sqlite3.connect(folder / "table.sqlite")) as database:
        database.execute(f"CREATE TABLE stays ({', '.join(names)})")
        for table in generate(rows):
            values = zip(*(column.to_pylist() for column in table.columns), strict=True)
            database.executemany(f"INSERT INTO stays VALUES ({', '.join('?' * len(names))})", values)
        database.commit()
    (folder / "source.yaml").write_text("kind: sql\nurl: sqlite:///table.sqlite\ntable: stays\n")
    return folder / "source.yaml"


def scan(source: str, path: Path) -> None:
    """Reads everything the plain way, one thread, and keeps nothing."""
    if source == "sqlite":
        with closing(sqlite3.connect(path.parent / "table.sqlite")) as database:
            cursor = database.execute("SELECT * FROM stays")
            while cursor.fetchmany(16_384):
                pass
        return
    if source == "csv":
        for _ in csv.open_csv(path, read_options=csv.ReadOptions(use_threads=False)):
            pass
        return
    for file in sorted(path.rglob("*.parquet")) if path.is_dir() else [path]:
        with pq.ParquetFile(file) as opened:
            for _ in opened.iter_batches(65_536, use_threads=False):
                pass


def measure_source(source: str, rows: int, folder: Path) -> Measured:
    """Measures both steps on one generated table, which must pass its contract.

    Raises:
        SystemExit: the check's memory is not bounded as promised, or the table did not pass.
    """
    path = write(source, rows, folder)
    mapping = folder / "mapping.yaml"
    mapping.write_text(MAPPING)
    _, plain = measure(lambda: scan(source, path))

    def check() -> int:
        return check_cohort(LocalData(str(path), str(mapping)), bench_contract()).patients

    patients, checked = measure(check)
    if patients != rows or checked.peak_bytes > MOST_BYTES:
        raise SystemExit(f"{source}, {rows} rows: {patients} patients, peak {checked.peak_bytes} bytes")
    return Measured(source, rows, plain, checked)


def render(rows: list[Measured], console: Console) -> None:
    """Prints the table."""
    table = Table(box=box.MARKDOWN)
    for heading in ("source", "rows", "scan s / 1M", "scan MiB", "check s / 1M", "check MiB", "check wall s"):
        table.add_column(heading, justify="right")
    for row in rows:
        millions = row.rows / 1e6
        table.add_row(
            row.source,
            f"{row.rows:,}",
            f"{row.scan.cpu_seconds / millions:.2f}",
            f"{row.scan.peak_bytes / 2**20:.0f}",
            f"{row.check.cpu_seconds / millions:.2f}",
            f"{row.check.peak_bytes / 2**20:.0f}",
            f"{row.check.wall_seconds:.1f}",
        )
    console.print("A contract check of 30 columns, beside plain scanning; CPU seconds per million rows, peak memory:\n")
    console.print(table)
    console.print(f"\n{describe_machine()}")


def main() -> None:
    """Measures every source and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.data", description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help="as parquet:1000000")
    parser.add_argument("--folder", type=Path, help="where the tables are written; 10 million rows take 2 GB")
    given = parser.parse_args()
    named = [(case.partition(":")[0], int(case.partition(":")[2])) for case in given.cases]
    # Imported here, so that a measured step pays for its own memory and not for a library's start.
    warm_engine()
    found = []
    for source, rows in named or CASES:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            found.append(measure_source(source, rows, Path(folder)))
    render(found, Console(width=None if sys.stdout.isatty() else 160))


if __name__ == "__main__":
    main()
