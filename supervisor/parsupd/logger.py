"""The logger: a program of its own that writes the output of units to their log files, and that parsupd keeps running.

`python -m parsupd.logger RUNTIME_DIR LOG_DIR VERSION`, with a connection to parsupd as stdin. It outlives parsupd, and
is found again at RUNTIME_DIR/logger.sock. It ends when nobody needs it: parsupd has ended or gone, and no unit has a
pipe open. It loads little, on purpose: neither asyncio nor msgspec.

Messages are lines of words with tabs between them. To the logger: `total BYTES`, `settings NAME ...`, `open NAME
GENERATION STREAM`, `scan` (open all pipes that are there), `end` (parsupd is about to), `ping`. From it: `hello VERSION
PID`, `done NAME GENERATION STREAM`, `trouble NAME REASON`, `again NAME LINES` (so many were dropped), `pong`.
"""

import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable

from parsupd.core.log_files import Trouble
from parsupd.core.log_records import Source
from parsupd.core.log_settings import LogSettings
from parsupd.shell.instance_log import InstanceLog, boot_id
from parsupd.shell.log_folder import TEMPORARY, LogFolder
from parsupd.shell.log_spool import Pipe, find_fifos, sweep

PIPES = "logs"
"""The directory of the pipes, in the runtime directory."""
SOCKET = "logger.sock"
FIRST_WORD_S = 30.0
"""How long a logger that was started waits for a parsupd that tells it something."""
SCAN_AGAIN_S = 1.0
MAX_MESSAGE = 64 << 10
MAX_UNSENT = 1 << 20

_CREDENTIALS = struct.Struct("iII")


