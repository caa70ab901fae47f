"""Reads the coordinator's progress events and keeps what a person wants to see of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CEREMONY_PHASES = ("nonce-commit", "nonce-open", "key-commit", "key-open", "self-test", "transcript")


class EventTail:
    """Reads whole lines that were appended to a file since the last call, from its beginning."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """Returns the new events in order; a line that is still being written waits for the next call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [event for line in whole.splitlines() if (event := _parse(line)) is not None]


@dataclass
class RoundView:
    """One round as a person sees it; `states` maps a site to waiting, contributed, refused, silent, certified, shared.

    `epsilon_collusion` and `epsilon_outsider` are cumulative, the largest over the sites.
    """

    number: int
    kind: str = "train"
    states: dict[str, str] = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=dict)
    done: bool = False
    participants: tuple[str, ...] = ()
    seconds: float = 0.0
    epsilon_collusion: float = 0.0
    epsilon_outsider: float = 0.0


@dataclass
class StudyView:
    """Everything the events told so far. Applying an event twice changes nothing, so a resumed study can be re-read."""

    study: str = ""
    planned_rounds: int = 0
    sites: tuple[str, ...] = ()
    ceremony: str = ""
    ceremony_seconds: float = 0.0
    rounds: dict[int, RoundView] = field(default_factory=dict)
    current: int = 0
    evaluation: dict[str, float] = field(default_factory=dict)
    model_version: str = ""
    evidence: str = ""
    finished: bool = False
    complete: bool = False
    reason: str = ""
    failure: dict[str, str] = field(default_factory=dict)

    def apply(self, event: dict[str, Any]) -> None:
        """Takes one event into the view; an event of an unknown name changes nothing."""
        handler = getattr(self, "_on_" + str(event.get("event", "")).replace("-", "_"), None)
        if handler is not None:
            handler(event)

    @property
    def rounds_done(self) -> int:
        """Training rounds that were opened."""
        return sum(r.done for r in self.rounds.values() if r.kind == "train")

    @property
    def epsilon(self) -> tuple[float, float]:
        """Cumulative training epsilon (collusion, outsider), the largest over the sites."""
        done = [r for r in self.rounds.values() if r.done and r.kind == "train"]
        return (
            max((r.epsilon_collusion for r in done), default=0.0),
            max((r.epsilon_outsider for r in done), default=0.0),
        )

    @property
    def seconds_left(self) -> float | None:
        """Expected seconds until the release, from the last three rounds; None before the first."""
        last = [r.seconds for r in self.rounds.values() if r.done][-3:]
        if not last or not self.planned_rounds:
            return None
        return (self.planned_rounds + 1 - sum(r.done for r in self.rounds.values())) * sum(last) / len(last)

    def _on_study_started(self, event: dict[str, Any]) -> None:
        self.study, self.planned_rounds = str(event["study"]), int(event["rounds"])
        sites = event.get("sites", ())
        self.sites = tuple(sites) if isinstance(sites, list) else self.sites
        self.failure = {}

    def _on_ceremony_started(self, event: dict[str, Any]) -> None:
        self.ceremony = f"epoch {event.get('epoch', 1)}"

    def _on_ceremony_phase(self, event: dict[str, Any]) -> None:
        self.ceremony = str(event["phase"])

    def _on_ceremony_done(self, event: dict[str, Any]) -> None:
        self.ceremony, self.ceremony_seconds = "done", float(event.get("seconds", 0))

    def _on_round_started(self, event: dict[str, Any]) -> None:
        self.current = int(event["round"])
        round_ = self.rounds.setdefault(self.current, RoundView(self.current))
        round_.kind = str(event.get("kind", "train"))

    def _on_site_state(self, event: dict[str, Any]) -> None:
        round_ = self.rounds.setdefault(int(event["round"]), RoundView(int(event["round"])))
        round_.states[str(event["site"])] = str(event["state"])
        if event.get("code"):
            round_.codes[str(event["site"])] = str(event["code"])

    def _on_round_done(self, event: dict[str, Any]) -> None:
        round_ = self.rounds.setdefault(int(event["round"]), RoundView(int(event["round"])))
        round_.done, round_.kind = True, str(event.get("kind", "train"))
        round_.participants = tuple(event.get("participants", ()))
        round_.seconds = float(event.get("seconds", 0))
        round_.epsilon_collusion = _largest(event.get("epsilon_collusion"))
        round_.epsilon_outsider = _largest(event.get("epsilon_outsider"))

    def _on_evaluation_done(self, event: dict[str, Any]) -> None:
        self.evaluation = {name: float(event[name]) for name in ("auc", "low", "high") if event.get(name) is not None}

    def _on_released(self, event: dict[str, Any]) -> None:
        self.model_version = str(event.get("model_version", ""))

    def _on_evidence_exported(self, event: dict[str, Any]) -> None:
        self.evidence = str(event.get("path", ""))

    def _on_study_done(self, event: dict[str, Any]) -> None:
        self.finished, self.complete = True, bool(event.get("complete"))
        self.reason = str(event.get("reason", ""))

    def _on_failed(self, event: dict[str, Any]) -> None:
        self.failure = {name: str(event.get(name, "")) for name in ("code", "message", "remedy")}


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None  # A coordinator that was killed while writing leaves half a line; the next one starts after it.
    return event if isinstance(event, dict) else None


def _largest(value: Any) -> float:
    if isinstance(value, dict):
        return max((float(v) for v in value.values()), default=0.0)
    return float(value or 0)
