"""A clock that a test moves: timers, sleeps, timeouts and heartbeats of an event loop run when the test says so."""

import asyncio
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from workerlib.errors import UsageError

T = TypeVar("T")

STUCK_S = 30.0
"""Real seconds after which a loop that waits for nothing but the clock is told that nobody moves it."""


class FakeClock:
    """The time of one event loop, in seconds from 0. Only `advance` moves it.

    It runs asyncio's own loop, not uvloop. What happens in threads and in other processes knows nothing of it: use it
    with `joined`, where both ends are in the loop::

        clock = FakeClock()

        async def main() -> None:
            async with joined(Reminder()) as connection:
                reminded = connection.run(Reminder.remind, 3600)
                await clock.advance(3600)
                assert await reminded == "an hour is over"

        clock.run(main())
    """

    def __init__(self) -> None:
        self.now = 0.0
        """What `loop.time()` gives."""
        self.until: float | None = None
        """Where `advance` is going to, while it does."""
        self._arrived: asyncio.Future[None] | None = None

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """`asyncio.run` with this clock. Raises what `main` raises, and RuntimeError when nobody moves the clock."""
        with asyncio.Runner(loop_factory=self.new_event_loop) as runner:
            return runner.run(main)

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """A loop with this clock, to be closed by the caller; the `loop_factory` of an `asyncio.Runner`."""
        return _Loop(self)

    async def advance(self, seconds: float) -> None:
        """Moves the clock, timer by timer, and lets run what each sets off; returns when all of it has to wait again.

        To be awaited in the loop of this clock, by one task at a time; raises UsageError elsewhere. Work that waits for
        a thread or a real socket is not waited for.
        """
        loop = asyncio.get_running_loop()
        if not isinstance(loop, _Loop) or loop.clock is not self:
            raise UsageError("advance is to be awaited in the loop of its clock: start it with FakeClock.run")
        if self.until is not None:
            raise UsageError("another task advances this clock already")
        if seconds < 0:
            raise UsageError(f"a clock cannot go back: advance({seconds:g})")
        self.until = self.now + seconds
        self._arrived = loop.create_future()
        try:
            await self._arrived
        finally:
            self.until = None

    def idle(self, timer_in_s: float | None) -> bool:
        """All has to wait, for a timer in so many seconds or for none: goes on to it. Whether the clock goes at all."""
        if self.until is None or self._arrived is None or self._arrived.done():
            return False
        if self.now >= self.until:
            self._arrived.set_result(None)
        elif timer_in_s is None or self.now + timer_in_s > self.until:
            self.now = self.until
        else:
            self.now += timer_in_s
        return True


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        super().__init__(_Selector(clock))

    def time(self) -> float:
        return self.clock.now


class _Selector(selectors.BaseSelector):
    """The real one, but where it would wait for a timer, it asks the clock.

    How long the loop is willing to wait says what is under way: 0 when something is to be run, else the time to the
    next timer, or None when there is none. So nothing private of the loop is needed.
    """

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._real = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0)
        if ready or (timeout is not None and timeout <= 0) or self._clock.idle(timeout):
            return ready
        if timeout is None:
            return self._real.select(None)  # for something outside, as any loop
        if not (ready := self._real.select(STUCK_S)):
            raise RuntimeError(
                f"nothing has happened for {STUCK_S:g} s, and the next timer is {timeout:g} s away: "
                "nobody advances the clock"
            )
        return ready

    def fileno(self) -> int:
        """Of the real selector, as those of the standard library have it: what a forked child must not touch."""
        return int(self._real.fileno())

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()
