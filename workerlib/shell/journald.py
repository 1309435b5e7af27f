"""The door to journald's native socket: records with fields, sent by this process, so that journald knows its pid.

Own code, because libsystemd's sd_journal_sendv waits for a journald that does not read, and cysystemd holds Python's
lock meanwhile: a stalled journald froze the whole program until systemd's watchdog killed it, three minutes later. Here
nothing waits. What journald does not take at once goes into a bounded backlog, which a thread sends as soon as it can;
what the backlog does not hold, or journald is not there to take, is counted, and the count is sent in its place.

A thread, since a worker's loop may be busy when journald returns, and a program may have none; it lives only while
something is left to send, so that there is none when a process forks or detaches in its ordinary life.
"""

import array
import atexit
import enum
import errno
import fcntl
import os
import select
import socket
import threading
import weakref
from collections.abc import Sequence

from workerlib.core import journal_entry
from workerlib.core.backlog import Backlog
from workerlib.core.journal_entry import Field

NATIVE_SOCKET = "/run/systemd/journal/socket"

BACKLOG_SIZE = 4 << 20
"""Bytes of records that are kept while journald does not read: seconds of a busy worker."""

_SEND_BUFFER = 8 << 20
"""As libsystemd has it; the kernel may allow less. What is larger than the kernel allows goes through a memory file."""

_LAST_CHANCE_S = 1.0
"""How long the end of the process waits for the thread."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
"""Without them journald would have to copy the file before it trusts it."""


class _Outcome(enum.Enum):
    SENT = "sent"
    BUSY = "busy"  # its queue is full; the socket becomes writable when it reads again
    AWAY = "away"  # nobody is there; nothing tells when somebody is


class Journald:
    """A sender of entries. May be used by any thread, and after a fork by parent and child."""

    def __init__(self, whose: Sequence[Field], path: str = NATIVE_SOCKET, backlog_size: int = BACKLOG_SIZE) -> None:
        """`whose` are the fields of the record that says how many were lost."""
        self._whose = whose
        self._path = path
        self._backlog_size = backlog_size
        self._socket: socket.socket | None = None
        self._flushed_at_exit = False
        self._start_over()
        this = weakref.WeakMethod(self._forget_parent)
        os.register_at_fork(after_in_child=lambda: (forget := this()) and forget())

    def _start_over(self) -> None:
        # Reentrant, because a signal handler that logs may interrupt a thread that does.
        self._lock = threading.RLock()
        self._backlog = Backlog(self._backlog_size)
        self._thread: threading.Thread | None = None
        self._draining = False

    def _forget_parent(self) -> None:
        """In a forked child: the parent sends what the parent has logged. Descriptors may be closed under the child,
        as detaching does, so it makes its own.
        """
        self._start_over()
        self._disconnect()

    def send(self, entry: bytes) -> None:
        """Sends an entry, or keeps it, or counts it as lost; in this order of entries. Never waits, never raises."""
        with self._lock:
            self._backlog.push(entry)
            if self._thread is None and not self._draining and self._drain() is _Outcome.BUSY:
                self._start_thread()

    def _drain(self) -> _Outcome:
        """Sends what it can, and what a signal handler logs meanwhile."""
        self._draining = True
        try:
            return self._send_all()
        finally:
            self._draining = False

    def _send_all(self) -> _Outcome:
        while self._backlog:
            item = self._backlog.head()
            outcome = self._send(journal_entry.lost(item, self._whose) if isinstance(item, int) else item)
            if outcome is _Outcome.AWAY:
                self._backlog.lose_all()
            if outcome is not _Outcome.SENT:
                return outcome
            self._backlog.pop()
        return _Outcome.SENT

    def _send(self, entry: bytes) -> _Outcome:
        for fresh in (self._socket is None, True):
            try:
                if self._socket is None:
                    self._connect()
                return self._send_somehow(entry)
            except BlockingIOError:
                return _Outcome.BUSY
            except OSError:
                self._disconnect()
                if fresh:
                    break  # else: this was the socket of a journald that has gone; there may be a new one
        return _Outcome.AWAY

    def _send_somehow(self, entry: bytes) -> _Outcome:
        assert self._socket is not None
        try:
            self._socket.send(entry)
        except BlockingIOError:
            raise
        except OSError as error:
            if not _too_large(error):
                raise
            self._send_file(self._socket, entry)
        return _Outcome.SENT

    @staticmethod
    def _send_file(to: socket.socket, entry: bytes) -> None:
        file = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            left = memoryview(entry)
            while left:
                left = left[os.write(file, left) :]
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
            to.sendmsg([], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]))])
        finally:
            os.close(file)

    def _connect(self) -> None:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            made.connect(self._path)
        except BaseException:
            made.close()
            raise
        self._socket = made

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # The thread. While it is there, it alone touches the socket.

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._follow, name="journald", daemon=True)
        if not self._flushed_at_exit:
            self._flushed_at_exit = True
            atexit.register(self._flush)
        try:
            self._thread.start()
        except RuntimeError:  # no thread can be made, or the interpreter ends: the next record tries again
            self._thread = None

    def _follow(self) -> None:
        while True:
            assert self._socket is not None, "a busy socket is an open one"
            poller = select.poll()
            poller.register(self._socket, select.POLLOUT)
            poller.poll()
            with self._lock:
                if self._drain() is not _Outcome.BUSY:
                    self._thread = None
                    return

    def _flush(self) -> None:
        if (thread := self._thread) is not None:
            thread.join(_LAST_CHANCE_S)

    def close(self) -> None:
        """Gives the thread a second to send what is left, and closes the socket if it did."""
        self._flush()
        with self._lock:
            if self._thread is None:
                self._disconnect()
        atexit.unregister(self._flush)


def _too_large(error: OSError) -> bool:
    """For a datagram; ENOBUFS is said where the kernel finds no memory for one in a piece."""
    return error.errno in {errno.EMSGSIZE, errno.ENOBUFS}


def stream_name(fd: int) -> str:
    """What systemd puts into JOURNAL_STREAM for a descriptor, so that a program knows where its stderr goes.

    Empty for a descriptor that is closed.
    """
    try:
        status = os.fstat(fd)
    except OSError:
        return ""
    return f"{status.st_dev}:{status.st_ino}"
