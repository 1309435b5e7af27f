"""The door to the supervisor's watchdog: signs of life from the event loop, and a dump of the stacks when none came.

A sign is sent by a timer of the loop: it tells that the loop runs, and a function that holds it up is what the watchdog
is there to find. When the supervisor sends SIGABRT, every thread's stack goes into the file that it has named, written
by a signal handler in C: it works while Python code hangs.
"""

import asyncio
import contextlib
import faulthandler
import os
import socket
from collections.abc import Mapping

STACK_FILE = "PARSUP_STACK_FILE"
PER_INTERVAL = 3
"""Signs within the time after which their lack is noticed."""


class Watchdog:
    """Gives signs of life while the loop runs, if the environment asks for them."""

    def __init__(self, env: Mapping[str, str]) -> None:
        """Begins at once, in the running loop."""
        interval = env.get("WATCHDOG_USEC", "")
        address = env.get("NOTIFY_SOCKET", "")
        self._interval_s = int(interval) / 1e6 / PER_INTERVAL if interval.isascii() and interval.isdigit() else 0.0
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._timer: asyncio.TimerHandle | None = None
        self._file = -1
        if self._interval_s and self._address:
            self._leave_stacks_in(env.get(STACK_FILE, ""))
            self._beat()

    def _leave_stacks_in(self, path: str) -> None:
        with contextlib.suppress(OSError):  # without the file there is a watchdog all the same
            if path:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
                self._file = os.open(path, flags, 0o600)
                faulthandler.enable(self._file)

    def _beat(self) -> None:
        # A supervisor that is being replaced, or does not read: the next sign may find it.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(self._address)
            sock.send(b"WATCHDOG=1")
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._beat)

    def close(self) -> None:
        """No more signs."""
        if self._timer is not None:
            self._timer.cancel()
        if self._file >= 0:
            faulthandler.disable()
            os.close(self._file)
