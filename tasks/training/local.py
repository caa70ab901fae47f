"""Local mode: several DP-SGD steps at one site, then the model's change times the site's public weight, as integers.

Invariants: every step draws its patients and its noise anew, from the mechanism that was charged, also where no
patient is in the batch; what follows a noised sum (step, bound, weight, rounding) never looks at the patients again;
divisor and weight are the plan's, never counts of rows.

A step is w <- w - eta * (noised sum / (q * declared) + mu * (w - w_global)): FedAvg for mu = 0 (McMahan et al., arXiv
1602.05629), FedProx otherwise (Li et al., arXiv 1812.06127). The server takes the weighted sum of (w_global - w) over
the sum of weights as its gradient (Reddi et al., arXiv 2003.00295).
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from schemas.errors import PlanError
from schemas.plan import LocalSpec, StudyPlan
from tasks.contract.encoder import Cohort
from tasks.privacy.mechanism import GaussianMechanism, training_mechanism
from tasks.privacy.noise import NoiseStream
from tasks.training.encode import encode_gradients
from tasks.training.train import train_sum

FloatVector = NDArray[np.float64]


def train_locally(
    plan: StudyPlan, site: str, cohort: Cohort, weights: FloatVector, stream: NoiseStream
) -> NDArray[np.int64]:
    """Trains `site`'s copy of the model with the plan's local steps and encodes what it changed; noise is inside.

    Args:
        plan: Names model, mechanism and the site's public weight.
        site: Name in the plan.
        cohort: The site's encoded cohort; held-out patients are left out.
        weights: float64 (P,), the round's global model.
        stream: Fresh randomness of this site.

    Returns:
        int64 (P,): weight * round((global - local) / U * 2**scale_bits), before weighting of L2 norm at most
        2**scale_bits. A model that is not finite any more changes nothing.

    Raises:
        PlanError: `mechanism-local` for a plan of another mode, `unknown-site`, `weights-length`.
    """
    spec = _local_spec(plan)
    mechanism, declared = training_mechanism(plan), plan.site(site).declared_patients
    divisor = float(Fraction(mechanism.sampling_probability) * declared)
    local = weights.copy()
    with np.errstate(over="ignore", invalid="ignore"):  # A diverged model is dropped below.
        for _ in range(mechanism.steps):
            noised = _noised_sum(plan, mechanism, cohort, local, stream)
            gradient = mechanism.decode(noised) / divisor
            local -= float(spec.learning_rate) * (gradient + float(spec.proximal) * (local - weights))
        return declared * _encode_update(plan, spec, weights - local)


def _noised_sum(
    plan: StudyPlan, mechanism: GaussianMechanism, cohort: Cohort, weights: FloatVector, stream: NoiseStream
) -> NDArray[np.int64]:
    chosen = mechanism.draw_patients(cohort.training.patient_count, stream)
    return mechanism.add_noise(train_sum(plan, cohort, weights, mechanism.sensitivity, chosen), stream)


def _encode_update(plan: StudyPlan, spec: LocalSpec, change: FloatVector) -> NDArray[np.int64]:
    """Bounds and rounds the change as a patient's gradient is: a sum of such vectors cannot wrap."""
    bits = plan.mechanism.scale_bits
    row = np.where(np.isfinite(change).all(), change, 0.0)[None, :]
    encoded: NDArray[np.int64] = encode_gradients(row, float(spec.update_norm), bits, 1 << bits)[0]
    return encoded


def _local_spec(plan: StudyPlan) -> LocalSpec:
    if plan.mechanism.local is None:
        raise PlanError("mechanism-local", "Expected a plan whose sites take local steps.")
    return plan.mechanism.local
