"""Tasks that start at once behave as asyncio's own do wherever a worker's function can tell."""

import asyncio
import contextvars
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from support import run_async
from twins import TWINS, C

from workerlib.shell import eager
from workerlib.shell.eager import EagerTask

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


@pytest.fixture(params=TWINS, autouse=True)
def first_step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything holds for the step in Python and for the one in C."""
    step = eager.first_step_in_python if request.param == "Python" else C.first_step
    monkeypatch.setattr(eager, "first_step", step)


class Outcome:
    """Starts a coroutine as the server does and keeps what became of it."""

    def __init__(self, coroutine: Any, context: contextvars.Context | None = None) -> None:
        self.results: list[tuple[Any, BaseException | None]] = []
        loop = asyncio.get_running_loop()
        self.ended = loop.create_future()
        self.task = EagerTask(loop)
        loop.call_soon(self._start, coroutine, context or contextvars.copy_context())

    def _start(self, coroutine: Any, context: contextvars.Context) -> None:
        self.task.start(coroutine, context)
        if self.task.ended:
            self._done(self.task.value, self.task.failure)
        else:
            self.task.follow(self._done)

    def _done(self, value: Any, error: BaseException | None) -> None:
        self.results.append((value, error))
        self.ended.set_result(None)

    async def get(self) -> Any:
        await self.ended
        ((value, error),) = self.results
        if error is not None:
            raise error
        return value


def test_a_coroutine_that_never_suspends_is_done_when_start_returns() -> None:
    """That is what the file is for; nothing is registered anywhere."""

    async def function() -> int:
        return 5

    async def main() -> None:
        found: list[Any] = []

        def start() -> None:
            task = EagerTask(loop)
            found.append(task.start(function(), contextvars.copy_context()))
            found.extend([task.value, task.failure, task.reusable])

        loop = asyncio.get_running_loop()
        loop.call_soon(start)
        await asyncio.sleep(0)
        assert found == [True, 5, None, True]

    run_async(main)


def test_where_a_task_is_running_nothing_is_started() -> None:
    """The error is that of whoever did it, not the function's."""
    ran: list[int] = []

    async def function() -> None:
        ran.append(1)

    async def main() -> None:
        task = EagerTask(asyncio.get_running_loop())
        coroutine = function()
        with pytest.raises(RuntimeError, match="while another task"):
            task.start(coroutine, contextvars.copy_context())
        coroutine.close()

    run_async(main)
    assert ran == []


def test_an_error_in_leaving_keeps_that_of_the_function() -> None:
    """As `finally` does."""

    async def function() -> None:
        raise ValueError("the function's")

    def leave(*_: Any) -> None:
        raise KeyError("the leaving's")

    with pytest.raises(KeyError) as caught:
        eager.first_step(lambda *_: None, leave, object(), object(), function())
    assert isinstance(caught.value.__context__, ValueError)
    assert caught.value.__context__.__traceback__ is not None


async def _timeout() -> str:
    try:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)
    except TimeoutError:
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)
        return "timed out"
    return "not"


async def _task_group() -> list[int]:
    async def one(n: int) -> int:
        await asyncio.sleep(0.001)
        return n

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(n)) for n in range(3)]
    return [task.result() for task in tasks]


async def _task_group_fails() -> str:
    async def fail() -> None:
        raise ValueError("inner")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await asyncio.sleep(60)
    except* ValueError:
        pass
    await asyncio.sleep(0)
    return "went on"


async def _wait_for() -> str:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.sleep(60), 0.01)
    return "timed out"


async def _gather() -> list[Any]:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    found = await asyncio.gather(asyncio.sleep(0, 1), fail(), asyncio.sleep(0.001, 3), return_exceptions=True)
    return [type(value).__name__ for value in found]


async def _future_error() -> str:
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_exception, KeyError("from the future"))
    try:
        await future
    except KeyError as error:
        return str(error)
    return "nothing"


async def _lock() -> int:
    lock, queue = asyncio.Lock(), asyncio.Queue()
    async with lock:
        asyncio.get_running_loop().call_later(0.001, queue.put_nowait, 7)
        return await queue.get()


async def _thread() -> int:
    return await asyncio.to_thread(lambda: 9)


async def _current() -> bool:
    first = asyncio.current_task()
    for _ in range(3):
        await asyncio.sleep(0)
        assert asyncio.current_task() is first
    return first in asyncio.all_tasks()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (_timeout, "timed out"),
        (_task_group, [0, 1, 2]),
        (_task_group_fails, "went on"),
        (_wait_for, "timed out"),
        (_gather, ["int", "KeyError", "int"]),
        (_future_error, "'from the future'"),
        (_lock, 7),
        (_thread, 9),
        (_current, True),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_asyncio_offers_works(engine: str, function: Callable[[], Any], expected: Any) -> None:
    """The same as in a task of asyncio's own."""

    async def main() -> None:
        assert await asyncio.create_task(function()) == expected
        assert await Outcome(function()).get() == expected

    run_async(main, engine)


