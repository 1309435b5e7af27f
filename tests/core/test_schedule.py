"""Schedules: when a unit is started, what comes of overlaps, and that no jump of a clock starts a storm."""

import calendar
import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsupd.core.cron import cron
from parsupd.core.schedule import Clock, Ended, Run, Skipped, Timer, Woken, begin, due_at, sleep_s, step
from parsupd.core.units import Overlap

DAY = 86400.0
T0 = float(calendar.timegm(datetime(2026, 5, 4, 12, 0, 30, tzinfo=UTC).timetuple()))


def at(elapsed: float, *, jumped: float = 0.0) -> Clock:
    """The clocks so long after the start, the one on the wall set forward or back."""
    return Clock(1000 + elapsed, T0 + elapsed + jumped, lambda _: 0)


def hourly(**keys: object) -> Timer:
    return begin(Timer(cron=cron("0 * * * *"), **keys), at(0))  # type: ignore[arg-type]


def test_cron_runs_on_the_minute_and_plans_the_next() -> None:
    """Nothing happens before; at the time it runs once."""
    timer = hourly()
    assert due_at(timer) == T0 - 30 + 3600
    assert sleep_s(timer, at(0)) == 60.0
    assert sleep_s(timer, at(3560)) == 10.0
    timer, effect = step(timer, Woken(busy=False), at(3569))
    assert effect is None
    timer, effect = step(timer, Woken(busy=False), at(3570))
    assert effect == Run("its schedule: 0 * * * *")
    assert due_at(timer) == T0 - 30 + 7200


def test_an_interval_is_counted_from_the_plan() -> None:
    """A late wake-up does not shift what follows, and what was missed is left out."""
    timer = begin(Timer(every_s=10), at(0))
    assert due_at(timer) == 1010
    timer, effect = step(timer, Woken(busy=False), at(12))
    assert effect == Run("its schedule: every 10 s")
    assert due_at(timer) == 1020
    timer, effect = step(timer, Woken(busy=False), at(75))
    assert isinstance(effect, Run)
    assert due_at(timer) == 1080


@pytest.mark.parametrize("jump", [DAY, -DAY, 400 * DAY, -400 * DAY])
def test_a_jump_of_the_wall_clock_starts_no_storm(jump: float) -> None:
    """Forward, what was missed is made up for once; back, nothing runs, and the next full hour is the next time."""
    timer, runs = hourly(), 0
    for second in range(0, 1800, 10):
        timer, effect = step(timer, Woken(busy=False), at(second, jumped=jump if second >= 600 else 0.0))
        runs += isinstance(effect, Run)
    assert runs == (1 if jump > 0 else 0)
    assert due_at(timer) == T0 - 30 + 3600 + jump


def test_an_interval_does_not_look_at_the_wall() -> None:
    """Setting the wall clock changes nothing."""
    timer = begin(Timer(every_s=10), at(0))
    for jumped in (DAY, -DAY):
        timer, effect = step(timer, Woken(busy=False), at(5, jumped=jumped))
        assert effect is None
        assert due_at(timer) == 1010


OVERLAPS = {
    Overlap.SKIP: [Skipped("the run before goes on"), None],
    Overlap.QUEUE: [Skipped("it waits for the run before"), Run("it was due while the run before went on")],
    Overlap.KILL: [Run("its schedule: every 10 s"), None],
}


@pytest.mark.parametrize("overlap", Overlap)
def test_what_is_due_while_the_unit_runs(overlap: Overlap) -> None:
    """It is dropped, comes afterwards, or ends what runs."""
    timer = begin(Timer(every_s=10, overlap=overlap), at(0))
    timer, first = step(timer, Woken(busy=True), at(10))
    timer, second = step(timer, Ended(), at(11))
    assert [first, second] == OVERLAPS[overlap]
    timer, again = step(timer, Ended(), at(12))
    assert again is None


def test_one_waits_at_most() -> None:
    """A run that lasts for ten times of its schedule is followed by one."""
    timer, runs = begin(Timer(every_s=10, overlap=Overlap.QUEUE), at(0)), 0
    for second in range(10, 110, 10):
        timer, _ = step(timer, Woken(busy=True), at(second))
    for _ in range(5):
        timer, effect = step(timer, Ended(), at(111))
        runs += isinstance(effect, Run)
    assert runs == 1


def test_jitter_delays_and_never_hastens() -> None:
    """By up to `jitter_sec`, chosen anew for each time."""
    timer = begin(Timer(every_s=100, jitter_s=20), at(0), 0.5)
    assert due_at(timer) == 1110
    timer, effect = step(timer, Woken(busy=False, fraction=0.25), at(105))
    assert effect is None
    timer, effect = step(timer, Woken(busy=False, fraction=0.25), at(110))
    assert isinstance(effect, Run)
    assert due_at(timer) == 1205


def test_a_schedule_that_ends_is_quiet() -> None:
    """Nothing is due any more after the last time there is."""
    assert sleep_s(Timer(every_s=10), at(0)) == math.inf


@given(
    st.sampled_from([Timer(cron=cron("*/5 * * * *")), Timer(every_s=300.0)]),
    st.lists(st.tuples(st.floats(0, 1000), st.floats(-2 * DAY, 2 * DAY) | st.just(0.0)), max_size=40),
)
def test_whatever_the_clocks_do_no_wake_up_runs_twice(timer: Timer, wakes: list[tuple[float, float]]) -> None:
    """One wake-up is one run at most, the next time always lies ahead, and two runs need a change of the clock or five
    minutes between them.
    """
    elapsed = jumped = 0.0
    timer = begin(timer, at(0))
    last: tuple[float, float] | None = None
    for passed_s, jump in wakes:
        elapsed, jumped = elapsed + passed_s, jumped + jump
        clock = at(elapsed, jumped=jumped)
        timer, effect = step(timer, Woken(busy=False), clock)
        now = clock.monotonic if timer.cron is None else clock.wall
        assert due_at(timer) > now
        if isinstance(effect, Run):
            if last is not None and last[1] == jumped:
                assert elapsed > last[0]
            last = (elapsed, jumped)