class Client:
    """A connection to a parsupd."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.is_ending = False
        """Whether it only waits for the end, and does not keep us from it."""
        self.unsent = b""
        self._rest = b""

    def messages(self) -> list[list[str]]:
        """Those that have come. Raises EOFError at the end, and when it is no parsupd that speaks."""
        try:
            data = self.sock.recv(MAX_MESSAGE)
        except BlockingIOError:
            return []
        except OSError as error:
            raise EOFError from error
        if not data or len(self._rest) > MAX_MESSAGE:
            raise EOFError
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace").split("\t") for line in lines]

    def send(self, *words: object) -> None:
        """Never waits: one who does not listen loses messages, whose truth is in the directories."""
        if len(self.unsent) < MAX_UNSENT:
            self.unsent += "\t".join(map(str, words)).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            while self.unsent:
                self.unsent = self.unsent[self.sock.send(self.unsent) :]


class Logger:
    """Everything that one logger has."""

    def __init__(self, runtime: str, logs: str, version: str) -> None:
        self._pipes_dir = f"{runtime}/{PIPES}"
        os.makedirs(self._pipes_dir, mode=0o700, exist_ok=True)
        self._lock = os.open(f"{self._pipes_dir}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # the last one may still be about to end
        self._socket_path = f"{runtime}/{SOCKET}"
        self._version = version
        self._boot = boot_id()
        self._folder = LogFolder(logs)
        with contextlib.suppress(OSError):  # else it is said when something is to be written
            self._folder.open()
        self._logs: dict[str, InstanceLog] = {}
        self._settings: dict[str, LogSettings] = {}
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._clients: dict[int, Client] = {}
        self._heard = False
        self._scan_at = float("inf")
        """When pipes are looked for again that could not be opened."""
        self._unopened: set[Source] = set()
        self._reading: set[Pipe] = set()
        self._timed: set[InstanceLog] = set()
        """Those that have a deadline: most have none, and there may be a thousand."""
        self._compression: tuple[int, int, str, int] | None = None
        """What is being compressed: pid, pidfd, instance and number."""
        self._listening = self._listen()
        self._give_up_at = time.monotonic() + FIRST_WORD_S

    def _listen(self) -> socket.socket:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._socket_path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(self._socket_path)
        listening.setblocking(False)
        listening.listen(8)
        self._on(listening.fileno(), select.EPOLLIN, self._accept)
        return listening

    def _on(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def _off(self, fd: int) -> None:
        self._epoll.unregister(fd)
        del self._handlers[fd]

    # The loop

    def run(self) -> None:
        """Until nobody needs it."""
        while not self._may_end():
            now = time.monotonic()
            deadline = min((log.next_deadline(now) for log in self._timed), default=float("inf"))
            deadline = min(deadline, self._scan_at)
            if not self._heard:
                deadline = min(deadline, self._give_up_at)
            for fd, events in self._epoll.poll(-1 if deadline == float("inf") else max(deadline - now, 0) + 0.001):
                if (handler := self._handlers.get(fd)) is not None:
                    handler(events)
            now = time.monotonic()
            for log in [log for log in self._timed if log.next_deadline(now) <= now]:
                self._judge(log, now)
            if now >= self._scan_at:
                self._scan_at = float("inf")
                self._scan()
        self._close()

    def _may_end(self) -> bool:
        if not all(client.is_ending for client in self._clients.values()) or (
            not self._heard and time.monotonic() < self._give_up_at
        ):
            return False
        now = time.monotonic()
        return all(
            log.is_done or (log.is_dropping(now) and all(pipe.ended for pipe in log.pipes.values()))
            for log in self._logs.values()
        )

    def _close(self) -> None:
        if self._compression is not None:
            pid, pidfd, name, number = self._compression
            os.kill(pid, signal.SIGKILL)  # our own child; the next logger does it again
            os.waitpid(pid, 0)
            os.close(pidfd)
            with contextlib.suppress(OSError):
                os.unlink(temporary_name(self._folder.path_of(name, number), pid))
        for log in self._logs.values():
            log.close()
        self._listening.close()
        self._epoll.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._socket_path)

    # Connections

    def _accept(self, _events: int) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self._listening.accept()
            data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            if _CREDENTIALS.unpack(data)[1] == os.geteuid():
                self.connect(sock)
            else:
                sock.close()

    def connect(self, sock: socket.socket) -> None:
        """A parsupd is there."""
        client = Client(sock)
        self._clients[sock.fileno()] = client
        self._on(sock.fileno(), select.EPOLLIN, lambda _events: self._hear(client))
        self._say_to(client, "hello", self._version, os.getpid())

    def _hear(self, client: Client) -> None:
        client.flush()
        try:
            messages = client.messages()
        except EOFError:
            self._hang_up(client)
            return
        for message in messages:
            self._heard = True
            match message:
                case ["total", size]:
                    self._folder.limit = int(size)
                    self._keep_within(time.monotonic())
                case ["settings", name, *words]:
                    self._set(name, LogSettings.read(tuple(words)))
                case ["open", name, generation, stream]:
                    source = Source(name, int(generation), stream)
                    if self._opened(source):
                        self._begin(source)
                case ["scan"]:
                    self._scan()
                case ["ping"]:
                    self._say_to(client, "pong")
                case ["end"]:
                    client.is_ending = True
                case _:
                    pass  # of a later version
        if client.unsent and client.sock.fileno() >= 0:
            self._epoll.modify(client.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _hang_up(self, client: Client) -> None:
        fd = client.sock.fileno()
        if fd >= 0:
            self._off(fd)
            del self._clients[fd]
            client.sock.close()

    def _say_to(self, client: Client, *words: object) -> None:
        client.send(*words)
        events = select.EPOLLIN | (select.EPOLLOUT if client.unsent else 0)
        self._epoll.modify(client.sock.fileno(), events)

    def _say(self, *words: object) -> None:
        for client in self._clients.values():
            self._say_to(client, *words)

    # Instances

    def _log(self, name: str) -> InstanceLog:
        if name not in self._logs:
            settings = self._settings.get(name, LogSettings())
            self._logs[name] = InstanceLog(name, self._pipes_dir, self._folder, settings, self._boot, self._finished)
        return self._logs[name]

    def _set(self, name: str, settings: LogSettings) -> None:
        self._settings[name] = settings
        if (log := self._logs.get(name)) is not None:
            log.settings = settings
            self._folder.keep_within(name, settings)
            self._time(log)

    def _scan(self) -> None:
        there = find_fifos(self._pipes_dir)
        # All of them before any is read: with the end of its last pipe, what is known about an instance goes.
        opened = [source for source in there if self._opened(source)]
        for name, log in self._logs.items():
            log.forget_ended({source for source in there if source.name == name})
        for source in opened:
            self._begin(source)
        now = time.monotonic()
        for name in list(sweep(self._pipes_dir, set(self._logs))):
            log = self._log(name)  # an earlier logger was killed when all was read, but perhaps not all was said
            log.forget_ended(set())
            self._judge(log, now)

    def _opened(self, source: Source) -> bool:
        """Opens a pipe; whether that is new."""
        log = self._log(source.name)
        if source in log.pipes:
            return False
        try:
            pipe = log.open(source)
        except OSError as error:
            if source not in self._unopened:
                self._say("trouble", source.name, f"{error.strerror}: {error.filename}")
            self._unopened.add(source)
            self._scan_at = time.monotonic() + SCAN_AGAIN_S
            return False
        self._unopened.discard(source)
        return pipe is not None

    def _begin(self, source: Source) -> None:
        log = self._logs[source.name]
        pipe = log.pipes[source]
        if pipe.start < pipe.end:
            self._take(log, pipe)  # what a killed logger has taken
        self._watch(log, time.monotonic())

    def _take(self, log: InstanceLog, pipe: Pipe) -> None:
        now = time.monotonic()
        was = log.trouble
        log.take(pipe, now)
        if log.trouble is not None or was is not None:
            self._watch(log, now)
        self._after(log, was)
        if self._folder.is_over():
            self._keep_within(now)

    def _judge(self, log: InstanceLog, now: float) -> None:
        was = log.trouble
        log.judge(now)
        self._watch(log, now)
        self._after(log, was)

    def _time(self, log: InstanceLog) -> None:
        if log.next_deadline(time.monotonic()) < float("inf"):
            self._timed.add(log)
        else:
            self._timed.discard(log)

    def _after(self, log: InstanceLog, was: Trouble | None) -> None:
        if log.trouble is not None and was is None:
            self._say("trouble", log.name, log.trouble.reason)
        elif log.trouble is None and was is not None:
            self._say("again", log.name)
        if log.is_done:
            log.close()
            self._logs.pop(log.name, None)
            self._timed.discard(log)
        else:
            self._time(log)
        self._compress()

    def _watch(self, log: InstanceLog, now: float) -> None:
        """Reads those pipes that the log wants to be read."""
        for pipe in log.pipes.values():
            wanted = log.wants(pipe, now)
            if wanted and pipe not in self._reading:
                self._reading.add(pipe)
                self._on(pipe.fd, select.EPOLLIN, lambda _events, pipe=pipe: self._take(log, pipe))  # type: ignore[misc]
            elif not wanted and pipe in self._reading:
                self._reading.remove(pipe)
                self._off(pipe.fd)

    def _finished(self, pipe: Pipe) -> None:
        if pipe in self._reading:
            self._reading.remove(pipe)
            self._off(pipe.fd)
        self._say("done", *pipe.source)

    def _keep_within(self, now: float) -> None:
        """Removes files until all are within the bound."""
        while (name := self._folder.make_room()) is not None and name in self._logs:
            try:
                self._logs[name].rotate(now)
            except OSError:
                return

    # Compression

    def _compress(self) -> None:
        """Compresses the next file, in a process of its own that gives way to all others."""
        if self._compression is None and (found := self._folder.next_to_compress()) is not None:
            name, number = found
            path = self._folder.path_of(name, number)
            argv = [sys.executable, "-S", "-P", "-m", "parsupd.logger", "--compress", path]
            try:
                pid = os.posix_spawn(sys.executable, argv, os.environ)
                pidfd = os.pidfd_open(pid)
            except OSError:
                return  # no process to be had: the next rotation tries again
            self._compression = pid, pidfd, name, number
            self._on(pidfd, select.EPOLLIN, self._compressed)

    def _compressed(self, _events: int) -> None:
        assert self._compression is not None
        pid, pidfd, name, number = self._compression
        self._off(pidfd)
        os.close(pidfd)
        os.waitpid(pid, 0)
        self._compression = None
        self._folder.compressed(name, number)
        self._compress()


def temporary_name(path: str, pid: int) -> str:
    """Where a process compresses to: one that a killed logger has started may be at the same file."""
    return f"{path}.gz.{pid}{TEMPORARY}"


def compress(path: str) -> None:
    """Replaces the file by a compressed one. Killed at any moment, it leaves one or the other, or both."""
    import gzip  # noqa: PLC0415 - only this process needs it
    import shutil  # noqa: PLC0415 - same

    os.nice(19)
    temporary = temporary_name(path, os.getpid())
    with open(path, "rb") as source:
        status = os.fstat(source.fileno())
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with open(fd, "wb") as target:
                with gzip.GzipFile("", "wb", 6, target, status.st_mtime) as packing:
                    shutil.copyfileobj(source, packing, 1 << 18)
                target.flush()
                os.fsync(fd)  # the other copy goes now
            os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
            os.rename(temporary, f"{path}.gz")
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    os.unlink(path)


def main(arguments: list[str]) -> None:
    """The program."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        # Whoever ends everything at once shall read the last words of the units, too: this ends after them.
        signal.signal(signum, signal.SIG_IGN)
    os.umask(0o077)
    os.chdir("/")
    if arguments[0] == "--compress":
        with contextlib.suppress(OSError):
            compress(arguments[1])
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    logger = Logger(*arguments)
    logger.connect(socket.socket(fileno=os.dup(0)))
    os.dup2(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), 0)
    logger.run()


if __name__ == "__main__":
    main(sys.argv[1:])
