"""What a piece of code leaves behind: file descriptors, threads, child processes, zombies, tasks."""

import asyncio
import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from workerlib.shell.loop import settle
from workerlib.shell.process import set_child_subreaper

T = TypeVar("T")

STEP_S = 0.002
"""How often something is looked at that tells nobody when it changes."""


def wait_until(condition: Callable[[], T], *, within_s: float = 10.0, what: str = "") -> T:
    """Calls `condition` until it returns something true, and returns that. Blocks the thread.

    Raises AssertionError after `within_s` seconds, with `what` was waited for.
    """
    give_up_at = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not within {within_s} s: {what or getattr(condition, '__doc__', None) or condition}")
        time.sleep(STEP_S)


def children(pid: int | None = None) -> set[int]:
    """Pids of the direct children of `pid` (default: this process), zombies included."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid or os.getpid()}/task").iterdir():
        try:
            found.update(int(child) for child in (task / "children").read_text().split())
        except FileNotFoundError:
            continue
    return found


def process_state(pid: int) -> str | None:
    """The state letter of /proc/PID/stat ("R", "S", "Z", ...), or None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return stat.rpartition(")")[2].split()[0]


def alive(pid: int) -> bool:
    """Whether the process runs: not gone, and not a zombie that somebody has yet to reap."""
    return process_state(pid) not in {None, "Z", "X"}


def command_line(pid: int) -> list[str]:
    """The program of a process and its arguments; nothing for a zombie, or when there is no such process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def open_fds(pid: int | None = None) -> dict[int, str]:
    """Open file descriptors of a process (default: this one) and what each points to."""
    folder = f"/proc/{pid or os.getpid()}/fd"
    found = {}
    for name in os.listdir(folder):  # noqa: PTH208 - done twice for every test: pathlib takes three times as long
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself has gone
            found[int(name)] = os.readlink(f"{folder}/{name}")  # noqa: PTH115
    return found


@functools.cache
def adopt_orphans() -> None:
    """From now on, processes whose parent ends become children of this process, so that leak checks see them.

    Workers are such: they detach from whoever launched them. For the rest of this process's life.
    """
    set_child_subreaper()


class LeakError(AssertionError):
    """Something was left behind; the text lists it."""


class no_leaks:  # noqa: N801 - used as a function, as contextlib's own are
    """A context, plain or async, that fails with LeakError when something of this process is left at its end.

    That is: file descriptors, threads, child processes, children that nobody waited for (zombies), and in an async
    context tasks of the running loop. What ends by itself has `within_s` seconds for it. When the code inside raises,
    its error goes on, and nothing is checked.

    With `reap`, children that have ended are waited for first, and are no leak: for a process that called
    `adopt_orphans`, and whose orphans nobody else waits for.
    """

    def __init__(self, *, within_s: float = 2.0, reap: bool = False) -> None:
        self._within_s = within_s
        self._reap = reap

    def __enter__(self) -> Self:
        settle()
        self._fds, self._threads, self._children = open_fds(), set(threading.enumerate()), children()
        self._tasks: set[asyncio.Task[Any]] | None = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.check()

    async def __aenter__(self) -> Self:
        self.__enter__()
        self._tasks = asyncio.all_tasks()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        give_up_at = time.monotonic() + self._within_s
        while error is None and (left := self.left()):
            if time.monotonic() > give_up_at:
                raise LeakError(_text(left))
            await asyncio.sleep(STEP_S)

    def check(self) -> None:
        """Raises LeakError when something has been left since the context was entered. Blocks up to `within_s`."""
        give_up_at = time.monotonic() + self._within_s
        while left := self.left():
            if time.monotonic() > give_up_at:
                raise LeakError(_text(left))
            time.sleep(STEP_S)

    def left(self) -> dict[str, list[str]]:
        """What is there now and was not when the context was entered, as text, by what it is. Does not wait."""
        born = children() - self._children
        if self._reap:
            for pid in [pid for pid in born if process_state(pid) == "Z"]:
                with contextlib.suppress(ChildProcessError):  # its owner was quicker
                    os.waitpid(pid, os.WNOHANG)
            born &= children()
        tasks = asyncio.all_tasks() - self._tasks if self._tasks is not None else set()
        found = {
            "fds": [f"{fd}: {to}" for fd, to in open_fds().items() if fd not in self._fds],
            "threads": [thread.name for thread in set(threading.enumerate()) - self._threads],
            "processes": [f"{pid}: {' '.join(command_line(pid))}" for pid in born if alive(pid)],
            "zombies, that nobody waited for": [str(pid) for pid in born if process_state(pid) == "Z"],
            "tasks": [repr(task) for task in tasks],
        }
        return {kind: things for kind, things in found.items() if things}

    def end_processes(self) -> None:
        """Kills and reaps the children that have been left, so that they disturb nobody who comes later."""
        for pid in children() - self._children:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _text(left: dict[str, list[str]]) -> str:
    return "left behind: " + "; ".join(f"{kind}: {', '.join(things)}" for kind, things in left.items())
