"""Torch modules that a site installed itself, found by entry point: which are taken, which are refused, and why.

The plan pins distribution, version, entry point and every parameter's shape; the site's own settings allow the entry
point by name. Nothing is imported before both agree. No weight, buffer or code of a module ever travels: everybody
starts from the public weights that the plan determines (`tasks.server_step.initial_state`).

A module is built by calling the entry point with the number of encoded features. It maps float64 (1, features) to one
logit. It runs in evaluation mode, always on one row at a time.
"""

from __future__ import annotations

import re
from importlib import metadata
from typing import TYPE_CHECKING, Any

from schemas.errors import PlanError
from schemas.plan import ModuleSpec, ParameterSpec, StudyPlan, feature_count

if TYPE_CHECKING:
    import torch

GROUP = "consilium.models"
_ENTRY = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99}):([a-z][a-z0-9-]{0,30})")


def verify_installed(spec: ModuleSpec) -> None:
    """Refuses a module that is not installed here in the plan's version; imports nothing of it.

    Raises:
        PlanError: `model-not-installed`, `model-version`.
    """
    installed = _find_entry(spec.distribution, spec.name).dist
    found = installed.version if installed is not None else ""
    if found != spec.version:
        raise PlanError(
            "model-version",
            f"Expected {spec.distribution} {spec.version} as in the plan, and {found} is installed.",
            "Install the plan's version, or ask for a plan on the installed one.",
        )


def load_module(plan: StudyPlan) -> torch.nn.Module:
    """Builds and checks the plan's module: float64, evaluation mode.

    Raises:
        PlanError: `model-not-installed`, `model-version`, `model-broken`, `model-batch-norm`, `model-buffers`,
            `model-not-finite`, `model-remembers`, `model-shapes`.
    """
    from tasks.server_step import initial_state

    spec = plan.model.module
    if spec is None:
        raise PlanError("model-module", "Expected a plan with a module.")
    verify_installed(spec)
    features = feature_count(plan.contract)
    module = _build(spec.distribution, spec.name, features)
    expected = tuple((p.name, p.shape) for p in spec.parameters)
    found = tuple((name, tuple(value.shape)) for name, value in module.named_parameters())
    if found != expected:
        other = next((a for a, b in zip(found, expected, strict=False) if a != b), ("one more or less", ()))
        raise PlanError(
            "model-shapes",
            f"{spec.entry} has other parameters than the plan says; the first that differs: {other[0]}.",
            "Take the parameters that `consilium model describe` prints for this version and contract.",
        )
    _load_flat(module, initial_state(plan).weights)
    _verify_output(module, spec.entry, features)
    return module


def describe_module(entry: str, features: int) -> ModuleSpec:
    """Builds the installed module `entry` ("distribution:name") and returns what a plan pins of it.

    A parameter that the module starts with all ones or all zeros starts so in the study (norm layers, biases); every
    other one starts uniform, because the module's own random start is nobody's public fact.

    Raises:
        PlanError: as `load_module`; `model-entry` for a malformed name.
    """
    import torch

    distribution, name = _parse_entry(entry)
    module = _build(distribution, name, features)
    _verify_output(module, entry, features)
    starts: dict[str, Any] = {}
    for parameter, value in module.named_parameters():
        last = parameter.rpartition(".")[2]
        zero = bool(torch.all(value == 0)) or (value.dim() < 2 and last.startswith("bias"))
        starts[parameter] = "zeros" if zero else "ones" if bool(torch.all(value == 1)) else "uniform"
    return ModuleSpec(
        distribution=distribution,
        version=metadata.version(distribution),
        name=name,
        parameters=tuple(
            ParameterSpec(name=parameter, shape=tuple(value.shape), start=starts[parameter])
            for parameter, value in module.named_parameters()
        ),
    )


def installed_entries() -> tuple[str, ...]:
    """Returns "distribution:name" of everything installed in the group, sorted; imports none of it."""
    found = {f"{_normal(e.dist.name)}:{e.name}" for e in metadata.entry_points(group=GROUP) if e.dist is not None}
    return tuple(sorted(found))


def _parse_entry(entry: str) -> tuple[str, str]:
    match = _ENTRY.fullmatch(entry)
    if match is None:
        raise PlanError(
            "model-entry",
            "Expected an entry point as DISTRIBUTION:NAME.",
            "See `consilium model list` for installed ones.",
        )
    return _normal(match[1]), match[2]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _find_entry(distribution: str, name: str) -> metadata.EntryPoint:
    try:
        for entry in metadata.distribution(distribution).entry_points.select(group=GROUP, name=name):
            return entry
    except metadata.PackageNotFoundError:
        pass
    raise PlanError(
        "model-not-installed",
        f"Expected the installed package {distribution} to offer {name} in the entry point group {GROUP}.",
        "Install it at every site that contributes, or choose another model.",
    )


