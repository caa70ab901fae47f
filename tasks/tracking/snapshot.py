"""What MLflow shows of a study's model, as one JSON value that an auditor compares with the evidence offline."""

from __future__ import annotations

from typing import Any

from schemas.canonical import sha256_hex
from schemas.errors import EvidenceError
from tasks.tracking.review import Version, list_versions, read_weights
from tasks.tracking.target import TrackingTarget, connect

FORMAT = "consilium/mlflow-snapshot/1"


def take_snapshot(target: TrackingTarget, study: str) -> dict[str, Any]:
    """Reads every version of every model that has a version of `study`, and the study's parent run.

    Other studies' versions are in it, because an alias that was moved points at one of them. Only tags of ours
    (``consilium.``) are read; nothing is verified here.

    Args:
        study: The plan digest.

    Returns:
        ``format``, ``study``, ``versions`` (name, version, tags, aliases), ``weights`` (``name/version`` -> SHA-256 of
        the ``weights.safetensors`` that MLflow holds for this study's versions; left out if unreadable) and ``run``
        (tags, last value of every metric).
    """
    versions = list_versions(target)
    models = {version.name for version in versions if version.study == study}
    shown = [version for version in versions if version.name in models]
    return {
        "format": FORMAT,
        "study": study,
        "versions": [
            {"name": v.name, "version": v.version, "tags": _ours(v.tags), "aliases": list(v.aliases)} for v in shown
        ],
        "weights": _weights(target, [version for version in shown if version.study == study]),
        "run": _run(target, study),
    }


def _weights(target: TrackingTarget, versions: list[Version]) -> dict[str, str]:
    found: dict[str, str] = {}
    for version in versions:
        try:
            found[version.label] = sha256_hex(read_weights(target, version))
        except EvidenceError:
            continue
    return found


def _run(target: TrackingTarget, study: str) -> dict[str, Any]:
    client = connect(target)
    experiments = [item.experiment_id for item in client.search_experiments(filter_string=_is(study))]
    condition = f"tags.`consilium.level` = 'study' and {_is(study)}"
    runs = client.search_runs(experiments, condition, max_results=1) if experiments else []
    if not runs:
        return {"tags": {}, "metrics": {}}
    return {"tags": _ours(runs[0].data.tags), "metrics": dict(sorted(runs[0].data.metrics.items()))}


def _is(study: str) -> str:
    return f"tags.`consilium.study` = '{study}'"


def _ours(tags: Any) -> dict[str, str]:
    return {name: str(value) for name, value in sorted(dict(tags).items()) if name.startswith("consilium.")}
