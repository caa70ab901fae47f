"""Local steps: what Opacus' per-sample gradients give, averaged by public weights, with noise in every step."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import tasks.privacy.mechanism
from schemas.canonical import canonical_bytes, parse_canonical
from schemas.errors import PlanError
from schemas.plan import OptimizerSpec, StudyPlan, update_length
from tasks.contract.encoder import Cohort
from tasks.privacy.mechanism import training_mechanism
from tasks.privacy.noise import NoiseStream, os_noise_stream
from tasks.secure_sum.parameters import derive_sum_bound
from tasks.server_step import apply_step, decode_sum, initial_state
from tasks.training.local import train_locally
from tasks.training.train import train_sum
from tests.training.local_plans import make_local_plan
from tests.training.plans import make_cohort, make_plan
from tests.training.test_gradients import sequential

SIZES = {"alder": 3, "birch": 11, "cedar": 0, "doum": 40}
COHORTS = {name: make_cohort(size, seed=size) for name, size in SIZES.items()}


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Switches the noise off and counts the draws."""
    drawn: list[int] = []

    def nothing(stream: NoiseStream, sigma: Fraction, size: int) -> NDArray[np.int64]:
        drawn.append(size)
        return np.zeros(size, np.int64)

    monkeypatch.setattr(tasks.privacy.mechanism, "sample_discrete_gaussian", nothing)
    return drawn


