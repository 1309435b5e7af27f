"""Signs of life from a thread, for a process whose event loop is held up by a long computation.

Rejected: to let the thread write to the transport, which belongs to the loop; and to let it write to the socket beside
the transport, whose messages it could cut in two. So in this mode the loop writes to the socket as well, under a lock
that both take, and hands to the transport only what the socket has no room for; while something is left there, the
thread keeps quiet.
"""

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from workerlib.core import frames
from workerlib.core.payload import MSGPACK
from workerlib.core.session import PONG
from workerlib.shell import forks

BEAT = frames.encode(frames.PING, MSGPACK, 0, 0, PONG)
"""An answer to nothing: what every end of workerlib's dialect takes, and what proves that this process lives."""


class Beat:
    """Writes to one connection, and beats on it while `is_open`. Made and closed by its event loop."""

    def __init__(self, transport: asyncio.Transport, is_open: Callable[[], bool], interval_s: float) -> None:
        self.interval_s = interval_s
        self._transport = transport
        self._is_open = is_open
        # A descriptor of its own: the loop may close the transport's, and another file get its number, at any time.
        self._sock = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._left_to_transport = False
        forks.guard(self._sock.fileno(), self._loop)
        _beater.add(self)

    def write(self, data: bytes) -> None:
        """Writes without waiting, as a transport does."""
        with self._lock:
            if not self._left_to_transport and not self._transport.get_write_buffer_size():
                sent = 0
                with suppress(OSError):  # no room, or an error that the transport will meet as well
                    sent = self._sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                if sent == len(data):
                    return
                data = data[sent:]
            self._transport.write(data)
            if not self._left_to_transport:
                # uvloop counts what it has been given only from the end of this turn on.
                self._left_to_transport = True
                self._loop.call_soon(self._counted)

    def _counted(self) -> None:
        self._left_to_transport = False

    def beat(self) -> None:
        """One sign of life, from the thread. A peer that has not taken what it was sent gets none."""
        with self._lock:
            if self._is_open() and not self._left_to_transport and not self._transport.get_write_buffer_size():
                with suppress(OSError):
                    sent = self._sock.send(BEAT, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                    if sent < len(BEAT):
                        self._left_to_transport = True
                        self._loop.call_soon_threadsafe(self._finish, BEAT[sent:])

    def _finish(self, rest: bytes) -> None:
        self._transport.write(rest)
        self._loop.call_soon(self._counted)

    def unlock(self) -> None:
        """In a forked child, where nobody is left who could."""
        self._lock = threading.Lock()

    def close(self) -> None:
        _beater.remove(self)
        with self._lock:
            self._is_open = lambda: False
            forks.unguard(self._sock.fileno())
            self._sock.close()


class _Beater:
    """The thread, which lives as long as there is a connection to beat on."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._beats: set[Beat] = set()
        self._thread: threading.Thread | None = None

    def forget(self) -> None:
        """In a forked child there is no such thread, and a lock that it held would be held for ever."""
        for beat in self._beats:
            beat.unlock()
        self._changed = threading.Condition()
        self._beats.clear()
        self._thread = None

    def add(self, beat: Beat) -> None:
        with self._changed:
            self._beats.add(beat)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="workerlib-beat", daemon=True)
                self._thread.start()
            self._changed.notify()

    def remove(self, beat: Beat) -> None:
        with self._changed:
            self._beats.discard(beat)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._beats:
                    self._thread = None
                    return
                if self._changed.wait(min(beat.interval_s for beat in self._beats)):
                    continue
                beats = list(self._beats)
            for beat in beats:
                beat.beat()


_beater = _Beater()


os.register_at_fork(after_in_child=_beater.forget)
