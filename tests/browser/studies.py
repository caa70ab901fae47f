"""An invented study in MLflow, told as a real one is, for people's eyes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from schemas.canonical import sha256_hex
from schemas.messages import LogPosition
from schemas.plan import StudyPlan
from tasks.metrics import evaluate_histogram
from tasks.server_step import initial_state, weights_safetensors
from tasks.tracking.plots import EpsilonAtRound
from tasks.tracking.release import record_release, tag_release
from tasks.tracking.rounds import record_round
from tasks.tracking.study import close_study, open_study
from tasks.tracking.target import TrackingTarget
from tasks.tracking.vocabulary import release_tags
from tests.tracking.studies import SITES, make_plan, make_release, step, train_facts


def tell_invented_study(target: TrackingTarget) -> StudyPlan:
    """Records two rounds, an evaluation and a release."""
    plan = make_plan()
    run = open_study(target, plan, {}, "http://127.0.0.1:9/runs/flow-run/1")
    rounds = []
    for number in (1, 2):
        facts, weights = train_facts(plan, number)
        facts = replace(facts, verdicts=dict.fromkeys(SITES, "passed") | {"west": "failed: age-range"})
        record_round(target, run, plan, facts, weights)
        rounds.append(facts)
    state, _ = step(plan, initial_state(plan))
    weights = weights_safetensors(plan, state)
    release = make_release(plan, sha256_hex(weights))
    counts = np.array([9, 8, 6, 5, 4, 3, 2, 1, 1, 0, 0, 1, 1, 2, 3, 4, 5, 6, 8, 9], dtype=np.float64) * 5
    history = [EpsilonAtRound(r, dict.fromkeys(SITES, 1.0 * r), dict.fromkeys(SITES, 0.7 * r)) for r in (1, 2)]
    roots = {name: LogPosition(size=3, root="ee" * 32) for name in ("registry", *SITES)}
    evaluation = evaluate_histogram(counts, 2.0)
    documents = {"release.json": b"{}"}
    version = record_release(target, run, plan, weights, release, evaluation, history, documents, rounds, roots)
    tag_release(target, plan, version, release_tags(plan, release, roots, "aa" * 32))
    close_study(target, run, True, "")
    return plan
