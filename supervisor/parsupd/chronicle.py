"""What parsupd says about what happens: each record goes to its log and, numbered, to those who follow the events."""

import asyncio
import time
from typing import Any, assert_never

from parsupd.core import effects as do
from parsupd.core.event_ring import EventRing

Said = (
    do.Alarm
    | do.GroupFailed
    | do.StormBegan
    | do.StormEnded
    | do.Changed
    | do.Note
    | do.Unkillable
    | do.Forgotten
    | do.Shutdown
)

LOUD = frozenset({"unit_unkillable", "group_failed", "restart_storm", "on_failure_suppressed"})
"""What is an error in the log."""

CLOCK_STEP_S = 0.05
"""The two clocks differ by less than this from what they did, unless one was set."""


class Chronicle:
    """One for each daemon."""

    def __init__(self, log: Any, last: int = 0) -> None:
        """`last` is the number of the last event of an earlier parsupd."""
        self.events = EventRing(last)
        self._log = log

    def note(self, event: str, **fields: Any) -> None:
        """Something about parsupd itself."""
        say = self._log.error if event in LOUD else self._log.info
        say(event, **fields)
        self.events.add(time.time(), event, **fields)

    def _unit(self, event: str, instance: object, **fields: Any) -> None:
        say = self._log.error if event in LOUD else self._log.info
        say(event, unit=str(instance), **fields)
        self.events.add(time.time(), event, str(instance), **fields)

    def tell(self, effect: do.Told) -> None:
        """What the fleet wants to be known."""
        match effect:
            case do.Changed(instance, generation, old, new, reason):
                self._unit("unit_changed", instance, generation=generation, old=old.value, new=new.value, reason=reason)
            case do.Note(instance, incarnation):
                self._unit(
                    "unit_ended",
                    instance,
                    generation=incarnation.generation,
                    cause=str(incarnation.cause),
                    restart=incarnation.decision.restart,
                    reason=incarnation.decision.reason,
                )
            case do.Unkillable(instance, generation, pid, reason):
                self._unit("unit_unkillable", instance, generation=generation, pid=pid, reason=reason)
            case do.Alarm(instance, unit, started, reason):
                self._unit("on_failure" if started else "on_failure_suppressed", instance, starts=unit, reason=reason)
            case do.GroupFailed(group, reason):
                self.note("group_failed", group=group, reason=reason)
            case do.StormBegan(reason):
                self.note("restart_storm", reason=reason)
            case do.StormEnded(reason):
                self.note("restart_storm_over", reason=reason)
            case do.Forgotten(instance):
                self._unit("unit_removed", instance)
            case do.Shutdown(exit_code, reason):
                self.note("shutting_down", exit_code=exit_code, reason=reason)
            case _:
                assert_never(effect)


class WallClock:
    """Instants of the loop's monotonic clock as Unix time, for people: nothing is decided by it.

    The same instant is always the same time, as long as nobody sets the clock.
    """

    def __init__(self) -> None:
        self._offset_s = 0.0

    def __call__(self, at: float | None) -> float | None:
        if at is None:
            return None
        offset_s = time.time() - asyncio.get_running_loop().time()
        if abs(offset_s - self._offset_s) > CLOCK_STEP_S:
            self._offset_s = offset_s
        return round(at + self._offset_s, 3)
