"""One MLflow experiment per study and its parent run; opening an existing study again returns the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.canonical import canonical_bytes
from schemas.plan import StudyPlan, feature_count, update_length
from schemas.threshold import describe
from tasks.tracking.names import study_name
from tasks.tracking.target import TrackingTarget, common_tags, connect

_FLOW_RUN = "consilium.prefect_flow_run"


@dataclass(frozen=True)
class StudyRun:
    """Where a study's runs are: plan digest, experiment id, id of the parent run."""

    study: str
    experiment_id: str
    run_id: str


def describe_software() -> dict[str, str]:
    """Returns the versions of consilium and of the libraries that shape the released model."""
    from importlib.metadata import version

    return {name: version(name) for name in ("consilium", "mlflow", "numpy", "torch")}


def open_study(target: TrackingTarget, plan: StudyPlan, software: Mapping[str, str], flow_run: str = "") -> StudyRun:
    """Opens the study's experiment and parent run, creating what does not exist yet.

    Args:
        target: The MLflow backend.
        plan: The study plan; public, logged whole.
        software: Package name to version, e.g. from `describe_software`.
        flow_run: Address of the study's page in Prefect; empty where there is none.
    """
    client = connect(target)
    experiment_id = _open_experiment(client, target, plan)
    if target.artifact_uri:
        _hide_default_experiment(client)
    run_id = find_run(client, experiment_id, f"tags.`consilium.level` = 'study' and {_is_study(plan)}")
    if run_id is None:
        run = client.create_run(
            experiment_id, run_name=study_name(plan.study), tags={**_study_tags(plan), **_software_tags(software)}
        )
        run_id = str(run.info.run_id)
    else:
        # A resumed study continues its finished or interrupted run.
        client.update_run(run_id, status="RUNNING")
    client.log_batch(run_id, params=_parameters(plan), synchronous=True)
    describe_run(client, run_id, plan, "Not released yet.", flow_run)
    client.log_text(run_id, canonical_bytes(plan).decode(), "plan.json")
    client.log_text(run_id, canonical_bytes(plan.contract).decode(), "contract.json")
    return StudyRun(plan.study, experiment_id, run_id)


def close_study(target: TrackingTarget, run: StudyRun, complete: bool, reason: str) -> None:
    """Ends the parent run: FINISHED if every planned round was opened, KILLED with the reason as a tag otherwise."""
    client = connect(target)
    client.set_tag(run.run_id, "consilium.complete", "yes" if complete else "no")
    client.set_tag(run.run_id, "consilium.end_reason", reason or "every planned round was opened")
    client.set_terminated(run.run_id, status="FINISHED" if complete else "KILLED")


def find_run(client: Any, experiment_id: str, condition: str) -> str | None:
    """Returns the id of the oldest run in the experiment that meets `condition`, or None."""
    runs = client.search_runs([experiment_id], condition, order_by=["attributes.start_time ASC"], max_results=1)
    return str(runs[0].info.run_id) if runs else None


def describe_run(client: Any, run_id: str, plan: StudyPlan, result: str, flow_run: str = "") -> None:
    """Sets the parent run's description: what came out first, because MLflow folds the rest.

    Args:
        result: What was released (Markdown).
        flow_run: Address of the study's page in Prefect; empty leaves the one that is there.
    """
    address = remember_flow_run(client, run_id, flow_run)
    link = f"\n\n[The study's flow run in Prefect]({address})" if address else ""
    client.set_tag(run_id, "mlflow.note.content", f"{result}{link}\n\n{describe_plan(plan)}")


def remember_flow_run(client: Any, run_id: str, flow_run: str) -> str:
    """Keeps the address of the study's page in Prefect with the run, and returns the one that is kept."""
    if flow_run:
        client.set_tag(run_id, _FLOW_RUN, flow_run)
        return flow_run
    return str(client.get_run(run_id).data.tags.get(_FLOW_RUN, ""))


