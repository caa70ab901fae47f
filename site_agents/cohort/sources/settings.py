"""`source.yaml`: where a site's rows are, for sources that need more words than a path. Private to the site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from schemas.errors import SiteDataError
from schemas.options import Settings
from schemas.yaml_files import model_from_plain, parse_yaml

FORMAT = "consilium/source/1"


class ParquetSettings(Settings):
    """A Parquet file, or a folder with a (partitioned) Parquet dataset; relative paths start at this file."""

    format: Literal["consilium/source/1"] = "consilium/source/1"
    kind: Literal["parquet"]
    path: str = Field(min_length=1)


class CsvSettings(Settings):
    """A file of separated values.

    Attributes:
        delimiter: One character.
        encoding: As Python calls it.
        column_names: For a file without a header line.
    """

    format: Literal["consilium/source/1"] = "consilium/source/1"
    kind: Literal["csv"]
    path: str = Field(min_length=1)
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    encoding: str = "utf8"
    column_names: tuple[str, ...] = ()


class SqlSettings(Settings):
    """One table or query of a PostgreSQL, DuckDB or SQLite database, opened for reading only.

    Attributes:
        url: As SQLAlchemy writes it, without a password: ``postgresql://reader@db.hospital/icu``,
            ``duckdb:///cohort.duckdb`` (``duckdb://`` for a query over files), ``sqlite:///cohort.sqlite``.
        password_file: File whose first line is the password; readable by its owner only.
        table: ``name`` or ``schema.name``.
        query: Instead of `table`: one SELECT.
        connect_timeout_seconds: How long to wait for the database to answer (PostgreSQL).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["consilium/source/1"] = "consilium/source/1"
    kind: Literal["sql"]
    url: str = Field(min_length=1)
    password_file: str = ""
    table: str = ""
    query: str = ""
    connect_timeout_seconds: int = Field(default=10, ge=1, le=600)

    @model_validator(mode="after")
    def _check(self) -> SqlSettings:
        if bool(self.table) == bool(self.query):
            raise SiteDataError("source-settings", "A SQL source needs either a table or a query.", "Give one of them.")
        return self


SourceSettings = ParquetSettings | CsvSettings | SqlSettings


class _File(Settings):
    source: Annotated[SourceSettings, Field(discriminator="kind")]


def read_source_settings(path: Path) -> SourceSettings:
    """Reads a source.yaml.

    Raises:
        SiteDataError: `yaml-unreadable`, `yaml-fields`, `source-settings`.
    """
    try:
        data = path.read_bytes()
    except OSError:
        raise SiteDataError("data-missing", f"Expected a source file {path.name}.", "Correct the data path.") from None
    return model_from_plain(
        _File, {"source": parse_yaml(data, path.name, SiteDataError)}, path.name, SiteDataError
    ).source
