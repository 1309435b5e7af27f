"""When a unit runs by itself: at times of the wall clock (cron), or every so many seconds. Layer 1.

    step(timer, event, clock) -> (timer, effect); `sleep_s(timer, clock)` tells for how long nothing can happen.

Rules:

* A cron expression has five fields: minute, hour, day of month, month, day of week (0 and 7 are Sunday). A field is
  `*`, a number, a name (`jan`, `mon`), a range `a-b`, a step `*/n` or `a-b/n`, or several of these with commas. When
  both days are restricted, either is enough, as in cron(8). `@hourly`, `@daily`, `@weekly`, `@monthly` and `@yearly`
  are words for the usual ones.
* Times are local ones. A time that the clocks jump over when summer time begins comes as long after the jump as it
  would have been before it (02:30 at 03:30); one that comes twice when it ends counts the first time. An expression
  whose hour is `*` follows the time that passes instead, and goes on in both hours.
* What was missed, because the machine slept or the clock was set forward, is made up for once, never more. When the
  clock is set back, the next time is looked for anew: nothing runs at once.
* An interval is of the monotonic clock: setting the wall clock does not touch it. The first run comes one interval
  after the unit has become scheduled.
* A run that is due while the one before goes on is dropped (skip), comes when that is over (queue; one waits at most),
  or ends it (kill).
"""

import math
from dataclasses import dataclass, replace

from parsupd.core.cron import Cron, Offset, next_time
from parsupd.core.units import Overlap

SET_BACK_S = 1.0
"""The wall clock goes back by less when it is only being corrected."""

LOOK_S = 60.0
"""Nobody tells when the wall clock is set: that is noticed within this time."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The instant by both clocks, and where local time is."""

    monotonic: float
    wall: float
    offset: Offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Timer:
    """What is known of one schedule: one of `cron` and `every_s` is set."""

    cron: Cron | None = None
    every_s: float = 0.0
    jitter_s: float = 0.0
    overlap: Overlap = Overlap.SKIP
    next_at: float = math.inf  # of the wall clock for cron, else of the monotonic one; without the jitter
    delay_s: float = 0.0  # the jitter of the next time
    seen: float = 0.0  # the wall clock when it was last looked at
    queued: bool = False


@dataclass(frozen=True, slots=True)
class Woken:
    """It may be time. `busy`: whether the unit still runs. `fraction`: chance from 0 to 1, for the jitter."""

    busy: bool
    fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class Ended:
    """A run of the unit is over."""


@dataclass(frozen=True, slots=True)
class Run:
    """Start the unit, after its end if it runs."""

    reason: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """Nothing comes of a time that was due."""

    reason: str


def begin(timer: Timer, clock: Clock, fraction: float = 0.0) -> Timer:
    """The timer of a unit that becomes scheduled now."""
    return _plan(timer, clock, clock.monotonic, fraction)


def due_at(timer: Timer) -> float:
    """When it is due, with the jitter; by the wall clock for cron, else by the monotonic one. `inf` for never."""
    return timer.next_at + timer.delay_s


def sleep_s(timer: Timer, clock: Clock) -> float:
    """For how long nothing can happen."""
    if timer.cron is None:
        return max(0.0, due_at(timer) - clock.monotonic)
    return max(0.0, min(due_at(timer) - clock.wall, LOOK_S))


def step(timer: Timer, event: Woken | Ended, clock: Clock) -> tuple[Timer, Run | Skipped | None]:
    """Gives one event to the timer."""
    if isinstance(event, Ended):
        if not timer.queued:
            return timer, None
        return replace(timer, queued=False), Run("it was due while the run before went on")
    if timer.cron is not None and clock.wall < timer.seen - SET_BACK_S:
        return _plan(timer, clock, clock.monotonic, event.fraction), None
    now = clock.monotonic if timer.cron is None else clock.wall
    if now < due_at(timer):
        return replace(timer, seen=clock.wall), None
    what = f"every {timer.every_s:g} s" if timer.cron is None else str(timer.cron)
    after = _plan(timer, clock, timer.next_at, event.fraction)
    if not event.busy or timer.overlap is Overlap.KILL:
        return after, Run(f"its schedule: {what}")
    if timer.overlap is Overlap.SKIP:
        return after, Skipped("the run before goes on")
    return replace(after, queued=True), Skipped("already waiting" if timer.queued else "it waits for the run before")


def _plan(timer: Timer, clock: Clock, last: float, fraction: float) -> Timer:
    """Looks for the next time, always one that is to come: what was missed meanwhile is left out."""
    if timer.cron is not None:
        found = next_time(timer.cron, clock.wall, clock.offset)
        next_at = math.inf if found is None else found
    else:
        passed = max(0.0, clock.monotonic - last)
        next_at = last + (math.floor(passed / timer.every_s) + 1) * timer.every_s
    return replace(timer, next_at=next_at, delay_s=fraction * timer.jitter_s, seen=clock.wall)
