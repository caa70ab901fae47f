"""Per-patient gradients: torch, float64, one thread, canonical order. In closed form for the logistic and MLP models.

The loss of a row is binary cross-entropy on one logit z: dL/dz = sigmoid(z) - y. For a linear layer with input a and
upstream gradient d, the row's weight gradient is the outer product d a^T and its bias gradient is d (Goodfellow 2015);
tanh units multiply by 1 - a^2 on the way down. A patient's gradient is the mean over the patient's rows.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from schemas.errors import PlanError
from schemas.plan import StudyPlan, layer_shapes, update_length
from tasks.contract.encoder import Cohort
from tasks.training.modules import module_patient_gradients, module_predict

FloatVector = NDArray[np.float64]
Layers: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]


def patient_gradients(plan: StudyPlan, cohort: Cohort, weights: FloatVector) -> torch.Tensor:
    """Computes every patient's mean gradient, unclipped: float64 (patients, P), flat as in `layer_shapes`.

    A patient whose gradient is not finite gets zeros: one overflow must neither poison the sum nor escape the clip.

    Args:
        plan: Names the model.
        cohort: Encoded rows, patients in order.
        weights: float64 (P,), the model that all sites hold.

    Raises:
        PlanError: `weights-length`; for a module the refusals of `tasks.training.registry`.
    """
    use_single_thread()
    if plan.model.module is not None:
        return module_patient_gradients(plan, cohort, weights)
    layers = unflatten(plan, weights)
    features = torch.from_numpy(np.ascontiguousarray(cohort.features))
    labels = torch.from_numpy(cohort.labels.astype(np.float64))
    rows = _row_gradients(layers, features, labels)
    means = _mean_by_patient(rows, torch.from_numpy(cohort.patients), cohort.patient_count)
    finite = torch.isfinite(means).all(dim=1, keepdim=True)
    return torch.where(finite, means, torch.zeros_like(means))


def predict(plan: StudyPlan, features: FloatVector, weights: FloatVector) -> FloatVector:
    """Returns the predicted probability of every row, float64 (rows,)."""
    use_single_thread()
    if plan.model.module is not None:
        return module_predict(plan, features, weights)
    activations = forward(unflatten(plan, weights), torch.from_numpy(np.ascontiguousarray(features)))
    return np.asarray(torch.sigmoid(activations[-1][:, 0]).numpy(), dtype=np.float64)


def unflatten(plan: StudyPlan, weights: FloatVector) -> Layers:
    """Splits flat weights into (weight (out, in), bias (out,)) per layer.

    Raises:
        PlanError: `weights-length`.
    """
    if weights.shape != (update_length(plan),):
        raise PlanError("weights-length", f"Expected {update_length(plan)} weights for the plan's model.")
    flat = torch.from_numpy(np.ascontiguousarray(weights, dtype=np.float64))
    tensors = []
    offset = 0
    for _, shape in layer_shapes(plan):
        size = int(np.prod(shape))
        tensors.append(flat[offset : offset + size].reshape(shape))
        offset += size
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def use_single_thread() -> None:
    """Sets torch to one thread in the calling thread, so that every float sum has one order and a run can be repeated.

    Never reset: another thread of this process may be training.
    """
    torch.set_num_threads(1)


def forward(layers: Layers, features: torch.Tensor) -> list[torch.Tensor]:
    """Returns the input of every layer, float64 (rows, in), and last the logits (rows, 1)."""
    activations = [features]
    for index, (weight, bias) in enumerate(layers):
        out = activations[-1] @ weight.T + bias
        activations.append(out if index == len(layers) - 1 else torch.tanh(out))
    return activations


def upstream_signals(layers: Layers, activations: list[torch.Tensor], labels: torch.Tensor) -> list[torch.Tensor]:
    """Returns dL/d(output before tanh) of every layer and row, float64 (rows, out) each, from `forward`."""
    signals = [torch.sigmoid(activations[-1]) - labels[:, None]]
    for index in range(len(layers) - 1, 0, -1):
        inputs = activations[index]
        signals.append((signals[-1] @ layers[index][0]) * (1.0 - inputs * inputs))
    return signals[::-1]


def _row_gradients(layers: Layers, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    activations = forward(layers, features)
    parts: list[torch.Tensor] = []
    for inputs, signal in zip(activations[:-1], upstream_signals(layers, activations, labels), strict=True):
        parts += [(signal[:, :, None] * inputs[:, None, :]).flatten(start_dim=1), signal]
    return torch.cat(parts, dim=1)


def _mean_by_patient(rows: torch.Tensor, patients: torch.Tensor, count: int) -> torch.Tensor:
    if rows.shape[0] == count:
        return rows
    totals = torch.zeros((count, rows.shape[1]), dtype=torch.float64).index_add_(0, patients, rows)
    return totals / torch.bincount(patients, minlength=count)[:, None]
