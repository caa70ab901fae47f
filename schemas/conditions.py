"""A small closed language about the columns of one row: conditions, and what a contract builds of them.

There is no expression to evaluate: a condition is data, so that a contract from outside can be read by a person and
checked by any engine without running anything that it wrote.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.canonical import Decimal, Strict

Operation = Literal["present", "missing", "equals", "not_equals", "one_of", "at_least", "at_most", "above", "below"]
ORDERED = frozenset({"at_least", "at_most", "above", "below"})
UNARY = frozenset({"present", "missing"})


class Condition(Strict):
    """A statement about one row. A comparison with a missing value is neither true nor false.

    Attributes:
        column: The column that it is about.
        op: How it is compared.
        value: The other side as text: a decimal, a code, ``true`` or ``false``, or an ISO date; "" for none.
        values: The codes of ``one_of``.
        other: The other side as a column of the same kind; "" for none.
    """

    column: str
    op: Operation
    value: str = Field(default="", max_length=200)
    values: tuple[str, ...] = ()
    other: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it compares."""
        return (self.column, self.other) if self.other else (self.column,)

    def in_words(self) -> str:
        """Says the condition in words."""
        right = self.other or self.value or ", ".join(self.values)
        words = {
            "present": "is recorded",
            "missing": "is missing",
            "equals": f"is {right}",
            "not_equals": f"is not {right}",
            "one_of": f"is one of {right}",
            "at_least": f"is at least {right}",
            "at_most": f"is at most {right}",
            "above": f"is above {right}",
            "below": f"is below {right}",
        }
        return f"{self.column} {words[self.op]}"


class LabelRule(Strict):
    """The outcome: true where every condition on outcome columns holds, missing where that cannot be told."""

    when: tuple[Condition, ...] = Field(min_length=1)


class CrossRule(Strict):
    """A rule over several columns of a row: where every `when` holds, `then` must hold or concern a missing value."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,63}$")
    when: tuple[Condition, ...] = ()
    then: Condition

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it needs, each once."""
        return tuple(dict.fromkeys(name for c in (*self.when, self.then) for name in c.columns))

    def in_words(self) -> str:
        """Says the rule in words."""
        before = " and ".join(c.in_words() for c in self.when)
        return f"where {before}: {self.then.in_words()}" if before else self.then.in_words()


class Split(Strict):
    """A public split by patient id, for tables that have no column for it; the same at every hospital.

    A patient is held out if the first 8 bytes of SHA-256(``consilium/split/<salt>/<id>``), as a big-endian integer,
    are below share * 2**64.
    """

    share: Decimal
    salt: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
