"""`workerlib.Executor` beside the standard library's ProcessPoolExecutor: the same programs, the same outcomes."""

import asyncio
import concurrent.futures
import functools
import gc
import math
import operator
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import mapped
import pytest
from support import wait_until
from test_spawn import no_worker_left, workers_of  # noqa: F401 - the fixture holds for all tests here

from workerlib import ArgumentError, BrokenWorkers, Config, Executor, RemoteError, ResultError, UsageError

PROGRAMS = Path(__file__).parent / "programs"

Make = Callable[..., concurrent.futures.Executor]


def ours(workers: int, **options: Any) -> concurrent.futures.Executor:
    return Executor(workers, **options)


def standard(workers: int, **options: Any) -> concurrent.futures.Executor:
    return ProcessPoolExecutor(workers, mp_context=get_context("fork"), **options)


@pytest.fixture(params=[ours, standard], ids=["workerlib", "standard library"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Each test with it runs on both: what it claims is what the standard library does."""
    return request.param


# What both do


def test_a_call_gives_its_result(make: Make) -> None:
    """Positional and named arguments, own functions, builtins and classes."""
    with make(2) as executor:
        assert executor.submit(mapped.square, 5).result() == 25
        assert executor.submit(mapped.add, a=1, b=2).result() == 3
        assert executor.submit(pow, 2, 10).result() == 1024
        assert executor.submit(math.sqrt, 4.0).result() == 2.0
        assert executor.submit(operator.add, 1, 2).result() == 3
        assert executor.submit(int, "7").result() == 7
        assert executor.submit(str.upper, "a").result() == "A"
        assert executor.submit(functools.partial(mapped.add, 1), 5).result() == 6
        assert executor.submit(functools.partial(mapped.add, b=1), 5).result() == 6
        assert executor.submit(os.getpid).result() != os.getpid()
        assert executor.submit(mapped.here).result() == os.getcwd()


@pytest.mark.parametrize("chunksize", [1, 7])
def test_map_keeps_the_order_and_takes_several_iterables(make: Make, chunksize: int) -> None:
    """As the builtin: the shortest iterable ends it; chunks change nothing."""
    with make(2) as executor:
        assert list(executor.map(mapped.square, range(50), chunksize=chunksize)) == [n * n for n in range(50)]
        assert list(executor.map(mapped.add, [1, 2, 3], [10, 20], chunksize=chunksize)) == [11, 22]
        assert list(executor.map(functools.partial(mapped.add, 1), range(9), chunksize=chunksize)) == [*range(1, 10)]
        assert list(executor.map(mapped.square, [], chunksize=chunksize)) == []
        with pytest.raises(ValueError, match="chunksize must be >= 1"):
            executor.map(mapped.square, [1], chunksize=0)


def test_map_raises_at_the_item_that_failed(make: Make) -> None:
    """Results before it come first."""
    with make(1) as executor:
        results = executor.map(mapped.no_sevens, range(20))
        assert [next(results) for _ in range(7)] == list(range(7))
        with pytest.raises(ValueError, match="seven is not liked here"):
            next(results)


def test_map_has_a_timeout(make: Make, tmp_path: Path) -> None:
    """TimeoutError for a result that is late; what had not begun is cancelled, so that the end need not wait for it."""
    gate = tmp_path / "gate"
    never = tmp_path / "never"
    (tmp_path / "there").touch()
    with make(1) as executor:
        executor.submit(mapped.square, 1).result()  # the worker is up
        # The standard library has begun the third, too, by the time that the second is late.
        paths = [tmp_path / "there", gate, gate, *([never] * 20 if make is ours else [])]
        results = executor.map(mapped.wait_for, map(str, paths), timeout=2)
        assert next(results) == str(tmp_path / "there")
        with pytest.raises(TimeoutError):
            next(results)
        gate.touch()


def test_an_error_is_raised_as_itself_with_the_remote_traceback(make: Make) -> None:
    """A builtin error arrives as itself, and its text shows where it was raised."""
    with make(1) as executor:
        error = executor.submit(mapped.no_sevens, 7).exception()
        assert isinstance(error, ValueError)
        assert error.args == ("seven is not liked here",)
        shown = str(error.__cause__) + "".join(getattr(error, "__notes__", []))
        assert "in no_sevens" in shown
        with pytest.raises(ValueError, match="seven"):
            executor.submit(mapped.no_sevens, 7).result()


def test_a_call_that_waits_can_be_cancelled_and_one_that_runs_cannot(make: Make, tmp_path: Path) -> None:
    """`cancel` says which; the cancelled one is never made."""
    gate = tmp_path / "gate"
    with make(1) as executor:
        running = executor.submit(mapped.wait_for, str(gate))
        wait_until(running.running, what="the first call runs")
        others = [executor.submit(mapped.square, n) for n in range(5)]
        assert not running.cancel()
        assert others[4].cancel()
        assert others[4].cancelled()
        gate.touch()
        assert running.result() == str(gate)
        assert others[0].result() == 0
        with pytest.raises(concurrent.futures.CancelledError):
            others[4].result()


def test_waiting_for_futures_works(make: Make, tmp_path: Path) -> None:
    """wait, as_completed, callbacks, and a result that is late."""
    gate = tmp_path / "gate"
    with make(2) as executor:
        slow = executor.submit(mapped.wait_for, str(gate))
        quick = executor.submit(mapped.square, 2)
        done, waiting = concurrent.futures.wait([slow, quick], return_when=FIRST_COMPLETED)
        assert (done, waiting) == ({quick}, {slow})
        with pytest.raises(TimeoutError):
            slow.result(timeout=0.05)
        called: list[Future[Any]] = []
        slow.add_done_callback(called.append)
        gate.touch()
        assert set(concurrent.futures.as_completed([slow, quick])) == {slow, quick}
        wait_until(lambda: called == [slow], what="the callback")


def test_nothing_is_taken_after_shutdown(make: Make) -> None:
    """What was accepted is done; then RuntimeError. Shutting down again is fine, as is never having been used."""
    executor = make(1)
    future = executor.submit(mapped.nap, 0.1)
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(mapped.square, 1)
    assert future.result() == 0.1
    executor.shutdown()
    executor.shutdown()
    make(1).shutdown()


def test_shutdown_can_cancel_what_waits(make: Make, tmp_path: Path) -> None:
    """The call that runs is done, those that wait are cancelled."""
    gate = tmp_path / "gate"
    executor = make(1)
    running = executor.submit(mapped.wait_for, str(gate))
    wait_until(running.running, what="the first call runs")
    others = [executor.submit(mapped.square, n) for n in range(5)]
    executor.shutdown(wait=False, cancel_futures=True)
    wait_until(lambda: others[4].cancelled(), what="the last is cancelled")
    gate.touch()
    assert running.result() == str(gate)
    executor.shutdown()


def test_a_worker_that_dies_breaks_the_executor(make: Make) -> None:
    """All calls that are not done fail with a BrokenExecutor, and so does every later submit."""
    with make(1) as executor:
        assert executor.submit(mapped.square, 2).result() == 4
        futures = [executor.submit(mapped.die), *(executor.submit(mapped.nap, 0.01) for _ in range(5))]
        for future in futures:
            with pytest.raises(BrokenExecutor):
                future.result(timeout=10)
        with pytest.raises(BrokenExecutor):
            executor.submit(mapped.square, 1)


def test_an_initializer_runs_in_each_worker(make: Make) -> None:
    """Once, before any call; when it raises, the executor is broken."""
    with make(1, initializer=mapped.set_up, initargs=("here",)) as executor:
        assert executor.submit(mapped.what_was_set_up).result() == ["here"]
        assert executor.submit(mapped.what_was_set_up).result() == ["here"]
    with make(1, initializer=mapped.fail_to_set_up) as executor, pytest.raises(BrokenExecutor):
        executor.submit(mapped.square, 1).result(timeout=20)
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        make(0)


def test_an_event_loop_can_use_it(make: Make) -> None:
    """`loop.run_in_executor` takes it as any executor."""

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        with make(2) as executor:
            return await asyncio.gather(*(loop.run_in_executor(executor, mapped.square, n) for n in range(10)))

    assert asyncio.run(main()) == [n * n for n in range(10)]


def test_many_threads_can_submit(make: Make) -> None:
    """Each gets its own results."""
    with make(2) as executor:
        sums: list[int] = []

        def use(start: int) -> None:
            sums.append(sum(executor.submit(mapped.square, n).result() for n in range(start, start + 50)))

        threads = [threading.Thread(target=use, args=(100 * n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(sums) == [sum(n * n for n in range(100 * k, 100 * k + 50)) for k in range(4)]


# What is ours


def test_several_workers_work_at_the_same_time() -> None:
    """Workers are spawned when they are needed: one for one call after another, both for two at a time."""
    with Executor(2) as executor:
        executor.submit(mapped.square, 1).result()
        executor.submit(mapped.square, 1).result()
        assert len(workers_of(os.getpid())) == 1
        assert len(set(executor.map(mapped.pid_of, range(400)))) == 2


def test_async_functions_are_awaited() -> None:
    """The future gets what the coroutine returns."""
    with Executor(1) as executor:
        assert executor.submit(mapped.square_later, 3).result() == 9


def test_types_are_checked_and_kept() -> None:
    """A dataclass arrives as one; a wrong argument is refused before the function runs; no types mean plain data."""
    with Executor(1) as executor:
        assert executor.submit(mapped.mirror, mapped.Point(1, 2)).result() == mapped.Point(2, 1)
        with pytest.raises(ArgumentError, match="square: argument n: Expected `int`, got `str`"):
            executor.submit(mapped.square, "x").result()  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="square takes 1 arguments, 0 were given"):
            executor.submit(mapped.square).result()  # type: ignore[call-arg]
        with pytest.raises(ResultError, match="wrong_result returned something else than it declares"):
            executor.submit(mapped.wrong_result, 1).result()
        with pytest.raises(ResultError, match="the result of no_result cannot be encoded"):
            executor.submit(mapped.no_result, 3).result()
        assert executor.submit(mapped.untyped, (1, 2), 3, k={"a": None}).result() == [[1, 2], [3], {"k": {"a": None}}]


def local_function() -> Callable[[], int]:
    def inner() -> int:
        return 1

    return inner


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: (lambda: 1,), UsageError, "a lambda of test_executor has no name"),
        (lambda: (local_function(),), UsageError, "is defined inside a function"),
        (lambda: ([].append, 1), UsageError, "has no name by which|another process would find something else"),
        (lambda: (mapped.square, object()), ArgumentError, "square: an argument cannot travel between processes"),
        (lambda: (mapped.nap, threading.Lock()), ArgumentError, "nap: an argument cannot travel"),
    ],
)
def test_what_cannot_travel_is_an_error_of_the_future(call: Any, error: type[Exception], text: str) -> None:
    """As an unpicklable argument is in the standard library; it tells what cannot, and other calls go on."""
    with Executor(1) as executor:
        future = executor.submit(*call())
        with pytest.raises(error, match=text):
            future.result(timeout=10)
        assert executor.submit(mapped.square, 2).result() == 4


def test_errors_of_ones_own_arrive_as_themselves_when_they_are_listed() -> None:
    """Otherwise as RemoteError, since no class is imported because a message names it."""
    with Executor(1, errors=(mapped.OwnError,)) as executor:
        assert isinstance(executor.submit(mapped.own_error, 1).exception(), mapped.OwnError)
    with Executor(1) as executor:
        assert isinstance(executor.submit(mapped.own_error, 1).exception(), RemoteError)


def test_sys_exit_in_a_function_is_its_error() -> None:
    """The worker lives on."""
    with Executor(1) as executor:
        with pytest.raises(RuntimeError, match="the function raised SystemExit: 3"):
            executor.submit(mapped.exit_now, 3).result()
        assert executor.submit(mapped.square, 2).result() == 4


def test_a_worker_killed_from_outside_while_idle_breaks_it_and_says_so() -> None:
    """BrokenWorkers is also a WorkerlibError, and carries the reason."""
    with Executor(1) as executor:
        pid = executor.submit(os.getpid).result()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(
            BrokenWorkers, match=r"a worker was lost: killed by SIGKILL .*; the executor takes no more calls"
        ):
            wait_until(lambda: executor.submit(mapped.nap, 0.01).exception() and executor.submit(mapped.square, 1))


def test_the_environment_and_directory_can_be_given(tmp_path: Path) -> None:
    """By a Config, as for maps."""
    with Executor(config=Config(local=1, cd=str(tmp_path), env={"FAVOURITE": "blue"})) as executor:
        assert executor.submit(mapped.here).result() == str(tmp_path)
        assert executor.submit(os.getenv, "FAVOURITE").result() == "blue"


def test_an_executor_that_nobody_has_any_more_ends() -> None:
    """Its calls are done, then its thread and workers go."""
    executor = Executor(1)
    future = executor.submit(mapped.nap, 0.1)
    del executor
    gc.collect()
    assert future.result() == 0.1
    wait_until(lambda: not workers_of(os.getpid()), what="the end of the worker")


def test_a_program_that_forgets_shutdown_ends_when_its_calls_are_done() -> None:
    """All three calls are done, the exit status is 0, and no worker is left."""
    done = subprocess.run(
        [sys.executable, PROGRAMS / "executor_program.py"], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    assert lines == ["done 0", "done 1", "done 2"]
    assert workers_of(int(first.split()[-1])) == []
