"""Deadlines that are kept by one timer for all connections of a loop."""

import asyncio
import errno
import gc
import socket
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import uvloop
from support import open_fds, run_async
from twins import needs_c

from workerlib.shell.alarm import MANY_CANCELLED, Alarm, alarm_of
from workerlib.testing import FakeClock

pytestmark = pytest.mark.usefixtures("language")

FAR_S = 1000.0
"""A deadline that does not come in a test."""


def timers() -> int:
    return sum("timerfd" in str(what) for what in open_fds().values())


def rung(loop: asyncio.AbstractEventLoop) -> tuple["asyncio.Future[float]", Callable[[], None]]:
    """When the callback was called, and the callback."""
    future = loop.create_future()
    return future, lambda: future.set_result(loop.time())


def test_deadlines_come_in_order_and_not_too_early(engine: str, language: str) -> None:
    """Whatever the order in which they were set; those that have passed come at once. uvloop's own come earlier."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        alarm, came = Alarm(loop), []
        futures, now = [], loop.time()
        for n in (3, 1, 4, -5, 2):
            future, callback = rung(loop)
            futures.append((now + n / 100, future))
            alarm.call_at(now + n / 100, lambda n=n, callback=callback: (came.append(n), callback()))
        for when, future in futures:
            assert await future >= when - (0.001 if language == "Python" else 0)
        assert came == [-5, 1, 2, 3, 4]

    run_async(main, engine)


def test_a_cancelled_deadline_does_not_come(engine: str) -> None:
    """Also one that is cancelled by another's callback; cancelling what has come, or twice, does nothing."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        alarm, came = Alarm(loop), []
        now = loop.time()
        last, callback = rung(loop)
        second = alarm.call_at(now + 0.002, lambda: came.append("second"))
        third = alarm.call_at(now + 0.003, lambda: came.append("third"))
        first = alarm.call_at(now + 0.001, lambda: (came.append("first"), second.cancel()))
        alarm.call_at(now + 0.004, callback)
        third.cancel()
        third.cancel()
        await last
        first.cancel()
        assert came == ["first"]

    run_async(main, engine)


def test_a_callback_may_set_the_next(engine: str) -> None:
    """As a heartbeat does."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        alarm, done, left = Alarm(loop), loop.create_future(), [5]

        def again() -> None:
            left[0] -= 1
            if left[0]:
                alarm.call_at(loop.time(), again)
            else:
                done.set_result(None)

        alarm.call_at(loop.time(), again)
        await done

    run_async(main, engine)


def test_an_error_in_one_does_not_keep_the_others_from_coming(engine: str) -> None:
    """The loop is told of it."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        alarm, told = Alarm(loop), []
        loop.set_exception_handler(lambda _loop, context: told.append(context["exception"]))
        future, callback = rung(loop)

        def fail() -> None:
            raise KeyError("x")

        now = loop.time()
        alarm.call_at(now, fail)
        alarm.call_at(now, fail)
        alarm.call_at(now, callback)
        await future
        assert [type(error) for error in told] == [KeyError] * 2

    run_async(main, engine)


def test_deadlines_that_were_cancelled_are_forgotten(engine: str, language: str) -> None:
    """Not only when they would have come: an end that sends many large messages sets and cancels one for each."""

    async def main() -> None:
        alarm = Alarm(asyncio.get_running_loop())
        kept = alarm.call_at(asyncio.get_running_loop().time() + FAR_S, print)
        for n in range(10 * MANY_CANCELLED):
            alarm.call_at(asyncio.get_running_loop().time() + FAR_S - n, print).cancel()
            assert len(alarm._heap) <= 2 + MANY_CANCELLED
        kept.cancel()
        assert not alarm._heap

    run_async(main, engine)


def test_there_is_a_timer_only_while_there_are_deadlines(engine: str, language: str) -> None:
    """And one for all of them. Other loops than uvloop's have their own, and perhaps a time of their own."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        before, alarm = timers(), Alarm(loop)
        assert timers() == before
        set_ones = [alarm.call_at(loop.time() + FAR_S, print) for _ in range(3)]
        future, callback = rung(loop)
        alarm.call_at(loop.time(), callback)
        assert timers() - before == (engine == "uvloop" and language == "C")
        await future
        for one in set_ones:
            one.cancel()
        assert timers() == before

    run_async(main, engine)


def test_what_came_in_time_is_seen_before_a_deadline_is_judged(engine: str) -> None:
    """Also when the loop was held up until both were there, and has rung before."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        alarm = Alarm(loop)
        seen: list[str] = []
        here, there = socket.socketpair()
        with here, there:
            loop.add_reader(here, lambda: (here.recv(9), seen.append("input")))
            for n in range(5):
                before, callback = rung(loop)
                alarm.call_at(loop.time(), callback)
                await before
                judged, callback = rung(loop)
                alarm.call_at(loop.time() + 0.005, lambda callback=callback: (seen.append("deadline"), callback()))
                there.send(b"x")
                until = time.monotonic() + 0.02
                while time.monotonic() < until:
                    pass
                await judged
                assert seen == ["input", "deadline"] * (n + 1)
            loop.remove_reader(here)

    run_async(main, engine)


def test_a_deadline_that_no_clock_will_show(engine: str) -> None:
    """As of who wants no heartbeats: it is kept, and others come."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        alarm = Alarm(loop)
        never = [alarm.call_at(when, print) for when in (1e10, 1e18)]
        future, callback = rung(loop)
        alarm.call_at(loop.time(), callback)
        await future
        for one in never:
            one.cancel()

    run_async(main, engine)


def test_without_a_descriptor_left_the_loop_keeps_them(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call must not fail for that."""

    def refuse() -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("workerlib.shell.alarm.open_timer", refuse)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        future, callback = rung(loop)
        Alarm(loop).call_at(loop.time(), callback)
        await future

    run_async(main, engine)


@needs_c
def test_a_timer_that_cannot_be_watched_is_closed() -> None:
    """As on a loop that is closed, which says so."""
    loop = uvloop.new_event_loop()
    loop.close()
    before = timers()
    with pytest.raises(RuntimeError):
        Alarm(loop).call_at(1.0, print)
    assert timers() == before


def test_all_of_a_loop_share_one_which_ends_with_it(engine: str) -> None:
    """Also when deadlines are left: the descriptor goes with it."""
    seen: list[weakref.ref[Any]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        alarm = alarm_of(loop)
        assert alarm_of(loop) is alarm
        alarm.call_at(loop.time() + FAR_S, partial(print, alarm))
        seen.append(weakref.ref(alarm))

    before = timers()
    run_async(main, engine)
    gc.collect()
    assert [ref() for ref in seen] == [None]
    assert timers() == before


def test_a_clock_that_is_made_up_is_kept_to() -> None:
    """That of the test kit, and of loops that users have made."""
    clock = FakeClock()
    came: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        alarm_of(loop).call_at(loop.time() + FAR_S, partial(came.append, 1))
        await clock.advance(FAR_S - 1)
        assert came == []
        await clock.advance(1)
        assert came == [1]

    clock.run(main())