def _build(distribution: str, name: str, features: int) -> torch.nn.Module:
    import torch

    entry, what = _find_entry(distribution, name), f"{distribution}:{name}"
    try:
        module = entry.load()(features)
    except Exception as error:
        # Foreign text may say anything: only its type is passed on.
        raise _broken(what, f"it could not be built: {type(error).__name__}") from None
    if not isinstance(module, torch.nn.Module):
        raise _broken(what, "it is not a torch module")
    _verify_parts(module, what)
    return module.double().eval().requires_grad_(False)


def _verify_parts(module: torch.nn.Module, what: str) -> None:
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    mixing = [name or "itself" for name, part in module.named_modules() if isinstance(part, _BatchNorm)]
    if mixing:
        raise PlanError(
            "model-batch-norm",
            f"{what} has BatchNorm ({mixing[0]}): it mixes the patients of a batch, so no clip bounds one of them.",
            "Use GroupNorm or LayerNorm.",
        )
    floats = [name for name, value in module.named_buffers() if value.is_floating_point() or value.is_complex()]
    if floats:
        raise PlanError(
            "model-buffers",
            f"{what} has a float buffer ({floats[0]}): what patients change outside the parameters gets no noise.",
            "Make it a parameter or a constant of the code.",
        )
    parameters = list(module.named_parameters())
    if not parameters or any(torch.nn.parameter.is_lazy(value) for _, value in parameters):
        raise _broken(what, "its parameters have no shape before it has seen data, or it has none")
    for name, value in parameters:
        if not value.is_floating_point():
            raise _broken(what, f"{name} is not a real number")
        if not bool(torch.isfinite(value).all()):
            raise PlanError("model-not-finite", f"{what} starts with a value in {name} that is not finite.", _REMEDY)


def _verify_output(module: torch.nn.Module, what: str, features: int) -> None:
    import torch

    try:
        with torch.no_grad():
            out = module(torch.zeros((1, features), dtype=torch.float64))
    except Exception as error:
        raise _broken(what, f"it fails on one row of {features} zeros: {type(error).__name__}") from None
    if not isinstance(out, torch.Tensor) or out.numel() != 1 or not out.is_floating_point():
        raise _broken(what, f"it does not give one logit for one row of {features} features")
    if not bool(torch.isfinite(out).all()):
        raise PlanError("model-not-finite", f"{what} gives a logit that is not finite for a row of zeros.", _REMEDY)
    _verify_memoryless(module, what, features)


def _verify_memoryless(module: torch.nn.Module, what: str, features: int) -> None:
    """Refuses a module whose logit for a row is not a function of the row: tried on public rows, in two orders.

    What a module remembers of one patient would move the next one's gradient, and no clip bounds that.
    """
    import torch

    coins = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return 2.0 * torch.rand(shape, generator=coins, dtype=torch.float64) - 1.0

    # Weights of its own: where a module starts with zeros, every row has the same logit.
    weights = {name: draw(*value.shape) for name, value in module.named_parameters()}
    rows = [sign * draw(1, features).abs() for sign in (1.0, -1.0, 1.0, -1.0)] + [draw(1, features) for _ in range(4)]
    try:
        with torch.no_grad():
            first, last = (
                torch.cat([torch.func.functional_call(module, weights, (row,)).reshape(1) for row in order])
                for order in (rows, rows[::-1])
            )
    except Exception as error:
        raise _broken(what, f"it fails on rows between -1 and 1: {type(error).__name__}") from None
    if not torch.allclose(first, last.flip(0), rtol=1e-9, atol=1e-9, equal_nan=True):
        raise PlanError(
            "model-remembers",
            f"{what} gives the same row another logit after other rows: it keeps something between rows or draws at "
            "random, so that one patient could move another's gradient.",
            "Make its logit a function of the row; take nn.Dropout, which is off here, instead of a bare dropout call.",
        )


def _load_flat(module: torch.nn.Module, weights: Any) -> None:
    import torch

    torch.nn.utils.vector_to_parameters(torch.from_numpy(weights.copy()), module.parameters())


def _broken(what: str, why: str) -> PlanError:
    return PlanError("model-broken", f"{what} cannot be trained here: {why}.", _REMEDY)


_REMEDY = "Correct the package, or choose another model."