def describe_plan(plan: StudyPlan) -> str:
    """Returns the plan in words (Markdown), from public constants only."""
    mechanism, budget, numbers = plan.mechanism, plan.budget, plan.threshold
    lines = [
        plan.purpose,
        "",
        f"- Study id (plan digest): `{plan.study}`",
        f"- Sites: {', '.join(site.name for site in plan.sites)}; coordinator: {plan.coordinator.name}",
        f"- Privacy unit: one {mechanism.unit}, {mechanism.neighboring_relation}; "
        f"at most ε = {budget.epsilon} at δ = {budget.delta} per site over the whole study, even if "
        f"{numbers.colluding_contributors} contributors collude with the coordinator",
        f"- A patient is assumed in at most {budget.max_sites_per_patient} site(s)",
        f"- Mechanism: gradients clipped to {mechanism.clip_norm} per patient, noise multiplier "
        f"{mechanism.noise_multiplier} {_carriers(plan)}, "
        f"{mechanism.rounds} rounds, sampling probability {mechanism.sampling_probability}",
        f"- Opening a sum needs {numbers.t} of {len(plan.key_holders)} key holders, a certificate of "
        f"{numbers.certificate_quorum} and at least {numbers.k_min} contributions",
        f"- Model: {plan.model.kind}, {update_length(plan)} parameters on {feature_count(plan.contract)} features of "
        f"contract {plan.contract.name} {plan.contract.version}",
        "",
        "This page is a view. The evidence is the signed ledgers: run `consilium audit verify` on the exported folder.",
    ]
    return "\n".join(lines)


def _carriers(plan: StudyPlan) -> str:
    local = plan.mechanism.local
    if local is None:
        return f"carried by {plan.threshold.honest_noise_shares} honest shares"
    return f"of each site's own in each of {local.steps} local steps a round"


def _open_experiment(client: Any, target: TrackingTarget, plan: StudyPlan) -> str:
    found = client.search_experiments(filter_string=f"tags.`consilium.study` = '{plan.study}'", max_results=1)
    if found:
        return str(found[0].experiment_id)
    name = f"{plan.title} [{plan.study[:12]}]"
    location = f"{target.artifact_uri}/{plan.study[:16]}" if target.artifact_uri else None
    tags = {"consilium.study": plan.study, "mlflow.note.content": describe_plan(plan)}
    return str(client.create_experiment(name, artifact_location=location, tags=tags))


def _hide_default_experiment(client: Any) -> None:
    """Deletes MLflow's own empty "Default" experiment from a database that is ours alone."""
    default = client.get_experiment("0")
    if default.lifecycle_stage == "active" and not client.search_runs(["0"], max_results=1):
        client.delete_experiment("0")


def _is_study(plan: StudyPlan) -> str:
    return f"tags.`consilium.study` = '{plan.study}'"


def _study_tags(plan: StudyPlan) -> dict[str, str]:
    return {
        **common_tags(plan),
        "consilium.level": "study",
        "consilium.plan_digest": plan.study,
        "consilium.unit": f"{plan.mechanism.unit}, {plan.mechanism.neighboring_relation}",
        "consilium.epsilon_limit": plan.budget.epsilon,
        "consilium.delta": plan.budget.delta,
        "consilium.participants": ", ".join(site.name for site in plan.sites),
        "consilium.threshold": describe(plan.threshold),
    }


def _software_tags(software: Mapping[str, str]) -> dict[str, str]:
    return {f"consilium.software.{name}": version for name, version in sorted(software.items())}


def _local_parameters(plan: StudyPlan) -> dict[str, str]:
    local = plan.mechanism.local
    if local is None:
        return {}
    return {
        "local_steps": str(local.steps),
        "local_learning_rate": local.learning_rate,
        "local_proximal": local.proximal,
        "local_update_norm": local.update_norm,
    }


def _parameters(plan: StudyPlan) -> list[Any]:
    from mlflow.entities import Param

    values = {
        "model": plan.model.kind,
        "hidden": "-".join(str(size) for size in plan.model.hidden) or "none",
        "parameters": str(update_length(plan)),
        "rounds": str(plan.mechanism.rounds),
        "clip_norm": plan.mechanism.clip_norm,
        "noise_multiplier": plan.mechanism.noise_multiplier,
        "sampling_probability": plan.mechanism.sampling_probability,
        "mode": plan.mechanism.mode,
        **_local_parameters(plan),
        "optimizer": plan.optimizer.kind,
        "learning_rate": plan.optimizer.learning_rate,
        "divisor": plan.optimizer.divisor,
        "weight_decay": plan.optimizer.weight_decay,
        "budget_epsilon": plan.budget.epsilon,
        "budget_delta": plan.budget.delta,
        "threshold": describe(plan.threshold),
        "contract": f"{plan.contract.name} {plan.contract.version}",
        "evaluation_bins": str(plan.evaluation.bins),
        "evaluation_noise_multiplier": plan.evaluation.noise_multiplier,
    }
    return [Param(key, value) for key, value in values.items()]
