"""Waiting for the end of processes on the event loop, by pidfd: exact, without polling, also for strangers."""

import asyncio
import contextlib
import os
import signal

KILL_AFTER_S = 2.0
"""Between the polite signal to a process that shall go and SIGKILL."""


def _complete(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


async def wait_pidfd(pidfd: int) -> None:
    """Waits until the process has ended. It need not be a child; it is not reaped."""
    own = os.dup(pidfd)  # a loop keeps one reader for each descriptor, and others may wait for the same process
    try:
        await wait_own_pidfd(own)
    finally:
        os.close(own)


async def wait_own_pidfd(pidfd: int) -> None:
    """The same with a descriptor that nobody else waits with."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    loop.add_reader(pidfd, _complete, ended)
    try:
        await ended
    finally:
        loop.remove_reader(pidfd)


async def end_process(pidfd: int) -> None:
    """Asks a process to end, waits for that, and kills it when it does not."""
    own = os.dup(pidfd)
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(own, signal.SIGTERM)
        # Not asyncio.timeout: this runs in tasks that have been cancelled, where that of Python before 3.11.4 (Debian
        # 12 has 3.11.2) raises CancelledError when its time is over, and the process would stay.
        ended = asyncio.ensure_future(wait_pidfd(own))
        await asyncio.wait({ended}, timeout=KILL_AFTER_S)
        if not ended.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(own, signal.SIGKILL)
        await ended
    finally:
        os.close(own)
