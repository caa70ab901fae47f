"""Plan parts of the local mode, and what a plan of it gives without encryption: an experiment for one's own desk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from infra.datasets import PlanParts, exact_held_out_auc
from schemas.plan import LocalSpec, MechanismSpec, OptimizerSpec, StudyPlan
from tasks.privacy.noise import NoiseStream, os_noise_stream

if TYPE_CHECKING:
    from tasks.contract.encoder import Cohort

Server: TypeAlias = Literal["sgd", "adam", "yogi"]


def local_parts(
    parts: PlanParts,
    declared_patients: int,
    steps: int,
    learning_rate: str,
    proximal: str = "0",
    update_norm: str = "4",
    sampling_probability: str = "1",
    server: Server = "sgd",
) -> PlanParts:
    """Derives parts of a study in local mode from those of a distributed one: same data, model, budget and rounds.

    Every step of every round has the noise with which all of them fit the budget.

    Args:
        declared_patients: Sum over the sites; the public divisor of the weighted sum.
        steps: Local steps per round.
        learning_rate: Of one local step.
        proximal: FedProx mu; "0" is FedAvg.
        update_norm: Public bound on one round's change of the model.
        sampling_probability: Of a patient to be in one step's batch.
        server: ``sgd`` averages the sites' models; ``adam`` and ``yogi`` step with the learning rate of `parts`.

    Raises:
        BudgetError: the budget admits no such study.
    """
    from tasks.privacy.accounting import calibrate_noise_multiplier, calibrate_sampled_multiplier
    from tasks.privacy.renyi import choose_order

    epsilon, delta, releases = parts.budget.epsilon, parts.budget.delta, parts.mechanism.rounds * steps
    if sampling_probability == "1":
        multiplier = calibrate_noise_multiplier(epsilon, delta, releases)
    else:
        order = choose_order(epsilon, delta)
        multiplier = calibrate_sampled_multiplier(epsilon, delta, releases, sampling_probability, order)
    mechanism = MechanismSpec(
        mode="local",
        clip_norm=parts.mechanism.clip_norm,
        scale_bits=parts.mechanism.scale_bits,
        noise_multiplier=multiplier,
        sampling_probability=sampling_probability,
        rounds=parts.mechanism.rounds,
        local=LocalSpec(steps=steps, learning_rate=learning_rate, proximal=proximal, update_norm=update_norm),
    )
    optimizer = OptimizerSpec(kind="sgd", learning_rate="1", divisor=str(declared_patients))
    if server != "sgd":
        # Nothing holds the average back, so the server does not decay weights; Yogi starts from epsilon**2.
        changes = {"kind": server, "divisor": optimizer.divisor, "weight_decay": "0"}
        changes |= {"epsilon": "1e-3"} if server == "yogi" else {}
        optimizer = parts.optimizer.model_copy(update=changes)
    return replace(parts, mechanism=mechanism, optimizer=optimizer)


def simulated_local_auc(
    plan: StudyPlan,
    cohorts: Sequence[Cohort],
    stream_factory: Callable[[], NoiseStream] = os_noise_stream,
) -> float:
    """Runs the plan's rounds in local mode on real steps, noise and server step, without encryption: the exact AUC.

    Args:
        cohorts: One per site, in the order of the plan's sites.
    """
    from tasks.server_step import apply_step, initial_state, released_weights
    from tasks.training.local import train_locally

    state = initial_state(plan)
    for _ in range(plan.mechanism.rounds):
        stream = stream_factory()
        updates = [
            train_locally(plan, site.name, cohort, state.weights, stream)
            for site, cohort in zip(plan.sites, cohorts, strict=True)
        ]
        state = apply_step(plan, state, sum(updates[1:], updates[0]))
    return exact_held_out_auc(plan, cohorts, released_weights(state))
