"""Shows a running demo: a live picture in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from infra.demo.events import CEREMONY_PHASES, RoundView, StudyView

_MARKS = {
    "waiting": ("·", "dim"),
    "contributed": ("● contributed", "cyan"),
    "certified": ("● certified", "blue"),
    "shared": ("● shared", "green"),
    "refused": ("✗ refused", "yellow"),
    "silent": ("… silent", "red"),
}


class Display(Protocol):
    """What the supervisor needs of a display."""

    def say(self, text: str) -> None: ...

    def update(self, view: StudyView, budget: float) -> None: ...

    def close(self) -> None: ...


def open_display(console: Console) -> Display:
    """Returns the live display for a terminal and the plain one otherwise."""
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


class LiveDisplay:
    """Redraws one picture a few times a second."""

    def __init__(self, console: Console) -> None:
        self._started = time.monotonic()
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._live.start()

    def say(self, text: str) -> None:
        self._live.console.print(text, highlight=False)

    def update(self, view: StudyView, budget: float) -> None:
        self._live.update(draw_study(view, budget, time.monotonic() - self._started))

    def close(self) -> None:
        self._live.stop()


class PlainDisplay:
    """Prints a line whenever something changed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._printed: set[str] = set()

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)

    def update(self, view: StudyView, budget: float) -> None:
        for line in describe_steps(view, budget):
            if line not in self._printed:
                self._printed.add(line)
                self.say(line)

    def close(self) -> None:
        return


def describe_steps(view: StudyView, budget: float) -> list[str]:
    """Returns one line for everything that is over; lines never change once they appeared."""
    lines = []
    if view.study:
        lines.append(f"Study {view.study[:16]}… of {len(view.sites)} hospitals, {view.planned_rounds} rounds")
    if view.ceremony == "done":
        lines.append(f"Key ceremony done in {view.ceremony_seconds:.1f} s: nobody holds the key")
    for number in sorted(view.rounds):
        round_ = view.rounds[number]
        lines += [f"  {site} refused ({code}) in round {number}" for site, code in sorted(round_.codes.items())]
        if round_.done and round_.kind == "train":
            lines.append(
                f"Round {number}/{view.planned_rounds}: {len(round_.participants)} hospitals in the sum, "
                f"{round_.seconds:.1f} s, epsilon {round_.epsilon_collusion:.2f} of {budget:g}"
            )
        elif round_.done:
            lines.append(f"Evaluation: {len(round_.participants)} hospitals in the sum, {round_.seconds:.1f} s")
    if view.model_version:
        lines.append(f"Released model version {view.model_version}")
    if view.evidence:
        lines.append("Evidence exported")
    return lines


def draw_study(view: StudyView, budget: float, elapsed_seconds: float) -> Group:
    """Draws the picture of a running study."""
    return Group(_draw_head(view, budget, elapsed_seconds), _draw_sites(view))


def _draw_head(view: StudyView, budget: float, elapsed_seconds: float) -> Table:
    head = Table.grid(padding=(0, 2))
    head.add_row("study", Text(f"{view.study[:16]}…" if view.study else "starting", "bold"))
    head.add_row("key ceremony", _ceremony_text(view))
    bar = ProgressBar(total=max(view.planned_rounds, 1), completed=view.rounds_done, width=40)
    head.add_row("rounds", bar, f"{view.rounds_done}/{view.planned_rounds}")
    collusion, outsider = view.epsilon
    spent = ProgressBar(total=budget, completed=min(collusion, budget), width=40, complete_style="magenta")
    head.add_row("epsilon spent", spent, f"{collusion:.2f} of {budget:g} (outsiders see {outsider:.2f})")
    left = view.seconds_left
    head.add_row("time", f"{_clock(elapsed_seconds)} gone" + (f", about {_clock(left)} left" if left else ""))
    return head


def _ceremony_text(view: StudyView) -> Text:
    if view.ceremony == "done":
        return Text(f"done in {view.ceremony_seconds:.1f} s: nobody holds the key", "green")
    if view.ceremony in CEREMONY_PHASES:
        return Text(f"{view.ceremony} ({CEREMONY_PHASES.index(view.ceremony) + 1}/{len(CEREMONY_PHASES)})", "cyan")
    return Text(view.ceremony or "waiting for the hospitals' agents", "dim")


def _draw_sites(view: StudyView) -> Table:
    round_ = view.rounds.get(view.current, RoundView(view.current))
    title = "evaluation" if round_.kind == "evaluate" else f"round {view.current}" if view.current else ""
    table = Table("hospital", "state", title=title, title_justify="left", min_width=60, box=None)
    for site in view.sites:
        text, style = _MARKS.get(round_.states.get(site, "waiting"), ("·", "dim"))
        code = round_.codes.get(site)
        table.add_row(site, Text(f"{text} ({code})" if code else text, style))
    return table


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
