"""How a participant stands, asked of its own folder, the store and the servers; nothing is changed."""

from __future__ import annotations

import fcntl
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.homes import coordinator_store, fingerprint, read_identity, site_store
from infra.plans import shown
from infra.prefect_server import is_healthy, proxies_for, why_unhealthy
from infra.services import is_answering
from infra.settings import load_settings, proxy_password
from schemas.canonical import parse_canonical, sha256_hex
from schemas.errors import ConsiliumError, OperationError
from schemas.layout import approval_key, plan_key, release_key, round_key
from schemas.options import CoordinatorSettings, SiteSettings
from schemas.plan import StudyPlan
from tasks.storage.base import Store
from tasks.storage.s3 import S3Store

_ANSWER_SECONDS = 5


def site_status(home: Path) -> dict[str, Any]:
    """Returns how a site stands, as JSON-ready values; what cannot be asked says why by its code.

    Raises:
        OperationError: `settings-unreadable`, `identity-unreadable`, `wrong-identity`.
    """
    settings = load_settings(SiteSettings, home / "config.json")
    identity = read_identity(home, settings.name)
    store, stored = _open(lambda: site_store(settings))
    return {
        "site": settings.name,
        "fingerprint": fingerprint(identity.identity_key),
        "agent": "running" if is_held(home / "agent.lock") else "stopped",
        "paused": settings.paused,
        "store": stored,
        "prefect": _server_of_site(home, settings),
        "budget": {"epsilon": settings.epsilon, "delta": settings.delta},
        "studies": [_study_of_site(settings, store, study) for study in settings.studies],
    }


def _server_of_site(home: Path, settings: SiteSettings) -> str:
    try:
        password = proxy_password(home, settings)
    except OperationError as error:
        return error.code
    authority = str(home / settings.ca_file) if settings.ca_file is not None else None
    why = why_unhealthy(settings.prefect_api_url, password, authority)
    return "answers" if why is None else f"does not answer: {why}"


def coordinator_status(home: Path) -> dict[str, Any]:
    """Returns how a coordinator and its study stand, as JSON-ready values.

    Raises:
        OperationError: `settings-unreadable`, `identity-unreadable`, `wrong-identity`.
    """
    settings = load_settings(CoordinatorSettings, home / "config.json")
    identity = read_identity(home, settings.name)
    store, stored = _open(lambda: coordinator_store(settings))
    mlflow = settings.mlflow_uri
    return {
        "coordinator": settings.name,
        "fingerprint": fingerprint(identity.identity_key),
        "process": "running" if is_held(home / "coordinator.lock") else "stopped",
        "store": stored,
        "prefect": "answers" if is_healthy(settings.prefect_api_url) else "does not answer",
        "mlflow": ("answers" if is_answering(f"{mlflow}/health") else "does not answer")
        if mlflow.startswith("http")
        else "a file",
        "study": _study_of_coordinator(settings, store) if settings.study else None,
    }


def is_held(lock: Path) -> bool:
    """Says whether a process holds the lock file."""
    try:
        handle = os.open(lock, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _open(opened: Callable[[], Store]) -> tuple[Store | None, dict[str, Any]]:
    try:
        store = opened()
    except ConsiliumError as error:
        return None, {"state": error.code, "message": error.message}
    if isinstance(store, S3Store):
        return store, {"state": "answers", "conditional_parts": store.place.conditional_parts}
    return store, {"state": "answers"}


def _read_plan(store: Store | None, study: str) -> StudyPlan | None:
    data = store.get(plan_key(study)) if store is not None else None
    if data is None or sha256_hex(data) != study:
        return None
    return parse_canonical(StudyPlan, data, "the plan")


def _study_of_site(settings: SiteSettings, store: Store | None, study: str) -> dict[str, Any]:
    plan = _read_plan(store, study)
    state = "left" if study in settings.left else "approved"
    if state == "approved" and store is not None and store.exists(release_key(study, "release.json")):
        state = "released"
    return {"study": study, "title": shown(plan.title) if plan else None, "state": state, **_progress(store, plan)}


def _study_of_coordinator(settings: CoordinatorSettings, store: Store | None) -> dict[str, Any]:
    study, plan = settings.study, _read_plan(store, settings.study)
    if plan is None or store is None:
        return {"study": study, "state": "plan-unreadable"}
    approved = {s.name: store.exists(approval_key(study, s.name)) for s in plan.sites}
    agents = {s.name: _agent_state(settings.prefect_api_url, s.name) for s in plan.sites}
    if store.exists(release_key(study, "release.json")):
        state = "released"
    else:
        state = "approved" if all(approved.values()) else "waiting for approvals"
    return {
        "study": study,
        "title": shown(plan.title),
        "state": state,
        **_progress(store, plan),
        "sites": {name: {"approved": approved[name], "agent": agents[name]} for name in approved},
    }


def _progress(store: Store | None, plan: StudyPlan | None) -> dict[str, int]:
    if store is None or plan is None:
        return {}
    last = plan.mechanism.rounds + 1
    done = 0
    while done < last and store.exists(round_key(plan.study, done + 1, None, "opening.json")):
        done += 1
    return {"rounds_opened": done, "rounds": last}


def _agent_state(api_url: str, site: str) -> str:
    """Returns what Prefect says of the site's worker; a view, no evidence."""
    request = urllib.request.Request(  # noqa: S310  the address is the settings' own
        f"{api_url}/work_pools/consilium-{site}/workers/filter",
        data=b"{}",
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.build_opener(proxies_for(api_url)).open(request, timeout=_ANSWER_SECONDS) as answer:
            workers = json.loads(answer.read(1 << 20))
    except urllib.error.HTTPError as error:
        return "not registered" if error.code == 404 else "unknown"
    except (OSError, ValueError):
        return "unknown"
    return "online" if any(worker.get("status") == "ONLINE" for worker in workers) else "offline"
