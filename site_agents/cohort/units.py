"""Units of measurement: a hospital's number becomes the contract's by scale and offset, found by pint."""

from __future__ import annotations

from functools import cache
from typing import Any

from schemas.contract import Column
from schemas.errors import SiteDataError
from schemas.mapping import ColumnMapping


def conversion(column: Column, given: ColumnMapping) -> tuple[float, float]:
    """Returns (scale, offset): contract value = scale * hospital value + offset.

    Raises:
        SiteDataError: `mapping-unit`: a unit that is unknown, or that measures something else.
    """
    if given.scale is not None:
        if given.unit or given.molar_mass:
            raise _refusal(column, given, "has both a unit and a scale", "Give one of them.")
        return given.scale, 0.0
    if not given.unit or given.unit == column.unit:
        return 1.0, 0.0
    return _by_pint(column, given)


def _by_pint(column: Column, given: ColumnMapping) -> tuple[float, float]:
    import pint

    if not column.unit:
        raise _refusal(column, given, f"is given in {given.unit}, and the contract names no unit", "Remove the unit.")
    known = "Correct the unit; where the library does not know it, remove unit and give scale: a number."
    try:
        points = [_convert(value, given, column.unit) for value in (0.0, 1.0, 3.0)]
    except pint.DimensionalityError:
        remedy = "Check which quantity the column holds; between amounts and masses give molar_mass: 386.65 g/mol."
        raise _refusal(
            column, given, f"is given in {given.unit}, which is no measure of {column.unit}", remedy
        ) from None
    except Exception:  # pint raises parser errors of many kinds; all of them mean an unknown unit.
        raise _refusal(
            column, given, f"is given in {given.unit} for {column.unit}, and one of them is unknown", known
        ) from None
    offset, scale = points[0], points[1] - points[0]
    if not scale or abs(points[2] - (offset + 3 * scale)) > 1e-9 * max(1.0, abs(points[2])):
        raise _refusal(column, given, f"is given in {given.unit}, which is no linear measure of {column.unit}", known)
    return scale, offset


def _convert(value: float, given: ColumnMapping, target: str) -> float:
    registry = _registry()
    # A quantity such as 10^9/l is a unit with a factor: the target's factor is divided out again.
    quantity, wanted = _quantity(value, given.unit), _quantity(1.0, target)
    if given.molar_mass:
        converted = quantity.to(wanted.units, "chemistry", mw=registry(given.molar_mass))
    else:
        converted = quantity.to(wanted.units)
    return float(converted.magnitude) / float(wanted.magnitude)


def _quantity(value: float, unit: str) -> Any:
    registry = _registry()
    try:
        return registry.Quantity(value, registry.parse_units(unit))
    except ValueError:
        factor = registry(unit)
        return registry.Quantity(value * factor.magnitude, factor.units)


@cache
def _registry() -> Any:
    import pint

    return pint.UnitRegistry()


def _refusal(column: Column, given: ColumnMapping, problem: str, remedy: str) -> SiteDataError:
    return SiteDataError("mapping-unit", f"Column {column.name} {problem}.", remedy)
