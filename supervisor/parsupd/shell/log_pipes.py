"""The door to units' log pipes and to the logger that reads them: see logger.py and log_spool.py.

A pipe is a FIFO in the runtime directory, one for each stream of each life of an instance. What a unit gets is opened
for reading and writing, so that it never writes into a pipe that nobody reads, whoever of parsupd and its logger is
being replaced. parsupd itself holds the other end until the logger says that it is done: so what is in the pipe stays,
when the unit has ended while there was no logger.

The logger is this daemon's child, or that of an earlier one. It is known by its connection: the kernel says when it has
ended, and which process it is. A pid in a file could be somebody else's.
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from parsupd.core.log_records import Source
from parsupd.core.log_settings import STREAMS, LogSettings
from parsupd.core.units import InstanceName
from parsupd.shell.log_spool import fifo_name, find_fifos
from workerlib import __version__

PIPES, SOCKET = "logs", "logger.sock"  # as in logger.py, which does not load this and is not loaded here

NEW = ".new"
"""What the name of a pipe ends with until it is open for reading."""

MARK = "PARSUP_LOGGER"
"""The variable that names the parsupd whose logger a process is."""

PING_S = 5.0
"""A logger that has not answered within this time is stuck, and is replaced."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 1.0
"""Between the end of a logger that has lived for less than LIVED_S and the next one; otherwise there is none."""
LIVED_S = 1.0

_CREDENTIALS = struct.Struct("iII")


