"""Bugs that federated learning systems shipped, each tried on the real code: ledger, noise, server step, consortium.

One restarted study is shared: round 1, everybody restarts, round 2. Noise is the operating system's, counted.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from safetensors.numpy import load

from infra.embedded import EmbeddedConsortium, Faults
from schemas.errors import EvidenceError
from schemas.ledger import GaussianEvent, PrivacyReserved
from schemas.messages import Instruction
from schemas.options import CoordinatorSettings, RunOptions, SiteSettings
from schemas.plan import StudyPlan, layer_shapes, update_length
from site_agents.cohort.reader import read_table
from site_agents.compute import compute_contribution
from tasks.contract.encoder import Cohort, encode_features
from tasks.lineage import first_lineage
from tasks.privacy.accounting import epsilon_of_cost, exact, gdp_cost
from tasks.privacy.mechanism import training_mechanism
from tasks.privacy.noise import AesCtrStream, NoiseStream, os_noise_stream
from tasks.server_step import ModelState, apply_step, decode_sum, initial_state, weights_safetensors
from tasks.training.gradients import unflatten
from tasks.training.train import train_sum
from tests.conftest import FinishedStudy
from tests.simulator import InsecureRecordedStream, Prepared, copy_study, open_consortium
from tests.training.plans import make_cohort, make_plan


@dataclass
class Restarted:
    """A study whose parties all restarted between round 1 and round 2; one site was silent in round 1."""

    consortium: EmbeddedConsortium
    silent: str
    draws: Counter[str]
    models: tuple[ModelState, ModelState]

    def values(self, site: str, round_: int) -> NDArray[np.int64]:
        """What the site sent into the encrypted sum (the test may open its home)."""
        key = f"private/{self.consortium.plan.study}/values-{round_:04d}"
        stored = self.consortium.sites[site].outbox.stored(key)
        assert stored is not None
        return np.frombuffer(stored, dtype="<i8", offset=64)

    def without_noise(self, site: str, round_: int) -> NDArray[np.int64]:
        plan = self.consortium.plan
        return train_sum(plan, cohort_of(self.consortium, site), self.models[round_ - 1].weights)

    def reserved(self, site: str) -> list[PrivacyReserved]:
        entries = self.consortium.sites[site].ledger.find(self.consortium.plan.study, "privacy-reserved")
        return [entry.body for entry in entries if isinstance(entry.body, PrivacyReserved)]


def cohort_of(consortium: EmbeddedConsortium, site: str) -> Cohort:
    contract = consortium.plan.contract
    return encode_features(contract, read_table(consortium.sites[site].data, contract))


@pytest.fixture(scope="module")
def restarted(study_after_ceremony: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Restarted:
    prepared = copy_study(study_after_ceremony, tmp_path_factory.mktemp("restarted") / "study")
    draws: Counter[str] = Counter()

    def counted(site: str, instruction: Instruction) -> NoiseStream:
        draws[site] += 1
        return os_noise_stream()

    homes = {site.name: prepared.workdir.site(site.name) for site in prepared.plan.sites}
    silent = prepared.plan.sites[0].name
    before = EmbeddedConsortium(prepared.workdir.coordinator, homes, counted)
    before.run_round(before.finished_ceremony(), 1, faults=Faults(silent=[silent]))
    after = EmbeddedConsortium(prepared.workdir.coordinator, homes, counted)
    public = after.finished_ceremony()
    after.run_round(public, 1, faults=Faults(silent=[silent]))
    middle = after.lineage.state
    after.run_round(public, 2)
    return Restarted(after, silent, draws, (first_lineage(after.plan).state, middle))


def test_accountant_reset_every_round(restarted: Restarted) -> None:
    """A fresh accountant per round reports the cost of one round for ever."""
    plan = restarted.consortium.plan
    site = plan.sites[1].name
    first, second = restarted.reserved(site)
    assert (first.round, second.round) == (1, 2)
    assert exact(first.before.spent) == 0
    assert second.before == first.after
    assert exact(second.after.spent) == 2 * gdp_cost(first.event)
    one, two = (epsilon_of_cost(n * gdp_cost(first.event), plan.budget.delta) for n in (1, 2))
    assert restarted.consortium.epsilon()[site] == two
    assert float(two) > float(one)


def test_steps_miscounted(restarted: Restarted) -> None:
    """Steps are counted where the noise is drawn: as many charged as drawn, none for a silent site or a replay."""
    for site in restarted.consortium.plan.sites:
        charged = sum(steps for body in restarted.reserved(site.name) for _, _, steps in body.event.runs)
        assert restarted.draws[site.name] == charged == (1 if site.name == restarted.silent else 2)


def test_unprotected_round_after_restart(restarted: Restarted) -> None:
    """Whoever restores a model but not its privacy engine trains on without noise; here nothing is restored."""
    mechanism = training_mechanism(restarted.consortium.plan)
    noise: dict[int, list[NDArray[np.int64]]] = {1: [], 2: []}
    for site in restarted.consortium.plan.sites[1:]:
        for round_ in (1, 2):
            noise[round_].append(restarted.values(site.name, round_) - restarted.without_noise(site.name, round_))
    for drawn in noise.values():
        flat = np.concatenate(drawn) / float(mechanism.local_sigma)
        assert abs(float(np.sqrt((flat**2).mean())) - 1) < 6 / math.sqrt(2 * flat.size)
    assert all((a != b).any() for a, b in zip(noise[1], noise[2], strict=True)), "and the noise is not drawn again"


def test_epsilon_summed_over_clients(restarted: Restarted, finished_study: FinishedStudy) -> None:
    """Sites hold different patients: the cost is each site's own, not the sum, and not the mean, over the sites."""
    by_site = restarted.consortium.epsilon()
    delta = restarted.consortium.plan.budget.delta
    for site, epsilon in by_site.items():
        costs = [gdp_cost(body.event) for body in restarted.reserved(site)]
        assert epsilon == epsilon_of_cost(sum(costs, Fraction(0)), delta)
    others = {epsilon for site, epsilon in by_site.items() if site != restarted.silent}
    assert len(others) == 1, "four sites that did the same cost the same as one"
    assert float(by_site[restarted.silent]) < float(others.pop())
    released = open_consortium(finished_study.prepared).epsilon()
    assert max(float(e) for e in released.values()) <= float(finished_study.prepared.plan.budget.epsilon)


