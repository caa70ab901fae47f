"""Cell values of one invented patient, recognisable wherever they turn up, and a search for them."""

from __future__ import annotations

import base64
import io
import json
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PATIENT = "canary-4711-patient"
# Within the breast-cancer contract: trained on like any other row.
GOOD = {"mean_radius": 17.1302489137, "mean_perimeter": 113.5702468139, "worst_area": 1234.5697531864}
# Outside it: the site refuses, and the refusal must not quote it.
BAD = {"mean_area": 91375.2468135}


def plant(table: Path, cells: Mapping[str, float]) -> None:
    """Gives the first row of a Parquet file these values and the patient's name."""
    rows = pq.read_table(table)
    columns = rows.to_pydict()
    for name, value in {"patient_id": PATIENT, **cells}.items():
        columns[name][0] = value
    pq.write_table(pa.table(columns, schema=rows.schema), table)


def needles() -> dict[str, bytes]:
    """Returns what to look for: each value as text and as bytes, plain, in hex and in base64."""
    found = {"patient": PATIENT.encode()}
    for name, value in {**GOOD, **BAD}.items():
        # Shorter than the value: a rounded quotation is a leak as well.
        found[f"{name} as text"] = f"{value:.8g}".encode()[:-1]
        for order in ("<", ">"):
            raw = struct.pack(f"{order}d", value)
            found[f"{name} {order}f64"] = raw
            found[f"{name} {order}hex"] = raw.hex().encode()
            for shift in range(3):
                # Six bytes that begin at a multiple of three in some stream give these eight characters.
                found[f"{name} {order}base64+{shift}"] = base64.b64encode(raw[shift : shift + 6])
    return found


def search(places: Iterable[tuple[str, bytes]]) -> list[str]:
    """Lists ``place: needle`` for every canary that is found; archives are looked into."""
    wanted = needles()
    found = []
    for place, data in places:
        for inner, content in _opened(place, data):
            found += [f"{inner}: {name}" for name, needle in wanted.items() if needle in content]
    return found


def files_under(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yields every file under `folder`."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()


def verify_search_sees() -> None:
    """Fails unless the search finds a row in each of the forms in which it might leave."""
    row = {"patient_id": PATIENT, **GOOD, **BAD}
    raw = b"x" + struct.pack(f"<{len(GOOD)}d", *GOOD.values())
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("row.json", json.dumps(row))
    forms = (json.dumps(row).encode(), raw, base64.b64encode(raw), raw.hex().encode(), archive.getvalue())
    for form in forms:
        assert search([("row", form)]), form


def _opened(place: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    yield place, data
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield f"{place}/{name}", archive.read(name)
