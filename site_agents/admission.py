"""Which runs a site admits. Rules only: looks at what the server says about a run and applies none of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import Flow as KnownFlow
from prefect.client.schemas.objects import FlowRun, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.workers.base import BaseJobConfiguration
from pydantic import BaseModel, ValidationError

from site_agents.flow_thread import SiteFlow

LARGEST_PARAMETERS_BYTES: Final = 8192


@dataclass(frozen=True)
class AgentFlow:
    """A flow that the site agrees to run, with the closed model of its parameters.

    Args:
        flow: An async flow without retries; called with the model's fields as keywords.
        parameters: A flat pydantic model with `extra="forbid"`.
    """

    flow: SiteFlow
    parameters: type[BaseModel]

    def __post_init__(self) -> None:
        if not self.flow.isasync or self.flow.isgenerator or self.flow.retries:
            raise TypeError(f"Expected an async flow without retries, got {self.flow.name}.")
        if self.parameters.model_config.get("extra") != "forbid":
            raise TypeError(f"Expected {self.parameters.__name__} to forbid extra fields.")


def pool_name(site: str) -> str:
    """Returns the name of the site's work pool."""
    return f"consilium-{site}"


class RefusedRunError(Exception):
    """A run that this site does not accept; its text is a code."""


class SiteJobConfiguration(BaseJobConfiguration):
    """What the server says about a run, looked at and never applied."""

    @classmethod
    async def resolve_for_flow_run(
        cls,
        flow_run: FlowRun,
        *,
        client: PrefectClient,
        work_pool: WorkPool,
        worker_name: str,
        worker_id: UUID | None = None,
        deployment: DeploymentResponse | None = None,
    ) -> SiteJobConfiguration:
        """Reads the run's deployment and flow; no template, block or variable of the server is resolved."""
        if deployment is None and flow_run.deployment_id is not None:
            deployment = await client.read_deployment(flow_run.deployment_id)
        configuration = cls(name=flow_run.name)
        flow = await client.read_flow(flow_run.flow_id)
        configuration._related_objects = {"deployment": deployment, "flow": flow, "flow-run": flow_run}
        return configuration

    @property
    def deployment(self) -> DeploymentResponse | None:
        """The deployment that the run names."""
        found: DeploymentResponse | None = self._related_objects["deployment"]
        return found

    @property
    def flow(self) -> KnownFlow:
        """The flow, as the server knows it: a name."""
        found: KnownFlow = self._related_objects["flow"]
        return found


def accept_run(
    site: str, flows: Mapping[str, AgentFlow], flow_run: FlowRun, configuration: SiteJobConfiguration
) -> tuple[AgentFlow, BaseModel]:
    """Returns the local flow and the checked parameters of a run.

    Raises:
        RefusedRunError: with the code of the first rule that the run breaks.
    """
    deployment = configuration.deployment
    if deployment is None or deployment.name != site or deployment.flow_id != flow_run.flow_id:
        raise RefusedRunError("foreign-deployment")
    if configuration.flow.name not in flows:
        raise RefusedRunError("unknown-flow")
    if deployment.job_variables or flow_run.job_variables:
        raise RefusedRunError("job-variables")
    if deployment.pull_steps:
        raise RefusedRunError("pull-steps")
    if deployment.entrypoint or deployment.path not in (None, "", "."):
        raise RefusedRunError("foreign-entrypoint")
    if deployment.storage_document_id or deployment.infrastructure_document_id or flow_run.infrastructure_document_id:
        raise RefusedRunError("foreign-storage")
    if flow_run.empirical_policy.retries:
        raise RefusedRunError("retries-not-allowed")
    accepted = flows[configuration.flow.name]
    return accepted, _check_parameters(accepted.parameters, flow_run.parameters)


def _check_parameters(model: type[BaseModel], parameters: Mapping[str, Any]) -> BaseModel:
    try:
        encoded = json.dumps(dict(parameters), allow_nan=False)
    except (TypeError, ValueError):
        raise RefusedRunError("parameters-invalid") from None
    if len(encoded) > LARGEST_PARAMETERS_BYTES:
        raise RefusedRunError("parameters-too-large")
    try:
        return model.model_validate_json(encoded, strict=True)
    except ValidationError:
        raise RefusedRunError("parameters-invalid") from None
