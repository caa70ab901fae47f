"""How a participant stands, asked of its own folder, the store and the servers; nothing is changed."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.homes import coordinator_store, fingerprint, read_identity, site_store
from infra.own_ledger import OwnLedger
from infra.plans import shown
from infra.prefect_server import is_healthy, why_unhealthy
from infra.prefect_view import agent_seen, study_schedule
from infra.services import is_answering
from infra.settings import load_settings, proxy_password
from infra.standing import UNVERIFIED, departures, model_state, newest_round, say_model, sites_not_agreed
from schemas.canonical import sha256_hex
from schemas.errors import ConsiliumError, OperationError, PeerError
from schemas.layout import plan_key
from schemas.options import CoordinatorSettings, SiteSettings
from schemas.plan import StudyPlan
from schemas.statistics import StatisticsPlan, parse_agreement
from tasks.rounds import read_opening
from tasks.storage.base import Store
from tasks.storage.s3 import S3Store

WORKER_LOCK = "worker.lock"
_EVENTS_READ_BYTES = 1 << 20
_ACHIEVED = ("ceremony-done", "round-done", "evaluation-done", "released", "evidence-exported", "study-done")


def site_status(home: Path) -> dict[str, Any]:
    """Returns how a site stands, as JSON-ready values; what cannot be asked says why by its code.

    Raises:
        OperationError: `settings-unreadable`, `identity-unreadable`, `wrong-identity`.
    """
    settings = load_settings(SiteSettings, home / "config.json")
    identity = read_identity(home, settings.name)
    store, stored = _open(lambda: site_store(settings))
    ledger = OwnLedger(home, settings, identity)
    return {
        "site": settings.name,
        "fingerprint": fingerprint(identity.identity_key),
        "agent": "running" if is_held(home / "agent.lock") else "stopped",
        "paused": settings.paused,
        "store": stored,
        "prefect": _server_of_site(home, settings),
        "budget": ledger.budget(),
        "studies": [
            _study_of_site(settings, store, study) | {"last_refusal": ledger.last_refusal(study)}
            for study in settings.studies
        ],
    }


def _server_of_site(home: Path, settings: SiteSettings) -> str:
    try:
        password = proxy_password(home, settings)
    except OperationError as error:
        return f"was not asked ({error.code}): {error.message}"
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
        "worker": "running" if is_held(home / WORKER_LOCK) else "stopped",
        "run": "in progress" if is_held(home / "coordinator.lock") else "none",
        "last_error": last_error(home / "events.jsonl"),
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


@contextmanager
def shown_running(home: Path) -> Iterator[None]:
    """Lets `coordinator_status` see this worker: by a lock that the kernel gives back however its holder ends."""
    with (home / WORKER_LOCK).open("ab") as handle:
        # Shared: it shows, and keeps nobody out. Only a look at this very moment could hold it for an instant.
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield


def _open(opened: Callable[[], Store]) -> tuple[Store | None, dict[str, Any]]:
    try:
        store = opened()
    except ConsiliumError as error:
        return None, {"state": error.code, "message": error.message}
    if isinstance(store, S3Store):
        return store, {"state": "answers", "conditional_parts": store.place.conditional_parts}
    return store, {"state": "answers"}


def _read_plan(store: Store | None, study: str) -> StudyPlan | StatisticsPlan | None:
    data = store.get(plan_key(study)) if store is not None else None
    if data is None or sha256_hex(data) != study:
        return None
    return parse_agreement(data, "the plan")


def _study_of_site(settings: SiteSettings, store: Store | None, study: str) -> dict[str, Any]:
    plan, left = _read_plan(store, study), study in settings.left
    if isinstance(plan, StatisticsPlan):
        return _question_of_site(study, plan, left)
    model = model_state(store, plan) if store is not None and plan is not None else None
    return {
        "study": study,
        "title": shown(plan.title) if plan else None,
        "state": "left" if left else _over(model) if model else "approved",
        "model": model,
        "waiting_for": sites_not_agreed(store, plan) if store is not None and plan is not None else [],
        **_progress(store, plan),
    }


def _question_of_site(study: str, plan: StatisticsPlan, left: bool) -> dict[str, Any]:
    state = "left" if left else "approved (a question)"
    return {"study": study, "title": shown(plan.title), "state": state, "model": None, "waiting_for": []}


def _over(model: dict[str, Any]) -> str:
    return "finished" if model["complete"] else "ended early"


def _study_of_coordinator(settings: CoordinatorSettings, store: Store | None) -> dict[str, Any]:
    study, plan = settings.study, _read_plan(store, settings.study)
    if not isinstance(plan, StudyPlan) or store is None:
        return {"study": study, "state": "plan-unreadable", "model": None}
    missing, model = sites_not_agreed(store, plan), model_state(store, plan)
    newest, gone = newest_round(store, plan), departures(store, plan)
    answers = newest.pop("answers") if newest is not None else {}
    waiting = "waiting for approvals" if missing else "approved"
    return {
        "study": study,
        "title": shown(plan.title),
        "state": _over(model) if model else waiting,
        "model": model,
        **_progress(store, plan),
        "schedule": study_schedule(settings.prefect_api_url, study),
        "last_round": newest,
        "sites": {
            site.name: {
                "approved": site.name not in missing,
                "left": gone[site.name] == "left",
                "ledger": UNVERIFIED if gone[site.name] == UNVERIFIED else "verified",
                "last_round": answers.get(site.name),
                **agent_seen(settings.prefect_api_url, site.name),
            }
            for site in plan.sites
        },
    }


def say_state(study: dict[str, Any]) -> str:
    """Says how a study stands, and what became of its model once it is over."""
    over = study["model"] is not None and study["state"] != "left"
    return say_model(study["model"]) if over else str(study["state"])


def say_round(newest: dict[str, Any]) -> str:
    """Says which round was asked for last."""
    if UNVERIFIED in newest:
        return f"NOT VERIFIED ({newest[UNVERIFIED]})"
    return f"{newest['round']} ({newest['kind']}), attempt {newest['attempt']}"


def say_site(site: dict[str, Any]) -> str:
    """Says how one hospital of a study stands: agreement, newest round, agent."""
    beat, last = site["heartbeat_seconds"], site["last_round"]
    parts = ["approved" if site["approved"] else "NOT approved"]
    if site["left"]:
        parts.append("LEFT the study")
    if site["ledger"] == UNVERIFIED:
        parts.append("published ledger NOT VERIFIED")
    if last is not None:
        parts.append(f"last round {last['answer']}{f' ({code})' if (code := last['code']) else ''}")
    parts.append(f"agent {site['agent']}{f', last heartbeat {beat} s ago' if beat is not None else ''}")
    return ", ".join(parts)


def last_error(events: Path) -> dict[str, str] | None:
    """Returns what stopped the study last, as its events name it; None once the study went on after that.

    What stopped it before it began is overtaken when it begins, anything else by the next thing that it achieved.
    """
    stopped, before_it_began, begun = None, False, False
    for event in _newest_events(events):
        name = event.get("event")
        if name == "failed" and event.get("code") != "study-running":
            stopped = {part: str(event.get(part, "")) for part in ("time", "code", "message", "remedy")}
            before_it_began, begun = not begun, False
        elif name == "study-started":
            begun = True
            stopped = None if before_it_began else stopped
        elif name in _ACHIEVED:
            stopped = None
    return stopped


def _newest_events(events: Path) -> Iterator[dict[str, Any]]:
    try:
        with events.open("rb") as lines:
            lines.seek(max(0, events.stat().st_size - _EVENTS_READ_BYTES))
            newest = lines.read().decode(errors="replace").splitlines()
    except OSError:
        return
    for line in newest:
        try:
            event = json.loads(line)
        except ValueError:  # a process that was killed left half a line
            continue
        if isinstance(event, dict):
            yield event


def say_result(home: Path) -> str:
    """Says what a study that is over left in its coordinator's home, by its summary.json."""
    evidence = f"its evidence is in {home / 'evidence'}."
    try:
        summary = json.loads((home / "summary.json").read_text())
        over = "The study of this folder is finished" if summary["complete"] else "The study of this folder ended early"
        auc = summary["evaluation"]
        figures = (
            "no evaluation"
            if auc is None
            else f"AUC {auc['auc']:.3f}, 95 % interval {auc['low']:.3f} to {auc['high']:.3f}"
        )
        result = f"Result: {summary['rounds']} rounds, {figures}; model {summary['model_version']}."
    except (OSError, ValueError, KeyError, TypeError):
        return f"The study of this folder is over; {evidence}"
    return f"{over}; {evidence}\n{result} See consilium coordinator status for its review."


def _progress(store: Store | None, plan: StudyPlan | None) -> dict[str, Any]:
    if store is None or plan is None:
        return {}
    rounds = plan.mechanism.rounds
    # A round that was lost with its key ceremony is never opened; those after it are.
    opened = [_is_opened(store, plan, round_) for round_ in range(1, rounds + 2)]
    return {"rounds_opened": sum(opened[:-1]), "rounds": rounds, "evaluated": opened[-1]}


def _is_opened(store: Store, plan: StudyPlan, round_: int) -> bool:
    try:
        return read_opening(store, plan, round_) is not None
    except PeerError:  # somebody else's file is no opening
        return False


def say_progress(study: dict[str, Any]) -> str:
    """Says how far a study is; empty where its plan cannot be read."""
    if "rounds" not in study:
        return ""
    evaluated = "evaluated" if study["evaluated"] else "not evaluated yet"
    return f", {study['rounds_opened']} of {study['rounds']} rounds opened, {evaluated}"
