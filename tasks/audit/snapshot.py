"""What MLflow showed at one moment, as somebody read it: nothing signed, to be compared with the evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from schemas.canonical import Digest, Strict, parse_json
from schemas.errors import EvidenceError, OperationError

MAXIMUM_BYTES = 16 * 1024 * 1024


class VersionView(Strict):
    """One version of a registered model; tags are those that begin with ``consilium.``."""

    name: str
    version: str
    tags: dict[str, str]
    aliases: tuple[str, ...]

    @property
    def label(self) -> str:
        """``name/version``, as people write it."""
        return f"{self.name}/{self.version}"


class RunView(Strict):
    """The study's parent run: tags and the last value of every metric."""

    tags: dict[str, str]
    metrics: dict[str, float]


class MlflowSnapshot(Strict):
    """Every version of every registered model that has a version of `study`, and the study's run.

    Attributes:
        weights: ``name/version`` -> SHA-256 of the weights file that MLflow holds; left out where it is unreadable.
    """

    format: Literal["consilium/mlflow-snapshot/1"] = "consilium/mlflow-snapshot/1"
    study: Digest
    versions: tuple[VersionView, ...]
    weights: dict[str, Digest] = Field(default_factory=dict)
    run: RunView


def parse_snapshot(data: bytes, what: str) -> MlflowSnapshot:
    """Parses a snapshot.

    Raises:
        EvidenceError: `snapshot-unreadable`.
    """
    try:
        if len(data) > MAXIMUM_BYTES:
            raise ValueError("too large")
        return MlflowSnapshot.model_validate_json(json.dumps(parse_json(data, what)))
    except (ValueError, ValidationError, EvidenceError):
        raise EvidenceError(
            "snapshot-unreadable",
            f"Expected a snapshot of MLflow at {what}.",
            "Write one with `consilium audit snapshot`.",
        ) from None


def read_snapshot(path: Path) -> MlflowSnapshot:
    """Reads a snapshot that `consilium audit snapshot` wrote.

    Raises:
        OperationError: `snapshot-missing`.
        EvidenceError: `snapshot-unreadable`.
    """
    if not path.is_file():
        raise OperationError("snapshot-missing", f"There is no file {path.name}.", "Check the path after --mlflow.")
    return parse_snapshot(path.read_bytes(), path.name)
