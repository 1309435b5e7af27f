"""All five: map, map_unordered, find_map, map_reduce, map_reduce_commutative. And a worker that is killed meanwhile."""

import asyncio
import itertools
import os
import signal

import workerlib
from workerlib import Config

TWO = Config(local=2)


def collatz(n: int) -> int:
    """Steps until 1."""
    steps = 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    return steps


def who_did(n: int) -> int:
    """The pid of the worker that did it."""
    collatz(n)
    return os.getpid()


def long_one(n: int) -> str | None:
    steps = collatz(n)
    return f"{n} takes {steps} steps" if steps >= 250 else None


def digits(n: int) -> str:
    return str(n % 10)


def concatenate(first: str, second: str) -> str:
    return first + second


def add(first: int, second: int) -> int:
    return first + second


async def main() -> None:
    async with workerlib.map(collatz, range(1, 11), TWO) as steps:
        print("in order:", [n async for n in steps])

    # Items may never end: they are read no faster than they are worked on. Leaving the loop ends the workers.
    seen: set[int] = set()
    async with workerlib.map_unordered(who_did, itertools.count(1), TWO) as pids:
        async for pid in pids:
            if not seen:
                os.kill(pid, signal.SIGKILL)  # its items are done by another one, and a new worker takes its place
            seen.add(pid)
            if len(seen) == 3:
                break
    print(f"{len(seen)} processes have worked in two places")

    print("found:", await workerlib.find_map(long_one, itertools.count(1), Config(local=2, batch=100)))
    print("combined in order:", await workerlib.map_reduce(digits, range(1, 31), TWO, combine=concatenate))
    total = await workerlib.map_reduce_commutative(collatz, range(1, 10_001), TWO, combine=add)
    print("steps up to 10000:", total)


if __name__ == "__main__":
    asyncio.run(main())
