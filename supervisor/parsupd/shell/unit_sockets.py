"""The door to the sockets that units listen on: opened once for all instances, and kept while their processes change.

They are passed as systemd passes them: from descriptor 3 on, counted by LISTEN_FDS. The service manager keeps them
over the end of the daemon, too; what it hands back is used when it still is what the unit's file asks for.
"""

import contextlib
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from parsupd.core.units import ListenAddress
from parsupd.shell.notify_socket import Notifier
from workerlib import UsageError
from workerlib.core.uri import check_socket_path
from workerlib.shell.listening import remove_stale_socket

BACKLOG = 4096
PREFIX = "listen-"
"""How the names of descriptors begin that are units' sockets."""


class UnitSockets:
    """The sockets of all units."""

    def __init__(self, notifier: Notifier, inherited: Mapping[str, int]) -> None:
        self._notifier = notifier
        self._inherited = dict(inherited)
        self._open: dict[str, list[socket.socket]] = {}
        self._addresses: dict[str, Sequence[ListenAddress]] = {}

    def fds(self, unit: str, addresses: Sequence[ListenAddress]) -> list[int]:
        """The unit's descriptors, opened at its first start. Raises UsageError and OSError with the address in it."""
        if self._addresses.get(unit) != addresses:
            self.close(unit)
        if unit not in self._open:
            opened: list[socket.socket] = []
            try:
                for index, address in enumerate(addresses):
                    opened.append(self._take_back(_name(unit, index), address) or listen_at(address))
            except BaseException:
                for sock in opened:
                    sock.close()
                raise
            self._open[unit], self._addresses[unit] = opened, addresses
            for index, sock in enumerate(opened):
                self._notifier.store(_name(unit, index), sock.fileno())
        return [sock.fileno() for sock in self._open[unit]]

    def _take_back(self, name: str, address: ListenAddress) -> socket.socket | None:
        fd = self._inherited.pop(name, None)
        if fd is None:
            return None
        sock = socket.socket(fileno=fd)
        if _is_at(sock, address):
            return sock
        sock.close()
        self._notifier.unstore(name)
        return None

    def is_open(self, unit: str) -> bool:
        """Whether the unit has sockets that are open here."""
        return bool(self._open.get(unit))

    def close(self, unit: str) -> None:
        """Nobody listens there any more: who connects is refused. Idempotent."""
        for index, sock in enumerate(self._open.pop(unit, [])):
            self._notifier.unstore(_name(unit, index))
            if sock.family == socket.AF_UNIX:
                with contextlib.suppress(OSError):
                    Path(sock.getsockname()).unlink()
            sock.close()
        self._addresses.pop(unit, None)

    def held(self) -> dict[str, int]:
        """All that listen, by the names under which the next parsupd finds them."""
        opened = {
            _name(unit, index): sock.fileno()
            for unit, sockets in self._open.items()
            for index, sock in enumerate(sockets)
        }
        return {name: fd for name, fd in self._inherited.items() if name.startswith(PREFIX)} | opened

    def release(self) -> None:
        """Closes the daemon's own copies; what the service manager and the units have goes on."""
        for sockets in self._open.values():
            for sock in sockets:
                sock.close()
        self._open.clear()


def _name(unit: str, index: int) -> str:
    return f"{PREFIX}{index}-{unit}"


def _is_at(sock: socket.socket, address: ListenAddress) -> bool:
    try:
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return False
        where = sock.getsockname()
    except OSError:
        return False
    if sock.family != _family(address):
        return False
    if address.path:
        return bool(where == address.path and Path(address.path).is_socket())
    return bool(where[:2] == (address.host, address.port))


def _family(address: ListenAddress) -> socket.AddressFamily:
    if address.path:
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address.host else socket.AF_INET


def listen_at(address: ListenAddress) -> socket.socket:
    """A socket that listens there. A Unix socket gets mode 0600, and takes the place of one that nobody listens on."""
    if address.path:
        check_socket_path(address.path)
        if not remove_stale_socket(address.path):
            raise UsageError(f"sockets: {address}: somebody listens there, or it is no socket")
    sock = socket.socket(_family(address), socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if address.path:
            sock.bind(address.path)
            Path(address.path).chmod(0o600)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address.host, address.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"sockets: {error.strerror}", str(address)) from None
    return sock
