"""Converts one raw batch into the contract's columns: names, missing values, codes, words, dates, units."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

from schemas.contract import Column, DataContract
from schemas.errors import SiteDataError
from schemas.mapping import ColumnMapping, SiteMapping
from site_agents.cohort.units import conversion
from tasks.contract.arrow import arrow_schema, join_values

if TYPE_CHECKING:
    import pyarrow as pa

_TRUE, _FALSE = ("true", "1", "1.0"), ("false", "0", "0.0")
_PROBE = "2001-11-23T04:56:07"


class BatchConverter:
    """Converts batches of one source by one verified mapping.

    Args:
        places: Filled with column -> the source's first row (from 1) that could not be converted; private.
    """

    def __init__(self, contract: DataContract, mapping: SiteMapping, places: dict[str, int]) -> None:
        derived = {c.name for c in contract.derived}
        self._columns = [(c, mapping.of(c.name)) for c in contract.columns if c.name not in derived]
        self._schema = arrow_schema(contract)
        self._missing = mapping.missing
        self._rows = 0
        self._places = places
        self._units = {c.name: conversion(c, given) for c, given in self._columns if c.kind == "number"}

    def convert(self, batch: pa.RecordBatch) -> pa.Table:
        """Returns the columns that could be filled, in contract order; rows as in `batch`."""
        import pyarrow as pa

        filled = {}
        for column, given in self._columns:
            target = self._schema.field(column.name).type
            if given.absent:
                filled[column.name] = pa.nulls(batch.num_rows, target)
            elif all(batch.schema.names.count(name) == 1 for name in given.source):
                parts = [batch.column(name) for name in given.source]
                filled[column.name] = self._attempt(column, given, parts)
                if filled[column.name].type != target and column.name not in self._places:
                    self._places[column.name] = self._rows + self._locate(column, given, parts) + 1
        self._rows += batch.num_rows
        return pa.table(filled) if filled else pa.table({})

    def _attempt(self, column: Column, given: ColumnMapping, parts: list[pa.Array]) -> pa.Array:
        import pyarrow as pa

        try:
            return self._fill(column, given, [_decoded(part) for part in parts])
        except pa.ArrowException:
            # Arrow's message quotes the value; a type that no contract has fails the type rule by name.
            return pa.nulls(len(parts[0]), pa.binary())

    def _locate(self, column: Column, given: ColumnMapping, parts: list[pa.Array]) -> int:
        """Returns the first position that cannot be converted, by halving."""
        target = self._schema.field(column.name).type
        good, bad = 0, len(parts[0])
        while bad - good > 1:
            middle = (good + bad) // 2
            if self._attempt(column, given, [part.slice(0, middle) for part in parts]).type == target:
                good = middle
            else:
                bad = middle
        return bad - 1 if bad else 0

    def _fill(self, column: Column, given: ColumnMapping, parts: list[pa.Array]) -> pa.Array:
        missing = (*self._missing, *given.missing)
        if len(parts) > 1:
            texts = [_without(_as_text(part), missing) for part in parts]
            return join_values(texts) if all(_is_text(text) for text in texts) else texts[0].cast("binary")
        convert = {"number": self._number, "code": _code, "boolean": _boolean, "time": _time, "identifier": _identifier}
        return convert[column.kind](column, given, _without(parts[0], missing))

    def _number(self, column: Column, given: ColumnMapping, raw: pa.Array) -> pa.Array:
        import pyarrow as pa
        import pyarrow.compute as pc
        from pyarrow import types

        if types.is_boolean(raw.type):
            return raw
        if _is_text(raw):
            raw = pc.utf8_trim_whitespace(raw)
            if given.decimal_comma:
                raw = pc.replace_substring(raw, ",", ".")
        numbers = raw.cast(pa.float64())
        scale, offset = self._units[column.name]
        return numbers if (scale, offset) == (1.0, 0.0) else pc.add(pc.multiply(numbers, scale), offset)


def verify_format(name: str, form: str) -> None:
    """Refuses a date format that cannot be parsed, or that leaves out the day.

    Raises:
        SiteDataError: `mapping-date-format`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        moment = pa.array([_PROBE]).cast(pa.timestamp("us"))
        text = pc.strftime(moment.cast(pa.timestamp("s")), form)
        back = pc.strptime(text, form, unit="s", error_is_null=True)
        days = pc.equal(back.cast(pa.date32()), moment.cast(pa.date32()))
        sound = days[0].as_py() is True and "%z" not in form.lower()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        sound = False
    if not sound:
        raise SiteDataError(
            "mapping-date-format",
            f"Column {name} has a date format that cannot be read back.",
            "Write year, month and day as for strptime, e.g. %d.%m.%Y or %Y-%m-%d %H:%M, without a time zone.",
        )


def _code(column: Column, given: ColumnMapping, raw: pa.Array) -> pa.Array:
    text = _as_text(raw)
    return _replaced(text, given.codes) if _is_text(text) and given.codes else text


