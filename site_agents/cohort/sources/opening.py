"""From the site's words about its data to a source."""

from __future__ import annotations

from pathlib import Path

from schemas.errors import SiteDataError
from site_agents.cohort.sources.base import Source, missing_source
from site_agents.cohort.sources.files import CsvSource, ParquetDataset, ParquetSource
from site_agents.cohort.sources.settings import CsvSettings, SourceSettings, SqlSettings, read_source_settings
from site_agents.cohort.sources.sql import SqlSource

_DESCRIPTIONS = (".yaml", ".yml")


def open_source(spec: str | Path) -> Source:
    """Opens the source that `spec` names: a .parquet or .csv file, a folder of Parquet files, or a source.yaml.

    Raises:
        SiteDataError: `data-missing`, `data-format`, and those of reading a source.yaml.
    """
    path = Path(spec)
    if path.suffix.lower() in _DESCRIPTIONS:
        return open_described(read_source_settings(path), path.absolute().parent)
    if path.is_dir():
        return ParquetDataset(path)
    if not path.is_file():
        raise missing_source(path.name)
    if path.suffix.lower() == ".parquet":
        return ParquetSource(path)
    if path.suffix.lower() == ".csv":
        return CsvSource(path)
    raise SiteDataError(
        "data-format",
        f"Expected a .parquet or .csv file, a folder of Parquet files or a source.yaml, got {path.name}.",
        "Convert the table, or describe it in a source.yaml.",
    )


def open_described(settings: SourceSettings, folder: Path) -> Source:
    """Opens the source that a source.yaml describes; its relative paths start at `folder`.

    Raises:
        SiteDataError: `data-missing`.
    """
    if isinstance(settings, SqlSettings):
        return SqlSource(settings, folder)
    path = folder / settings.path
    if not path.exists():
        raise missing_source(path.name)
    if isinstance(settings, CsvSettings):
        return CsvSource(path, settings.delimiter, settings.encoding, settings.column_names)
    return ParquetDataset(path) if path.is_dir() else ParquetSource(path)
