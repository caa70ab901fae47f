"""A module is trained only if it is what the plan pins and allowed, and refused with the reason otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from schemas.canonical import canonical_bytes, parse_canonical
from schemas.errors import PlanError
from schemas.plan import ModelSpec, ModuleSpec, ParameterSpec, StudyPlan, layer_shapes, update_length
from tasks.server_step import initial_state, weights_safetensors
from tasks.training.evaluation import score_patients
from tasks.training.gradients import patient_gradients, predict
from tasks.training.registry import describe_module, installed_entries, load_module, verify_installed
from tasks.training.train import train_sum
from tests.training.plans import make_cohort, make_plan

pytestmark = pytest.mark.usefixtures("installed_models")
FEATURES = 3


def plan_on(name: str, **changes: object) -> StudyPlan:
    spec = describe_module(f"hospital-models:{name}", FEATURES)
    return with_module(spec.model_copy(update=changes))


def with_module(spec: ModuleSpec) -> StudyPlan:
    plan = make_plan().model_dump() | {"model": ModelSpec(kind="module", module=spec).model_dump()}
    return StudyPlan.model_validate(plan)


def oracle(module: torch.nn.Module, cohort) -> np.ndarray:
    """Every patient's mean gradient by one backward pass over that patient's rows alone, row by row."""
    module = module.requires_grad_(True)
    out = []
    for patient in range(cohort.patient_count):
        rows = np.flatnonzero(cohort.patients == patient)
        module.zero_grad()
        for row in rows:
            logit = module(torch.from_numpy(cohort.features[row : row + 1])).reshape(())
            label = torch.tensor(float(cohort.labels[row]), dtype=torch.float64)
            (torch.nn.functional.binary_cross_entropy_with_logits(logit, label) / len(rows)).backward()
        out.append(
            torch.cat(
                [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in module.parameters()]
            ).numpy()
        )
    return np.stack(out)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", ["risk-net", "branching", "mixing"])
def test_a_modules_patient_gradients_equal_a_loop_over_single_rows(name: str, rows: int) -> None:
    plan, cohort = plan_on(name), make_cohort(12, rows=rows)
    found = patient_gradients(plan, cohort, initial_state(plan).weights).numpy()
    assert np.abs(found - oracle(load_module(plan), cohort)).max() < 1e-12


def test_a_modules_patient_gradients_equal_opacus() -> None:
    from opacus.grad_sample import GradSampleModule

    plan, cohort = plan_on("two-layers"), make_cohort(30)
    net = GradSampleModule(load_module(plan).train().requires_grad_(True), loss_reduction="sum")
    labels = torch.from_numpy(cohort.labels.astype(np.float64))
    logits = net(torch.from_numpy(cohort.features))[:, 0]
    torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum").backward()
    expected = torch.cat([p.grad_sample.flatten(1) for p in net.parameters()], dim=1).numpy()
    assert np.abs(patient_gradients(plan, cohort, initial_state(plan).weights).numpy() - expected).max() < 1e-10


def test_the_same_network_as_mlp_and_as_module_gives_the_same_sum() -> None:
    module, cohort = plan_on("two-layers"), make_cohort(40)
    mlp = make_plan(hidden=(6,))
    weights = initial_state(mlp).weights
    assert [shape for _, shape in layer_shapes(module)] == [shape for _, shape in layer_shapes(mlp)]
    ours, theirs = train_sum(mlp, cohort, weights), train_sum(module, cohort, weights)
    # The closed form clips ceil(sqrt(P)) = 6 of 65,536 units tighter and rounds once; the module rounds per patient.
    assert np.abs(ours - theirs).max() <= 40 * 7
    assert np.abs(theirs).max() > 10_000
    assert np.abs(predict(mlp, cohort.features, weights) - predict(module, cohort.features, weights)).max() < 1e-12


def test_a_module_never_sees_two_patients_at_once() -> None:
    """What it would do with a batch cannot let one patient move another's gradient or score."""
    plan, cohort = plan_on("mixing"), make_cohort(10)
    weights = initial_state(plan).weights + 0.1
    alone = [score_patients(plan, cohort.only(np.arange(10) == i), weights)[0][0] for i in range(10)]
    assert score_patients(plan, cohort, weights)[0].tolist() == pytest.approx(alone, abs=1e-12)


def test_one_patient_of_a_module_stays_within_the_bound_and_an_empty_cohort_gives_zeros() -> None:
    plan = plan_on("risk-net")
    total = train_sum(plan, make_cohort(1), initial_state(plan).weights)
    assert 0 < sum(int(v) ** 2 for v in total) <= (1 << plan.mechanism.scale_bits) ** 2
    assert train_sum(plan, make_cohort(0), initial_state(plan).weights).tolist() == [0] * update_length(plan)


