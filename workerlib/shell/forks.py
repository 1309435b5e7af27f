"""What a child that this process forks, without exec, must not touch: the connections, and the loop that serves them.

It has a copy of both. Without this, a function that forks and lets its child end with `sys.exit` has the child answer
the call, on the socket that it shares with its parent; and the child's loop, when it goes on or is closed, takes from
the epoll set what the parent waits for, and writes to libuv's io_uring, which is one memory for both and aborts the
parent then. In the child, sockets and epoll set are replaced by ones that lead nowhere, and a child that is about to
return to the loop is ended instead.
"""

import asyncio
import os
import select
import socket
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

EXIT_RETURNED = 70
"""The exit status of a forked child that would have gone on as a copy of its parent (EX_SOFTWARE)."""

_sockets: dict[int, Callable[[], object]] = {}
_loops: "weakref.WeakSet[asyncio.AbstractEventLoop]" = weakref.WeakSet()


def guard(fd: int, loop: asyncio.AbstractEventLoop, silence: Callable[[], object] = lambda: None) -> None:
    """A connection of this process; `unguard` must be called before its descriptor is closed.

    `silence` is called in a child: asyncio takes the loop there for one that does not run, so nothing shall be done.
    """
    _sockets[fd] = silence
    _loops.add(loop)


def unguard(fd: int) -> None:
    _sockets.pop(fd, None)


class _Process:
    is_forked = False


def leave(error: BaseException | None = None) -> None:
    """In a forked child, ends the process with the status that `error` asks for; elsewhere it does nothing.

    As a child of multiprocessing ends: what is buffered is written, no atexit function is run.
    """
    if not _Process.is_forked:
        return
    status = EXIT_RETURNED
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or missing
            stream.flush()
    os._exit(status & 0xFF)


def _epoll_of(loop: Any) -> int:
    """The descriptor with which a loop waits; neither asyncio nor uvloop has a public name for it."""
    if hasattr(loop, "_get_backend_id"):
        return int(loop._get_backend_id())  # noqa: SLF001
    return int(loop._selector.fileno())  # noqa: SLF001


def _cut_off() -> None:
    if _loops:
        _Process.is_forked = True
    with suppress(OSError):
        here, there = socket.socketpair()
        with here, there:
            there.close()  # what is written to `here` now is an error, and what is read from it is the end
            for fd, silence in _sockets.items():
                os.dup2(here.fileno(), fd, inheritable=False)
                silence()
    _sockets.clear()
    for loop in _loops:
        with suppress(OSError, AttributeError, ValueError), select.epoll() as nothing:
            os.dup2(nothing.fileno(), _epoll_of(loop), inheritable=False)
    _loops.clear()


os.register_at_fork(after_in_child=_cut_off)
