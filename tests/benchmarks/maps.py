"""Map over many small items on two worker processes, and single calls through an executor."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from harness import OURS, Bench, Budget, Row

COUNT = 100_000
WORKERS = 2
CHUNK = 1024
"""What those get that do not choose it themselves; it is near what we come to."""


def square(n: int) -> int:
    return n * n


def rate(work: Callable[[], Any]) -> float:
    """Thousand items a second, from the call to the last result, with the start of the workers."""
    began = time.perf_counter()
    results = work()
    took = time.perf_counter() - began
    assert len(results) == COUNT
    assert results[-1] == (COUNT - 1) ** 2
    return COUNT / took / 1e3


def ours(_seconds: float) -> float:
    import workerlib
    from workerlib.shell.loop import run

    async def main() -> list[int]:
        async with workerlib.map(square, range(COUNT), workerlib.Config(local=WORKERS)) as results:
            return [result async for result in results]

    return rate(lambda: run(main()))


def pool(method: str) -> Callable[[float], float]:
    def measure(_seconds: float) -> float:
        import multiprocessing

        def work() -> list[int]:
            with multiprocessing.get_context(method).Pool(WORKERS) as workers:
                return workers.map(square, range(COUNT))

        return rate(work)

    return measure


def standard_executor(_seconds: float) -> float:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    def work() -> list[int]:
        with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as executor:
            return list(executor.map(square, range(COUNT), chunksize=CHUNK))

    return rate(work)


def loky(_seconds: float) -> float:
    from loky import ProcessPoolExecutor

    def work() -> list[int]:
        with ProcessPoolExecutor(WORKERS) as executor:
            return list(executor.map(square, range(COUNT), chunksize=CHUNK))

    return rate(work)


def calls(make: Callable[[], Any], seconds: float) -> float:
    """Microseconds for one call after another, with a worker that is up."""
    with make() as executor:
        assert executor.submit(square, 3).result() == 9
        count = 0
        began = time.perf_counter()
        while (took := time.perf_counter() - began) < seconds:
            executor.submit(square, 3).result()
            count += 1
    return took / count * 1e6


def our_calls(seconds: float) -> float:
    from workerlib import Executor

    return calls(lambda: Executor(1), seconds)


def standard_calls(seconds: float) -> float:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    return calls(lambda: ProcessPoolExecutor(1, mp_context=get_context("spawn")), seconds)


def loky_calls(seconds: float) -> float:
    from loky import ProcessPoolExecutor

    return calls(lambda: ProcessPoolExecutor(1), seconds)


MAPS: dict[str, Callable[[float], float]] = {
    OURS: ours,
    "multiprocessing fork": pool("fork"),
    "multiprocessing spawn": pool("spawn"),
    "ProcessPoolExecutor": standard_executor,
    "loky": loky,
}
CALLS: dict[str, Callable[[float], float]] = {
    "calls: workerlib": our_calls,
    "calls: ProcessPoolExecutor": standard_calls,
    "calls: loky": loky_calls,
}
CASES = {**MAPS, **CALLS}


def rows(bench: Bench) -> Iterator[Row]:
    series, trouble = bench.programs_in_turns("maps", "maps", list(MAPS), pinned=False)
    own = series.pop(OURS, None)
    yield Row(
        name=f"map, {WORKERS} workers, unpinned",
        what=f"n * n for {COUNT // 1000} k ints, with the start of the workers",
        unit="k/s",
        ours=own,
        others=tuple(series.values()),
        budget=Budget(at_least=100),
        more_is_better=True,
        skipped="; ".join(trouble),
    )
    series, trouble = bench.programs_in_turns("executors", "maps", list(CALLS), pinned=False)
    own = series.pop("calls: workerlib", None)
    yield Row(
        name="executor, one call at a time, unpinned",
        what="submit(square, 3).result()",
        unit="µs",
        ours=own,
        others=tuple(taken.named(name.removeprefix("calls: ")) for name, taken in series.items()),
        skipped="; ".join(trouble),
    )
