"""Deadlines that seldom come, without a time limit on each wait of the loop.

A loop with a timer of its own waits for its sockets with a limit, for which the kernel starts and stops a timer at
each wait: on uvloop 0.3 us of a call that takes 10. Heartbeats of 10 s are not worth that. Here they are kept by one
timer of the kernel that is a file (timerfd): it is set when the next deadline changes, and the loop waits for it as for
a socket.
"""

import asyncio
import heapq
import math
import os
import weakref
from collections.abc import Callable
from contextlib import suppress

from workerlib.core.compiled import compiled

_NOT_HERE: Callable[..., int] | None = None
# Python has its own from 3.13 on.
open_timer = compiled("open_timer", _NOT_HERE)
set_timer = compiled("set_timer", _NOT_HERE)

LATE_S = 0.002
"""How late it rings on purpose: a loop's clock may be that much behind, and a deadline must not come too early."""

FAR_S = 1e9 - 1
"""When it rings at last, whether something is due then or not. No machine runs for 30 years."""

MANY_CANCELLED = 64


class Deadline:
    """One of them. It can be cancelled until its callback is called."""

    __slots__ = ("_alarm", "callback", "when")

    def __init__(self, alarm: "Alarm", when: float, callback: Callable[[], object]) -> None:
        self._alarm = alarm
        self.when = when
        self.callback: Callable[[], object] | None = callback

    def __lt__(self, other: "Deadline") -> bool:
        return self.when < other.when

    def cancel(self) -> None:
        """Idempotent."""
        if self.callback is not None:
            self.callback = None
            self._alarm.forget_one()

    def come(self) -> None:
        callback, self.callback = self.callback, None
        if callback is not None:
            try:
                callback()
            finally:  # not before: it may set another, and the alarm would close and open again
                self._alarm.forget_one()


class Alarm:
    """Keeps the deadlines of one event loop. While it has none, it has no descriptor either."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heap: list[Deadline] = []  # also some that were cancelled
        self._pending = 0
        self._fd = -1
        self._rings_at = math.inf

    def call_at(self, when: float, callback: Callable[[], object]) -> Deadline | asyncio.TimerHandle:
        """As the loop's own `call_at`, and by that where there is no C part or no descriptor left, or where it is no
        loop of uvloop's itself: the time of others may be made up, as FakeClock's, and there it makes no difference.
        """
        if self._fd < 0 and not self._open():
            return self._loop.call_at(when, callback)
        deadline = Deadline(self, when, callback)
        heapq.heappush(self._heap, deadline)
        self._pending += 1
        self._set()
        return deadline

    def _open(self) -> bool:
        if open_timer is None or type(self._loop).__module__ != "uvloop":
            return False
        try:
            fd = open_timer()
        except OSError:
            return False
        try:
            self._loop.add_reader(fd, self._ring)
        except BaseException:  # above all that the loop is closed: nobody else has the descriptor yet
            os.close(fd)
            raise
        self._fd = fd
        return True

    def forget_one(self) -> None:
        """One that was kept has come, or will not come."""
        self._pending -= 1
        if not self._pending:
            self._close()
        elif len(self._heap) > 2 * self._pending + MANY_CANCELLED:
            self._heap = [deadline for deadline in self._heap if deadline.callback is not None]
            heapq.heapify(self._heap)

    def _set(self) -> None:
        when = min(self._heap[0].when + LATE_S, FAR_S) if self._heap else math.inf
        if when < self._rings_at and set_timer is not None:
            set_timer(self._fd, max(when, LATE_S))
            self._rings_at = when

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # it was set anew since the loop has seen it
            os.read(self._fd, 8)
        self._rings_at = math.inf
        now = self._loop.time()
        while self._heap and self._heap[0].when <= now:
            # Not at once: what has come meanwhile on sockets is to be seen before somebody judges that it has not.
            self._loop.call_soon(heapq.heappop(self._heap).come)
        self._set()

    def _close(self) -> None:
        if not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._heap.clear()
        self._fd, self._rings_at = -1, math.inf

    def __del__(self) -> None:  # the loop was closed before the connections were
        if self._fd >= 0:
            os.close(self._fd)


_alarms: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[Alarm]]" = weakref.WeakKeyDictionary()


def alarm_of(loop: asyncio.AbstractEventLoop) -> Alarm:
    """The one that all connections of a loop share. It lives as long as one of them holds it."""
    known = _alarms.get(loop)
    alarm = known() if known is not None else None
    if alarm is None:
        alarm = Alarm(loop)
        _alarms[loop] = weakref.ref(alarm)
    return alarm
