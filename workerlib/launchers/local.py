"""Starts a worker's process on this host."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence

from workerlib.core.daemonizing import ExitCause
from workerlib.shell import process
from workerlib.shell.pidfd import wait_own_pidfd

MAX_LINE = 64 << 10
"""Bytes of one line of stderr; a longer one is passed on in parts."""

READ_SIZE = 256 << 10
"""Bytes of stderr taken at most in one turn of the loop."""

Watch = Callable[[subprocess.Popen[bytes]], Awaitable[ExitCause]]
"""Waits for the end of a child process and reaps it. A program with one reaper for all children brings its own."""


def wait_by_pidfd(child: "subprocess.Popen[bytes]") -> Awaitable[ExitCause]:
    """Waits for and reaps exactly this child, whoever else waits for other children of this process.

    Raises OSError at once when there is no descriptor for it; the waiting itself needs no more of them.
    """
    return _reap(child, os.pidfd_open(child.pid))


async def _reap(child: "subprocess.Popen[bytes]", pidfd: int) -> ExitCause:
    try:
        await wait_own_pidfd(pidfd)
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)  # noqa: ASYNC222 - it has exited
    finally:
        os.close(pidfd)
    assert result is not None
    cause = process.exit_cause(result)
    child.returncode = cause.status  # so that Popen's destructor does not wait for a pid that is no longer its own
    return cause


class _Lines:
    """Reads a pipe, which it owns, and cuts what comes through it into lines.

    Not with a transport: uvloop's closes the descriptor of a pipe twice, and by the second time another thread may have
    got that number.
    """

    def __init__(self, pipe: int, on_line: Callable[[str], None]) -> None:
        self._pipe = pipe
        self._on_line = on_line
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        os.set_blocking(pipe, False)
        self._loop.add_reader(pipe, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._pipe, READ_SIZE)
        except BlockingIOError:
            return
        if not data:
            self.close()
            return
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = b""
        while len(rest) > MAX_LINE:
            lines.append(rest[:MAX_LINE])
            rest = rest[MAX_LINE:]
        self._rest = rest
        for line in lines:
            self._emit(line)

    def _emit(self, line: bytes) -> None:
        self._on_line(line.decode(errors="backslashreplace"))

    def close(self) -> None:
        """Reads no more. Idempotent."""
        if self._pipe >= 0:
            self._loop.remove_reader(self._pipe)
            os.close(self._pipe)
            self._pipe = -1
            self.ended.set_result(None)
            if self._rest:
                self._emit(self._rest)


class Launched:
    """A process that was started: the foreground process of a worker."""

    def __init__(
        self, child: "subprocess.Popen[bytes]", watch: Watch, stderr: int, on_stderr: Callable[[str], None]
    ) -> None:
        self._child = child
        self._exit = asyncio.ensure_future(watch(child))
        self._lines = _Lines(stderr, on_stderr)

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
        self._lines.close()


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
        with contextlib.ExitStack() as cleanup:
            config = os.memfd_create("workerlib-config", os.MFD_CLOEXEC)
            cleanup.callback(os.close, config)
            reading, writing = os.pipe2(os.O_CLOEXEC)
            cleanup.callback(os.close, writing)
            os.write(config, stdin)
            os.lseek(config, 0, os.SEEK_SET)
            try:
                child = subprocess.Popen(  # noqa: ASYNC220 - asyncio's own can signal a stranger after pid reuse
                    argv, env=env, stdin=config, stdout=subprocess.DEVNULL, stderr=writing, pass_fds=pass_fds, cwd=cwd
                )
            except BaseException:
                os.close(reading)
                raise
        try:
            return Launched(child, self._watch, reading, on_stderr)
        except BaseException:
            os.close(reading)
            child.kill()
            child.wait()
            raise