class LogPipes:
    """All log pipes of one daemon. Made inside the running loop."""

    def __init__(
        self,
        runtime: Path,
        logs: Path,
        limit: int,
        mark: str,
        watch: Callable[["subprocess.Popen[bytes]"], Coroutine[Any, Any, object]],
        log: Any,
    ) -> None:
        """`limit` bounds the bytes of all files; `watch` waits for the end of a child that was started here."""
        self._folder = runtime / PIPES
        self._runtime = runtime
        self._logs = logs
        self._limit = limit
        self._mark = mark
        self._watch = watch
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._held: dict[Source, int] = {}
        self._settings: dict[str, LogSettings] = {}
        self._sock: socket.socket | None = None
        self._pidfd = -1
        self._unsent = b""
        self._rest = b""
        self._answered = True
        self._pause_s = 0.0
        self._started_at = float("-inf")
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._watching: set[asyncio.Task[None]] = set()
        self._closed = False
        self._ended: asyncio.Event | None = None
        """Set when there is no logger any more, once that is wanted."""

    def recover(self, settings: Mapping[InstanceName, LogSettings]) -> None:
        """Takes over the logger and the pipes of an earlier daemon, if there are any."""
        self._settings = {str(name): value for name, value in settings.items()}
        for unnamed in self._folder.glob(f"*{NEW}"):  # it was killed in `open`
            unnamed.unlink(missing_ok=True)
        connected = self._connect()  # first: who is done with a pipe from now on tells it here
        with contextlib.suppress(FileNotFoundError):
            for source in find_fifos(str(self._folder)):
                self._hold(source)
        if self._held and not connected:
            self._start()

    def open(self, instance: InstanceName, generation: int, which: int, settings: LogSettings) -> int:
        """A descriptor for a unit's stdout or stderr, to be closed by the caller. Raises OSError."""
        source = Source(str(instance), generation, STREAMS[which])
        self._folder.mkdir(mode=0o700, exist_ok=True)
        # Under another name first: a logger that is just looking around would take it for one whose unit has ended.
        path, new = self._folder / fifo_name(source), self._folder / f"{fifo_name(source)}{NEW}"
        new.unlink(missing_ok=True)
        os.mkfifo(new, 0o600)
        fd = os.open(new, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fchmod(fd, 0o622)  # so that a unit of another user can open its /dev/stdout; the directory is ours alone
            new.rename(path)
            self._hold(source)
        except BaseException:
            os.close(fd)
            raise
        if self._sock is None and "start" not in self._timers:
            self._settings[source.name] = settings
            self._start()
        else:
            if self._settings.get(source.name) != settings:
                self._configure(source.name, settings)
            self._send("open", *source)
        return fd

    def configure(self, settings: Mapping[InstanceName, LogSettings]) -> None:
        """Those of all instances, as they are from now on."""
        for name, value in settings.items():
            if self._settings.get(str(name), value) != value:
                self._configure(str(name), value)

    def _configure(self, name: str, settings: LogSettings) -> None:
        self._settings[name] = settings
        self._send("settings", name, *settings.words())

    def _hold(self, source: Source) -> None:
        with contextlib.suppress(FileNotFoundError):  # the logger was quicker
            self._held[source] = os.open(
                self._folder / fifo_name(source), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
            )

    # The logger

    def _start(self) -> None:
        """Starts one. One that is about to end is waited for by it, not here."""
        self._started_at = self._loop.time()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        argv = [sys.executable, "-S", "-P", "-m", "parsupd.logger", str(self._runtime), str(self._logs), __version__]
        # Nothing of site-packages is needed there but this package, and looking for it takes longer than all else.
        env = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": os.defpath, MARK: self._mark}
        try:
            with theirs:
                popen = subprocess.Popen(
                    argv, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=env, start_new_session=True
                )
        except OSError as error:
            ours.close()
            self._log.error("logger_failed", reason=str(error))
            self._start_later()
            return
        task = self._loop.create_task(self._reap(popen))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)
        self._log.info("logger_started", pid=popen.pid)
        self._pidfd = os.pidfd_open(popen.pid)  # not reaped yet: that is done in this thread
        self._use(ours)

    async def _reap(self, popen: "subprocess.Popen[bytes]") -> None:
        with contextlib.suppress(ProcessLookupError):  # it has been reaped already
            await self._watch(popen)

    def _start_later(self) -> None:
        if self._loop.time() - self._started_at >= LIVED_S:
            self._pause_s = 0.0
        self._timers["start"] = self._loop.call_later(self._pause_s, self._start_again)
        self._pause_s = min(max(self._pause_s * 2, FIRST_PAUSE_S), LONGEST_PAUSE_S)

    def _start_again(self) -> None:
        del self._timers["start"]
        if self._held:
            self._start()

    def _connect(self) -> bool:
        """To one that an earlier daemon has started."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(self._runtime / SOCKET))
            pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            if uid != os.geteuid():
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            self._pidfd = os.pidfd_open(pid)
        except OSError:
            sock.close()
            return False
        self._log.info("logger_adopted", pid=pid)
        self._use(sock)
        return True

    def _use(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock, self._unsent, self._rest, self._answered = sock, b"", b"", True
        self._loop.add_reader(sock.fileno(), self._hear)
        self._timers["ping"] = self._loop.call_later(PING_S, self._ping)
        self._send("total", self._limit)
        for name, settings in self._settings.items():
            self._send("settings", name, *settings.words())
        self._send("scan")
        if self._ended is not None:
            self._send("end")

    def _send(self, *words: object) -> None:
        """Never waits for the logger. What it does not take is kept: it is little, and said anew to the next one."""
        if self._sock is None:
            return
        waiting = bool(self._unsent)
        self._unsent += "\t".join(map(str, words)).encode() + b"\n"
        if not waiting:
            self._flush()
            if self._unsent and self._sock is not None:
                self._loop.add_writer(self._sock.fileno(), self._flush)

    def _flush(self) -> None:
        if self._sock is None:
            return
        try:
            while self._unsent:
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self._unsent = b""  # it has ended, and will be heard to have
        self._loop.remove_writer(self._sock.fileno())

    def _hear(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._gone()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(line.decode(errors="replace").split("\t"))

    def _take(self, message: list[str]) -> None:
        match message:
            case ["hello", version, pid]:
                if version != __version__:
                    self._log.info("logger_replaced", pid=int(pid), reason=f"it is of version {version}")
                    self._kill()
            case ["done", name, generation, stream]:
                if (fd := self._held.pop(Source(name, int(generation), stream), None)) is not None:
                    os.close(fd)
            case ["trouble", name, reason]:
                self._log.error("unit_output_stuck", unit=name, reason=reason)
            case ["again", name]:
                self._log.warning("unit_output_again", unit=name, reason="its output is written again")
            case ["pong"]:
                self._answered = True
            case _:
                pass  # of another version

    def _ping(self) -> None:
        if not self._answered:
            self._log.error("logger_stuck", reason=f"it has not answered within {PING_S:g} s, and is replaced")
            self._kill()
            return
        self._answered = False
        self._send("ping")
        self._timers["ping"] = self._loop.call_later(PING_S, self._ping)

    def _kill(self) -> None:
        """It leaves nothing unfinished, however it ends."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _drop(self) -> None:
        if self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._sock.close()
            os.close(self._pidfd)
            self._sock, self._pidfd = None, -1
        if (timer := self._timers.pop("ping", None)) is not None:
            timer.cancel()

    def _gone(self) -> None:
        self._drop()
        if self._ended is not None and not self._held:
            self._ended.set()
        elif not self._closed and self._held:
            self._log.warning("logger_ended", reason="it is started again; what units write meanwhile is kept")
            self._start_later()

    # The end

    async def end(self, within_s: float) -> None:
        """All units are down: waits until the logger has written their last words, and has ended."""
        self._ended = asyncio.Event()
        if self._sock is not None:
            self._send("end")
        elif not self._held:
            self._ended.set()
        try:
            async with asyncio.timeout(within_s):
                await self._ended.wait()
            (self._runtime / SOCKET).unlink(missing_ok=True)  # of one that was killed
        except TimeoutError:
            names = sorted({source.name for source in self._held})
            self._log.warning("logger_left", units=names, reason="it goes on: somebody still has their output open")

    def close(self) -> None:
        """Lets go of everything; the logger and the units go on with what they have. May be called twice."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._drop()
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()
        for task in self._watching:
            task.cancel()
