"""How one hospital's table becomes the contract's table. A private file: it never leaves the hospital."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from schemas.contract import DataContract
from schemas.options import Settings


class ColumnMapping(Settings):
    """How one column of the contract is filled.

    Attributes:
        source: The hospital's column, ``from`` in the file; several for an identifier are joined, unambiguously.
        absent: The hospital does not record it: every value is missing, and the missingness limit decides.
        unit: The hospital's unit of a number; "" means the contract's.
        molar_mass: Of the substance, e.g. ``386.65 g/mol``, where amounts are converted to masses or back.
        scale: Multiplies a number whose units the library does not know.
        missing: Values that mean missing, as the hospital writes them: ``[-1, 999]``.
        codes: The hospital's code -> the contract's code.
        true, false: The hospital's words of a boolean.
        formats: Of a time, as for strptime, ``format`` in the file: ``%d.%m.%Y %H:%M``; the first that fits counts.
        decimal_comma: Whether numbers are written as 1,5.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    source: tuple[str, ...] = Field(default=(), alias="from")
    absent: bool = False
    unit: str = Field(default="", max_length=60)
    molar_mass: str = Field(default="", max_length=60)
    scale: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    missing: tuple[str, ...] = ()
    codes: dict[str, str] = Field(default={})
    true: tuple[str, ...] = ()
    false: tuple[str, ...] = ()
    formats: tuple[str, ...] = Field(default=(), alias="format")
    decimal_comma: bool = False

    @model_validator(mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"from": (value,)}
        if not isinstance(value, dict):
            return value
        many = ("from", "format", "missing", "true", "false")
        return {k: (v,) if k in many and isinstance(v, str) else v for k, v in value.items()}


class RowGrouping(Settings):
    """Which of a patient's rows are kept, by the contract's time column."""

    keep: Literal["all", "first", "last"] = "all"


class SiteMapping(Settings):
    """A hospital's mapping file. A column that it does not name is read under the contract's name.

    Attributes:
        contract, version: The contract that it was written for; "" for any.
        missing: Texts that mean missing in every column.
    """

    format: Literal["consilium/mapping/1"] = "consilium/mapping/1"
    contract: str = ""
    version: str = ""
    missing: tuple[str, ...] = ()
    columns: dict[str, ColumnMapping] = Field(default={})
    rows: RowGrouping = RowGrouping()

    def of(self, name: str) -> ColumnMapping:
        """Returns how a column of the contract is filled."""
        given = self.columns.get(name, ColumnMapping())
        return given if given.source or given.absent else given.model_copy(update={"source": (name,)})

    def source_columns(self, contract: DataContract) -> tuple[str, ...]:
        """Returns the hospital's columns that are needed, each once; no other is read."""
        derived = {c.name for c in contract.derived}
        needed = [self.of(c.name).source for c in contract.columns if c.name not in derived]
        return tuple(dict.fromkeys(name for names in needed for name in names))
