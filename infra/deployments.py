"""Applies ``infra/prefect.yaml`` to a Prefect server: the coordinator's work pool, deployments, schedules and notices.

Idempotent: everything is found by name and brought to what the file says. A schedule that a person paused stays paused.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import ValidationError

from flows.notices import AUDIT_FAILED, BUDGET_LOW, SITE_SILENT
from schemas.errors import OperationError
from schemas.options import Settings

PROJECT: Final = Path(__file__).parent / "prefect.yaml"
POOL: Final = "consilium-coordinator"
_POOL_TYPE: Final = "process"


class CronSchedule(Settings):
    cron: str
    timezone: str = "UTC"


class WorkPool(Settings):
    name: Literal["consilium-coordinator"]


class DeploymentFile(Settings):
    """One deployment of the file."""

    name: str
    entrypoint: str
    description: str
    parameters: dict[str, str]
    work_pool: WorkPool
    schedules: tuple[CronSchedule, ...] = ()


class ProjectFile(Settings):
    """``prefect.yaml``."""

    name: str
    deployments: tuple[DeploymentFile, ...]


@dataclass(frozen=True)
class Notice:
    """An event that is shown in Prefect and, where one is named, passed on to a webhook."""

    event: str
    text: str


NOTICES: Final = (
    Notice(SITE_SILENT, "A site was silent to the end of a step's deadline."),
    Notice(BUDGET_LOW, "A site has less than a fifth of its budget left."),
    Notice(AUDIT_FAILED, "The audit of a study found something."),
)


def read_project(path: Path, home: Path, study: str) -> ProjectFile:
    """Reads ``prefect.yaml`` for the study of `home`; its two variables are `CONSILIUM_HOME` and `CONSILIUM_STUDY`.

    Raises:
        OperationError: `no-study`, `project-unreadable`.
    """
    if not study:
        raise OperationError("no-study", "This coordinator has no study yet.", "Propose one: coordinator propose.")
    try:
        text = path.read_text()
        for name, value in (("CONSILIUM_HOME", json.dumps(str(home))[1:-1]), ("CONSILIUM_STUDY", study[:12])):
            text = text.replace("{{ $" + name + " }}", value)
        return ProjectFile.model_validate(yaml.safe_load(text))
    except (OSError, ValueError, yaml.YAMLError, ValidationError):
        raise OperationError(
            "project-unreadable", f"Expected deployments in {path.name}.", "Take the file of this version."
        ) from None


async def apply_project(
    project: ProjectFile, study: str, crons: Mapping[str, str], webhook: str | None, sites: Sequence[str] = ()
) -> list[str]:
    """Brings the server to what `project` says; returns one line per thing applied.

    Args:
        study: The study id.
        crons: First word of a deployment's name -> cron, instead of the file's.
        sites: Sites whose agents come through the proxy and may not make their own work pools and deployments.
        webhook: Address that notices are posted to; None leaves them as events in Prefect's pages.

    Raises:
        OperationError: `unknown-deployment`, `cron-invalid`, `work-pool-foreign`.
    """
    names = [deployment.name.split("-")[0] for deployment in project.deployments]
    unknown = sorted(set(crons) - set(names))
    if unknown:
        known = ", ".join(names)
        raise OperationError("unknown-deployment", f"There is no deployment {unknown[0]}.", f"Choose among {known}.")
    await _ensure_pool()
    done = [f"work pool {POOL}", *[await _ensure_site(site) for site in sites]]
    for name, wanted in zip(names, project.deployments, strict=True):
        cron = crons.get(name)
        chosen = wanted.model_copy(update={"schedules": (CronSchedule(cron=cron),)}) if cron else wanted
        done.append(await _ensure_deployment(chosen, study))
    for notice in NOTICES:
        done.append(await _ensure_automation(notice, study, webhook))
    return done


async def _ensure_pool() -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    async with get_client() as client:
        try:
            pool = await client.read_work_pool(POOL)
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            await client.create_work_pool(WorkPoolCreate(name=POOL, type=_POOL_TYPE, base_job_template=template))
            return
    if pool.type != _POOL_TYPE:
        raise OperationError(
            "work-pool-foreign", f"Expected work pool {POOL} of type {_POOL_TYPE}, got {pool.type}.", "Remove it."
        )


async def _ensure_site(site: str) -> str:
    from site_agents.flows import site_flows
    from site_agents.worker import ensure_site_deployments, ensure_site_pool

    await ensure_site_pool(site)
    # Names and closed parameters only; the folder is never used, and what runs is installed at the site.
    await ensure_site_deployments(site, site_flows(Path()))
    return f"work pool and deployments of {site}"


async def _ensure_deployment(wanted: DeploymentFile, study: str) -> str:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule as PrefectCron
    from prefect.exceptions import ObjectNotFound
    from prefect.utilities.callables import parameter_schema

    module, _, function = wanted.entrypoint.rpartition(".")
    flow = getattr(importlib.import_module(module), function)
    try:
        schedules = [PrefectCron(cron=s.cron, timezone=s.timezone) for s in wanted.schedules]
    except (ValidationError, ValueError):
        raise OperationError("cron-invalid", f"The schedule of {wanted.name} is no cron line.", "Correct it.") from None
    async with get_client() as client:
        paused = False
        try:
            present = await client.read_deployment_by_name(f"{flow.name}/{wanted.name}")
            paused = bool(present.schedules) and not any(s.active for s in present.schedules)
        except ObjectNotFound:
            pass
        await client.create_deployment(
            flow_id=await client.create_flow_from_name(flow.name),
            name=wanted.name,
            description=wanted.description,
            work_pool_name=POOL,
            entrypoint=wanted.entrypoint,
            parameters=dict(wanted.parameters),
            parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
            enforce_parameter_schema=True,
            schedules=[DeploymentScheduleCreate(schedule=s, active=not paused) for s in schedules],
            tags=[f"study:{study[:12]}"],
        )
    when = ", ".join(s.cron for s in wanted.schedules) or "by hand"
    return f"deployment {flow.name}/{wanted.name}: {when}{' (paused)' if paused else ''}"


async def _ensure_automation(notice: Notice, study: str, webhook: str | None) -> str:
    from datetime import timedelta

    from prefect.client.orchestration import get_client
    from prefect.events.actions import DoNothing
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    name = f"{notice.event} {study[:12]}"
    actions: list[Any] = [DoNothing()] if webhook is None else [await _call_webhook(notice, study, webhook)]
    wanted = AutomationCore(
        name=name,
        description=notice.text,
        trigger=EventTrigger(
            expect={notice.event},
            match_related={"prefect.resource.id": f"consilium.study.{study[:12]}"},
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=actions,
    )
    async with get_client() as client:
        present = await client.read_automations_by_name(name)
        if present:
            await client.update_automation(present[0].id, wanted.model_copy(update={"enabled": present[0].enabled}))
        else:
            await client.create_automation(wanted)
    return f"notice {notice.event}: {'shown in Prefect' if webhook is None else 'posted to the webhook'}"


async def _call_webhook(notice: Notice, study: str, webhook: str) -> Any:
    from prefect.blocks.webhook import Webhook
    from prefect.events.actions import CallWebhook
    from pydantic import SecretStr

    block = Webhook(method="POST", url=SecretStr(webhook))
    block_id = await block.asave(f"consilium-notices-{study[:12]}", overwrite=True)
    payload = json.dumps(
        {
            "event": notice.event,
            "text": notice.text,
            "study": study[:12],
            "time": "{{ event.occurred }}",
        }
    )
    # Whoever may send an event chooses its resource; encoded, it stays one text of the notice.
    about = '"about": {{ event.resource.id | tojson }}'
    return CallWebhook(block_document_id=block_id, payload=f"{payload[:-1]}, {about}}}")
