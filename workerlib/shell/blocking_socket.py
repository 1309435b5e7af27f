"""The door to sockets for programs without an event loop: connect, send, receive, wait. The only file that does so."""

import errno
import os
import select
import socket
import struct
import time

from workerlib.core.uri import Location, UnixLocation, check_socket_path

RECEIVE_SIZE = 256 << 10
"""Bytes taken from the socket at most at a time."""

LONGEST_WAIT_S = 1e6
"""poll(2) counts milliseconds in an int."""

SOON_S = 0.05
"""How long `receive_soon` waits."""

SOON_SIZE = 4 << 10
"""Bytes that `receive_soon` takes at most: a buffer of RECEIVE_SIZE costs more than a small message."""

now = time.monotonic
"""The clock of all deadlines here."""

_SEND = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT


def _timeval(seconds: float) -> bytes:
    return struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))


class BlockingSocket:
    """One connected socket. `send` and `receive` never block; `wait` does for so long as it is told, `receive_soon` for
    SOON_S. The socket itself is in blocking mode with the kernel's own time limit, so that waiting for an answer and
    taking it is one system call: poll(2) in between made a short call a third slower.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(SOON_S))
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._writing = False

    def send(self, data: bytes | memoryview) -> int:
        """How many bytes were taken; 0 when the peer has not read what was sent before. Raises OSError."""
        try:
            # No SIGPIPE, also in a program that has given that signal its default action back, as `| head` wants.
            return self._sock.send(data, _SEND)
        except BlockingIOError:
            return 0

    def receive(self) -> bytes | None:
        """What has come, empty at the end of the stream, None when nothing has. Raises OSError."""
        try:
            return self._sock.recv(RECEIVE_SIZE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None

    def receive_into(self, room: memoryview) -> int | None:
        """The same, written to `room`, which is not empty: how many bytes that was."""
        try:
            return self._sock.recv_into(room, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None

    def receive_soon(self) -> bytes | None:
        """Waits up to SOON_S for something to come: the first SOON_SIZE bytes of it, or None. Raises OSError."""
        try:
            return self._sock.recv(SOON_SIZE)
        except BlockingIOError:
            return None

    def wait(self, within_s: float, *, writing: bool) -> None:
        """Returns when something has come or, when `writing`, there is room to send; or after `within_s`."""
        if writing is not self._writing:
            self._writing = writing
            self._poll.modify(self._sock, select.POLLIN | select.POLLOUT if writing else select.POLLIN)
        self._poll.poll(min(max(0.0, within_s), LONGEST_WAIT_S) * 1000)

    def peer_pid(self) -> int | None:
        """The process at the other end, or None for TCP and for one that is invisible from here (another container)."""
        credentials = self._credentials()
        return credentials[0] or None if credentials is not None else None

    def peer_uid(self) -> int | None:
        """The user of the process at the other end when it listened, as the kernel knows it; None for TCP."""
        credentials = self._credentials()
        return credentials[1] if credentials is not None else None

    def _credentials(self) -> tuple[int, int, int] | None:
        if self._sock.family != socket.AF_UNIX:
            return None
        size = struct.calcsize("3i")
        pid, uid, gid = struct.unpack("3i", self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        return pid, uid, gid

    def close(self) -> None:
        """Idempotent."""
        self._sock.close()


def open_socket(location: Location, within_s: float) -> BlockingSocket:
    """Connects. Raises OSError with the location in it, TimeoutError after `within_s`, UsageError for a bad path."""
    try:
        if isinstance(location, UnixLocation):
            return BlockingSocket(_open_unix(location.path, within_s))
        sock = socket.create_connection((location.host, location.port), timeout=within_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return BlockingSocket(sock)
    except TimeoutError:
        raise TimeoutError(errno.ETIMEDOUT, f"no connection within {within_s:g} s", str(location)) from None
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(location)) from None


def _open_unix(path: str, within_s: float) -> socket.socket:
    check_socket_path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A listener whose queue is full makes connect() wait, but only on a blocking socket: Python's own timeout makes
        # it a non-blocking one, where the kernel answers EAGAIN at once and offers nothing to wait for.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(max(within_s, 1e-3)))
        sock.connect(path)
    except BlockingIOError:
        sock.close()
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
    except BaseException:
        sock.close()
        raise
    return sock
