"""What a child that this process forks, without exec, must not touch: the connections, and the loop that serves them.

It has a copy of both. Without this, a function that forks and lets its child end with `sys.exit` has the child answer
the call, on the socket that it shares with its parent; and the child's loop, when it is closed, removes from the epoll
set that they share what the parent waits for. In the child, all of them are replaced by ones that lead nowhere.
"""

import asyncio
import os
import select
import socket
import weakref
from contextlib import suppress
from typing import Any

_sockets: set[int] = set()
_loops: "weakref.WeakSet[asyncio.AbstractEventLoop]" = weakref.WeakSet()


def guard(fd: int, loop: asyncio.AbstractEventLoop) -> None:
    """A connection of this process; `unguard` must be called before its descriptor is closed."""
    _sockets.add(fd)
    _loops.add(loop)


def unguard(fd: int) -> None:
    _sockets.discard(fd)


def _epoll_of(loop: Any) -> int:
    """The descriptor with which a loop waits; neither asyncio nor uvloop has a public name for it."""
    if hasattr(loop, "_get_backend_id"):
        return int(loop._get_backend_id())  # noqa: SLF001
    return int(loop._selector.fileno())  # noqa: SLF001


def _cut_off() -> None:
    with suppress(OSError):
        here, there = socket.socketpair()
        with here, there:
            there.close()  # what is written to `here` now is an error, and what is read from it is the end
            for fd in _sockets:
                os.dup2(here.fileno(), fd, inheritable=False)
    _sockets.clear()
    for loop in _loops:
        with suppress(OSError, AttributeError, ValueError), select.epoll() as nothing:
            os.dup2(nothing.fileno(), _epoll_of(loop), inheritable=False)
    _loops.clear()


os.register_at_fork(after_in_child=_cut_off)
