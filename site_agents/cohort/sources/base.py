"""What a source of patient rows is: a name, a fingerprint, columns, and record batches one after another.

Whoever adds a source (OMOP CDM, FHIR) writes these four members and a kind in `settings`. Arrow's and the databases'
own messages quote values and are never passed on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Protocol

from schemas.errors import SiteDataError

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 65_536


class Source(Protocol):
    """One table of a site, read as a stream."""

    @property
    def name(self) -> str:
        """How errors call it; never a path outside the site's own words, never a credential."""

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the bytes, "" where there are none to hash (a database) or they cannot be read."""

    def column_names(self) -> tuple[str, ...]:
        """Returns the names of all columns, in order.

        Raises:
            SiteDataError: the source cannot be read, or is not what its name says.
        """

    def read(self, columns: Collection[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yields batches of at most `BATCH_ROWS` rows with the wanted columns that the source names exactly once.

        Columns of a CSV file are text, an empty field is null; other sources keep their own types.

        Raises:
            SiteDataError: as `column_names`, also in the middle of the stream.
        """


def wanted_columns(present: Collection[str], columns: Collection[str] | None) -> list[str]:
    """Returns the names in `columns` (all if None) that `present` holds exactly once, in its order.

    A column that is named twice is not guessed: the contract check reports it as absent.
    """
    names = list(present)
    return [n for n in dict.fromkeys(names) if names.count(n) == 1 and (columns is None or n in columns)]


def missing_source(name: str) -> SiteDataError:
    """Returns the refusal of a source that is not there."""
    return SiteDataError("data-missing", f"Expected the site's table at {name}.", "Correct the data path.")


def unreadable_source(name: str) -> SiteDataError:
    """Returns the refusal of a source that the operating system does not let us read."""
    return SiteDataError("data-unreadable", f"{name} cannot be read.", "Check its permissions and the disk.")


def foreign_source(name: str, expected: str) -> SiteDataError:
    """Returns the refusal of a file that is not what its name says."""
    return SiteDataError("data-format", f"{name} is not what its name says.", f"Export the table again as {expected}.")
