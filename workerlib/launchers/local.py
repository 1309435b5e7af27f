"""Starts a worker's process on this host."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence

from workerlib.core.daemonizing import ExitCause
from workerlib.shell import process
from workerlib.shell.pidfd import wait_pidfd

MAX_LINE = 64 << 10
"""Bytes of one line of stderr; a longer one is passed on in parts."""

Watch = Callable[[subprocess.Popen[bytes]], Awaitable[ExitCause]]
"""Waits for the end of a child process and reaps it. A program with one reaper for all children brings its own."""


async def wait_by_pidfd(child: "subprocess.Popen[bytes]") -> ExitCause:
    """Waits for and reaps exactly this child, whoever else waits for other children of this process."""
    pidfd = os.pidfd_open(child.pid)
    try:
        await wait_pidfd(pidfd)
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)  # noqa: ASYNC222 - it has exited
    finally:
        os.close(pidfd)
    assert result is not None
    cause = process.exit_cause(result)
    child.returncode = cause.status  # so that Popen's destructor does not wait for a pid that is no longer its own
    return cause


class _Lines(asyncio.Protocol):
    """Cuts what comes through a pipe into lines."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = b""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._emit(line)
        while len(rest) > MAX_LINE:
            self._emit(rest[:MAX_LINE])
            rest = rest[MAX_LINE:]
        self._rest = rest

    def _emit(self, line: bytes) -> None:
        self._on_line(line.decode(errors="backslashreplace"))

    def connection_lost(self, _error: Exception | None) -> None:
        if self._rest:
            self._emit(self._rest)
        self.ended.set_result(None)


class Launched:
    """A process that was started: the foreground process of a worker."""

    def __init__(
        self, child: "subprocess.Popen[bytes]", watch: Watch, lines: _Lines, pipe: asyncio.BaseTransport
    ) -> None:
        self._child = child
        self._lines = lines
        self._pipe = pipe
        self._exit = asyncio.ensure_future(watch(child))

    @property
    def pid(self) -> int:
        return self._child.pid

    async def wait(self) -> ExitCause:
        """How the process ended. What it wrote to stderr before has been passed on when this returns."""
        cause = await asyncio.shield(self._exit)
        # A grandchild may hold the pipe open for ever: what is in it now is read, its end is not waited for.
        await asyncio.wait({self._lines.ended}, timeout=0.1)
        return cause

    def kill(self) -> None:
        """Kills the process; the daemon behind it dies with it while it is not released."""
        if not self._exit.done():
            os.kill(self._child.pid, signal.SIGKILL)  # not reaped yet, so the pid is still its own

    def close(self) -> None:
        """Reads no more of its stderr."""
        self._pipe.close()


class LocalLauncher:
    """Starts worker processes as children of this one."""

    def __init__(self, watch: Watch = wait_by_pidfd) -> None:
        self._watch = watch

    async def launch(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: bytes,
        on_stderr: Callable[[str], None],
        pass_fds: Sequence[int],
        cwd: str | None,
    ) -> Launched:
        """`pass_fds` are open in the worker under the same numbers.

        Raises OSError when the program cannot be started. Blocks for the time of a vfork and exec, about 1 ms.
        """
        # A memory file, not a pipe: it takes any length at once, and python-daemon cannot mistake it for a socket.
        config = os.memfd_create("workerlib-config", os.MFD_CLOEXEC)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            os.write(config, stdin)
            os.lseek(config, 0, os.SEEK_SET)
            child = subprocess.Popen(  # noqa: ASYNC220 - asyncio's own can signal a stranger after pid reuse
                argv, env=env, stdin=config, stdout=subprocess.DEVNULL, stderr=writing, pass_fds=pass_fds, cwd=cwd
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(config)
            os.close(writing)
        pipe, lines = await asyncio.get_running_loop().connect_read_pipe(
            lambda: _Lines(on_stderr), os.fdopen(reading, "rb", buffering=0)
        )
        return Launched(child, self._watch, lines, pipe)
