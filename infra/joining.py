"""A hospital asks to be entered in plans; the coordinator reads who asked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from infra.homes import read_identity, site_store
from infra.settings import load_settings
from schemas.envelope import envelope_digest, envelope_signer, open_envelope, sign_envelope
from schemas.errors import EvidenceError, OperationError, PeerError, PlanError, SiteDataError
from schemas.joining import JoinRequest
from schemas.layout import join_prefix
from schemas.ledger import NO_STUDY
from schemas.options import SiteSettings
from schemas.plan import SiteEntry
from tasks.identity import verify_party_name
from tasks.storage.base import Store
from tasks.storage.folder import FolderStore
from tasks.storage.s3 import S3Store

LARGEST_REQUEST = 1 << 20
_SIGNIFICANT_DIGITS = 2


def join(home: Path, patients: int, key_holder: bool, contributor: bool) -> tuple[JoinRequest, bytes]:
    """Signs a site's request and publishes it under the site's own prefix.

    Raises:
        SiteDataError: `cohort-not-rounded`.
        PlanError: `no-part`, a site that does nothing.
        OperationError: the store's refusals, `identity-unreadable`.
    """
    settings = load_settings(SiteSettings, home / "config.json")
    _verify_rounded(patients)
    if not (key_holder or contributor):
        raise PlanError("no-part", "A site holds a share of the key, contributes, or both.", "Leave one option out.")
    identity = read_identity(home, settings.name)
    request = JoinRequest(
        site=settings.name,
        identity_key=identity.identity_key,
        hpke_key=identity.hpke_key,
        declared_patients=patients,
        key_holder=key_holder,
        contributor=contributor,
        time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    data = sign_envelope(request, NO_STUDY, identity.signing)
    site_store(settings).put(f"{join_prefix(settings.name)}/{envelope_digest(data)[:16]}.json", data)
    return request, data


def read_requests(store: Store, names: Sequence[str], files: Sequence[Path] = ()) -> tuple[JoinRequest, ...]:
    """Returns the newest verified request of each site named, from the store, and of each file; by name.

    Raises:
        OperationError: `bad-name`, `request-unreadable`.
        PeerError: `no-request`, `bad-signature`, `wrong-statement`, `malformed`, `wrong-name`, naming the site;
            `two-requests`.
    """
    found = {name: _newest(store, name) for name in names}
    for file in files:
        try:
            data = file.read_bytes()
        except OSError:
            raise OperationError("request-unreadable", f"Expected a request in {file}.", "Check the path.") from None
        request = open_request(data, file.name)
        if request.site in found and found[request.site] != request:
            raise PeerError("two-requests", request.site, "two different requests were named.")
        found[request.site] = request
    return tuple(found[name] for name in sorted(found))


def read_each(store: Store, names: Sequence[str]) -> tuple[tuple[JoinRequest, ...], PeerError | None]:
    """Returns the verified requests of those named that asked, by name, and one error that names all others.

    Raises:
        OperationError: `bad-name`, the store's refusals.
    """
    found: list[JoinRequest] = []
    refused: list[PeerError] = []
    for name in sorted(set(names)):
        try:
            found += read_requests(store, [name])
        except PeerError as error:
            refused.append(error)
    if len(refused) < 2:
        return tuple(found), refused[0] if refused else None
    peers = ", ".join(error.peer for error in refused)
    if {error.code for error in refused} == {"no-request"}:
        return tuple(found), PeerError("no-request", peers, "have not asked to join.", refused[0].remedy)
    reasons = ", ".join(f"{error.peer} ({error.code})" for error in refused)
    return tuple(found), PeerError(refused[0].code, peers, f"no valid request: {reasons}.", "They ask again.")


def open_request(data: bytes, sender: str) -> JoinRequest:
    """Verifies that a request is signed by the key that it names.

    Raises:
        PeerError: `malformed`, `bad-signature`, `wrong-statement`.
    """
    try:
        signer = envelope_signer(data)
    except EvidenceError as error:
        raise PeerError("malformed", sender, error.message) from None
    request = open_envelope(JoinRequest, data, NO_STUDY, signer, sender)
    if request.identity_key != signer:
        raise PeerError("bad-signature", sender, "the request names another key than the one that signed it.")
    return request


def entry_of(request: JoinRequest) -> SiteEntry:
    """Returns the plan's entry that a request asks for."""
    return SiteEntry(
        name=request.site,
        identity_key=request.identity_key,
        hpke_key=request.hpke_key,
        declared_patients=request.declared_patients,
        key_holder=request.key_holder,
        contributor=request.contributor,
    )


def _newest(store: Store, name: str) -> JoinRequest:
    verify_party_name(name)
    requests = [open_request(store.get(key, LARGEST_REQUEST) or b"", name) for key in store.list(join_prefix(name))]
    if not requests:
        remedy = f"It runs consilium site join; or it did, and its store differs from this one: {_address(store)}."
        raise PeerError("no-request", name, "has not asked to join.", remedy)
    if any(request.site != name for request in requests):
        raise PeerError("wrong-name", name, "a request under its prefix names another site.")
    return max(requests, key=lambda request: request.time)


def _address(store: Store) -> str:
    if isinstance(store, S3Store):
        return f"s3://{'/'.join(part for part in (store.place.bucket, store.place.root) if part)}"
    return str(store.root) if isinstance(store, FolderStore) else "another store"


def _verify_rounded(patients: int) -> None:
    step = 10 ** max(0, len(str(patients)) - _SIGNIFICANT_DIGITS)
    if patients % step:
        raise SiteDataError(
            "cohort-not-rounded",
            f"Expected a number of patients rounded to {_SIGNIFICANT_DIGITS} digits: it is public for ever.",
            f"Declare {patients - patients % step} or {patients - patients % step + step}.",
        )