def test_noise_divided_by_a_uniform_mean_but_weighted_by_examples(
    study_after_ceremony: Prepared, tmp_path: Path
) -> None:
    """Weights by size multiply a large site's patients past their bound. Every sum enters once, whatever its size."""
    consortium = open_consortium(copy_study(study_after_ceremony, tmp_path / "study"), insecure_recorded_noise=True)
    plan, start = consortium.plan, consortium.lineage.state
    outcome = consortium.run_round(consortium.finished_ceremony(), 1)
    mechanism, expected = training_mechanism(plan), np.zeros(update_length(plan), np.int64)
    sizes = set()
    for site in plan.sites:
        cohort = cohort_of(consortium, site.name)
        sizes.add(cohort.patient_count)
        stream = InsecureRecordedStream(site.name, outcome.instruction.predicate)
        expected += mechanism.add_noise(train_sum(plan, cohort, start.weights), stream)
    assert len(sizes) > 1
    assert np.array_equal(outcome.opened, expected)
    sites = tuple(site.model_dump() | {"declared_patients": 7} for site in plan.sites)
    resized = StudyPlan.model_validate(plan.model_dump() | {"sites": sites})
    assert resized.study != plan.study
    stepped = apply_step(resized, replace(start, study=resized.study), outcome.opened)
    assert np.array_equal(stepped.weights, outcome.lineage.state.weights), "the divisor is the plan's, not a count"


def test_sampling_rate_from_private_n() -> None:
    """One more patient whose gradient is zero changes neither what is charged nor, with equal noise, what is sent."""
    plan = make_plan()
    cohort = make_cohort(20)
    silent = replace(
        cohort,
        features=np.vstack([cohort.features, np.full((1, 3), np.inf)]),
        labels=np.append(cohort.labels, False),
        patients=np.append(cohort.patients, 20),
        held_out=np.append(cohort.held_out, False),
    )
    mechanism, weights = training_mechanism(plan), np.full(4, 0.1)
    sent = [mechanism.add_noise(train_sum(plan, c, weights), AesCtrStream(b"n" * 32)) for c in (cohort, silent)]
    assert np.array_equal(*sent)
    (probability, _, _), *rest = mechanism.event().runs
    assert (probability, rest) == (plan.mechanism.sampling_probability, [])
    assert mechanism.event().divisor == plan.optimizer.divisor


