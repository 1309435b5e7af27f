"""The clock of an event loop: the same cases with the loops that are used, and with the one that a test moves."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from itertools import pairwise
from typing import Any

import pytest
from support import ENGINES, run_async

from workerlib.testing import FakeClock

Pass = Callable[[float], Awaitable[object]]
"""Lets so many seconds pass."""


@pytest.fixture(params=["fake", *ENGINES])
def play(request: pytest.FixtureRequest) -> Callable[[Callable[[Pass], Coroutine[Any, Any, None]]], None]:
    """Runs a scenario on one of the clocks."""

    def run(scenario: Callable[[Pass], Coroutine[Any, Any, None]]) -> None:
        if request.param == "fake":
            clock = FakeClock()
            clock.run(scenario(clock.advance))
        else:
            run_async(lambda: scenario(asyncio.sleep), request.param)

    return run


def test_timers_come_in_their_order_and_never_early(play: Callable[..., None]) -> None:
    """However they were set; one that sets another, too."""

    async def scenario(let_pass: Pass) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        came: list[tuple[float, float]] = []

        def came_at(at: float) -> None:
            came.append((at, loop.time() - begun))
            if at == 0.01:
                loop.call_later(0.005, came_at, 0.015)

        for at in (0.03, 0.01, 0.02):
            loop.call_at(begun + at, came_at, at)
        await let_pass(0.08)
        assert [at for at, _ in came if at != 0.015] == [0.01, 0.02, 0.03]
        assert 0.015 in [at for at, _ in came]
        assert all(when >= at - 0.001 for at, when in came)  # uvloop counts milliseconds

    play(scenario)


def test_a_timer_that_was_taken_back_does_not_come(play: Callable[..., None]) -> None:
    """Not even when its time was over before it was."""

    async def scenario(let_pass: Pass) -> None:
        loop = asyncio.get_running_loop()
        came: list[str] = []
        late = loop.call_later(0.01, came.append, "late")
        late.cancel()
        past = loop.call_at(loop.time() - 1, came.append, "past")
        past.cancel()
        await let_pass(0.03)
        assert came == []

    play(scenario)


def test_what_is_over_comes_with_the_next_turn(play: Callable[..., None]) -> None:
    """Not at once, and no time has to pass for it."""

    async def scenario(let_pass: Pass) -> None:
        loop = asyncio.get_running_loop()
        came: list[str] = []
        loop.call_at(loop.time() - 86400, came.append, "past")
        assert came == []
        await let_pass(0.005)
        assert came == ["past"]

    play(scenario)


def test_a_timeout_ends_what_waits(play: Callable[..., None]) -> None:
    """After its time, while others go on."""

    async def scenario(let_pass: Pass) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()

        async def wait() -> float:
            try:
                async with asyncio.timeout(0.02):
                    await asyncio.Event().wait()
            except TimeoutError:
                return loop.time() - begun
            raise AssertionError("it did not end")

        waiting = asyncio.ensure_future(wait())
        await let_pass(0.05)
        assert await waiting >= 0.019

    play(scenario)


def test_time_goes_on(play: Callable[..., None]) -> None:
    """By what has passed at least, and never back."""

    async def scenario(let_pass: Pass) -> None:
        loop = asyncio.get_running_loop()
        seen = [loop.time()]
        for _ in range(5):
            await let_pass(0.002)
            seen.append(loop.time())
        assert all(after >= before + 0.001 for before, after in pairwise(seen))

    play(scenario)
