"""A child that somebody traces, with strace or a debugger, has ended for us only when the tracer has seen that."""

import asyncio
import os
import select
import subprocess

import pytest
from support import ENGINES, process_state, run_async, wait_until
from tracer import tracing

from workerlib.core.daemonizing import Killed
from workerlib.launchers.local import wait_by_pidfd


@pytest.mark.parametrize("engine", ENGINES)
def test_the_exit_status_of_a_traced_child_is_waited_for(engine: str) -> None:
    """Its descriptor says that it has ended before it can be reaped, which is no error."""

    async def main() -> None:
        child = subprocess.Popen(["sleep", "1000"])
        with tracing(child.pid) as tracer:
            pidfd = os.pidfd_open(child.pid)
            waiting = asyncio.ensure_future(wait_by_pidfd(child))
            await asyncio.sleep(0)
            child.kill()
            select.select([pidfd], [], [])
            os.close(pidfd)
            wait_until(lambda: process_state(child.pid) == "Z", what="it is a zombie")
            for _ in range(3):
                await asyncio.sleep(0)
            assert not waiting.done()
            assert tracer.stdin is not None
            tracer.stdin.close()
            assert await waiting == Killed(9)

    run_async(main, engine)
