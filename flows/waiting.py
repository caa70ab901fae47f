"""Waiting for sites: poll the store until enough is there or the deadline passes; re-dispatch runs that died."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from flows.context import CoordinatorContext
from flows.dispatch import abandon_run, dispatch, dispatch_key, find_keys, run_state
from flows.pages import study_tag
from schemas.errors import OperationError
from schemas.plan import Agreement

CHECK_RUNS_SECONDS = 2.0


class SiteRuns:
    """The flow runs that a coordinator started at the sites for one step (ceremony, round or release).

    Each dispatch has a number in its idempotency key: asking again for the same number returns the same run, a run that
    died gets the next number. What a site *signs* does not depend on it: its outbox answers once.
    """

    def __init__(
        self,
        context: CoordinatorContext[Agreement],
        flow_name: str,
        number: int,
        label: str,
        parameters: dict[str, Any],
    ) -> None:
        """Prepares the runs of one step; `label` is what people see behind the site's name."""
        self._context = context
        self._flow = flow_name
        self._number = number
        self._label = label
        self._parameters = parameters
        attempt = parameters.get("attempt", 1)
        # A later attempt asks for something else than the runs of the one before.
        self._kind = flow_name if attempt == 1 else f"{flow_name}-{attempt}"
        self._runs: dict[str, tuple[str, int]] = {}
        self._checked = time.monotonic()

    async def start(self, sites: Iterable[str]) -> None:
        """Starts the sites' flow runs, one after another; a site whose agent never registered is left silent."""
        keys = {site: self._key(site, 1) for site in sites}
        taken = await find_keys(list(keys.values()))
        for site, key in keys.items():
            await self._start(site, 1, is_new=key not in taken)

    async def revive(self, sites: Iterable[str]) -> None:
        """Starts a new run at each of `sites` whose run has ended; looks at most every `CHECK_RUNS_SECONDS`."""
        if time.monotonic() - self._checked < CHECK_RUNS_SECONDS:
            return
        for site in sites:
            if site not in self._runs:
                await self._start(site, 1)
                continue
            run, number = self._runs[site]
            if (await run_state(run)).is_final and number < self._context.options.dispatch_attempts:
                await self._start(site, number + 1)
        self._checked = time.monotonic()

    async def start_missing(self, sites: Iterable[str]) -> set[str]:
        """Starts a run at those of `sites` that have none, because their agent had not registered before.

        In a key ceremony a run that died is not started again: fresh secrets would contradict announced ones.

        Returns:
            The sites whose run has ended; nothing in most calls, since the server is asked every `CHECK_RUNS_SECONDS`.
        """
        if time.monotonic() - self._checked < CHECK_RUNS_SECONDS:
            return set()
        ended: set[str] = set()
        for site in sites:
            if site not in self._runs:
                await self._start(site, 1)
            elif (await run_state(self._runs[site][0])).is_final:
                ended.add(site)
        self._checked = time.monotonic()
        return ended

    async def not_started(self, sites: Iterable[str]) -> set[str]:
        """Returns those of `sites` whose agent has not taken up the run."""
        waiting: set[str] = set()
        for site in sites:
            if site not in self._runs or not (await run_state(self._runs[site][0])).has_started:
                waiting.add(site)
        return waiting

    async def describe(self, sites: Iterable[str]) -> str:
        """Names `sites` with the code that their run ended with, or how else it stands.

        It is the server's account, shown to people; nothing is decided by it.
        """
        return ", ".join([f"{site} ({await self._standing(site)})" for site in sites])

    async def _standing(self, site: str) -> str:
        if site not in self._runs:
            return "its agent never registered"
        try:
            state = await run_state(self._runs[site][0])
        except OperationError as error:  # it must not take the place of what is being described
            return error.code
        if state.code is not None:
            return state.code
        return "silent" if state.has_started else "its agent does not run"

    async def abandon(self, sites: Iterable[str]) -> None:
        """Marks the runs of sites that stayed silent as crashed, so that nobody sees them running for ever."""
        for site in sites:
            if site in self._runs:
                await abandon_run(self._runs[site][0], "silent")

    def _key(self, site: str, number: int) -> str:
        return dispatch_key(self._context.study, self._kind, site, round=self._number, dispatch=number)

    async def _start(self, site: str, number: int, is_new: bool = False) -> None:
        study = self._context.study
        # A resumed coordinator must not find the finished runs of its predecessor: skip numbers that have ended.
        while number <= self._context.options.dispatch_attempts:
            name = f"{site} {self._label}" + (f" (dispatch {number})" if number > 1 else "")
            try:
                run = await dispatch(
                    site,
                    self._flow,
                    self._parameters,
                    self._key(site, number),
                    run_name=name,
                    tags=[study_tag(study)],
                    is_new=is_new,
                )
            except OperationError as error:
                if error.code != "site-not-registered":
                    raise
                return
            self._runs[site] = (run, number)
            if is_new or not (await run_state(run)).is_final:
                return
            number += 1
