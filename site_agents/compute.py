"""The computation of one round at a site: rows in, one noised integer vector out.

Runs in a fork-server child by default, so that a study that hangs or eats memory can be killed without the agent. The
noise is drawn here, from the operating system's randomness, before anything is returned: no un-noised sum ever leaves
this function. The result enters the secure sum unclamped.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from schemas.canonical import canonical_bytes, parse_canonical
from schemas.errors import ConsiliumError, OperationError, PlanError, SiteDataError
from schemas.messages import Instruction
from schemas.plan import StudyPlan
from schemas.statistics import StatisticsPlan, parse_agreement
from site_agents.cohort.reader import LocalData
from tasks.privacy.noise import NoiseStream, os_noise_stream

# What a child imports on its way from rows to a sum: here it is imported once, there it was paid for in every round.
PRELOAD = (
    "site_agents.compute",
    "site_agents.cohort.mapping",
    "site_agents.cohort.converting",
    "site_agents.cohort.grouping",
    "site_agents.cohort.reader",
    "tasks.contract.arrow",
    "tasks.contract.encoder",
    "tasks.contract.selection",
    "tasks.privacy.mechanism",
    "tasks.privacy.statistics",
    "tasks.training.evaluation",
    "tasks.training.local",
    "tasks.training.train",
    "pyarrow.compute",
    "pyarrow.csv",
    "pyarrow.dataset",
    "pyarrow.parquet",
)

Int64Array = NDArray[np.int64]
Plan = StudyPlan | StatisticsPlan


def compute_contribution(
    plan: Plan, site: str, kind: str, weights: NDArray[np.float64], data: LocalData | Path, stream: NoiseStream
) -> Int64Array:
    """Computes this site's noised integer contribution.

    Args:
        site: This site's name in the plan, whose public weight a local update has.
        kind: ``train``, ``evaluate`` or, of a question, ``statistics``.
        weights: Flat float64 weights of the model that the site recomputed itself.
        data: The site's table, and its mapping.
        stream: Source of the noise; from the operating system except in tests that record it.

    Returns:
        int64 vector of `schemas.statistics.coefficients(plan, kind)` coefficients.

    Raises:
        SiteDataError: the table cannot be read or is not what the contract says.
    """
    if isinstance(plan, StatisticsPlan):
        return _answer_question(plan, data, stream)
    from site_agents.cohort.reader import read_table
    from tasks.contract.encoder import encode_features
    from tasks.privacy.mechanism import evaluation_mechanism, training_mechanism
    from tasks.training.evaluation import score_histogram
    from tasks.training.local import train_locally
    from tasks.training.train import train_sum

    cohort = encode_features(plan.contract, read_table(data, plan.contract))
    if kind == "train" and plan.mechanism.local is not None:
        return train_locally(plan, site, cohort, weights, stream)
    if kind == "train":
        mechanism = training_mechanism(plan)
        chosen = mechanism.draw_patients(cohort.training.patient_count, stream)
        return mechanism.add_noise(train_sum(plan, cohort, weights, mechanism.sensitivity, chosen), stream)
    mechanism = evaluation_mechanism(plan)
    return mechanism.add_noise(mechanism.encode_counts(score_histogram(plan, cohort, weights)), stream)


def _answer_question(plan: StatisticsPlan, data: LocalData | Path, stream: NoiseStream) -> Int64Array:
    from site_agents.cohort.questions import patient_values
    from site_agents.cohort.reader import read_table
    from tasks.privacy.statistics import statistics_mechanism, statistics_sum

    values, qualifies = patient_values(plan, read_table(data, plan.contract))
    # One mechanism for both parts of the data: their patients are in one sum.
    return statistics_mechanism(plan.query, "training").add_noise(statistics_sum(plan.query, values, qualifies), stream)


def compute_in_child(
    plan: Plan,
    site: str,
    instruction: Instruction,
    weights: NDArray[np.float64],
    data: LocalData,
    timeout_seconds: float,
) -> Int64Array:
    """Runs `compute_contribution` in a fork-server child and kills it at the deadline.

    Raises:
        OperationError: `training-died` or `training-timeout`.
        SiteDataError: as in the child.
    """
    arguments = (canonical_bytes(plan), site, instruction.kind, weights.tobytes(), data.data, data.mapping)
    try:
        payload = _in_child(_child_main, arguments, timeout_seconds)
    except _ChildRefusal as refusal:
        raise SiteDataError(refusal.code, refusal.text) from None
    return np.frombuffer(payload, dtype="<i8").astype(np.int64)


def verify_module(plan: StudyPlan) -> None:
    """Builds the plan's module, if it has one, on zeros alone, and refuses it with the reason.

    Raises:
        PlanError: as `tasks.training.registry.load_module`.
    """
    from tasks.training.registry import load_module

    if plan.model.module is not None:
        load_module(plan)


def verify_module_in_child(plan: StudyPlan, timeout_seconds: float) -> None:
    """Runs `verify_module` in a fork-server child: the agent itself never imports a model's package.

    Raises:
        PlanError: as in the child.
        OperationError: `training-died` or `training-timeout`.
    """
    if plan.model.module is None:
        return
    try:
        _in_child(_verify_main, (canonical_bytes(plan),), timeout_seconds)
    except _ChildRefusal as refusal:
        raise PlanError(refusal.code, refusal.text) from None


def warm_up() -> None:
    """Starts the fork server with the heavy libraries loaded, so that the first round does not pay for them."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(PRELOAD))
    child = multiprocessing.get_context("forkserver").Process(target=os.getpid, daemon=True)
    child.start()
    child.join()