@pytest.mark.parametrize("suspends", [False, True])
@pytest.mark.parametrize("error", [ValueError("x"), asyncio.CancelledError(), GeneratorExit()], ids=repr)
def test_errors_go_to_done(engine: str, error: BaseException, suspends: bool) -> None:
    """Whatever they are, exactly once; the result of another call is not their context."""

    async def function() -> None:
        if suspends:
            await asyncio.sleep(0)
        raise error

    async def main() -> None:
        outcome = Outcome(function())
        await outcome.ended
        assert outcome.results == [(None, error)]
        assert error.__context__ is None
        assert outcome.task.ended

    run_async(main, engine)


def test_cancellation(engine: str) -> None:
    """Reaches the await, also one that has its result already; can be refused; after the end it does nothing."""

    async def main() -> None:
        seen: list[str] = []

        async def stubborn() -> str:
            for _ in range(2):
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    seen.append("cancelled")
            return "my way"

        outcome = Outcome(stubborn())
        await asyncio.sleep(0)
        assert outcome.task.cancel()
        await asyncio.sleep(0.001)
        assert outcome.task.cancel()
        assert await outcome.get() == "my way"
        assert seen == ["cancelled", "cancelled"]
        assert not outcome.task.cancel()

        async def ready() -> None:
            future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(future.set_result, None)
            asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)
            await future
            await asyncio.sleep(60)

        with pytest.raises(asyncio.CancelledError):
            await Outcome(ready()).get()

    run_async(main, engine)


def test_contexts_are_apart(engine: str) -> None:
    """What one call sets in its context, no other sees."""

    async def function(value: str) -> str:
        before = VARIABLE.get()
        VARIABLE.set(value)
        await asyncio.sleep(0.001)
        return f"{before} {VARIABLE.get()}"

    async def main() -> None:
        VARIABLE.set("base")
        base = contextvars.copy_context()
        found = await asyncio.gather(*(Outcome(function(str(n)), base.copy()).get() for n in range(3)))
        assert found == ["base 0", "base 1", "base 2"]
        assert VARIABLE.get() == "base"

    run_async(main, engine)


@pytest.mark.parametrize("wrong", ["foreign future", "own task", "something"])
def test_awaiting_what_is_no_future_is_an_error(engine: str, wrong: str) -> None:
    """As in a task, with what it was."""

    class Something:
        def __await__(self) -> Any:
            yield "something"

    async def main() -> None:
        foreign = asyncio.new_event_loop()

        async def function() -> None:
            await {
                "foreign future": foreign.create_future(),
                "own task": asyncio.current_task(),
                "something": Something(),
            }[wrong]

        with pytest.raises(RuntimeError, match="no future of this event loop"):
            await Outcome(function()).get()
        foreign.close()

    run_async(main, engine)


def test_the_end_of_the_loop_cancels_what_runs(engine: str) -> None:
    """`asyncio.run` finds these tasks and waits for their cleanup."""
    seen: list[str] = []

    async def function() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.001)
            seen.append("cleaned up")

    async def main() -> None:
        Outcome(function())
        await asyncio.sleep(0.001)

    run_async(main, engine)
    assert seen == ["cleaned up"]


@pytest.mark.parametrize("suspends", ["", "await asyncio.sleep(0);"])
@pytest.mark.parametrize("engine_module", ["asyncio", "uvloop"])
def test_an_exit_in_a_function_ends_the_process(tmp_path: Any, engine_module: str, suspends: str) -> None:
    """With its status, on either loop, also from the first step, which runs inside the transport's callback."""
    program = tmp_path / "program.py"
    program.write_text(f"""
import asyncio, sys, {engine_module}
from workerlib.connection import open_to
from workerlib.core.uri import UnixLocation, Uri
from workerlib.server import Server
from workerlib.spec import RpcSettings, rpc

class Worker:
    @rpc
    async def leave(self) -> None:
        {suspends} sys.exit(7)

async def main():
    server = Server(RpcSettings())
    server.add("w", Worker())
    where = await server.listen(UnixLocation({str(tmp_path / "w.sock")!r}))
    conn = await open_to(Uri("w", where), settings=RpcSettings())
    conn.run(Worker.leave).add_done_callback(lambda reply: reply.exception())
    await asyncio.sleep(20)

{engine_module}.run(main())
""")
    done = subprocess.run([sys.executable, str(program)], timeout=30, check=False, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr


def test_a_task_is_used_again_only_when_nobody_holds_on_to_it() -> None:
    """A task that somebody waits for, or has cancelled, finishes for good; a finished one cannot be cancelled."""

    async def plain() -> str:
        return "plain"

    async def watched() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(told.append)

    async def cancelled() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    told: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        found: list[tuple[bool, bool]] = []

        def start() -> None:
            for function in (plain, watched, cancelled):
                task = EagerTask(loop)
                task.start(function(), contextvars.copy_context())
                assert task.ended
                found.append((task.reusable, task.cancel()))
                tasks.append(task)

        tasks: list[EagerTask] = []
        loop.call_soon(start)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert found == [(True, False), (False, False), (False, False)]
        assert told == [tasks[1]]

    run_async(main)
