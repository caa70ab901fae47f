"""A small study for these tests: plan, release and facts, all invented."""

from __future__ import annotations

import numpy as np

from schemas.contract import Column, DataContract
from schemas.messages import EpsilonReport, ModelRelease
from schemas.plan import (
    BudgetSpec,
    CoordinatorEntry,
    EvaluationSpec,
    MechanismSpec,
    ModelSpec,
    OptimizerSpec,
    SiteEntry,
    StudyPlan,
    update_length,
)
from schemas.threshold import default_threshold
from tasks.server_step import ModelState, apply_step, initial_state, state_digest, weights_safetensors
from tasks.tracking.rounds import RoundFacts, derive_round_metrics

SITES = ("east", "north", "south", "west")


def make_plan(kind: str = "logistic", nonce: str = "11") -> StudyPlan:
    columns = (
        Column(name="patient", kind="identifier", role="patient_id"),
        Column(name="ill", kind="boolean", role="label"),
        Column(name="age", kind="number", minimum="0", maximum="120"),
        Column(name="stage", kind="code", codes=("a", "b", "c")),
    )
    return StudyPlan(
        title="Invented study",
        purpose="Shows what tracking records.",
        nonce=nonce * 32,
        coordinator=CoordinatorEntry(name="registry", identity_key="ff" * 32),
        sites=tuple(
            SiteEntry(name=n, identity_key=f"{i:02x}" * 32, hpke_key=f"{i:02x}" * 1216, declared_patients=100)
            for i, n in enumerate(SITES)
        ),
        threshold=default_threshold(4),
        contract=DataContract(name="invented cohort", version="1", columns=columns),
        model=ModelSpec(kind="mlp", hidden=(3,)) if kind == "mlp" else ModelSpec(kind="logistic"),
        mechanism=MechanismSpec(clip_norm="1", scale_bits=14, noise_multiplier="2", rounds=2),
        optimizer=OptimizerSpec(kind="adam", learning_rate="0.1", divisor="100"),
        budget=BudgetSpec(epsilon="3", delta="1e-5"),
        evaluation=EvaluationSpec(bins=10, noise_multiplier="2"),
    )


def step(plan: StudyPlan, state: ModelState) -> tuple[ModelState, np.ndarray]:
    opened = np.arange(update_length(plan), dtype=np.int64) * 1000 - 2000
    return apply_step(plan, state, opened), opened


def reports(value: str) -> tuple[EpsilonReport, ...]:
    return tuple(EpsilonReport(site=name, events=1, collusion=value, outsider="0.5", fallback="9") for name in SITES)


def train_facts(plan: StudyPlan, round_: int = 1) -> tuple[RoundFacts, bytes]:
    before = initial_state(plan)
    after, opened = step(plan, before)
    facts = RoundFacts(
        round=round_,
        kind="train",
        participants=("east", "north", "south"),
        dropped=(("west", "silent"),),
        metrics=derive_round_metrics(plan, before, after, opened),
        epsilon=reports("1.25"),
        bytes_up=1000,
        bytes_down=2000,
        seconds={"collect": 1.5, "open": 0.25},
        model=state_digest(after),
        messages={"record.json": b"{}"},
        finished_at_ms=1_700_000_000_000 + round_,
    )
    return facts, weights_safetensors(plan, after)


def make_release(plan: StudyPlan, weights_digest: str) -> ModelRelease:
    return ModelRelease(
        rounds=2,
        model="ab" * 32,
        weights=weights_digest,
        evaluation="cd" * 32,
        metrics=(("auc", "0.951000"), ("auc_high", "0.981000"), ("auc_low", "0.911000")),
        epsilon=reports("2.5"),
        evaluation_epsilon=reports("2.75"),
        complete=True,
        reason="all planned rounds",
    )
