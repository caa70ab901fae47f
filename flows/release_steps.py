"""The coordinator's part of a release, as steps that never wait and may be repeated."""

from __future__ import annotations

import contextlib

from flows.context import CoordinatorContext
from flows.figures import epsilon_of_sites
from flows.round_steps import RoundOutcome
from flows.study_log import publish_entries
from schemas.canonical import sha256_hex
from schemas.envelope import sign_envelope
from schemas.errors import EvidenceError, PeerError
from schemas.layout import ledger_key, release_key
from schemas.ledger import ModelReleased
from schemas.messages import Checkpoint, Closing, ModelRelease
from schemas.plan import Agreement
from tasks.lineage import Lineage
from tasks.metrics import EvaluationMetrics, derive_noise_sigma, evaluate_histogram
from tasks.privacy.mechanism import evaluation_mechanism
from tasks.server_step import state_digest, weights_safetensors
from tasks.storage.mailbox import Signed, read_signed


def released_metrics(context: CoordinatorContext, evaluation: RoundOutcome | None) -> EvaluationMetrics | None:
    """Returns the metrics of the opened histogram, or None if no evaluation was opened."""
    if evaluation is None:
        return None
    counts = evaluation_mechanism(context.plan).decode(evaluation.opened)
    sigma = derive_noise_sigma(context.plan, len(evaluation.record.predicate.contributions))
    return evaluate_histogram(counts, sigma, float(context.plan.evaluation.steepness))


def read_release(context: CoordinatorContext) -> ModelRelease | None:
    """Returns the release that this coordinator has signed, or None."""
    coordinator = context.plan.coordinator
    key = release_key(context.study, "release.json")
    found = read_signed(context.store, key, ModelRelease, context.study, coordinator.identity_key, coordinator.name)
    return found.predicate if found is not None else None


def enter_signed_release(
    context: CoordinatorContext,
    lineage: Lineage,
    rounds: int,
    evaluation: RoundOutcome | None,
    metrics: EvaluationMetrics | None,
    reason: str,
) -> Signed[ModelRelease]:
    """Signs the release and enters it into the study log; repeated, it returns the first.

    Args:
        rounds: Last training round that was opened.
        reason: Empty if every planned round was opened; else why the study ended before.
    """
    weights = weights_safetensors(context.plan, lineage.state)
    context.store.put(release_key(context.study, "weights.safetensors"), weights)
    key = release_key(context.study, "release.json")
    if not context.store.exists(key):
        message = ModelRelease(
            rounds=rounds,
            model=state_digest(lineage.state),
            weights=sha256_hex(weights),
            evaluation=evaluation.opening.digest if evaluation is not None else None,
            metrics=metrics.summary() if metrics is not None else (),
            epsilon=epsilon_of_sites(context, "training"),
            evaluation_epsilon=epsilon_of_sites(context, "held-out"),
            complete=not reason,
            reason=reason[:200],
        )
        context.store.put(key, sign_envelope(message, context.study, context.identity.signing))
    coordinator = context.plan.coordinator
    found = read_signed(context.store, key, ModelRelease, context.study, coordinator.identity_key, coordinator.name)
    assert found is not None
    context.log.append_once(context.study, ModelReleased(release=found.predicate))
    return found


def publish_log(context: CoordinatorContext[Agreement]) -> None:
    """Publishes the study log and a signed checkpoint over it; nothing is entered afterwards."""
    name = context.plan.coordinator.name
    publish_entries(context)
    checkpoint = context.log.sign_checkpoint(context.study)
    context.store.put(ledger_key(context.study, name, True, "checkpoint.json"), checkpoint)


def publish_later_entries(context: CoordinatorContext) -> None:
    """Publishes what was entered after the closing, as a further slice with a checkpoint over the whole log.

    The store is create-only: a slice that a crash left without its checkpoint gets it here.
    """
    name, study, entries = context.plan.coordinator.name, context.study, context.log.entries()
    publish_entries(context)
    closed = checkpoints(context)[name].predicate.position.size
    key = ledger_key(study, name, True, f"checkpoint-{len(entries):06d}.json")
    if len(entries) > closed and not context.store.exists(key):
        context.store.put(key, context.log.sign_checkpoint(study))


def missing_items(context: CoordinatorContext[Agreement], item: str) -> list[str]:
    """Returns the sites whose ledger item (checkpoint.json or witness.json) is not in the store."""
    sites = [site.name for site in context.plan.sites]
    return [s for s in sites if not context.store.exists(ledger_key(context.study, s, False, item))]


def checkpoints(context: CoordinatorContext[Agreement]) -> dict[str, Signed[Checkpoint]]:
    """Returns log owner -> its published checkpoint, where signature and published log verify up to it."""
    plan = context.plan
    owners = [(plan.coordinator.name, plan.coordinator.identity_key, True)]
    owners += [(site.name, site.identity_key, False) for site in plan.sites]
    found: dict[str, Signed[Checkpoint]] = {}
    for name, key_hex, coordinator in owners:
        key = ledger_key(context.study, name, coordinator, "checkpoint.json")
        with contextlib.suppress(EvidenceError, PeerError):
            checkpoint = read_signed(context.store, key, Checkpoint, context.study, key_hex, name)
            if checkpoint is not None:
                context.published[name].verify(checkpoint.predicate)
                found[name] = checkpoint
    return found


def publish_closing(context: CoordinatorContext[Agreement]) -> tuple[str, ...]:
    """Lists the checkpoints that close the study, once; returns the sites that are listed.

    One that does not fit its owner's log is left out: every site witnesses the whole list or nothing.
    """
    name = context.plan.coordinator.name
    key = ledger_key(context.study, name, True, "closing.json")
    if not context.store.exists(key):
        listed = tuple(sorted((owner, found.digest) for owner, found in checkpoints(context).items()))
        data = sign_envelope(Closing(checkpoints=listed), context.study, context.identity.signing)
        context.store.put(key, data)
    closing = read_signed(context.store, key, Closing, context.study, context.identity.identity_key, name)
    assert closing is not None
    return tuple(owner for owner, _ in closing.predicate.checkpoints if owner != name)
