"""Applies the generated policy and lifecycle to a study's bucket, with the keys of the bucket's owner."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from infra.services import mlflow_artifacts
from infra.settings import load_settings
from schemas.errors import OperationError
from schemas.options import CoordinatorSettings, S3Settings
from schemas.services import ServiceSettings
from tasks.storage.opening import split_address
from tasks.storage.s3_policy import ARTIFACTS, bucket_policy, coordinator_statements, identity_policy, site_statements

_AMAZON = (".amazonaws.com", ".amazonaws.com.cn")
_AMAZON_BYTES = 20480


def make_policy(settings: CoordinatorSettings, names: Sequence[str], principal: str, enforce: bool) -> dict[str, Any]:
    """Returns the bucket's policy for the coordinator and the sites named.

    Args:
        principal: Pattern of the users' ARNs; `{name}` stands for the participant.
        enforce: Also let the server refuse writes without a condition.

    Raises:
        OperationError: `not-a-bucket`, `bad-name`, `bad-principal`, and for Amazon `policy-too-large`.
    """
    if "{name}" not in principal:
        raise OperationError("bad-principal", "Expected {name} in --principal.", "Each participant has its own user.")
    parties = _grants(settings, names, enforce)
    policy = bucket_policy({name: (principal.replace("{name}", name), given) for name, given in parties.items()})
    if exceeds_amazon(policy) and _is_amazon(_bucket(settings)[1]):
        raise OperationError(
            "policy-too-large",
            f"A bucket's policy for {len(parties)} participants has {len(policy_text(policy))} bytes; Amazon takes "
            f"{_AMAZON_BYTES}.",
            "Attach a policy to each user instead: --identity prints them.",
        )
    return policy


def make_identity_policies(settings: CoordinatorSettings, names: Sequence[str], enforce: bool) -> dict[str, Any]:
    """Returns a policy for each participant's own user, which together grant what the bucket's policy does.

    Raises:
        OperationError: `not-a-bucket`, `bad-name`.
    """
    return {name: identity_policy(given) for name, given in sorted(_grants(settings, names, enforce).items())}


def policy_text(policy: dict[str, Any]) -> str:
    """Returns a policy as it is sent."""
    return json.dumps(policy, separators=(",", ":"))


def exceeds_amazon(policy: dict[str, Any]) -> bool:
    """Says whether a bucket's policy is larger than Amazon takes; other servers have limits of their own."""
    return len(policy_text(policy)) > _AMAZON_BYTES


def policy_page(policy: dict[str, Any]) -> str:
    """Returns a policy for people, without the spaces where only that fits."""
    page = json.dumps(policy, indent=2)
    return page if len(page) <= _AMAZON_BYTES else policy_text(policy)


def apply_bucket(
    settings: CoordinatorSettings, owner: Path, policy: dict[str, Any] | None, ciphertext_days: int | None
) -> None:
    """Puts policy and lifecycle on the bucket; None leaves what is there.

    Raises:
        OperationError: `not-a-bucket`, and the store's refusals.
    """
    from tasks.storage.s3_client import open_client
    from tasks.storage.s3_errors import calling
    from tasks.storage.s3_policy import lifecycle

    address, s3 = _bucket(settings)
    bucket, root = split_address(address)
    client = open_client(s3.model_copy(update={"credentials_file": str(owner.absolute())}))
    with calling(bucket):
        if policy is not None:
            client.put_bucket_policy(Bucket=bucket, Policy=policy_text(policy))
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


def _grants(settings: CoordinatorSettings, names: Sequence[str], enforce: bool) -> dict[str, list[dict[str, Any]]]:
    bucket, root = split_address(_bucket(settings)[0])
    parties = {name: site_statements(bucket, root, name, enforce) for name in names}
    return parties | {settings.name: coordinator_statements(bucket, root, enforce)}


def _is_amazon(s3: S3Settings) -> bool:
    host = urlsplit(s3.endpoint).hostname or "" if s3.endpoint is not None else _AMAZON[0]
    return host.endswith(_AMAZON)


def _bucket(settings: CoordinatorSettings) -> tuple[str, S3Settings]:
    if settings.s3 is None:
        raise OperationError("not-a-bucket", "The store of this coordinator is a folder.", "Use its permissions.")
    return settings.store, settings.s3
