"""The released model as a torch module, rebuilt from ``weights.safetensors``: what MLflow serves."""

from __future__ import annotations

from typing import Any

from schemas.errors import EvidenceError
from schemas.plan import StudyPlan, layer_shapes


def build_network(plan: StudyPlan, weights: bytes) -> Any:
    """Builds the module that maps encoded features to a probability.

    Args:
        plan: The study plan; fixes the layers.
        weights: safetensors bytes of `tasks.server_step.weights_safetensors`.

    Returns:
        A `torch.nn.Module` in evaluation mode: float32 (rows, features) in [-1, 1] -> float32 (rows, 1) in (0, 1).

    Raises:
        EvidenceError: `malformed` if the tensors are not exactly the plan's.
    """
    import torch
    from safetensors.torch import load

    tensors = load(weights)
    expected = dict(layer_shapes(plan))
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != expected:
        raise EvidenceError("malformed", "Expected weights with the layers of the plan.")
    layers: list[Any] = []
    for index in range(len(expected) // 2):
        fan_out, fan_in = expected[f"layers.{index}.weight"]
        linear = torch.nn.Linear(fan_in, fan_out, dtype=torch.float32)
        linear.load_state_dict({part: tensors[f"layers.{index}.{part}"] for part in ("weight", "bias")})
        layers += [linear, torch.nn.Tanh()]
    layers[-1] = torch.nn.Sigmoid()
    return torch.nn.Sequential(*layers).requires_grad_(False).eval()
