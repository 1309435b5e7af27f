"""Spawning: from the decision to have a worker process to the result of its first call."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import OURS, PYTHON, Bench, Budget, CaseError, Row, started
from imports import run_ms
from spawned import Adder, add

from workerlib import Redirect, ShutdownOn
from workerlib.shell.loop import run

INTERPRETER = "import asyncio, msgspec, uvloop"


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


AT_ONCE, ROUNDS = 20, 2


def ours_at_once() -> float:
    """Seconds for twenty spawns at a time until each has answered a call, and once more; five turns make ten times."""

    async def one() -> None:
        null = Redirect.dev_null()
        connection = await Adder.spawn(
            shutdown_on=ShutdownOn.CONNECTION_CLOSED,
            redirect_stdout=null,
            redirect_stderr=null,
            connection_timeout_s=60,
        )
        async with connection:
            assert await connection.run(Adder.add, 1) == 2

    async def main() -> float:
        began = time.perf_counter()
        for _ in range(ROUNDS):
            await asyncio.gather(*(one() for _ in range(AT_ONCE)))
        return time.perf_counter() - began

    return run(main())


def memory_of_one_more() -> float:
    """MiB that a second worker of the same class costs (Pss: what it shares is divided by those who share it)."""

    async def main() -> float:
        null = Redirect.dev_null()
        pids = []
        for _ in range(2):
            connection = await Adder.spawn(
                shutdown_on=ShutdownOn.CONNECTION_CLOSED, redirect_stdout=null, redirect_stderr=null
            )
            assert await connection.run(Adder.add, 1) == 2
            pids.append((await connection.info()).pid)
        rollup = Path(f"/proc/{pids[-1]}/smaps_rollup").read_text()
        return int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1]) / 1024

    return run(main())


CASES = {
    OURS: ours,
    "multiprocessing spawn": pool("spawn"),
    "multiprocessing forkserver": pool("forkserver"),
    "loky": loky,
    "execnet": execnet,
}


OTHERS = {"at once": ours_at_once, "memory": memory_of_one_more}


def sample(case: str, scale: float = 1e3) -> Callable[[], float]:
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
        return float(json.loads(out)) * scale

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
        budget=Budget(times_limit=1.2, plus=15),
        skipped="; ".join(trouble),
    )
    at_once = sample("at once", 1)
    series, trouble = bench.turns_of("spawning at once", {"spawns": lambda: AT_ONCE * ROUNDS / at_once()})
    yield Row(
        name=f"{AT_ONCE} spawns at a time",
        what="until each has answered its first call",
        unit="spawns/s",
        ours=series.get("spawns"),
        more_is_better=True,
        skipped="; ".join(trouble),
    )
    series, trouble = bench.turns_of("memory of a worker", {"memory": sample("memory", 1)})
    yield Row(
        name="memory of one more worker, by exec",
        what="Pss of the second of two",
        unit="MiB",
        ours=series.get("memory"),
        skipped="; ".join(trouble),
    )


if __name__ == "__main__":
    print(json.dumps({**CASES, **OTHERS}[sys.argv[1]]()))
    sys.stdout.flush()
