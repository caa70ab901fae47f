"""The figures of `make bench-consortium`: derived from what is known, refused where something is missing."""

from __future__ import annotations

import io
import os
import socket
import threading
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.bench.consortium import Figures, as_json, render
from tests.bench.consortium_figures import Event, Step, derive_rounds, median_steps, per_round
from tests.bench.consortium_processes import Memory, cpu_seconds, larger, memory
from tests.bench.consortium_recover import Recovery
from tests.bench.consortium_wire import Wire

SITES = ("north", "south")
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def event(seconds: float, name: str, **fields: Any) -> Event:
    return {"time": (START + timedelta(seconds=seconds)).isoformat(), "event": name, **fields}


def round_of(number: int, begins: float) -> list[Event]:
    steps = {"dispatch": 0.5, "collect": 2.0}
    done = event(begins + 3.0, "round-done", round=number, participants=list(SITES), steps=steps)
    return [event(begins, "round-started", round=number), done]


def works(number: int) -> list[Step]:
    north = [Step("north", number, name, 0.25) for name in ("verify", "validate", "train", "encrypt", "share")]
    return [*north, Step("south", number, "train", 1.5), Step("south", number, "upload", 9.0)]


EVENTS = [*round_of(1, 0.0), *round_of(2, 4.0), event(7.5, "ceremony-started"), event(9.0, "round-started", round=3)]


def test_a_round_lasts_until_the_next_thing_begins_and_compute_is_the_slowest_sites() -> None:
    first, second = derive_rounds(EVENTS, [*works(1), *works(2)], (1, 2))
    assert (first.wall, second.wall) == pytest.approx((4.0, 3.5))
    assert (first.slowest, first.compute, first.training) == ("south", 1.5, 1.5)
    assert first.beyond == pytest.approx(2.5)
    assert median_steps([first, second]) == pytest.approx({"dispatch": 0.5, "collect": 2.0, "between": 1.25})


def test_a_round_that_was_disturbed_or_is_not_known_whole_has_no_figure() -> None:
    with pytest.raises(ValueError, match="Round 1 began 2 times"):
        derive_rounds([EVENTS[0], *EVENTS], works(1), (1,))
    with pytest.raises(ValueError, match="Round 2: no end, or a participant whose steps are not known"):
        derive_rounds(EVENTS[:4], works(2), (2,))
    with pytest.raises(ValueError, match="Round 2: no end, or a participant"):
        derive_rounds(EVENTS, [step for step in works(2) if step.site == "north"], (2,))


def test_counters_are_compared_from_round_to_round() -> None:
    counts = [{"a": (10, 1)}, {"a": (30, 2), "late": (5, 5)}, {"a": (60, 5), "late": (7, 5)}]
    assert per_round(counts) == {"a": (25, 2), "late": (3.5, 2.5)}


def test_a_wire_counts_every_byte_both_ways_and_can_be_cut_and_mended() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = server.getsockname()[1]
        threading.Thread(target=answer_twice, args=(server,), daemon=True).start()
        wire = Wire()
        port = wire.add("mercy", target)
        assert exchange(port, b"x" * 300_000) == b"y" * 70_000
        assert wire.counts() == {"mercy": (300_000, 70_000)}
        wire.cut(target)
        with pytest.raises(ConnectionError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        wire.mend(target)
        assert exchange(port, b"z") == b"y" * 70_000
        assert wire.counts() == {"mercy": (300_001, 140_000)}
        wire.close()


def answer_twice(server: socket.socket) -> None:
    for _ in range(2):
        connection, _ = server.accept()
        with connection:
            while connection.recv(1 << 16):
                pass
            connection.sendall(b"y" * 70_000)


def exchange(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads /proc")
def test_memory_and_time_of_processes_are_read_and_the_largest_kept() -> None:
    here = memory([os.getpid()])
    assert here.processes == 1
    assert 0 < here.pss_bytes <= here.peak_rss_bytes
    assert larger(here, Memory(3, 1, 2**50)) == Memory(3, here.peak_rss_bytes, 2**50)
    assert cpu_seconds([os.getpid()]) > 0


def test_the_figures_are_printed_and_given_to_programs() -> None:
    rounds = derive_rounds(EVENTS, [*works(1), *works(2)], (1, 2))
    found = Figures(0.3, rounds, {"mercy - S3": (1000, 2000)}, {"proxy": (0.5,)}, {"proxy": Memory(2, 2**20, 2**21)})
    found.recoveries = [Recovery("PostgreSQL", 11.0, 12.0, 14.0, 1, ("south",))]
    out = io.StringIO()
    render(found, Console(file=out, width=160))
    text = " ".join(out.getvalue().split())
    for part in (
        "2.25 s beyond compute",
        "| proxy | 2 | 0.50 | 1 | 2 |",
        "| mercy - S3 | 1,000 | 2,000 |",
        "| south |",
    ):
        assert part in text
    assert as_json(found)["median_seconds"]["beyond_compute"] == pytest.approx(2.25)
    assert as_json(found)["recoveries"] == [asdict(found.recoveries[0])]
