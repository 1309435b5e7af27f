"""What several test folders use: bounded waiting and a view of the processes around the test."""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")

ENGINES = ("asyncio", "uvloop")
"""The event loops that everything must run on."""


def run_async(main: Callable[[], Coroutine[Any, Any, T]], engine: str = "asyncio", *, within_s: float = 60.0) -> T:
    """Runs an async test; plain asyncio runs in debug mode, which finds calls from wrong threads and lost coroutines."""

    async def bounded() -> T:
        async with asyncio.timeout(within_s):
            return await main()

    if engine == "uvloop":
        return uvloop.run(bounded())
    return asyncio.run(bounded(), debug=True)


def wait_until(condition: Callable[[], T], *, within_s: float = 10.0, what: str = "") -> T:
    """Calls `condition` until it returns something true, and returns that; fails after `within_s` seconds.

    This is the only place in the tests that sleeps.
    """
    give_up_at = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not within {within_s} s: {what or getattr(condition, '__doc__', None) or condition}")
        time.sleep(0.002)


def children(pid: int | None = None) -> set[int]:
    """Pids of the direct children of `pid` (default: this process), zombies included."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid or os.getpid()}/task").iterdir():
        try:
            found.update(int(child) for child in (task / "children").read_text().split())
        except FileNotFoundError:
            continue
    return found


def process_state(pid: int) -> str | None:
    """The state letter of /proc/PID/stat ("R", "S", "Z", ...), or None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return stat.rpartition(")")[2].split()[0]


def alive(pid: int) -> bool:
    """Whether the process runs: not gone, and not a zombie that somebody has yet to reap."""
    return process_state(pid) not in {None, "Z", "X"}


def command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def open_fds(pid: int | None = None) -> dict[int, str]:
    """Open file descriptors and what each points to."""
    folder = Path(f"/proc/{pid or os.getpid()}/fd")
    found = {}
    for entry in folder.iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except FileNotFoundError:
            continue
    return {fd: target for fd, target in found.items() if not target.startswith(f"/proc/{os.getpid()}/fd")}
