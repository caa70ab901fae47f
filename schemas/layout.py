"""Names of everything in the object store. A site writes only under ``sites/<its name>/``.

Names are create-only: a name once written keeps its bytes. The same names are the paths inside an evidence folder.
"""

from __future__ import annotations

ANSWER = "answer.json"


def coordinator_prefix(study: str) -> str:
    return f"coordinator/{study}"


def site_prefix(study: str, site: str) -> str:
    return f"sites/{site}/{study}"


def plan_key(study: str) -> str:
    return f"{coordinator_prefix(study)}/plan.json"


def approval_key(study: str, participant: str, coordinator: bool = False) -> str:
    prefix = coordinator_prefix(study) if coordinator else site_prefix(study, participant)
    return f"{prefix}/approval.json"


def ceremony_key(study: str, epoch: int, site: str | None, phase: str) -> str:
    """Phases: instruction.json (site None); nonce-commit.json, nonce-open.json, key-commit.json, key-open.json,
    public-share.bin, sealed-<holder>.bin, self-test.json, self-test-<k>.bin, transcript.json (site given)."""
    prefix = coordinator_prefix(study) if site is None else site_prefix(study, site)
    return f"{prefix}/epoch-{epoch:03d}/ceremony/{phase}"


def round_key(study: str, round_: int, site: str | None, item: str) -> str:
    """Per round, whatever the attempt. Coordinator (site None): record.json, request-<k>.json, opening.json,
    bulk-sum.bin, result.bin. Site: record-signature.json, share-<k>.json, share-<k>.bin."""
    prefix = coordinator_prefix(study) if site is None else site_prefix(study, site)
    return f"{prefix}/round-{round_:04d}/{item}"


def attempt_key(study: str, round_: int, attempt: int, site: str | None, item: str) -> str:
    """Per attempt. Coordinator: instruction.json, collected.json. Site: contribution.json or refusal.json, key.bin,
    shamir-<holder>.bin, bulk.bin, shares-checked.json."""
    prefix = coordinator_prefix(study) if site is None else site_prefix(study, site)
    return f"{prefix}/round-{round_:04d}/attempt-{attempt:02d}/{item}"


def ledger_key(study: str, owner: str, coordinator: bool, item: str) -> str:
    """Items: entries-<first sequence, 6 digits>.jsonl (slices, one envelope a line), checkpoint.json, witness.json,
    closing.json (coordinator); after reviews checkpoint-<size, 6 digits>.json (coordinator, one per further slice)."""
    prefix = coordinator_prefix(study) if coordinator else site_prefix(study, owner)
    return f"{prefix}/ledger/{item}"


def release_key(study: str, item: str) -> str:
    """Items: weights.safetensors, release.json, manifest.json; of a question answer.json."""
    return f"{coordinator_prefix(study)}/release/{item}"


def review_key(study: str, reviewer: str, number: int) -> str:
    """A reviewer's n-th signed decision about the release; uploaded by the coordinator."""
    return f"{coordinator_prefix(study)}/review/decision-{reviewer}-{number}.json"


def join_prefix(site: str) -> str:
    """Requests to be entered in plans: ``<first 16 digits of the envelope's digest>.json``; part of no study."""
    return f"sites/{site}/join"
