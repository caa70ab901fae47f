"""Parties of a study as the commands make them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.cli import main
from infra.embedded import EmbeddedConsortium
from infra.settings import load_settings
from schemas.errors import ConsiliumError
from schemas.options import CoordinatorSettings
from tests.simulator import Prepared, change_settings
from tests.storage.s3_servers import write_credentials


@dataclass(frozen=True)
class Consortium:
    """Homes made by the commands, and the server that they share."""

    folder: Path
    sites: tuple[str, ...]
    draft: Path

    @property
    def coordinator(self) -> Path:
        return self.folder / "coordinator"

    def home(self, site: str) -> Path:
        return self.folder / site

    @property
    def study(self) -> str:
        return load_settings(CoordinatorSettings, self.coordinator / "config.json").study

    def opened(self) -> EmbeddedConsortium:
        return EmbeddedConsortium(self.coordinator, {site: self.home(site) for site in self.sites})


def run(*command: str, answer: str = "") -> str:
    result = CliRunner().invoke(main, command, input=answer, env={"CONSILIUM_DEBUG": "1"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*command: str) -> ConsiliumError:
    with pytest.raises(ConsiliumError) as caught:
        CliRunner().invoke(main, command, env={"CONSILIUM_DEBUG": "1"}, catch_exceptions=False)
    return caught.value


def join_everybody(prepared_study: Prepared, tmp_path: Path, endpoint: tuple[str, ...]) -> Consortium:
    sites = tuple(site.name for site in prepared_study.plan.sites)
    keys = write_credentials(tmp_path, "coordinator", "secret-1")
    run("coordinator", "init", "--home", str(tmp_path / "coordinator"), "--credentials", str(keys), *endpoint)
    for name in sites:
        home, table = tmp_path / name, tmp_path / f"{name}.parquet"
        shutil.copyfile(prepared_study.workdir.site(name) / "cohort.parquet", table)
        keys = write_credentials(tmp_path, name, "secret-2")
        asked = ("--name", name, "--data", str(table), "--epsilon", "3", "--delta", "1e-5", "--prefect", "http://x/api")
        run("site", "init", "--home", str(home), "--credentials", str(keys), *asked, *endpoint)
        change_settings(home, memory_folder=str(tmp_path / "memory" / name))
        run("site", "join", "--home", str(home), "--patients", "110")
    (tmp_path / "memory").mkdir(mode=0o700)
    draft = tmp_path / "draft.json"
    draft.write_text(json.dumps(prepared_study.plan.model_dump(mode="json")))
    return Consortium(tmp_path, sites, draft)


def approve_everybody(consortium: Consortium) -> Consortium:
    named = [part for site in consortium.sites for part in ("--site", site)]
    run("coordinator", "propose", "--home", str(consortium.coordinator), str(consortium.draft), *named)
    for site in consortium.sites:
        run("site", "approve", "--home", str(consortium.home(site)), consortium.study, "--yes")
    return consortium


def propose_command(consortium: Consortium, *sites: str) -> tuple[str, ...]:
    named = [part for site in sites for part in ("--site", site)]
    return ("coordinator", "propose", "--home", str(consortium.coordinator), str(consortium.draft), *named)


def signed_by_coordinator(approved: Consortium) -> dict[str, bytes]:
    folder = approved.folder / "store" / "coordinator"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.json") if path.is_file()}
