"""A round is recorded behind the next one: in order, to its end, and not without anybody noticing."""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.behind import Behind, behind_the_rounds, beside
from flows.tracking import Tracker
from schemas.errors import OperationError
from tests.simulator import Prepared, change_settings, copy_study, open_consortium

Story = list[str]


def begin(
    story: Story,
    name: str,
    recorded: asyncio.Event | None = None,
    fails: BaseException | None = None,
    opens: Callable[[], None] = lambda: None,
) -> tuple[asyncio.Task[None], asyncio.Future[str]]:
    """Starts a round that opens at once, and is recorded when `recorded` is set, or then fails."""
    opened: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def round_() -> None:
        await asyncio.sleep(0)
        opens()
        story.append(f"{name} opened")
        opened.set_result(name)
        if recorded is not None:
            await recorded.wait()
        if fails is not None:
            raise fails
        story.append(f"{name} recorded")

    return asyncio.create_task(round_()), opened


def refuse(error: BaseException) -> Callable[[], None]:
    def opens() -> None:
        raise error

    return opens


def lost(code: str) -> OperationError:
    return OperationError(code, "It is not there.", "Start it.")


def test_the_next_round_begins_while_the_last_one_is_recorded_and_nothing_is_left_behind() -> None:
    async def study() -> Story:
        story, done = Story(), asyncio.Event()
        async with behind_the_rounds() as behind:
            assert await behind.follow(*begin(story, "1", done)) == "1"
            second = begin(story, "2")
            story.append("2 began")
            asyncio.get_running_loop().call_later(0.01, done.set)
            assert await behind.follow(*second) == "2"
        return story

    story = asyncio.run(study())
    assert story.index("2 began") < story.index("1 recorded")
    assert set(story) == {"1 opened", "1 recorded", "2 began", "2 opened", "2 recorded"}


@pytest.mark.parametrize("error", [lost("mlflow-unreachable"), asyncio.CancelledError()])
def test_a_record_that_fails_ends_the_round_that_runs_meanwhile(error: BaseException) -> None:
    async def study(story: Story) -> None:
        done = asyncio.Event()
        async with behind_the_rounds() as behind:
            await behind.follow(*begin(story, "1", done, error))
            endless = asyncio.create_task(asyncio.Event().wait())
            asyncio.get_running_loop().call_later(0.01, done.set)
            try:
                await behind.follow(endless, asyncio.get_running_loop().create_future())  # type: ignore[arg-type]
            finally:
                story.append(f"2 ended: {endless.cancelled()}")

    story = Story()
    with pytest.raises(type(error)):
        asyncio.run(study(story))
    assert story == ["1 opened", "2 ended: True"]


def test_an_error_of_the_next_round_lets_the_record_end_and_is_the_one_that_counts() -> None:
    async def study(story: Story, fails: BaseException | None) -> None:
        done = asyncio.Event()
        async with behind_the_rounds() as behind:
            await behind.follow(*begin(story, "1", done, fails))
            asyncio.get_running_loop().call_later(0.01, done.set)
            await behind.follow(*begin(story, "2", opens=refuse(lost("no-quorum"))))

    story = Story()
    with pytest.raises(OperationError, match="not there") as caught:
        asyncio.run(study(story, None))
    assert (caught.value.code, story) == ("no-quorum", ["1 opened", "1 recorded"])
    with pytest.raises(OperationError) as caught:
        asyncio.run(study(Story(), lost("mlflow-unreachable")))
    assert caught.value.code == "no-quorum"
    assert isinstance(caught.value.__cause__, OperationError)


def test_a_record_that_fails_ends_the_ceremony_that_runs_meanwhile() -> None:
    async def study(fails: BaseException | None) -> str:
        done = asyncio.Event()
        async with behind_the_rounds() as behind:
            await behind.follow(*begin([], "1", done, fails))
            asyncio.get_running_loop().call_later(0.01, done.set)
            return await behind.watch(asyncio.sleep(0.05 if fails is None else 3600, "held"))

    assert asyncio.run(study(None)) == "held"
    with pytest.raises(OperationError) as caught:
        asyncio.run(study(lost("mlflow-unreachable")))
    assert caught.value.code == "mlflow-unreachable"


def test_a_study_that_is_stopped_stops_the_record_too() -> None:
    async def study(story: Story) -> None:
        async with behind_the_rounds() as behind:
            await behind.follow(*begin(story, "1", asyncio.Event()))
            raise KeyboardInterrupt

    story = Story()
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(study(story))
    assert story == ["1 opened"]


def test_a_study_that_is_stopped_does_not_wait_for_a_server_that_is_away() -> None:
    away = threading.Event()

    async def study() -> None:
        await asyncio.wait_for(beside(away.wait), 0.05)

    with pytest.raises(TimeoutError):
        asyncio.run(study())  # would not return before the thread does
    away.set()


def test_what_runs_beside_the_study_returns_fails_and_knows_its_context() -> None:
    known = contextvars.ContextVar("known", default="")

    def fail(message: str) -> None:
        raise lost(message)

    async def study() -> str:
        known.set("round 1")
        with pytest.raises(OperationError) as caught:
            await beside(fail, "gone")
        return f"{caught.value.code}, {await beside(known.get)}"

    assert asyncio.run(study()) == "gone, round 1"


def test_a_record_that_is_tried_again_says_once_that_the_round_is_done(
    study_after_ceremony: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> None:
        raise lost("mlflow-unreachable")

    prepared = copy_study(study_after_ceremony, tmp_path / "study")
    home = prepared.workdir.coordinator
    change_settings(home, mlflow_uri=f"sqlite:///{home / 'mlflow.db'}", artifacts=str(home / "mlartifacts"))
    consortium = open_consortium(prepared)
    tracker, before = Tracker(consortium.coordinator), consortium.lineage
    outcome = consortium.run_round(consortium.finished_ceremony(), 1)
    with monkeypatch.context() as patch:
        patch.setattr("flows.tracking.record_round", busy)
        with pytest.raises(OperationError, match="not there"):
            tracker.round(outcome, before, None)
    assert tracker.round(outcome, before, None).round == 1
    events = [json.loads(line)["event"] for line in (home / "events.jsonl").read_text().splitlines()]
    assert events.count("round-done") == 1


def test_a_round_that_ends_without_an_opening_is_an_error() -> None:
    async def study() -> None:
        ended = asyncio.create_task(asyncio.sleep(0))
        await Behind().follow(ended, asyncio.get_running_loop().create_future())

    with pytest.raises(RuntimeError, match="without an opening"):
        asyncio.run(study())
