"""Where MLflow keeps a study's runs, and the one way in which this package opens it.

MLflow is the review view, the ledger is the evidence. Nothing enters MLflow but the public plan, released aggregates,
digests and timings (`tasks.tracking.allowed`); user, source and revision are written by us, so that MLflow has no
reason to record the operating system's.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from schemas.plan import StudyPlan

_ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A model that needs pickle to load would be code, not data.
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@dataclass(frozen=True)
class TrackingTarget:
    """An MLflow backend.

    Attributes:
        tracking_uri: ``sqlite:///`` path or the address of an MLflow server; models are registered there too.
        artifact_uri: Root for artifacts of new experiments; empty lets a server decide.
    """

    tracking_uri: str
    artifact_uri: str = ""

    @classmethod
    def local(cls, database: Path, artifacts: Path) -> TrackingTarget:
        """Returns the target of an SQLite file and an artifact folder, which need not exist yet."""
        return cls(f"sqlite:///{database.resolve()}", artifacts.resolve().as_uri())


def connect(target: TrackingTarget) -> Any:
    """Returns an `MlflowClient` for `target`, with telemetry off and pickle refused.

    Sets the process-wide tracking address as well: MLflow's SQL registry resolves ``models:/`` sources through it.
    """
    os.environ.update(_ENVIRONMENT)
    if target.artifact_uri:
        # Otherwise MLflow's own "Default" experiment would name the folder that the process was started in.
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = target.artifact_uri
    import mlflow
    from mlflow.tracking import MlflowClient

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    mlflow.set_tracking_uri(target.tracking_uri)
    mlflow.set_registry_uri(target.tracking_uri)
    return MlflowClient(tracking_uri=target.tracking_uri, registry_uri=target.tracking_uri)


def page_address(target: TrackingTarget, page: str) -> str:
    """Returns the address of a page of an MLflow server, e.g. ``models/NAME/versions/1``.

    Empty where MLflow has no server, or where its address holds a password.
    """
    parts = urlsplit(target.tracking_uri)
    if parts.scheme not in ("http", "https") or parts.username is not None or parts.password is not None:
        return ""
    return f"{target.tracking_uri.rstrip('/')}/{local_page(page)}"


def local_page(page: str) -> str:
    """Returns a page of MLflow as a link on another of its pages."""
    # Without the workflow MLflow may show the menu for language models, which lacks the registry.
    return f"#/{page}?workflowType=machine_learning"


def common_tags(plan: StudyPlan) -> dict[str, str]:
    """Returns the tags that every run and logged model of a study carries."""
    return {
        "mlflow.user": plan.coordinator.name,
        "mlflow.source.name": "consilium",
        "mlflow.source.type": "LOCAL",
        "consilium.study": plan.study,
    }
