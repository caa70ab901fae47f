"""What every data set of the demo shares: a site's table, its Parquet file, and the public split rule."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import OperationError

if TYPE_CHECKING:
    import pyarrow as pa

HELD_OUT_SHARE = 5


@dataclass(frozen=True)
class SiteTable:
    """One site's table as the site would hold it.

    Attributes:
        site: Site name.
        table: Arrow table with the contract's columns.
        declared_patients: Cohort size rounded up to the next ten: what the site declares in public.
        mapping: Content of the site's mapping file; None for a table with the contract's own columns.
    """

    site: str
    table: pa.Table
    declared_patients: int
    mapping: bytes | None = None


def round_declared(patients: int) -> int:
    """Rounds a cohort size up to the next ten."""
    return max(10, -(-patients // 10) * 10)


def public_rank(label: str, patient: str) -> str:
    """Returns the key of a public pseudo-random order: SHA-256 (hex) of label and pseudonymous patient id."""
    return hashlib.sha256(f"consilium/{label}/{patient}".encode()).hexdigest()


def choose_held_out(strata: Iterable[Sequence[str]], label: str) -> set[str]:
    """Chooses the held-out patients: of each stratum the first fifth (rounded down) in the order of `public_rank`.

    Args:
        strata: Patient ids of each stratum (an outcome, or a hospital's outcome).
        label: Names data set and split seed, so that another seed gives another split.
    """
    chosen: set[str] = set()
    for stratum in strata:
        ordered = sorted(stratum, key=lambda patient: public_rank(label, patient))
        chosen |= set(ordered[: len(ordered) // HELD_OUT_SHARE])
    return chosen


def write_site_tables(tables: Iterable[SiteTable], folder_for: Callable[[str], Path]) -> dict[str, Path]:
    """Writes every site's table as ``cohort.parquet`` into the site's own folder, mode 0600, whole or not at all.

    Raises:
        OperationError: `data-unwritable`.
    """
    import pyarrow.parquet as pq

    paths = {}
    for entry in tables:
        target = folder_for(entry.site) / "cohort.parquet"
        temporary = target.with_suffix(".partial")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
                pq.write_table(entry.table, out)
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(target)
        except OSError as error:
            raise OperationError(
                "data-unwritable",
                f"The table of {entry.site} cannot be written: {error.strerror}.",
                "Free disk space, correct the permissions or name another workdir.",
            ) from None
        finally:
            temporary.unlink(missing_ok=True)
        paths[entry.site] = target
    return paths
