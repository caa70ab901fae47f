"""Per-patient gradients and predictions of a registered module, by torch.func: one row at a time, in chunks.

Invariant: the module never sees two rows in one batch. Whatever it does inside, one patient's rows cannot reach another
patient's gradient or score.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import functional_call, grad, vmap
from torch.nn.functional import binary_cross_entropy_with_logits

from schemas.errors import PlanError
from schemas.plan import StudyPlan, layer_shapes, update_length
from tasks.contract.encoder import Cohort
from tasks.training.registry import load_module

FloatVector = NDArray[np.float64]
Parameters = dict[str, torch.Tensor]
_CHUNK_NUMBERS = 1 << 22


def module_patient_gradients(plan: StudyPlan, cohort: Cohort, weights: FloatVector) -> torch.Tensor:
    """Computes every patient's mean gradient, float64 (patients, P); zeros where it is not finite.

    Raises:
        PlanError: `weights-length` and the refusals of `tasks.training.registry`.
    """
    length, rows = update_length(plan), cohort.labels.size
    parameters = _named_parameters(plan, weights)
    patients = torch.from_numpy(cohort.patients)
    totals = torch.zeros((cohort.patient_count, length), dtype=torch.float64)
    step = max(1, _CHUNK_NUMBERS // length)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        features = torch.from_numpy(np.ascontiguousarray(cohort.features[part]))
        labels = torch.from_numpy(cohort.labels[part].astype(np.float64))
        totals.index_add_(0, patients[part], _row_gradients(plan, parameters, features, labels))
    means = totals / torch.bincount(patients, minlength=cohort.patient_count)[:, None]
    return torch.where(torch.isfinite(means).all(dim=1, keepdim=True), means, 0.0)


def module_predict(plan: StudyPlan, features: FloatVector, weights: FloatVector) -> FloatVector:
    """Returns the predicted probability of every row, float64 (rows,); not a number where the module gives none."""
    parameters, logit = _named_parameters(plan, weights), _logit(plan)
    rows = torch.from_numpy(np.ascontiguousarray(features))
    with torch.no_grad():
        if _takes_vmap(plan):
            logits = vmap(logit, in_dims=(None, 0), chunk_size=4096)(parameters, rows) if len(rows) else rows[:, 0]
        else:
            logits = torch.stack([logit(parameters, row) for row in rows]) if len(rows) else rows[:, 0]
    return np.asarray(torch.sigmoid(logits).numpy(), dtype=np.float64)


def _row_gradients(
    plan: StudyPlan, parameters: Parameters, features: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    logit = _logit(plan)

    def loss(values: Parameters, row: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return binary_cross_entropy_with_logits(logit(values, row), label)

    if _takes_vmap(plan):
        found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, features, labels)
        return torch.cat([found[name].reshape(len(labels), -1) for name in parameters], dim=1)
    single = [_one_gradient(loss, parameters, row, label) for row, label in zip(features, labels, strict=True)]
    return torch.stack(single)


def _one_gradient(
    loss: Callable[[Parameters, torch.Tensor, torch.Tensor], torch.Tensor],
    parameters: Parameters,
    row: torch.Tensor,
    label: torch.Tensor,
) -> torch.Tensor:
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    found = torch.autograd.grad(loss(leaves, row, label), list(leaves.values()), materialize_grads=True)
    return torch.cat([part.flatten() for part in found])


def _named_parameters(plan: StudyPlan, weights: FloatVector) -> Parameters:
    if weights.shape != (update_length(plan),):
        raise PlanError("weights-length", f"Expected {update_length(plan)} weights for the plan's model.")
    flat = torch.from_numpy(np.ascontiguousarray(weights, dtype=np.float64))
    named: Parameters = {}
    offset = 0
    for name, shape in layer_shapes(plan):
        named[name] = flat[offset : offset + prod(shape)].reshape(shape)
        offset += prod(shape)
    return named


def _logit(plan: StudyPlan) -> Callable[[Parameters, torch.Tensor], torch.Tensor]:
    module = _module(plan)

    def logit(parameters: Parameters, row: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = functional_call(module, parameters, (row[None],))
        return out.reshape(())

    return logit


@lru_cache(maxsize=4)
def _module(plan: StudyPlan) -> torch.nn.Module:
    return load_module(plan)


@lru_cache(maxsize=4)
def _takes_vmap(plan: StudyPlan) -> bool:
    """Tells whether the module can be traced for many rows at once; tried on zeros, never on a patient's row."""
    logit = _logit(plan)
    parameters = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in layer_shapes(plan)}
    from schemas.plan import feature_count

    rows = torch.zeros((2, feature_count(plan.contract)), dtype=torch.float64)
    try:
        vmap(grad(logit), in_dims=(None, 0))(parameters, rows)
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        return False
    return True
