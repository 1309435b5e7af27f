"""Spawning: from the decision to have a worker process to the result of its first call."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import OURS, PYTHON, Bench, CaseError, Row, started
from imports import run_ms

from workerlib import Redirect, ShutdownOn, Worker, rpc
from workerlib.shell.loop import run

INTERPRETER = "import asyncio, msgspec, uvloop"


class Adder(Worker):
    @rpc
    async def add(self, n: int) -> int:
        return n + 1


def add(n: int) -> int:
    return n + 1


def ours() -> float:
    async def main() -> float:
        null = Redirect.dev_null()
        began = time.perf_counter()
        connection = await Adder.spawn(
            shutdown_on=ShutdownOn.CONNECTION_CLOSED, redirect_stdout=null, redirect_stderr=null
        )
        async with connection:
            assert await connection.run(Adder.add, 1) == 2
            return time.perf_counter() - began

    return run(main())


def pool(method: str) -> Callable[[], float]:
    def measure() -> float:
        import multiprocessing

        context = multiprocessing.get_context(method)
        began = time.perf_counter()
        with context.Pool(1) as workers:
            assert workers.apply(add, (1,)) == 2
            return time.perf_counter() - began

    return measure


def loky() -> float:
    from loky import ProcessPoolExecutor

    began = time.perf_counter()
    executor = ProcessPoolExecutor(1)
    try:
        assert executor.submit(add, 1).result() == 2
        return time.perf_counter() - began
    finally:
        executor.shutdown(kill_workers=True)


def execnet() -> float:
    import execnet

    group = execnet.Group()
    began = time.perf_counter()
    try:
        channel = group.makegateway(f"popen//python={PYTHON}").remote_exec("channel.send(channel.receive() + 1)")
        channel.send(1)
        assert channel.receive() == 2
        return time.perf_counter() - began
    finally:
        group.terminate(timeout=1.0)


CASES = {
    OURS: ours,
    "multiprocessing spawn": pool("spawn"),
    "multiprocessing forkserver": pool("forkserver"),
    "loky": loky,
    "execnet": execnet,
}


def sample(case: str) -> Callable[[], float]:
    """Milliseconds; each in a fresh program, which runs this file as a script as a user's program would."""

    def measure() -> float:
        argv = [PYTHON, str(Path(__file__)), case]
        with started(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                out, error = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                raise CaseError(f"{case}: no result after 60 s") from None
        if process.returncode:
            raise CaseError(f"{case}: {error.decode().strip().splitlines()[-1]}")
        return float(json.loads(out)) * 1e3

    return measure


def rows(bench: Bench) -> Iterator[Row]:
    cases = {case: sample(case) for case in CASES}
    cases[INTERPRETER] = lambda: run_ms(PYTHON, "-c", INTERPRETER)
    series, trouble = bench.turns_of("spawning", cases)
    own, limit = series.pop(OURS, None), series.pop(INTERPRETER, None)
    yield Row(
        name="spawn to first call, by exec",
        what=f"over `python -c '{INTERPRETER}'`",
        unit="ms",
        ours=own,
        limit=limit,
        others=tuple(series.values()),
        skipped="; ".join(trouble),
    )


if __name__ == "__main__":
    print(json.dumps(CASES[sys.argv[1]]()))
    sys.stdout.flush()
