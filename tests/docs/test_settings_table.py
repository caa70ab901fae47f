"""Every setting is in the one table that documents them, and the table names no other."""

from __future__ import annotations

import re
from pathlib import Path

from schemas.options import CoordinatorSettings, ReviewerSettings, RunOptions, S3Settings, SiteSettings
from schemas.services import ServiceSettings

DOCUMENT = Path(__file__).parents[2] / "docs" / "deployment.md"


def test_the_table_of_settings_is_complete_and_current() -> None:
    rows = re.findall(r"^\| (`.+?) \| (?:all|coordinator|site|services|reviewer)", DOCUMENT.read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    groups = (CoordinatorSettings, SiteSettings, ReviewerSettings, ServiceSettings)
    expected = {name for group in groups for name in group.model_fields} - {"format", "s3"}
    expected |= {f"s3.{name}" for name in S3Settings.model_fields}
    expected |= {f"options.{name}" for name in RunOptions.model_fields}
    assert named == expected


def test_every_variable_of_the_table_is_read_where_the_environment_is_read() -> None:
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \|", DOCUMENT.read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)}
    assert {"PREFECT_API_URL", "HTTPS_PROXY", "CONSILIUM_DEBUG"} <= named
    source = (DOCUMENT.parents[1] / "infra" / "settings.py").read_text()
    assert {name for name in named if f'"{name}"' not in source} == set()
