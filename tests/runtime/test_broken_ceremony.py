"""A second key ceremony that never completes: the study ends in order, with the model of the last opened round."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.ceremony_steps import sign_ceremony_instruction
from flows.context import open_coordinator
from flows.departures import TooFewRemain
from flows.release import Released
from flows.study import run_study
from infra.approving import leave
from infra.embedded import EmbeddedConsortium
from infra.prefect_server import PrefectServer
from schemas.errors import OperationError
from schemas.layout import ceremony_key
from site_agents.ceremony import STEPS, SiteCeremony
from tests.simulator import Prepared, change_settings, copy_study, open_consortium

pytestmark = pytest.mark.usefixtures("prefect_settings")

# Nobody's agent runs here: what a site said before is all that there is.
OPTIONS = {"ceremony_deadline_seconds": 0.5, "release_deadline_seconds": 0.5, "silent_grace_seconds": 0.1}


@pytest.fixture
def prepared(study_after_ceremony: Prepared, server: PrefectServer, tmp_path: Path) -> Prepared:
    prepared = copy_study(study_after_ceremony, tmp_path / "study")
    settle(prepared, prefect_api_url=server.api_url)
    return prepared


def settle(prepared: Prepared, options: dict[str, float] | None = None, **changes: object) -> None:
    home = prepared.workdir.coordinator
    tracking = {"mlflow_uri": f"sqlite:///{home / 'mlflow.db'}", "artifacts": str(home / "mlartifacts")}
    change_settings(home, options={**OPTIONS, **(options or {})}, **tracking, **changes)


def one_round(prepared: Prepared) -> EmbeddedConsortium:
    """Opens round 1 under the first key."""
    consortium = open_consortium(prepared)
    consortium.run_round(consortium.finished_ceremony(), 1)
    return consortium


def break_off(consortium: EmbeddedConsortium, epoch: int) -> str:
    """Begins the ceremony of `epoch` without one holder; returns its name."""
    sign_ceremony_instruction(consortium.coordinator, epoch)
    silent, *others = [site.name for site in consortium.plan.key_holders]
    for site in others:
        party = SiteCeremony(consortium.sites[site], epoch)
        party.verify()
        STEPS[0][2](party)
    return silent


def run(prepared: Prepared) -> Released:
    return asyncio.run(run_study(open_coordinator(prepared.workdir.coordinator)))


def events(prepared: Prepared, name: str) -> list[dict[str, Any]]:
    lines = (prepared.workdir.coordinator / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def began(prepared: Prepared) -> int:
    """Returns the newest epoch that was begun."""
    store, epoch = open_coordinator(prepared.workdir.coordinator).store, 1
    while store.exists(ceremony_key(prepared.plan.study, epoch + 1, None, "instruction.json")):
        epoch += 1
    return epoch


def leaves(prepared: Prepared, silent: str) -> str:
    leave(prepared.workdir.site(silent), prepared.plan.study)
    return f"No key ceremony can complete: {silent} left the study."


def stays_silent(prepared: Prepared, silent: str) -> str:
    settle(prepared, {"broken_ceremonies_in_a_row": 1})
    return f"Key ceremonies broke off, in a row: 1; the last one for want of {silent}."


@pytest.mark.parametrize("ends", [leaves, stays_silent])
def test_a_holder_that_is_gone_in_a_second_ceremony_does_not_hold_back_what_was_opened(
    prepared: Prepared, ends: Callable[[Prepared, str], str]
) -> None:
    silent = break_off(one_round(prepared), 2)
    reason = ends(prepared, silent)
    released = run(prepared).release
    assert (released.predicate.rounds, released.predicate.reason) == (1, reason)
    assert released.predicate.evaluation is None

    settle(prepared)
    assert run(prepared).release.digest == released.digest
    assert began(prepared) == 2, "a study whose release is signed holds no ceremony"
    assert [event["round"] for event in events(prepared, "round-done")] == [1]


def test_a_ceremony_that_broke_off_is_held_again_while_that_may_help(prepared: Prepared) -> None:
    silent = break_off(one_round(prepared), 2)
    with pytest.raises(OperationError, match=f"no nonce-commit from .*{silent}") as caught:
        run(prepared)
    assert caught.value.code == "ceremony-incomplete"
    assert began(prepared) == 3
    assert [event["round"] for event in events(prepared, "round-done")] == [1]


def test_nothing_is_released_where_nothing_was_opened(
    prepared_study: Prepared, server: PrefectServer, tmp_path: Path
) -> None:
    prepared = copy_study(prepared_study, tmp_path / "new")
    settle(prepared, {"broken_ceremonies_in_a_row": 1}, prefect_api_url=server.api_url)
    consortium = open_consortium(prepared)
    silent = break_off(consortium, 1)
    with pytest.raises(OperationError, match=f"no nonce-commit from .*{silent}") as caught:
        run(prepared)
    assert caught.value.code == "ceremony-incomplete"
    leave(prepared.workdir.site(silent), prepared.plan.study)
    with pytest.raises(TooFewRemain, match=f"No key ceremony can complete: {silent}"):
        run(prepared)