def _boolean(column: Column, given: ColumnMapping, raw: pa.Array) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    if types.is_boolean(raw.type) and not given.true:
        return raw
    text = _as_text(raw)
    if not _is_text(text):
        return raw
    text = pc.utf8_lower(text)
    true = pc.is_in(text, value_set=pa.array([w.lower() for w in given.true or _TRUE]))
    false = pc.is_in(text, value_set=pa.array([w.lower() for w in given.false or _FALSE]))
    told = pc.or_(true, false)
    if pc.any(pc.and_(pc.invert(told), pc.is_valid(text)), min_count=0).as_py():
        return text  # A word that is neither: the type rule refuses the column.
    return pc.if_else(told, true, pa.scalar(None, pa.bool_()))


def _time(column: Column, given: ColumnMapping, raw: pa.Array) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    if given.formats and not _is_text(raw):
        raw = _as_text(raw)
    if not _is_text(raw):
        sound = types.is_date(raw.type) or types.is_timestamp(raw.type) or types.is_null(raw.type)
        return raw.cast(pa.timestamp("us"), safe=False) if sound else raw
    text = pc.utf8_trim_whitespace(raw)
    if not given.formats:
        try:
            return text.cast(pa.timestamp("us"))
        except pa.ArrowInvalid:
            return text.cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us"))
    parsed = pc.coalesce(*(_strptime(text, form) for form in given.formats))
    return parsed if parsed.null_count == text.null_count else text


def _strptime(text: pa.Array, form: str) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    parsed = pc.strptime(text, form, unit="s", error_is_null=True)
    # The C library takes 31.02. for 3 March: only what is written back as it was, leading zeros apart, was a date.
    same = pc.equal(_plain(pc.strftime(parsed, form)), _plain(text))
    return pc.if_else(same, parsed, pa.scalar(None, parsed.type)).cast(pa.timestamp("us"))


def _plain(text: pa.Array) -> pa.Array:
    import pyarrow.compute as pc

    return pc.replace_substring_regex(pc.utf8_lower(text), r"(^|[^0-9])0+([0-9])", r"\1\2")


def _identifier(column: Column, given: ColumnMapping, raw: pa.Array) -> pa.Array:
    return _as_text(raw)


def _decoded(values: pa.Array) -> pa.Array:
    import pyarrow as pa
    from pyarrow import types

    if types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if types.is_large_string(values.type) or types.is_string_view(values.type):
        return values.cast(pa.string())
    return values


def _as_text(values: pa.Array) -> pa.Array:
    """Returns codes and identifiers as trimmed text: 1 and 1.0 are ``1``; other types stay what they are."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    if types.is_floating(values.type) or types.is_decimal(values.type):
        values = values.cast(pa.int64())  # Fails where a fraction would be lost.
    if types.is_integer(values.type) or types.is_boolean(values.type) or types.is_null(values.type):
        values = values.cast(pa.string())
    return pc.utf8_trim_whitespace(values) if _is_text(values) else values


def _is_text(values: pa.Array) -> bool:
    from pyarrow import types

    return bool(types.is_string(values.type))


def _without(values: pa.Array, missing: tuple[str, ...]) -> pa.Array:
    """Returns the values with those that mean missing as null: empty text, and `missing` as text or as a number."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    numbers = [number for number in map(_as_number, missing) if number is not None]
    if _is_text(values):
        trimmed = pc.utf8_trim_whitespace(values)
        gone = pc.is_in(trimmed, value_set=pa.array(["", *missing], pa.string()))
        if numbers:
            gone = pc.or_(
                gone,
                reduce(pc.or_, (_equals_number(trimmed, text) for text in missing if _as_number(text) is not None)),
            )
    elif numbers and (types.is_integer(values.type) or types.is_floating(values.type) or types.is_decimal(values.type)):
        as_float = values.cast(pa.float64(), safe=False)
        # A listed NaN equals nothing, itself included.
        gone = pc.is_in(as_float, value_set=pa.array(numbers, pa.float64()))
        if any(number != number for number in numbers):  # noqa: PLR0124
            gone = pc.or_(gone, pc.fill_null(pc.is_nan(as_float), False))
    else:
        return values
    return pc.if_else(gone, pa.scalar(None, values.type), values)


def _equals_number(text: pa.Array, number: str) -> pa.Array:
    """Tells which texts are `number` written with zeros after the point: -1.0 for -1."""
    import pyarrow.compute as pc

    whole = number.split(".", maxsplit=1)[0]
    fraction = number.partition(".")[2].rstrip("0")
    pattern = rf"^{whole.replace('+', '')}" + (rf"\.{fraction}0*$" if fraction else r"(\.0*)?$")
    return pc.fill_null(pc.match_substring_regex(text, pattern), False)


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _replaced(text: pa.Array, codes: dict[str, str]) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    position = pc.index_in(text, value_set=pa.array(list(codes), pa.string()))
    return pc.coalesce(pa.array(list(codes.values()), pa.string()).take(position), text)
