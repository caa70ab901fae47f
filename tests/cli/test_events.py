"""What a person sees of a running study follows the coordinator's events, however often they are read."""

import io
import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from infra.demo.events import EventTail, StudyView
from infra.demo.progress import PlainDisplay, describe_steps, draw_study, open_display

SITES = ["general", "mercy", "northside", "stjude", "valley"]
STORY: list[dict[str, Any]] = [
    {"event": "study-started", "study": "ab" * 32, "rounds": 2, "sites": SITES},
    {"event": "ceremony-started", "epoch": 1},
    {"event": "ceremony-phase", "phase": "key-open"},
    {"event": "ceremony-done", "seconds": 4.25},
    {"event": "round-started", "round": 1, "kind": "train"},
    {"event": "site-state", "round": 1, "site": "mercy", "state": "contributed"},
    {"event": "site-state", "round": 1, "site": "valley", "state": "refused", "code": "contract-violated"},
    {"event": "round-done", "round": 1, "kind": "train", "participants": SITES[:4], "seconds": 3.0}
    | {"epsilon_collusion": {"mercy": "0.91", "general": "0.90"}, "epsilon_outsider": 0.5},
    {"event": "round-started", "round": 2, "kind": "train"},
    {"event": "round-done", "round": 2, "kind": "train", "participants": SITES[:4], "seconds": 5.0}
    | {"epsilon_collusion": 1.5, "epsilon_outsider": 0.8},
    {"event": "round-started", "round": 3, "kind": "evaluate"},
    {"event": "round-done", "round": 3, "kind": "evaluate", "participants": SITES[:4], "seconds": 4.0}
    | {"epsilon_collusion": 3.0, "epsilon_outsider": 1.9},
    {"event": "evaluation-done", "auc": 0.97, "low": 0.93, "high": 1.0},
    {"event": "released", "model_version": "1", "weights": "cd" * 32},
    {"event": "evidence-exported", "path": "evidence"},
    {"event": "study-done", "complete": True, "reason": "all rounds opened"},
]


def told(events: list[dict[str, Any]]) -> StudyView:
    view = StudyView()
    for event in events:
        view.apply(event)
    return view


def test_a_whole_study_is_understood() -> None:
    view = told(STORY)
    assert (view.rounds_done, view.epsilon) == (2, (1.5, 0.8))
    assert (view.finished, view.complete, view.model_version) == (True, True, "1")
    assert view.rounds[1].codes == {"valley": "contract-violated"}
    assert view.evaluation == {"auc": 0.97, "low": 0.93, "high": 1.0}


def test_epsilon_of_the_evaluation_is_not_added_to_that_of_training_patients() -> None:
    assert told(STORY).epsilon[0] == 1.5


def test_time_left_follows_the_last_rounds_and_counts_the_evaluation() -> None:
    assert told(STORY[:7]).seconds_left is None
    assert told(STORY[:8]).seconds_left == 6.0
    assert told(STORY[:10]).seconds_left == 4.0


def test_a_resumed_study_clears_the_failure_of_the_last_run() -> None:
    failure = {"event": "failed", "code": "store-full", "message": "The store has no space left.", "remedy": "Free."}
    assert told([*STORY[:5], failure]).failure["code"] == "store-full"
    assert told([*STORY[:5], failure, STORY[0]]).failure == {}


@given(st.lists(st.integers(0, len(STORY) - 1), max_size=4))
def test_reading_events_twice_changes_nothing(again: list[int]) -> None:
    repeated = [event for index, event in enumerate(STORY) for _ in range(2 if index in again else 1)]
    assert told(repeated) == told(STORY)


def test_unknown_events_change_nothing() -> None:
    assert told([*STORY, {"event": "apply"}, {"event": "_on_failed"}, {}, {"event": 3}]) == told(STORY)


@given(st.lists(st.integers(1, 400), max_size=12))
def test_a_tail_returns_every_line_once_however_it_is_written(pieces: list[int]) -> None:
    import tempfile

    data = b"".join(json.dumps(event).encode() + b"\n" for event in STORY)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        tail, seen = EventTail(path), []
        assert tail.read() == []
        for piece in [*pieces, len(data)]:
            with path.open("ab") as out:
                out.write(data[:piece])
            data = data[piece:]
            seen += tail.read()
        assert seen == STORY


def test_half_a_line_of_a_killed_coordinator_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(json.dumps(STORY[0]).encode() + b'\n{"event": "rou\n[1]\n' + json.dumps(STORY[1]).encode() + b"\n")
    assert EventTail(path).read() == STORY[:2]


def test_plain_lines_appear_once_and_in_order() -> None:
    out = io.StringIO()
    display = open_display(Console(file=out, width=200))
    assert isinstance(display, PlainDisplay)
    view = StudyView()
    for event in STORY:
        view.apply(event)
        display.update(view, 3.0)
        display.update(view, 3.0)
    assert out.getvalue().splitlines() == describe_steps(view, 3.0)
    assert out.getvalue().splitlines() == [
        "Study abababababababab… of 5 hospitals, 2 rounds",
        "Key ceremony done in 4.2 s: nobody holds the key",
        "  valley refused (contract-violated) in round 1",
        "Round 1/2: 4 hospitals in the sum, 3.0 s, epsilon 0.91 of 3",
        "Round 2/2: 4 hospitals in the sum, 5.0 s, epsilon 1.50 of 3",
        "Evaluation: 4 hospitals in the sum, 4.0 s",
        "Released model version 1",
        "Evidence exported",
    ]


def test_the_picture_shows_sites_ceremony_epsilon_and_time_left() -> None:
    def picture(view: StudyView) -> str:
        out = io.StringIO()
        Console(file=out, width=120).print(draw_study(view, 3.0, 65))
        return out.getvalue()

    assert "waiting for the hospitals' agents" in picture(StudyView())
    assert "key-open (4/6)" in picture(told(STORY[:3]))
    shown = picture(told(STORY[:9]))
    assert "1/2" in shown
    assert "0.91 of 3 (outsiders see 0.50)" in shown
    assert "1:05 gone, about 0:06 left" in shown
    shown = picture(told(STORY[:7]))
    assert "✗ refused (contract-violated)" in shown
    assert "● contributed" in shown