def in_process(stream_for: Callable[[Instruction], NoiseStream]) -> Compute:
    """Returns a computation without a child, for the embedded in-process consortium."""

    def compute(
        plan: Plan,
        site: str,
        instruction: Instruction,
        weights: NDArray[np.float64],
        data: LocalData,
        timeout_seconds: float,
    ) -> Int64Array:
        return compute_contribution(plan, site, instruction.kind, weights, data, stream_for(instruction))

    return compute


Compute = Callable[[Plan, str, Instruction, NDArray[np.float64], LocalData, float], Int64Array]


class _ChildRefusal(Exception):
    def __init__(self, code: str, text: str) -> None:
        super().__init__(code)
        self.code, self.text = code, text


def _in_child(target: Callable[..., None], arguments: tuple[object, ...], timeout_seconds: float) -> bytes:
    """Runs `target(pipe, *arguments)` in a fork-server child, killed at the deadline, and returns what it sent."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    child.start()
    theirs.close()
    try:
        if not ours.poll(timeout_seconds):
            raise OperationError("training-timeout", "The computation did not finish in time.", "Run again later.")
        tag, payload = ours.recv_bytes().split(b"\n", 1)
    except (EOFError, ConnectionError):
        raise OperationError("training-died", "The computation's process died.", "See the agent's log.") from None
    finally:
        child.kill()
        child.join()
        ours.close()
    if tag != b"ok":
        raise _ChildRefusal(tag.decode(), payload.decode())
    return payload


def _child_main(pipe: Connection, plan: bytes, site: str, kind: str, weights: bytes, data: str, mapping: str) -> None:
    try:
        values = compute_contribution(
            parse_agreement(plan, "the plan"),
            site,
            kind,
            np.frombuffer(weights, dtype=np.float64).copy(),
            LocalData(data, mapping),
            os_noise_stream(),
        )
        pipe.send_bytes(b"ok\n" + values.astype("<i8").tobytes())
    except ConsiliumError as error:
        pipe.send_bytes(error.code.encode() + b"\n" + error.message.encode())


def _verify_main(pipe: Connection, plan: bytes) -> None:
    try:
        verify_module(parse_canonical(StudyPlan, plan, "the plan"))
        pipe.send_bytes(b"ok\n")
    except ConsiliumError as error:
        pipe.send_bytes(error.code.encode() + b"\n" + error.message.encode())
