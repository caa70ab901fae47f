"""Exports a study's evidence: every object of the store under its own name, and a signed list of all of them."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.canonical import canonical_bytes, sha256_hex
from schemas.envelope import open_envelope, sign_envelope
from schemas.errors import ConsiliumError, OperationError, PeerError
from schemas.layout import coordinator_prefix, site_prefix
from schemas.messages import EvidenceManifest
from schemas.plan import Agreement
from tasks.audit.context import AuditContext
from tasks.audit.crate import derive_crate
from tasks.audit.evidence import EvidenceFolder
from tasks.audit.names import BULK_KINDS, CRATE, MANIFEST, parse_name, proofs_name
from tasks.audit.proofs import collect_positions, derive_proofs
from tasks.audit.registry import AuditFailure
from tasks.storage.base import Store


def export_evidence(
    store: Store, plan: Agreement, out: Path, key: Ed25519PrivateKey, *, without_bulk: bool = False
) -> Path:
    """Writes the evidence of a study to a folder, whole or not at all; repeating it replaces an earlier export.

    Args:
        store: The study's object store.
        plan: The study plan.
        out: The folder to write; it must not exist, or hold an earlier export of this study.
        key: The coordinator's identity key, which signs the manifest.
        without_bulk: Leave the ciphertexts out and list their digests: small enough to send, and the checks that need
            them become not applicable.

    Returns:
        `out`.

    Raises:
        OperationError: `evidence-exists` if `out` holds anything else.
    """
    _verify_replaceable(plan, out)
    temporary = out.with_name(f".{out.name}-{secrets.token_hex(4)}.part")
    try:
        files: list[tuple[str, str]] = []
        omitted: list[tuple[str, str]] = []
        for name in _names(store, plan):
            if without_bulk and _is_bulk(name):
                omitted.append((name, sha256_hex(_get(store, name))))
            else:
                files.append((name, _copy(store, name, temporary)))
        files += write_derived(temporary)
        manifest = EvidenceManifest(files=tuple(sorted(files)), omitted=tuple(sorted(omitted)))
        _write(temporary / MANIFEST, sign_envelope(manifest, plan.study, key))
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _names(store: Store, plan: Agreement) -> Iterator[str]:
    # Names that the protocol does not use are exported too: the audit fails on them and names who wrote them.
    prefixes = [coordinator_prefix(plan.study), *(site_prefix(plan.study, site.name) for site in plan.sites)]
    for prefix in prefixes:
        yield from store.list(prefix)


def write_derived(folder: Path) -> list[tuple[str, str]]:
    """Writes the consistency proofs and the crate; returns (path, SHA-256).

    Evidence that contradicts itself is exported all the same, without what cannot be derived from it: the audit says
    what is wrong, and misses these files.
    """
    context = AuditContext(EvidenceFolder(folder), None)
    written: list[tuple[str, str]] = []
    try:
        for owner, positions in collect_positions(context).items():
            data = canonical_bytes(derive_proofs(context, owner, positions))
            _write(folder / proofs_name(owner), data)
            written.append((proofs_name(owner), sha256_hex(data)))
        context.look_again()
        data = canonical_bytes(derive_crate(context))
        _write(folder / CRATE, data)
        written.append((CRATE, sha256_hex(data)))
    except (AuditFailure, ConsiliumError):
        return written
    return written


def _is_bulk(name: str) -> bool:
    item = parse_name(name)
    return item is not None and item.kind in BULK_KINDS


def _get(store: Store, name: str) -> bytes:
    data = store.get(name)
    if data is None:
        raise OperationError("object-missing", f"Expected {name} in the store.", "Run the export again.")
    return data


def _copy(store: Store, name: str, folder: Path) -> str:
    data = _get(store, name)
    _write(folder / name, data)
    return sha256_hex(data)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def _verify_replaceable(plan: Agreement, out: Path) -> None:
    """Refuses to remove anything but an export of this study by this coordinator."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        data = (out / MANIFEST).read_bytes()
        open_envelope(EvidenceManifest, data, plan.study, plan.coordinator.identity_key, plan.coordinator.name)
    except (OSError, PeerError):
        raise OperationError(
            "evidence-exists", f"{out.name} exists and is not an export of this study.", "Give another folder."
        ) from None
