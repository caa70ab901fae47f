"""One row of each patient, the first or the last in time, from a stream.

What is held is one row per patient seen so far, and a few batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np

from schemas.contract import DataContract
from tasks.contract.arrow import collect_table
from tasks.contract.selection import sound_columns

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_BEFORE_MERGE = 262_144


def keep_one_row(
    contract: DataContract, tables: Iterable[pa.Table], keep: Literal["first", "last"]
) -> Iterator[pa.Table]:
    """Yields one table with the first or last row of each patient by the contract's time column.

    A row without a time or an id is kept, so that the contract check refuses the column by name; where two rows share
    the time, the other columns decide, so that the order of the file does not. If a needed column cannot be used, every
    batch is passed on as it is: the check refuses that column.
    """
    held: pa.Table | None = None
    waiting: list[pa.Table] = []
    rows = 0
    source = iter(tables)
    for table in source:
        if sound_columns(contract, table) != {c.name for c in contract.columns}:
            yield from (part for part in (held, *waiting, table, *source) if part is not None)
            return
        waiting.append(table)
        rows += table.num_rows
        if rows >= max(ROWS_BEFORE_MERGE, held.num_rows if held is not None else 0):
            held, waiting, rows = _merge(contract, held, waiting, keep), [], 0
    merged = _merge(contract, held, waiting, keep)
    if merged is not None:
        yield merged


def _merge(
    contract: DataContract, held: pa.Table | None, waiting: list[pa.Table], keep: Literal["first", "last"]
) -> pa.Table | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = [part for part in (held, *waiting) if part is not None]
    if not parts:
        return None
    table = collect_table(contract, [batch for part in parts for batch in part.combine_chunks().to_batches()])
    if not table.num_rows:
        return parts[0]
    patient, time = contract.column_with_role("patient_id"), contract.column_with_role("time")
    assert patient is not None
    assert time is not None
    others = [c.name for c in contract.columns if c.name not in (patient.name, time.name)]
    names = [patient.name, time.name, *others]
    # A missing time comes first for first and last for last: it wins, and the completeness rule refuses it.
    placement = "at_start" if keep == "first" else "at_end"
    order = pc.sort_indices(table, sort_keys=[(n, "ascending") for n in names], null_placement=placement)
    table = table.take(order)
    ids = table.column(patient.name).to_numpy(zero_copy_only=False)
    differs = np.asarray(ids[1:] != ids[:-1], dtype=np.bool_)
    missing = np.asarray(pc.is_null(table.column(patient.name)).to_numpy(zero_copy_only=False), dtype=np.bool_)
    edge = np.concatenate([[True], differs]) if keep == "first" else np.concatenate([differs, [True]])
    return table.filter(pa.array(edge | missing))
