"""What a sample tells about its columns: kinds, a few values, whether something is missing; in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

_MOST_DISTINCT = 20
_WORDS = ({"true", "false"}, {"yes", "no"}, {"y", "n"}, {"t", "f"}, {"0", "1"}, {"0.0", "1.0"})


@dataclass
class ColumnSample:
    """One column of a sample.

    Attributes:
        kind: ``number``, ``boolean``, ``text``, ``time``, ``empty`` (no values) or ``other``.
        distinct: Its values as text, None if there are more than 20.
        low, high: Extremes of a number.
        missing: Whether a value is missing.
    """

    name: str
    kind: str = "empty"
    distinct: tuple[str, ...] | None = ()
    low: float | None = None
    high: float | None = None
    missing: bool = False


def sample_columns(path: Path) -> list[ColumnSample]:
    """Reads a table once and describes its columns.

    Raises:
        SiteDataError: the table cannot be read.
    """
    from site_agents.cohort.sources.opening import open_source

    source = open_source(path)
    found = {name: ColumnSample(name) for name in source.column_names()}
    for batch in source.read():
        for name in batch.schema.names:
            _add(found[name], batch.column(name))
    for sample in found.values():
        if sample.kind in ("number", "text") and sample.distinct:
            words = {value.lower() for value in sample.distinct}
            sample.kind = "boolean" if any(words <= pair for pair in _WORDS) else sample.kind
    return list(found.values())


def _add(sample: ColumnSample, values: pa.Array) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    sample.missing = sample.missing or values.null_count > 0
    values = values.drop_null()
    if not len(values):
        return
    kind, numbers = _kind(values)
    # One text among numbers makes the column text: the sample says what is written, not what was meant.
    sample.kind = kind if sample.kind in ("empty", kind) else "text" if "text" in (kind, sample.kind) else "other"
    if numbers is not None:
        low, high = pc.min(numbers).as_py(), pc.max(numbers).as_py()
        sample.low = low if sample.low is None else min(low, sample.low)
        sample.high = high if sample.high is None else max(high, sample.high)
    if sample.distinct is not None:
        seen = set(sample.distinct) | set(values.cast(pa.string()).unique().to_pylist())
        sample.distinct = tuple(sorted(seen)) if len(seen) <= _MOST_DISTINCT else None


def _kind(values: pa.Array) -> tuple[str, pa.Array | None]:
    import pyarrow as pa
    from pyarrow import types

    if types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if types.is_boolean(values.type):
        return "boolean", None
    if types.is_integer(values.type) or types.is_floating(values.type) or types.is_decimal(values.type):
        return "number", values.cast(pa.float64())
    if types.is_temporal(values.type):
        return "time", None
    if not (types.is_string(values.type) or types.is_large_string(values.type)):
        return "other", None
    try:
        return "number", values.cast(pa.float64())
    except pa.ArrowInvalid:
        return "text", None
