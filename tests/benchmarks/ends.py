"""The two ends of a connection, for samples: the other end is a fork that dies with this process."""

import contextlib
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from harness import die_with

CHUNK = 25
"""Calls that are timed together: less than a time slice, so that most chunks are not cut by other processes."""


@contextlib.contextmanager
def other_end(serve: Callable[[Callable[[str], object]], object]) -> Iterator[str]:
    """Runs `serve(ready)` in a forked process; gives what it passes to `ready` when it can be connected to."""
    parent = os.getpid()
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(out)
            die_with(parent)

            def ready(text: str) -> None:
                os.write(into, text.encode() or b"-")
                os.close(into)

            serve(ready)
        finally:
            os._exit(1)
    os.close(into)
    try:
        with os.fdopen(out, "rb") as pipe:
            said = pipe.read().decode()
        assert said, "the other end has died"
        yield said
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextlib.contextmanager
def socket_path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield str(Path(folder) / "s")


def lower_quartile(values: list[float]) -> float:
    return statistics.quantiles(values, n=4)[0] if len(values) > 3 else min(values)


def us_per_call(call: Callable[[int], Any], seconds: float, chunk: int = CHUNK) -> float:
    """Microseconds a call: the lower quartile over chunks, so that what else the machine does counts little."""
    chunks: list[float] = []
    for share in (0.1, 1):  # a tenth of the time to warm caches up, then the time that counts
        chunks.clear()
        until = time.perf_counter() + seconds * share
        while time.perf_counter() < until:
            began = time.perf_counter()
            for number in range(chunk):
                call(number)
            chunks.append((time.perf_counter() - began) / chunk)
    return lower_quartile(chunks) * 1e6


async def us_per_await(call: Callable[[int], Awaitable[Any]], seconds: float, chunk: int = CHUNK) -> float:
    """The same on an event loop."""
    chunks: list[float] = []
    for share in (0.1, 1):
        chunks.clear()
        until = time.perf_counter() + seconds * share
        while time.perf_counter() < until:
            began = time.perf_counter()
            for number in range(chunk):
                await call(number)
            chunks.append((time.perf_counter() - began) / chunk)
    return lower_quartile(chunks) * 1e6
