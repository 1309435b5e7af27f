"""The door to the service manager: sd_notify messages, its file descriptor store, and the descriptors that it passes.

Own code, since no kept package passes descriptors along, which the store and the barrier need. The protocol is stable
and documented for reimplementation: sd_notify(3), sd_pid_notify_with_fds(3), sd_notify_barrier(3), sd_listen_fds(3).
"""

import array
import os
import select
import socket
import time
from collections.abc import Iterable, MutableMapping

FIRST_FD = 3
SEND_S = 1.0
"""How long a message may wait for room in the service manager's queue; then it is given up, not this process."""
BARRIER_S = 5.0
"""How long the end of a process waits for a service manager that is busy."""


def inherited_fds(env: MutableMapping[str, str]) -> dict[str, int]:
    """The descriptors that the service manager has passed to this process, by name; of several with one name, the last.

    Removes the variables: units must not take them for their own.
    """
    pid, count, names = (env.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not count.isdigit():
        return {}
    known = names.split(":")
    found: dict[str, int] = {}
    for index in range(int(count)):
        fd = FIRST_FD + index
        os.set_inheritable(fd, False)
        name = known[index] if index < len(known) else ""
        if name in found:
            os.close(found[name])
        found[name] = fd
    return found


class Notifier:
    """Tells the service manager how this process is; without one, does nothing."""

    def __init__(self, env: MutableMapping[str, str]) -> None:
        """Takes NOTIFY_SOCKET and the watchdog's variables out of the environment: they are meant for this process."""
        names = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")
        self.variables = {name: env.pop(name) for name in names if name in env}
        """As they were: for another program in this same process."""
        self._address = self.variables.get("NOTIFY_SOCKET", "")
        watched, interval = self.variables.get("WATCHDOG_PID", ""), self.variables.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(interval) / 1e6 if interval.isdigit() and watched in {"", str(os.getpid())} else None
        """Within which time the service manager wants a sign of life; None: it does not."""
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]

    @property
    def listens(self) -> bool:
        """Whether there is a service manager that wants to know."""
        return bool(self._address)

    def send(self, *lines: str, fds: Iterable[int] = (), within_s: float = SEND_S) -> bool:
        """Sends assignments such as `READY=1` in one message; whether it arrived. Never raises for a lost manager."""
        if not self._address:
            return False
        passed = array.array("i", fds)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)] if passed else []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(within_s)
                sender.connect(self._address)
                sender.sendmsg(["\n".join(lines).encode(errors="backslashreplace")], ancillary)
        except OSError:
            return False
        return True

    def reloading(self) -> None:
        """A reload begins; it ends with READY=1."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def store(self, name: str, fd: int, *, within_s: float = SEND_S) -> None:
        """Has a descriptor kept over the end of this process: the next one finds it among its inherited ones.

        Not polled: a listening socket or a file has nothing to say, the end of a process is what it is kept for, and
        all must stay whatever poll would tell of them.
        """
        self.send("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", fds=[fd], within_s=within_s)

    def unstore(self, name: str, *, within_s: float = SEND_S) -> None:
        """Has it forgotten."""
        self.send("FDSTOREREMOVE=1", f"FDNAME={name}", within_s=within_s)

    def barrier(self, within_s: float) -> bool:
        """Waits until all messages before have been taken; blocks for `within_s` seconds at most."""
        if not self._address:
            return True
        out, into = os.pipe()
        try:
            sent = self.send("BARRIER=1", fds=[into])
            os.close(into)
            poller = select.poll()
            poller.register(out, 0)  # the other end is closed when the manager has come to this message
            return sent and bool(poller.poll(within_s * 1000))
        finally:
            os.close(out)
