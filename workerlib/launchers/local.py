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

LAST_LINES_S = 0.1
"""How long the end of a process's output is waited for once the process has ended."""

READ_SIZE = 256 << 10
"""Bytes of stderr taken at most in one turn of the loop."""

TRACED_S = 0.02
"""Between two looks at a process that has exited and whose tracer has not seen that: nothing tells when it has."""

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
        while (result := _waitid(pidfd)) is None:  # noqa: ASYNC110 - there is nothing to wait for
            await asyncio.sleep(TRACED_S)
    finally:
        os.close(pidfd)
    cause = process.exit_cause(result)
    child.returncode = cause.status  # so that Popen's destructor does not wait for a pid that is no longer its own
    return cause


def _waitid(pidfd: int) -> os.waitid_result | None:
    """Reaps a process that has exited; None while a tracer (strace, a debugger) has not let go of it."""
    return os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)


class _Lines:
    """Reads a pipe, which it owns, and cuts what comes through it into lines.

    Not with a transport: uvloop's closes the descriptor of a pipe twice, and by the second time another thread may have
    got that number.
    """

    def __init__(self, pipe: int, on_line: Callable[[str], object]) -> None:
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
        self, child: "subprocess.Popen[bytes]", watch: Watch, pipes: Sequence[tuple[int, Callable[[str], object]]]
    ) -> None:
        self._child = child
        self._watch = watch
        self._exit = asyncio.ensure_future(watch(child))
        self._lines = [_Lines(pipe, on_line) for pipe, on_line in pipes]

    @property
    def pid(self) -> int:
        return self._child.pid

    async def wait(self) -> ExitCause:
        """How the process ended. What it wrote to stderr before has been passed on when this returns."""
        cause = await asyncio.shield(self._exit)
        # A grandchild may hold the pipe open for ever: what is in it now is read, its end is not waited for.
        await asyncio.wait({lines.ended for lines in self._lines}, timeout=LAST_LINES_S)
        return cause

    def kill(self) -> None:
        """Kills the process; the daemon behind it dies with it while it is not released."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, signum: int) -> None:
        """Does nothing when the process has ended."""
        if not self._exit.done():
            os.kill(self._child.pid, signum)  # not reaped yet, so the pid is still its own

    async def outlast_loop(self, within_s: float) -> None:
        """For the last turns of an event loop, which has cancelled the watching: waits so long for the end of the
        process, reaps it, and reads no more.
        """
        if self._exit.cancelled():
            self._exit = asyncio.ensure_future(self._watch(self._child))
        await asyncio.wait({self._exit}, timeout=within_s)
        self._exit.cancel()
        await asyncio.gather(self._exit, return_exceptions=True)
        self.close()

    def close(self) -> None:
        """Reads no more of its output."""
        for lines in self._lines:
            lines.close()


def _pipe(kept: contextlib.ExitStack, passed: contextlib.ExitStack) -> tuple[int, int]:
    """The reading and the writing end of a new pipe, each to be closed by its stack."""
    ends = os.pipe2(os.O_CLOEXEC)
    kept.callback(os.close, ends[0])
    passed.callback(os.close, ends[1])
    return ends


class LocalLauncher:
    """Starts worker processes as children of this one."""

    def __init__(self, watch: Watch = wait_by_pidfd, in_child: Callable[[], object] | None = None) -> None:
        """`in_child` is called in the new process before its program; what it raises makes the start fail."""
        self._watch = watch
        self._in_child = in_child

    async def launch(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: bytes,
        on_stderr: Callable[[str], object],
        on_stdout: Callable[[str], object] | None = None,
        pass_fds: Sequence[int],
        cwd: str | None,
    ) -> Launched:
        """`pass_fds` are open in the worker under the same numbers. Without `on_stdout`, its stdout is thrown away.

        Raises OSError when the program cannot be started. Blocks for the time of a vfork and exec, about 1 ms.
        """
        with contextlib.ExitStack() as kept, contextlib.ExitStack() as passed:
            # A memory file, not a pipe: it takes any length at once, and python-daemon cannot mistake it for a socket.
            config = os.memfd_create("workerlib-config", os.MFD_CLOEXEC)
            passed.callback(os.close, config)
            os.write(config, stdin)
            os.lseek(config, 0, os.SEEK_SET)
            stderr_end, stderr = _pipe(kept, passed)
            pipes, stdout = [(stderr_end, on_stderr)], subprocess.DEVNULL
            if on_stdout is not None:
                stdout_end, stdout = _pipe(kept, passed)
                pipes.append((stdout_end, on_stdout))
            child = subprocess.Popen(  # noqa: ASYNC220 - asyncio's own can signal a stranger after pid reuse
                argv,
                env=env,
                stdin=config,
                stdout=stdout,
                stderr=stderr,
                pass_fds=pass_fds,
                cwd=cwd,
                preexec_fn=self._in_child,  # noqa: PLW1509 - whoever gives one knows what may run there
            )
            try:
                launched = Launched(child, self._watch, pipes)
            except BaseException:
                child.kill()
                child.wait()
                raise
            kept.pop_all()
            return launched
