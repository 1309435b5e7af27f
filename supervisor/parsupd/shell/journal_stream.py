"""The door to journald's stream socket: descriptors that a unit writes its stdout and stderr to, as under systemd.

Lines go from the unit to journald: none passes through, waits for, or dies with the daemon. An instance has one
connection a stream for all its lives, so that a restart costs none. What the daemon keeps is only to be told when
journald hangs up: a restart of journald does not, where systemd keeps its connections for it.
"""

import asyncio
import select
import socket
from pathlib import Path
from typing import Any

from parsupd.core.units import InstanceName

STREAM_SOCKET = "/run/systemd/journal/stdout"

STDOUT, STDERR = 1, 2

_PRIORITY = {STDOUT: 6, STDERR: 4}
"""What a line without a `<N>` of its own counts as: info, and, so that it can be asked for by priority, warning."""

_NAME = {STDOUT: "stdout", STDERR: "stderr"}

_SEND_BUFFER = 8 << 20
"""Bytes that a unit may write before it waits for journald, as systemd sets it; the kernel may allow less."""

Stream = tuple[InstanceName, int]


class JournalStreams:
    """The streams of all units. Made inside the running loop."""

    def __init__(self, log: Any, path: str = STREAM_SOCKET) -> None:
        self._log = log
        self._path = path
        self._open: dict[Stream, socket.socket] = {}
        self._stream_of: dict[int, Stream] = {}
        self._lost: set[Stream] = set()
        # Not the loop's own poller: it would ask for more than the hang-up, and these sockets are always at their end,
        # since journald never sends anything.
        self._hang_ups = select.epoll()
        asyncio.get_running_loop().add_reader(self._hang_ups, self._take_hang_ups)

    def fd(self, instance: InstanceName, which: int) -> int | None:
        """The descriptor for an instance's STDOUT or STDERR; it stays this object's.

        None, with a record in the log, when journald cannot be reached. Never waits for it.
        """
        found = self._open.get((instance, which))
        if found is None:
            try:
                found = connect(self._path, str(instance), _PRIORITY[which])
            except OSError as error:
                reason = f"journald cannot be reached at {self._path}: {error.strerror}; parsupd's own stderr is used"
                self._log.warning("unit_output_elsewhere", unit=str(instance), stream=_NAME[which], reason=reason)
                return None
            self._open[instance, which] = found
            self._stream_of[found.fileno()] = (instance, which)
            self._hang_ups.register(found, 0)  # a hang-up is always reported
            if (instance, which) in self._lost:
                # Said again, as journald may have taken the record of the loss with it.
                self._lost.remove((instance, which))
                reason = f"journald had closed its {_NAME[which]}; what it has written since then is lost"
                self._log.warning("unit_output_again", unit=str(instance), stream=_NAME[which], reason=reason)
        return found.fileno()

    def _take_hang_ups(self) -> None:
        for fd, _ in self._hang_ups.poll(0):
            instance, which = stream = self._stream_of.pop(fd)
            self._hang_ups.unregister(fd)
            self._open.pop(stream).close()
            self._lost.add(stream)
            reason = (
                f"journald has closed the stream of its {_NAME[which]}: what it writes is lost until its next start"
            )
            self._log.error("unit_output_lost", unit=str(instance), stream=_NAME[which], reason=reason)

    def close(self) -> None:
        """Closes the daemon's own copies; units keep theirs. May be called twice: a hand-over closes before the end."""
        if self._hang_ups.closed:
            return
        asyncio.get_running_loop().remove_reader(self._hang_ups)
        self._hang_ups.close()
        for stream in self._open.values():
            stream.close()
        self._open.clear()


def connect(path: str, identifier: str, priority: int) -> socket.socket:
    """A connection whose lines are kept under `identifier`. Raises OSError; never waits for journald."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        stream.connect(path)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        # Identifier, unit (systemd's, which journald finds out itself), priority, whether lines may begin with <N>,
        # and whether to forward to syslog, kmsg and the console.
        stream.sendall(f"{identifier}\n\n{priority}\n1\n0\n0\n0\n".encode())
        stream.setblocking(True)  # for the unit, which shares this setting
    except BaseException:
        stream.close()
        raise
    return stream


def available(path: str = STREAM_SOCKET) -> bool:
    """Whether there is a journald on this machine, running or about to be started."""
    return Path(path).is_socket()
