"""What several test folders use: the event loops, and from the test kit bounded waiting and a view of processes."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

from workerlib.testing.leaks import alive, children, command_line, open_fds, process_state, wait_until

__all__ = [
    "ENGINES",
    "PID_NAMESPACE",
    "alive",
    "children",
    "command_line",
    "open_fds",
    "process_state",
    "run_async",
    "wait_until",
]

T = TypeVar("T")

ENGINES = ("asyncio", "uvloop")
"""The event loops that everything must run on."""


PID_NAMESPACE = [
    "unshare",
    *([] if os.geteuid() == 0 else ["--map-root-user"]),
    "--pid",
    "--fork",
    "--mount-proc",
    "--kill-child",
]
"""The beginning of a command line for what runs as pid 1 of a pid namespace, which ends with it."""


def run_async(main: Callable[[], Coroutine[Any, Any, T]], engine: str = "asyncio", *, within_s: float = 60.0) -> T:
    """Runs an async test; plain asyncio runs in debug mode, which finds calls from wrong threads and lost coroutines."""

    async def bounded() -> T:
        async with asyncio.timeout(within_s):
            return await main()

    if engine == "uvloop":
        return uvloop.run(bounded())
    return asyncio.run(bounded(), debug=True)
