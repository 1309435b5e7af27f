"""The door to NOTIFY_SOCKET as a service manager offers it: datagrams of a unit's processes, with who has sent each.

A file below the runtime directory, mode 0600: who may send is who may open it, and the kernel tells which process it
was. Descriptors that come along are closed once their message has been taken: that is all a barrier waits for, see
sd_notify_barrier(3).
"""

import array
import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from hashlib import blake2s
from pathlib import Path
from typing import NamedTuple

from parsupd.core.notification import MAX_SIZE

MAX_PATH = 107
MAX_DESCRIPTORS = 16
AT_ONCE = 64
"""Messages that are taken before others get their turn."""

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class Notice(NamedTuple):
    """One message, and who has sent it."""

    data: bytes
    pid: int
    uid: int


class NoticeSocket:
    """Where one instance sends its messages. Raises OSError when it cannot be made."""

    def __init__(self, folder: Path, name: str) -> None:
        path = folder / name
        if len(os.fsencode(path)) > MAX_PATH:
            path = folder / blake2s(name.encode(), digest_size=8).hexdigest()
        if len(os.fsencode(path)) > MAX_PATH:
            raise OSError(f"the path of its NOTIFY_SOCKET is too long: {path}; choose a shorter runtime directory")
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            path.unlink(missing_ok=True)  # of an earlier daemon: the directory is ours alone
            mask = os.umask(0o177)
            try:
                self.socket.bind(self.path)
            finally:
                os.umask(mask)
        except OSError:
            self.socket.close()
            raise

    def fileno(self) -> int:
        return self.socket.fileno()

    def give_to(self, user: int) -> None:
        """Lets a user send to it, and nobody else but root."""
        os.chown(self.path, user, -1)

    def take(self) -> Iterator[Notice]:
        """The messages that are there, a limited number. Each counts as taken, for its barrier, when the next is asked
        for.
        """
        room = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
        for _ in range(AT_ONCE):
            try:
                data, ancillary, flags, _ = self.socket.recvmsg(MAX_SIZE, room, socket.MSG_CMSG_CLOEXEC)
            except OSError:
                return
            pid, uid, passed = 0, -1, array.array("i")
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                    pid, uid, _ = _CREDENTIALS.unpack(content[: _CREDENTIALS.size])
                elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    passed.frombytes(content[: len(content) - len(content) % passed.itemsize])
            try:
                if not flags & socket.MSG_TRUNC:
                    yield Notice(data, pid, uid)
            finally:
                for fd in passed:
                    os.close(fd)

    def close(self) -> None:
        """Removes it."""
        self.socket.close()
        with contextlib.suppress(OSError):
            Path(self.path).unlink()
