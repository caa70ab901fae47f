"""Rows in a database, read through SQLAlchemy over a connection that may only read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from schemas.errors import SiteDataError
from site_agents.cohort.sources.base import unreadable_source, wanted_columns
from site_agents.cohort.sources.settings import SqlSettings

if TYPE_CHECKING:
    import pyarrow as pa
    import sqlalchemy as sa

_ROWS = 16_384
_DATABASES = ("postgresql", "duckdb", "sqlite")


@dataclass(frozen=True)
class SqlSource:
    """One table or query.

    Attributes:
        settings: The site's words.
        folder: Where relative paths of `settings` start.
    """

    settings: SqlSettings
    folder: Path

    @property
    def name(self) -> str:
        return f"the {self._url().get_backend_name()} source"

    def fingerprint(self) -> str:
        """Returns "": a database has no bytes to hash, so its rows are checked again every time."""
        return ""

    def column_names(self) -> tuple[str, ...]:
        """Asks the database for the columns of the table or query."""
        import sqlalchemy as sa

        with self._connection() as connection:
            found: Any = connection.execute(sa.select(sa.literal_column("*")).select_from(self._rows()).limit(0))
            return tuple(found.keys())

    def read(self, columns: Collection[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yields the wanted columns through a server-side cursor where the database has one."""
        import pyarrow as pa
        import sqlalchemy as sa

        wanted = wanted_columns(self.column_names(), columns)
        if not wanted:
            return
        query = sa.select(*(sa.column(name) for name in wanted)).select_from(self._rows())
        with self._connection() as connection:
            for rows in connection.execution_options(yield_per=_ROWS).execute(query).partitions():
                yield pa.record_batch({name: _array([row[place] for row in rows]) for place, name in enumerate(wanted)})

    def _rows(self) -> Any:
        import sqlalchemy as sa

        if self.settings.table:
            schema, _, table = self.settings.table.rpartition(".")
            return sa.table(table, schema=schema or None)
        # A single colon would be taken for a parameter; two are a cast.
        query = re.sub(r"(?<!:):(?!:)", r"\\:", self.settings.query.strip().rstrip(";"))
        return sa.text(f"({query}\n) AS source")

    @contextmanager
    def _connection(self) -> Iterator[sa.Connection]:
        import sqlalchemy as sa
        from sqlalchemy import exc, pool

        try:
            url = self._url()
            engine = sa.create_engine(url, connect_args=self._connect_arguments(url), poolclass=pool.NullPool)
            with engine.connect() as connection:
                if engine.dialect.name == "postgresql":
                    # One snapshot for the whole stream, and nothing can be written.
                    connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
                yield connection
        except (exc.OperationalError, exc.InterfaceError):
            raise SiteDataError(
                "data-source-down",
                f"{self.name} does not answer, or does not let this user in.",
                "Start the database, or correct url and password_file of the source file.",
            ) from None
        except exc.NoSuchModuleError:
            raise _unknown_database() from None
        except (exc.SQLAlchemyError, ValueError, TypeError):
            raise SiteDataError(
                "data-query",
                f"{self.name} does not answer this table or query.",
                "Try the query with the database's own client, as the same user.",
            ) from None

    def _url(self) -> sa.URL:
        import sqlalchemy as sa
        from sqlalchemy import exc

        try:
            url = sa.make_url(self.settings.url)
        except (exc.ArgumentError, ValueError):
            raise _unknown_database() from None
        if url.get_backend_name() not in _DATABASES:
            raise _unknown_database()
        if url.password is not None:
            raise SiteDataError(
                "source-settings", "The url of a source names no password.", "Put it into a password_file of its own."
            )
        if url.get_backend_name() == "postgresql":
            return url if not self.settings.password_file else url.set(password=self._password())
        return self._with_file(url)

    def _with_file(self, url: sa.URL) -> sa.URL:
        duckdb = url.get_backend_name() == "duckdb"
        if duckdb and url.database in (None, "", ":memory:"):
            return url.set(database=":memory:", query={})
        # The file must be there: both engines would otherwise make an empty one and call it the cohort.
        path = self.folder / (url.database or "")
        if not path.is_file():
            raise SiteDataError("data-missing", f"Expected a database {path.name}.", "Correct the url of the source.")
        if duckdb:
            return url.set(database=str(path), query={})
        return url.set(database=f"file:{quote(str(path))}", query={"mode": "ro", "uri": "true"})

    def _connect_arguments(self, url: sa.URL) -> dict[str, Any]:
        backend = url.get_backend_name()
        if backend == "postgresql":
            return {"connect_timeout": self.settings.connect_timeout_seconds}
        if backend == "sqlite":
            return {}
        # Files that a query names start at the source file; nothing is fetched from the network.
        config = {"autoinstall_known_extensions": False, "file_search_path": str(self.folder)}
        return {"config": config, "read_only": url.database != ":memory:"}

    def _password(self) -> str:
        path = self.folder / self.settings.password_file
        try:
            if path.stat().st_mode & 0o077:
                raise SiteDataError("source-password", f"Others can read {path.name}.", f"Run chmod 600 {path.name}.")
            return path.read_text().partition("\n")[0]
        except OSError:
            raise unreadable_source(path.name) from None


def _array(values: list[Any]) -> pa.Array:
    """Builds a column of one batch: numbers, booleans, times and text keep their kind, anything else is text."""
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float, Decimal} and kinds != {int}:
        return pa.array([None if v is None else float(v) for v in values], None if kinds else pa.null())
    if len(kinds) == 1 and kinds <= {int, bool, str, date, datetime}:
        try:
            return pa.array(values)
        except (pa.ArrowInvalid, OverflowError):
            pass
    return pa.array([None if v is None else str(v) for v in values], pa.string())


def _unknown_database() -> SiteDataError:
    return SiteDataError(
        "source-settings", f"Expected the url of a {', '.join(_DATABASES)} database.", "Correct url in the source file."
    )
