"""A child that somebody traces, with strace or a debugger, has ended for us only when the tracer has seen that."""

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ENGINES, process_state, run_async, wait_until

from workerlib.core.daemonizing import Killed
from workerlib.launchers.local import wait_by_pidfd

TRACER = """
import ctypes, os, sys
SEIZE = 0x4206
pid = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
done = libc.ptrace(SEIZE, pid, None, None)
print(os.strerror(ctypes.get_errno()) if done else "seized", flush=True)
sys.stdin.read()
os.waitpid(pid, 0)
"""


@contextlib.contextmanager
def tracing(pid: int) -> Iterator["subprocess.Popen[str]"]:
    """A tracer that looks at what has become of the process when its stdin is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", TRACER, str(pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as tracer:
        assert tracer.stdout is not None
        said = tracer.stdout.readline().strip()
        if said != "seized":
            pytest.skip(f"no process can be traced here: {said}")
        yield tracer


def test_the_foreground_process_of_a_traced_daemon_waits(tmp_path: Path) -> None:
    """It sleeps until the tracer has seen the daemon's end, and ends as the daemon did."""
    program = Path(__file__).parent / "programs" / "daemonize_program.py"
    foreground = subprocess.Popen([sys.executable, str(program), "held", str(tmp_path)], stderr=subprocess.DEVNULL)
    announced = tmp_path / "announced"
    wait_until(announced.exists, what="the daemon")
    daemon = int(announced.read_text())
    with tracing(daemon) as tracer:
        os.kill(daemon, signal.SIGKILL)
        wait_until(lambda: process_state(daemon) == "Z", what="it is a zombie")
        wait_until(lambda: {process_state(foreground.pid) for _ in range(100)} == {"S"}, what="it sleeps")
        assert tracer.stdin is not None
        tracer.stdin.close()
        assert foreground.wait(20) == 128 + signal.SIGKILL


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
