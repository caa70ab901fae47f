"""The model: recomputed step by step from the published openings to the released weights and metrics."""

from __future__ import annotations

from schemas.canonical import sha256_hex
from schemas.layout import release_key
from tasks.audit.context import AuditContext
from tasks.audit.registry import Check, Findings, NotApplicable
from tasks.metrics import derive_noise_sigma, evaluate_histogram
from tasks.privacy.mechanism import evaluation_mechanism
from tasks.server_step import ModelState, apply_step, initial_state, state_digest, weights_safetensors


def check_steps(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Recomputes the model from its derived start and every opened sum, and compares every digest on the way."""
    if not context.rounds:
        return NotApplicable("no round was begun")
    if context.question is not None:
        return NotApplicable("a question changes no model")
    state = initial_state(context.study_plan)
    for round_ in context.rounds:
        for attempt in context.attempts(round_):
            instruction = context.instruction(round_, attempt)
            same = instruction.predicate.model == state_digest(state)
            findings.expect(same, instruction.path, "asks for another model than the openings before it give")
        if round_ not in context.opened_rounds:
            continue
        state = _step(context, state, round_)
        opening = context.opening(round_)
        same = opening.predicate.model == state_digest(state)
        findings.expect(same, opening.path, "names another model than its sum gives")
    if context.released:
        released = context.release
        same = released.predicate.model == state_digest(state)
        findings.expect(same, released.path, "releases another model than the openings give")
    return f"{len(context.opened_rounds)} steps to {state_digest(state)[:16]}…"


def check_weights(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Rebuilds the weights file from the recomputed model and compares its bytes."""
    if not context.released:
        return NotApplicable("no model was released")
    weights = weights_safetensors(context.study_plan, final_state(context))
    place = release_key(context.study, "weights.safetensors")
    findings.expect(weights == context.evidence.read(place), place, "is not the recomputed model")
    digest = sha256_hex(weights)
    findings.expect(digest == context.release.predicate.weights, context.release.path, "names other weights")
    return f"{len(weights)} bytes, SHA-256 {digest[:16]}…"


def check_metrics(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Recomputes the released metrics from the opened evaluation histogram."""
    if not context.released:
        return NotApplicable("no model was released")
    release = context.release
    round_ = context.study_plan.mechanism.rounds + 1
    if round_ not in context.opened_rounds:
        findings.expect(release.predicate.evaluation is None, release.path, "names an evaluation that was not opened")
        findings.expect(not release.predicate.metrics, release.path, "states metrics without an evaluation")
        return NotApplicable("the study ended without an evaluation")
    opening = context.opening(round_)
    findings.expect(release.predicate.evaluation == opening.digest, release.path, "names another evaluation")
    counts = evaluation_mechanism(context.study_plan).decode(context.result(round_))
    sigma = derive_noise_sigma(context.study_plan, len(context.record(round_).predicate.contributions))
    metrics = evaluate_histogram(counts, sigma, float(context.study_plan.evaluation.steepness)).summary()
    findings.expect(metrics == release.predicate.metrics, release.path, "states other metrics than the histogram gives")
    return f"{len(metrics)} figures"


def final_state(context: AuditContext) -> ModelState:
    """Returns the model after the last opened round."""
    state = initial_state(context.study_plan)
    for round_ in context.opened_rounds:
        state = _step(context, state, round_)
    return state


def _step(context: AuditContext, state: ModelState, round_: int) -> ModelState:
    attempt = context.record(round_).predicate.attempt
    if context.instruction(round_, attempt).predicate.kind == "evaluate":
        return state
    return apply_step(context.study_plan, state, context.result(round_))


CHECKS = (
    Check(
        "C21",
        "Every model follows from the openings before it",
        "From the start that the plan determines, the published sums give each model that sites were asked to train "
        "on, and the released one; recomputed bit for bit.",
        "That the model is good or fair.",
        check_steps,
    ),
    Check(
        "C22",
        "The released weights are the recomputed model",
        "The weights file holds exactly the parameters that the rounds produced.",
        "Anything about copies of the model elsewhere, e.g. in MLflow: compare their SHA-256 with this one.",
        check_weights,
    ),
    Check(
        "C23",
        "The released metrics follow from the opened histogram",
        "AUC, calibration and their intervals are those of the one released, noisy histogram.",
        "That the held-out patients represent others.",
        check_metrics,
    ),
)