def test_the_start_is_public_and_follows_the_plan_alone() -> None:
    plan = plan_on("risk-net")
    starts = {p.name: p.start for p in plan.model.module.parameters}
    assert starts["norm.weight"] == "ones"
    assert starts["norm.bias"] == starts["out.bias"] == "zeros"
    assert starts["out.weight"] == starts["scale"] == "uniform"
    torch.manual_seed(1)
    first = initial_state(plan).weights
    torch.manual_seed(2)
    loaded = torch.nn.utils.parameters_to_vector(load_module(plan).parameters()).detach().numpy()
    assert loaded.tolist() == first.tolist()
    offset = 0
    for parameter in plan.model.module.parameters:
        size = int(np.prod(parameter.shape))
        part = first[offset : offset + size]
        offset += size
        fan_in = np.prod(parameter.shape[1:] or parameter.shape)
        expected = {"ones": part == 1, "zeros": part == 0, "uniform": (part != 0) & (np.abs(part) <= fan_in**-0.5)}
        assert expected[parameter.start].all()


def test_a_plan_on_a_module_needs_neither_torch_nor_the_module_to_be_read_and_stepped() -> None:
    """The auditor and the coordinator have neither."""
    spec = ModuleSpec(
        distribution="not-installed-anywhere",
        version="9.9",
        name="net",
        parameters=(ParameterSpec(name="w", shape=(1, FEATURES), start="uniform"),),
    )
    plan = with_module(spec)
    assert parse_canonical(StudyPlan, canonical_bytes(plan), "the plan") == plan
    assert update_length(plan) == FEATURES
    assert b'"w"' in weights_safetensors(plan, initial_state(plan))
    with pytest.raises(PlanError, match="Expected the installed package not-installed-anywhere to offer net"):
        load_module(plan)


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("batch-norm", "model-batch-norm", r"has BatchNorm \(1\): it mixes the patients of a batch"),
        ("running", "model-buffers", r"has a float buffer \(mean\): .* gets no noise"),
        ("remembering", "model-remembers", "another logit after other rows: it keeps something between rows"),
        ("dropping", "model-remembers", "or draws at random"),
        ("not-finite", "model-not-finite", "starts with a value in weight that is not finite"),
        ("lazy", "model-broken", "its parameters have no shape before it has seen data"),
        ("two-logits", "model-broken", "does not give one logit for one row of 3 features"),
        ("raising", "model-broken", "could not be built: RuntimeError"),
        ("no-module", "model-broken", "it is not a torch module"),
        ("missing", "model-broken", "could not be built: AttributeError"),
        ("unknown", "model-not-installed", "to offer unknown in the entry point group consilium.models"),
    ],
)
def test_a_module_that_cannot_be_trained_privately_is_refused_with_the_reason(name, code, reason) -> None:
    with pytest.raises(PlanError, match=reason) as caught:
        describe_module(f"hospital-models:{name}", FEATURES)
    assert caught.value.code == code
    assert "4711" not in str(caught.value), "foreign text is never passed on"


def test_another_version_or_other_shapes_than_the_plans_are_refused() -> None:
    with pytest.raises(PlanError, match=r"Expected hospital-models 1\.3\.0 as in the plan, and 1\.2\.0 is installed"):
        load_module(plan_on("risk-net", version="1.3.0"))
    parameters = describe_module("hospital-models:risk-net", FEATURES).parameters
    wider = parameters[0].model_copy(update={"shape": (9, 9)})
    for changed in (parameters[:-1], (wider, *parameters[1:]), parameters[::-1]):
        with pytest.raises(PlanError, match="has other parameters than the plan says"):
            load_module(plan_on("risk-net", parameters=changed))


def test_what_is_installed_is_listed_without_importing_it() -> None:
    import sys

    sys.modules.pop("hospital_models", None)
    assert "hospital-models:risk-net" in installed_entries()
    verify_installed(plan_on("risk-net").model.module)
    sys.modules.pop("hospital_models", None)
    installed_entries()
    assert "hospital_models" not in sys.modules


@pytest.mark.parametrize("entry", ["risk-net", "hospital models:x", "a:B", "a:b:c", ":"])
def test_a_malformed_entry_is_refused(entry: str) -> None:
    with pytest.raises(PlanError, match="Expected an entry point as DISTRIBUTION:NAME"):
        describe_module(entry, FEATURES)


def test_a_model_says_which_module_it_is_and_no_other_model_does() -> None:
    spec = describe_module("hospital-models:risk-net", FEATURES)
    for fields in (
        {"kind": "module"},
        {"kind": "logistic", "module": spec},
        {"kind": "mlp", "hidden": (3,), "module": spec},
    ):
        with pytest.raises(PlanError, match="A module model, and no other, says which module it is"):
            ModelSpec(**fields)
    with pytest.raises(PlanError, match="distinct names"):
        ModuleSpec(**(spec.model_dump() | {"parameters": (spec.parameters[0].model_dump(),) * 2}))
    assert canonical_bytes(ModelSpec(kind="logistic")) == b'{"hidden":[],"kind":"logistic"}'
