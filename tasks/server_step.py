"""The server step: from one published opening to the next model, bit-exact on every machine.

Invariants: float64, elementwise + - * / sqrt only (each correctly rounded by IEEE 754, so no machine differs); no
reductions, powers or fused operations; the optimizer's whole state is in the digest; one final cast, to float32, when a
model is released or evaluated. A site recomputes this step and refuses a model that does not follow from the last
published opening: a coordinator that gave sites different models could read one site's sum.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.canonical import canonical_bytes, encode_parts, sha256_hex
from schemas.errors import EvidenceError, PlanError
from schemas.plan import OptimizerSpec, StudyPlan, layer_shapes, update_length

FloatVector = NDArray[np.float64]
IntVector = NDArray[np.int64]

_LABEL = "model-state/1"


@dataclass(frozen=True)
class ModelState:
    """Weights and optimizer state after `steps` server steps.

    Attributes:
        study: Plan digest; a state belongs to one study.
        steps: Number of steps applied.
        weights: float64 (P,), flat in the order of `schemas.plan.layer_shapes`.
        first: float64 (P,) momentum, or first moment of Adam and Yogi; (0,) for plain SGD.
        second: float64 (P,) second moment of Adam and Yogi; (0,) otherwise.
        beta1_power, beta2_power: Running products beta**steps (powers are not bit-exact everywhere).
    """

    study: str
    steps: int
    weights: FloatVector
    first: FloatVector
    second: FloatVector
    beta1_power: float
    beta2_power: float


def initial_state(plan: StudyPlan) -> ModelState:
    """Derives the state before the first step: zeros (logistic) or public uniform weights (mlp, module).

    MLP weights are uniform in +-1/sqrt(fan_in) from SHAKE-256 of the plan digest, biases zero; a module's start as the
    plan says for each parameter. Everybody derives the same start, and nobody chooses it.

    Raises:
        PlanError: `optimizer-range` for a learning rate, divisor, beta or momentum outside its range.
    """
    _verify_optimizer(plan.optimizer)
    size = update_length(plan)
    weights = np.zeros(size) if plan.model.kind == "logistic" else _derive_weights(plan)
    spec = plan.optimizer
    first = np.zeros(size if spec.kind in ("momentum", "adam", "yogi") else 0)
    start = float(spec.epsilon) * float(spec.epsilon) if spec.kind == "yogi" else 0.0
    second = np.full(size if spec.kind in ("adam", "yogi") else 0, start)
    return ModelState(plan.study, 0, weights, first, second, 1.0, 1.0)


def decode_sum(plan: StudyPlan, opened_sum: IntVector) -> FloatVector:
    """Decodes an opened training sum from lattice units: x = m * C / 2**scale_bits, float64 (P,).

    Gradient units; in ``local`` mode weighted changes of the model, global - local, with the update's bound for C.

    Raises:
        EvidenceError: `malformed` if it is not an int64 vector of the plan's update length.
    """
    if opened_sum.dtype != np.int64 or opened_sum.shape != (update_length(plan),):
        raise EvidenceError("malformed", f"Expected an opened sum of {update_length(plan)} 64-bit integers.")
    unit = float(plan.mechanism.lattice_norm) / float(2**plan.mechanism.scale_bits)
    return opened_sum.astype(np.float64) * unit


def apply_step(plan: StudyPlan, state: ModelState, opened_sum: IntVector) -> ModelState:
    """Applies one server step: g = decoded / divisor + weight_decay * w, then SGD, momentum, Adam or Yogi.

    Args:
        plan: The study's plan.
        state: The state that the sum's gradients were taken at.
        opened_sum: int64 (P,) in lattice units, noise included.

    Raises:
        EvidenceError: `malformed` for a sum of another length or a state of another study.
        PlanError: `step-diverged` if a weight is no longer finite.
    """
    if state.study != plan.study or state.weights.shape != (update_length(plan),):
        raise EvidenceError("malformed", "Expected a model state of this study.")
    spec = plan.optimizer
    with np.errstate(over="ignore", invalid="ignore"):  # Checked below.
        gradient = decode_sum(plan, opened_sum) / float(spec.divisor)
        gradient = gradient + float(spec.weight_decay) * state.weights
        after = _STEPS[spec.kind](spec, state, gradient)
    if not bool(np.isfinite(after.weights).all()):
        raise PlanError("step-diverged", "A weight is no longer finite.", "Lower the plan's learning rate.")
    return after


def state_bytes(state: ModelState) -> bytes:
    """Encodes a state injectively: label, study, steps, then little-endian float64 arrays and scalars."""
    scalars = np.array([state.beta1_power, state.beta2_power])
    arrays = (state.weights, state.first, state.second, scalars)
    return encode_parts(_LABEL, state.study, state.steps, *(a.astype("<f8").tobytes() for a in arrays))


def state_digest(state: ModelState) -> str:
    """Returns the SHA-256 (hex) of `state_bytes`: the digest that instructions and openings name."""
    return sha256_hex(state_bytes(state))


def parse_state(plan: StudyPlan, data: bytes) -> ModelState:
    """Parses `state_bytes` of this plan's study; refuses anything that re-encoding would not reproduce.

    Raises:
        EvidenceError: `malformed`.
    """
    start = initial_state(plan)
    sizes = (8, start.weights.nbytes, start.first.nbytes, start.second.nbytes, 16)
    offset = len(encode_parts(_LABEL, plan.study))
    parts = []
    for size in sizes:
        parts.append(data[offset + 8 : offset + 8 + size])
        offset += 8 + size
    if offset != len(data):
        raise EvidenceError("malformed", "Expected a model state of this study: its length differs.")
    weights, first, second, powers = (np.frombuffer(p, "<f8").astype(np.float64) for p in parts[1:])
    steps = int.from_bytes(parts[0], "big")
    state = ModelState(plan.study, steps, weights, first, second, float(powers[0]), float(powers[1]))
    if state_bytes(state) != data:
        raise EvidenceError("malformed", "Expected a model state of this study: its encoding differs.")
    return state


def released_weights(state: ModelState) -> FloatVector:
    """Returns the weights as they are released, float64 (P,) holding float32 values: the one final cast."""
    return state.weights.astype(np.float32).astype(np.float64)


def weights_safetensors(plan: StudyPlan, state: ModelState) -> bytes:
    """Encodes the released weights as a safetensors file whose bytes are a function of plan and state alone.

    Little-endian float32 tensors under the names of `layer_shapes`; the header is canonical JSON, padded with spaces to
    a multiple of 8 bytes (safetensors format: 8-byte header length, header, data). The study id is in the metadata.
    """
    header: dict[str, object] = {"__metadata__": {"study": plan.study}}
    offset = 0
    for name, shape in layer_shapes(plan):
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    head = canonical_bytes(header)
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + state.weights.astype("<f4").tobytes()


def parse_weights(plan: StudyPlan, data: bytes) -> FloatVector:
    """Parses `weights_safetensors` of this plan's study: float64 (P,) holding float32 values.

    Raises:
        EvidenceError: `malformed` for anything that re-encoding would not reproduce.
    """
    size = 4 * update_length(plan)
    if len(data) < size:
        raise EvidenceError("malformed", "Expected the released weights of this study: the file is too short.")
    weights = np.frombuffer(data[len(data) - size :], "<f4").astype(np.float64)
    if weights_safetensors(plan, ModelState(plan.study, 0, weights, weights, weights, 1.0, 1.0)) != data:
        raise EvidenceError("malformed", "Expected the released weights of this study: the encoding differs.")
    return weights


def _sgd(spec: OptimizerSpec, state: ModelState, gradient: FloatVector) -> ModelState:
    weights = state.weights - float(spec.learning_rate) * gradient
    return ModelState(state.study, state.steps + 1, weights, state.first, state.second, 1.0, 1.0)


def _momentum(spec: OptimizerSpec, state: ModelState, gradient: FloatVector) -> ModelState:
    velocity = float(spec.momentum) * state.first + gradient
    weights = state.weights - float(spec.learning_rate) * velocity
    return ModelState(state.study, state.steps + 1, weights, velocity, state.second, 1.0, 1.0)


def _adam(spec: OptimizerSpec, state: ModelState, gradient: FloatVector) -> ModelState:
    """Adam with bias correction (Kingma and Ba, algorithm 1)."""
    beta1, beta2 = float(spec.beta1), float(spec.beta2)
    power1, power2 = state.beta1_power * beta1, state.beta2_power * beta2
    first = beta1 * state.first + (1.0 - beta1) * gradient
    second = beta2 * state.second + (1.0 - beta2) * (gradient * gradient)
    scale = np.sqrt(second / (1.0 - power2)) + float(spec.epsilon)
    weights = state.weights - float(spec.learning_rate) * ((first / (1.0 - power1)) / scale)
    return ModelState(state.study, state.steps + 1, weights, first, second, power1, power2)


def _yogi(spec: OptimizerSpec, state: ModelState, gradient: FloatVector) -> ModelState:
    """FedYogi (Reddi et al., arXiv 2003.00295, algorithm 2): no bias correction, second moment from epsilon**2."""
    beta1, beta2 = float(spec.beta1), float(spec.beta2)
    square = gradient * gradient
    first = beta1 * state.first + (1.0 - beta1) * gradient
    second = state.second - ((1.0 - beta2) * square) * np.sign(state.second - square)
    weights = state.weights - float(spec.learning_rate) * (first / (np.sqrt(second) + float(spec.epsilon)))
    return ModelState(state.study, state.steps + 1, weights, first, second, 1.0, 1.0)


_STEPS = {"sgd": _sgd, "momentum": _momentum, "adam": _adam, "yogi": _yogi}


def _derive_weights(plan: StudyPlan) -> FloatVector:
    size = update_length(plan)
    stream = hashlib.shake_256(encode_parts("initial-weights", plan.study)).digest(8 * size)
    # 53 bits, odd multiples: exact in float64, symmetric around zero, never zero.
    unit = ((np.frombuffer(stream, "<u8") >> np.uint64(12)).astype(np.float64) * 2.0 + 1.0) / 2.0**53 * 2.0 - 1.0
    parts: list[FloatVector] = []
    offset = 0
    for shape, start in _starts(plan):
        count = math.prod(shape)
        if start == "uniform":
            parts.append(unit[offset : offset + count] / np.sqrt(np.float64(math.prod(shape[1:] or shape))))
        else:
            parts.append(np.full(count, 1.0 if start == "ones" else 0.0))
        offset += count
    return np.concatenate(parts)


def _starts(plan: StudyPlan) -> list[tuple[tuple[int, ...], str]]:
    if plan.model.module is not None:
        return [(parameter.shape, parameter.start) for parameter in plan.model.module.parameters]
    return [(shape, "zeros" if len(shape) == 1 else "uniform") for _, shape in layer_shapes(plan)]


def _verify_optimizer(spec: OptimizerSpec) -> None:
    # Comparisons are written so that a NaN or infinity fails them.
    holds = (
        0.0 < float(spec.learning_rate) < math.inf
        and 0.0 < float(spec.divisor) < math.inf
        and 0.0 <= float(spec.weight_decay) < math.inf
        and 0.0 < float(spec.epsilon) < math.inf
        and all(0.0 <= float(x) < 1.0 for x in (spec.momentum, spec.beta1, spec.beta2))
    )
    if not holds:
        raise PlanError(
            "optimizer-range",
            "Expected learning_rate, divisor, epsilon > 0, weight_decay >= 0, and momentum and betas in [0, 1).",
            "Correct the plan's optimizer.",
        )
