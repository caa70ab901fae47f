"""Applies the generated policy and lifecycle to a study's bucket, with the keys of the bucket's owner."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.services import mlflow_artifacts
from infra.settings import load_settings
from schemas.errors import OperationError
from schemas.options import CoordinatorSettings, S3Settings
from schemas.services import ServiceSettings
from tasks.storage.opening import split_address
from tasks.storage.s3_policy import ARTIFACTS, bucket_policy, coordinator_statements, site_statements


def make_policy(settings: CoordinatorSettings, names: Sequence[str], principal: str, enforce: bool) -> dict[str, Any]:
    """Returns the bucket's policy for the coordinator and the sites named.

    Args:
        principal: Pattern of the users' ARNs; `{name}` stands for the participant.
        enforce: Also let the server refuse writes without a condition.

    Raises:
        OperationError: `not-a-bucket`, `bad-name`, `bad-principal`.
    """
    bucket, root = split_address(_bucket(settings)[0])
    if "{name}" not in principal:
        raise OperationError("bad-principal", "Expected {name} in --principal.", "Each participant has its own user.")
    parties = {name: site_statements(bucket, root, name, enforce) for name in names}
    parties[settings.name] = coordinator_statements(bucket, root, enforce)
    return bucket_policy({name: (principal.replace("{name}", name), given) for name, given in parties.items()})


def apply_bucket(
    settings: CoordinatorSettings, owner: Path, policy: dict[str, Any], ciphertext_days: int | None
) -> None:
    """Puts policy and lifecycle on the bucket.

    Raises:
        OperationError: `not-a-bucket`, and the store's refusals.
    """
    from tasks.storage.s3_client import open_client
    from tasks.storage.s3_errors import calling
    from tasks.storage.s3_policy import lifecycle

    address, s3 = _bucket(settings)
    bucket, root = split_address(address)
    client = open_client(s3.model_copy(update={"credentials_file": str(owner.absolute())}))
    with calling():
        client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
        if ciphertext_days is not None:
            rules = lifecycle(root, ciphertext_days)
            client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules)


def verify_artifacts_apart(home: Path, settings: CoordinatorSettings) -> None:
    """Refuses conditions on writes while MLflow keeps artifacts among the study's own names, as older homes do.

    Raises:
        OperationError: `artifacts-in-study`.
    """
    path = home / "services.json"
    services = load_settings(ServiceSettings, path) if path.exists() else ServiceSettings()
    if f"{mlflow_artifacts(home, settings, services)}/".startswith(f"{settings.store.rstrip('/')}/coordinator/"):
        raise OperationError(
            "artifacts-in-study",
            "MLflow keeps its artifacts under coordinator/ and writes them without a condition.",
            f"Copy coordinator/mlflow to {ARTIFACTS} in the store and name that as mlflow_artifacts in services.json.",
        )


def _bucket(settings: CoordinatorSettings) -> tuple[str, S3Settings]:
    if settings.s3 is None:
        raise OperationError("not-a-bucket", "The store of this coordinator is a folder.", "Use its permissions.")
    return settings.store, settings.s3
