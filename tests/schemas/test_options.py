"""Waiting: quick looks for what comes at once, few for what takes long."""

from schemas.options import RunOptions


def looks(options: RunOptions, until_seconds: float) -> list[float]:
    """Returns when a wait that began at 0 looks, up to the first look at or after `until_seconds`."""
    at = [0.0]
    while at[-1] < until_seconds:
        at.append(at[-1] + options.pause_seconds(at[-1]))
    return at


def test_an_answer_that_comes_soon_is_seen_soon_and_a_late_one_within_the_poll_interval() -> None:
    options = RunOptions(poll_interval_seconds=0.3)
    for seconds in (0.05, 0.2, 0.4, 1.0, 10.0):
        assert looks(options, seconds)[-1] - seconds <= min(0.3, max(0.05, seconds / 2))
    assert len(looks(options, 0.3)) <= 7
    assert len(looks(options, 30.0)) < 30.0 / 0.3 + 7