def opened(plan: StudyPlan, weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """The sum of all four sites' updates."""
    parts = [train_locally(plan, site.name, COHORTS[site.name], weights, os_noise_stream()) for site in plan.sites]
    return np.sum(parts, axis=0, dtype=np.int64)


def opacus_steps(plan: StudyPlan, site: str, cohort: Cohort, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The slow oracle: Opacus per-sample gradients, clipped per patient, and a torch loop without noise."""
    from opacus.grad_sample import GradSampleModule

    spec, training = plan.mechanism.local, cohort.training
    assert spec is not None
    clip, declared = float(plan.mechanism.clip_norm), plan.site(site).declared_patients
    local = torch.from_numpy(weights.copy())
    for _ in range(spec.steps):
        net = GradSampleModule(sequential(plan, local.numpy()), loss_reduction="sum")
        logits = net(torch.from_numpy(training.features).requires_grad_())[:, 0]
        labels = torch.from_numpy(training.labels.astype(np.float64))
        torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum").backward()
        rows = torch.cat([p.grad_sample.flatten(1) for p in net.parameters()], dim=1)
        total = torch.zeros_like(local)
        for patient in range(training.patient_count):
            mean = rows[training.patients == patient].mean(dim=0)
            total += mean * min(1.0, clip / float(mean.norm()))
        pull = float(spec.proximal) * (local - torch.from_numpy(weights))
        local = local - float(spec.learning_rate) * (total / declared + pull)
    return np.asarray(local.numpy())


@pytest.mark.parametrize("proximal", ["0", "0.3"], ids=["fedavg", "fedprox"])
@pytest.mark.parametrize("rows", [1, 3], ids=["one-row", "three-rows"])
@pytest.mark.parametrize("hidden", [(), (5,)], ids=["logistic", "mlp"])
def test_local_steps_are_those_of_opacus(
    hidden: tuple[int, ...], rows: int, proximal: str, no_noise: list[int]
) -> None:
    plan = make_local_plan(4, "2", proximal, "20", hidden=hidden, clip_norm="0.4", scale_bits=24)
    cohort, weights = make_cohort(30, rows=rows), np.random.default_rng(3).normal(0, 0.7, update_length(plan))
    sent = train_locally(plan, "birch", cohort, weights, os_noise_stream())
    expected = opacus_steps(plan, "birch", cohort, weights)
    assert np.abs(sent / 100 * 20 / 2**24 - (weights - expected)).max() < 1e-5
    assert np.abs(weights - expected).max() > 0.03
    assert len(no_noise) == plan.mechanism.local.steps  # type: ignore[union-attr]


def test_one_local_step_is_the_distributed_step_with_the_sum_of_weights_for_divisor(no_noise: list[int]) -> None:
    """Divided by its declared size and weighted with it again, a site's sum enters as it is."""
    plan = make_local_plan(1, "0.5")
    start = initial_state(plan)
    together = np.sum([train_sum(plan, c, start.weights, 1 << 20) for c in COHORTS.values()], axis=0)
    distributed = start.weights - 0.5 * (together / 2**20) / 400
    stepped = apply_step(plan, start, opened(plan, start.weights))
    assert np.abs(stepped.weights - distributed).max() <= 8 * 2.0**-20
    assert np.abs(distributed).max() > 100 * 2.0**-20


def test_plain_averaging_gives_the_weighted_mean_of_the_sites_models(no_noise: list[int]) -> None:
    plan = make_local_plan(3, "5")
    sites = tuple(s.model_dump() | {"declared_patients": n} for s, n in zip(plan.sites, (10, 20, 5, 65), strict=True))
    optimizer = OptimizerSpec(kind="sgd", learning_rate="1", divisor="100")
    plan = StudyPlan.model_validate(plan.model_dump() | {"sites": sites, "optimizer": optimizer.model_dump()})
    start = initial_state(plan)
    models = {s.name: opacus_steps(plan, s.name, COHORTS[s.name], start.weights) for s in plan.sites if SIZES[s.name]}
    models["cedar"] = start.weights
    mean = sum(s.declared_patients / 100 * models[s.name] for s in plan.sites)
    stepped = apply_step(plan, start, opened(plan, start.weights))
    assert np.abs(stepped.weights - mean).max() <= 8 * 2.0**-20


def test_the_proximal_term_holds_the_model_near_the_global_one(no_noise: list[int]) -> None:
    def distance(proximal: str) -> float:
        plan = make_local_plan(10, "0.9", proximal)
        sent = train_locally(plan, "doum", COHORTS["doum"], np.zeros(4), os_noise_stream())
        return float(np.linalg.norm(sent))

    assert distance("1") < 0.5 * distance("0.1") < 0.5 * distance("0")


@pytest.mark.parametrize(
    "optimizer",
    [
        {"kind": "sgd", "learning_rate": "1", "divisor": "400"},
        {"kind": "momentum", "learning_rate": "0.5", "divisor": "400", "momentum": "0.5"},
        {"kind": "adam", "learning_rate": "0.2", "divisor": "400"},
        {"kind": "yogi", "learning_rate": "0.2", "divisor": "400", "epsilon": "1e-3", "beta2": "0.99"},
    ],
    ids=lambda spec: spec["kind"],
)
def test_every_server_optimizer_learns_from_local_updates(optimizer: dict[str, str], no_noise: list[int]) -> None:
    plan = make_local_plan(4, "4", optimizer=optimizer)
    state = initial_state(plan)
    for _ in range(4):
        state = apply_step(plan, state, opened(plan, state.weights))
    # The toy outcome is the sign of the first feature.
    assert state.weights[0] > 0.2
    assert state.weights[0] > 1.5 * np.abs(state.weights[1:]).max()


@pytest.mark.parametrize("sampling", ["1", "0.25"])
def test_every_step_draws_noise_anew_also_where_there_is_no_patient(sampling: str) -> None:
    """With nobody there the model is noise alone: the sum of every step's, none skipped and none repeated."""
    steps = 16
    plan = make_local_plan(steps, "1", sampling=sampling, update_norm="1000", noise_multiplier="2")
    mechanism, length = training_mechanism(plan), update_length(plan)
    sent = [train_locally(plan, "cedar", COHORTS["cedar"], np.zeros(length), os_noise_stream()) for _ in range(100)]
    change = np.concatenate(sent) / 100 * 1000 / 2**20
    one = float(mechanism.local_sigma / mechanism.sensitivity) / (float(Fraction(sampling)) * 100)
    assert abs(change.std() / (one * steps**0.5) - 1) < 6 / (2 * change.size) ** 0.5
    assert mechanism.event().runs == ((sampling, "2", steps),)


def test_patients_are_drawn_anew_in_every_step(no_noise: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_local_plan(12, sampling="0.5")
    seen = []

    def watch(*arguments: object) -> NDArray[np.int64]:
        seen.append(arguments[4].copy())  # type: ignore[attr-defined]
        return train_sum(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("tasks.training.local.train_sum", watch)
    train_locally(plan, "doum", COHORTS["doum"], np.zeros(4), os_noise_stream())
    assert len(seen) == len({draw.tobytes() for draw in seen}) == 12
    assert len({int(draw.sum()) for draw in seen}) > 1


def test_one_patient_more_whose_gradient_is_zero_changes_nothing_that_is_sent() -> None:
    """Neither divisor nor weight nor sampling rate is taken from the number of patients."""
    plan, cohort = make_local_plan(), make_cohort(20)
    silent = replace(
        cohort,
        features=np.vstack([cohort.features, np.full((1, 3), np.inf)]),
        labels=np.append(cohort.labels, False),
        patients=np.append(cohort.patients, 20),
        held_out=np.append(cohort.held_out, False),
    )
    sent = [train_locally(plan, "birch", c, np.full(4, 0.1), known_stream()) for c in (cohort, silent)]
    assert np.array_equal(*sent)


def known_stream() -> NoiseStream:
    from tasks.privacy.noise import AesCtrStream

    return AesCtrStream(b"n" * 32)


@settings(max_examples=25, deadline=None)
@given(rate=st.sampled_from(["0.001", "1", "1000", "1e300"]), norm=st.sampled_from(["0.01", "1", "50"]))
def test_an_update_never_exceeds_its_public_bound_whatever_the_noise_does(rate: str, norm: str) -> None:
    """An honest sum cannot wrap: every update is within weight * 2**scale_bits, also of a model that overflows."""
    plan = make_local_plan(3, rate, update_norm=norm, noise_multiplier="20")
    sent = train_locally(plan, "doum", COHORTS["doum"], np.zeros(4), os_noise_stream())
    assert sum(int(v) ** 2 for v in sent) <= (100 * 2**20) ** 2
    assert sum(100 * 2**20 for _ in plan.contributors) <= derive_sum_bound(plan)


def test_an_opened_sum_is_read_in_the_units_of_the_update() -> None:
    plan = make_local_plan(update_norm="8")
    assert decode_sum(plan, np.full(4, 2**20))[0] == 8.0
    assert decode_sum(make_plan(), np.full(4, 2**16))[0] == 1.0


def test_modes_and_their_numbers_belong_together() -> None:
    plan, mechanism = make_plan(), make_local_plan().mechanism
    for wrong in ({"mode": "distributed"}, {"local": None}):
        with pytest.raises(PlanError, match="belong to the local mode"):
            type(mechanism).model_validate(mechanism.model_dump() | wrong)
    for change in (
        {"learning_rate": "0"},
        {"update_norm": "-1"},
        {"proximal": "-0.1"},
        {"learning_rate": "1e999"},
        {"update_norm": "1e-300"},
    ):
        assert mechanism.local is not None
        with pytest.raises(PlanError, match="Expected local learning_rate > 0"):
            type(mechanism.local).model_validate(mechanism.local.model_dump() | change)
    with pytest.raises(PlanError, match="whose sites take local steps"):
        train_locally(plan, "birch", COHORTS["birch"], np.zeros(4), os_noise_stream())


def test_plans_from_before_the_local_mode_keep_their_bytes() -> None:
    older, local = make_plan(), make_local_plan(proximal="0.5")
    assert b'"local"' not in canonical_bytes(older)
    assert b'"mode":"local"' in canonical_bytes(local)
    for plan in (older, local):
        assert parse_canonical(StudyPlan, canonical_bytes(plan), "a plan").study == plan.study
