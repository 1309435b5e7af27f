"""Listening sockets: made private before they have their name, taken over from another process, removed at the end."""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import stat

from workerlib.core.uri import Location, TcpLocation, UnixLocation, check_socket_path
from workerlib.errors import UsageError
from workerlib.shell.transport import Factory

BACKLOG = 512
"""Connections that may wait to be accepted."""


class Listener:
    """A listening socket. `location` is where clients reach it; `close` stops accepting and removes the socket file."""

    def __init__(self, server: asyncio.Server, location: Location, inode: int | None) -> None:
        self._server = server
        self.location = location
        self._inode = inode
        self._owner = os.getpid()

    def close(self) -> None:
        """Idempotent. Connections that were accepted stay."""
        self._server.close()
        if isinstance(self.location, UnixLocation) and self._inode is not None and os.getpid() == self._owner:
            # Only our own file: another server may have bound the name after ours was removed, and a child that was
            # forked off has no say.
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self.location.path).st_ino == self._inode:
                    os.unlink(self.location.path)
            self._inode = None


async def listen(
    location: Location, factory: Factory, *, tls: ssl.SSLContext | None = None, sock: socket.socket | None = None
) -> Listener:
    """Binds and accepts. A Unix socket gets mode 0600, and a stale file of that name is replaced.

    With `sock`, a Unix socket that listens already at `location`, it only accepts, and its file stays.

    Raises UsageError for a path that is too long, OSError (EADDRINUSE) when another server lives there.
    """
    loop = asyncio.get_running_loop()
    if isinstance(location, TcpLocation):
        server = await loop.create_server(factory, location.host, location.port, ssl=tls)
        host, port = server.sockets[0].getsockname()[:2]
        return Listener(server, TcpLocation(host, port), None)
    inode = None
    if sock is None:
        sock = bind_unix(location.path)
        inode = os.stat(location.path).st_ino
    try:
        server = await loop.create_unix_server(factory, sock=sock, backlog=BACKLOG, start_serving=False)
    except BaseException:
        sock.close()
        raise
    listener = Listener(server, location, inode)
    try:
        await server.start_serving()
    except BaseException:  # cancelled: the loop watches the socket already
        listener.close()
        raise
    return listener


def bind_unix(path: str) -> socket.socket:
    """A socket that listens at `path`. Raises UsageError and OSError as `listen` does.

    The file gets its name when it is private and listened on, so that nobody finds a socket there that refuses him. A
    server that starts at the same moment under the same name is kept away by its directory's lock, not here.
    """
    check_socket_path(path)
    if not remove_stale_socket(path):
        raise OSError(errno.EADDRINUSE, "another server listens here, or it is no socket", path)
    unready = f"{path[:-1]}~"  # not longer than the path, whose length is limited
    with contextlib.suppress(FileNotFoundError):
        os.unlink(unready)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(unready)
        os.chmod(unready, 0o600)
        sock.listen(BACKLOG)
        os.rename(unready, path)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, error.strerror, path) from None
    return sock


def inherit_unix(fd: int, path: str) -> socket.socket | None:
    """A listening Unix socket that another process has handed to this one; None, and it is closed, when its file at
    `path` is not there any more. Raises UsageError when it is no such socket.
    """
    sock = socket.socket(fileno=fd)
    if sock.family != socket.AF_UNIX or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise UsageError(f"descriptor {fd}, which was handed to this process, is no Unix socket that listens")
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            return sock
    sock.close()
    return None


def remove_stale_socket(path: str) -> bool:
    """Removes a socket file that nobody listens on; whether it is gone."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
    except FileNotFoundError:
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return True
        except OSError:
            return False
    return False