def test_empty_batch_skipped(prepared_table: tuple[StudyPlan, Path]) -> None:
    """A site that trains on nobody in a round sends noise like any other: silence would tell."""
    plan, path = prepared_table
    table = pq.read_table(path)
    column = plan.contract.column_with_role("held_out")
    assert column is not None
    position = table.column_names.index(column.name)
    pq.write_table(table.set_column(position, column.name, pa.array([True] * table.num_rows)), path)
    sent = compute_contribution(plan, plan.sites[0].name, "train", initial_state(plan).weights, path, os_noise_stream())
    scaled = sent / float(training_mechanism(plan).local_sigma)
    assert np.count_nonzero(sent) == sent.size
    assert abs(float(np.sqrt((scaled**2).mean())) - 1) < 6 / math.sqrt(2 * sent.size)


@pytest.fixture
def prepared_table(prepared_study: Prepared, tmp_path: Path) -> tuple[StudyPlan, Path]:
    prepared = copy_study(prepared_study, tmp_path / "study")
    return prepared.plan, prepared.workdir.site(prepared.plan.sites[0].name) / "cohort.parquet"


def test_outsider_set_seed(
    prepared_table: tuple[StudyPlan, Path], study_after_ceremony: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a known seed the noise can be replayed and subtracted: nobody outside can name one, by any way in."""
    plan, path = prepared_table
    sent = []
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    for _ in range(2):
        torch.manual_seed(7)
        np.random.seed(7)
        random.seed(7)
        sent.append(
            compute_contribution(
                plan, plan.sites[0].name, "train", initial_state(plan).weights, path, os_noise_stream()
            )
        )
    assert (sent[0] != sent[1]).all()
    nouns = [StudyPlan, Instruction, RunOptions, SiteSettings, CoordinatorSettings]
    names = {name for noun in nouns for name in field_names(noun)}
    assert not [name for name in names if "seed" in name or "random" in name]
    consortium = open_consortium(study_after_ceremony)
    with pytest.raises(ValidationError, match="seed"):
        StudyPlan.model_validate(consortium.plan.model_dump() | {"seed": 7})


def field_names(noun: type[BaseModel]) -> set[str]:
    names = set(noun.model_fields)
    for field in noun.model_fields.values():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                names |= field_names(kind)
    return names


@pytest.mark.parametrize("hidden", [(), (5, 3)], ids=str)
def test_float_buffers_shipped(hidden: tuple[int, ...]) -> None:
    """BatchNorm's running means are statistics of patients without noise. Only the clipped parameters exist."""
    plan = make_plan(hidden=hidden)
    state = initial_state(plan)
    tensors = load(weights_safetensors(plan, state))
    assert {n: t.shape for n, t in tensors.items()} == dict(layer_shapes(plan))
    assert sum(t.size for t in tensors.values()) == update_length(plan) == training_mechanism(plan).dimension
    assert sum(w.numel() + b.numel() for w, b in unflatten(plan, state.weights)) == update_length(plan)
    longer = np.zeros(update_length(plan) + 1, np.int64)
    with pytest.raises(ValueError, match="the mechanism's dimension"):
        training_mechanism(plan).add_noise(longer, os_noise_stream())
    with pytest.raises(EvidenceError, match="Expected an opened sum"):
        decode_sum(plan, longer)


def test_one_tensor_left_without_noise(restarted: Restarted) -> None:
    """Noise on the first parameter group only: every tensor of every contribution must carry its own."""
    plan = restarted.consortium.plan
    ends = np.cumsum([0, *(math.prod(shape) for _, shape in layer_shapes(plan))])
    for site in plan.sites[1:]:
        noise = restarted.values(site.name, 1) - restarted.without_noise(site.name, 1)
        for low, high in pairwise(ends):
            assert np.count_nonzero(noise[low:high]) == high - low


def test_every_event_of_the_study_is_the_plans_mechanism(restarted: Restarted) -> None:
    expected: GaussianEvent = training_mechanism(restarted.consortium.plan).event()
    for site in restarted.consortium.plan.sites:
        assert all(body.event == expected for body in restarted.reserved(site.name))
