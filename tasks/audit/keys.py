"""The list of public keys that an auditor obtains outside the evidence: what ties signatures to institutions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from schemas.canonical import Digest, HexKey, Name, Strict, parse_json
from schemas.errors import EvidenceError, OperationError
from schemas.plan import Agreement, StudyPlan

MAXIMUM_BYTES = 4 * 1024 * 1024


class CoordinatorKey(Strict):
    name: Name
    key: HexKey


class PublicKeys(Strict):
    """Identity keys (raw Ed25519, hex) by name; `study` pins a plan digest where the auditor knows it."""

    format: Literal["consilium/public-keys/1"] = "consilium/public-keys/1"
    study: Digest | None = None
    coordinator: CoordinatorKey
    sites: dict[Name, HexKey]
    reviewers: dict[Name, HexKey] = Field(default_factory=dict)


def public_keys_document(plan: Agreement) -> dict[str, Any]:
    """Returns the public-key document of a plan's participants, to be kept apart from the evidence."""
    reviewers = plan.reviewers if isinstance(plan, StudyPlan) else ()
    keys = PublicKeys(
        study=plan.study,
        coordinator=CoordinatorKey(name=plan.coordinator.name, key=plan.coordinator.identity_key),
        sites={site.name: site.identity_key for site in plan.sites},
        reviewers={reviewer.name: reviewer.identity_key for reviewer in reviewers},
    )
    return keys.model_dump(mode="json", exclude=None if reviewers else {"reviewers"})


def read_public_keys(path: Path) -> PublicKeys:
    """Reads a public-key document.

    Raises:
        EvidenceError: `keys-unreadable`.
        OperationError: `keys-missing`.
    """
    if not path.is_file():
        raise OperationError("keys-missing", f"There is no file {path.name}.", "Check the path after --keys.")
    try:
        data = path.read_bytes()
        if len(data) > MAXIMUM_BYTES:
            raise ValueError("too large")
        return PublicKeys.model_validate_json(json.dumps(parse_json(data, path.name)))
    except (OSError, ValueError, ValidationError, EvidenceError):
        raise EvidenceError(
            "keys-unreadable",
            f"Expected a public-key document at {path.name}.",
            "Ask the study's institutions for it; the evidence itself cannot vouch for its keys.",
        ) from None
