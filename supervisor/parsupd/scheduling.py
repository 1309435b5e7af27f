"""Starts units when their schedule says so. No decisions here: one timer sleeps until the first of them may be due."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from parsupd.core import events as told
from parsupd.core import schedule
from parsupd.core.fleet import Fleet
from parsupd.core.schedule import Clock, Ended, Run, Skipped, Timer, Woken
from parsupd.core.tally import AT_REST
from parsupd.core.units import Configuration


@dataclass(slots=True)
class _Scheduled:
    """One unit's timer, and the one that it was before it began: what the unit's description says."""

    plan: Timer
    timer: Timer


class Schedules:
    """Of all units of one executor."""

    def __init__(self, fleet: Fleet, feed: Callable[[told.FleetEvent], object], log: Any) -> None:
        self._fleet = fleet
        self._feed = feed
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._seen: Configuration | None = None
        self._units: dict[str, _Scheduled] = {}
        self._handle: asyncio.TimerHandle | None = None

    def follow(self) -> None:
        """Takes over a configuration that is new; does nothing while it is the same one."""
        if (configuration := self._fleet.configuration) is self._seen:
            return
        self._seen = configuration
        scheduled = {name: spec for name, spec in configuration.units.items() if spec.enabled and spec.is_scheduled}
        if not scheduled and not self._units:
            return
        clock = self._clock()
        before, self._units = self._units, {}
        for name, spec in scheduled.items():
            timer = Timer(
                cron=spec.schedule,
                every_s=spec.schedule_every_s,
                jitter_s=spec.schedule_jitter_s,
                overlap=spec.schedule_overlap,
            )
            known = before.get(name)
            if known is not None and known.plan == timer:
                self._units[name] = known
            else:
                begun = schedule.begin(timer, clock, random.random())  # noqa: S311 - jitter
                self._units[name] = _Scheduled(timer, begun)
        self._arm(clock)

    def next_run_at(self, unit: str) -> float | None:
        """When the unit is started next, in Unix time; None when no schedule says so."""
        found = self._units.get(unit)
        if found is None:
            return None
        at = schedule.due_at(found.timer)
        return at if found.timer.cron is not None else time.time() + at - self._loop.time()

    def ended(self, unit: str) -> None:
        """A run of the unit is over."""
        found = self._units.get(unit)
        if found is not None and not self._is_busy(unit):
            self._loop.call_soon(self._step, unit, Ended())  # after what is being done now

    def close(self) -> None:
        """Starts nothing any more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._units.clear()

    def _clock(self) -> Clock:
        return Clock(self._loop.time(), time.time(), lambda at: time.localtime(at).tm_gmtoff)

    def _arm(self, clock: Clock) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._units:
            delay_s = min(schedule.sleep_s(each.timer, clock) for each in self._units.values())
            self._handle = self._loop.call_later(min(delay_s, 1e6), self._wake)

    def _wake(self) -> None:
        for name in list(self._units):
            self._step(name, Woken(self._is_busy(name), random.random()))  # noqa: S311 - jitter
        self._arm(self._clock())

    def _is_busy(self, unit: str) -> bool:
        return any(status.sub_state not in AT_REST for status in self._fleet.status(unit))

    def _step(self, name: str, event: Woken | Ended) -> None:
        found = self._units.get(name)
        if found is None or self._fleet.shutting_down:
            return
        found.timer, effect = schedule.step(found.timer, event, self._clock())
        match effect:
            case Run(reason):
                self._feed(told.Restart(name, reason))
            case Skipped(reason):
                self._log.info("schedule_skipped", unit=name, reason=reason)
            case None:
                pass
