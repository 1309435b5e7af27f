"""What this process is to its program: the master, a worker, or neither yet; and how it starts workers."""

import enum
import os

from workerlib.core.config import MARKER, MARKER_VALUE, WorkerCommand
from workerlib.errors import UsageError


class State(enum.Enum):
    """How this process was started; `State.get()` tells. A function that needs either can ask for it as evidence."""

    MASTER = "master"
    """By `start_app`, or by a first spawn: it has a master server, or had one."""
    WORKER = "worker"
    """By a master. It stays one when it spawns workers of its own."""

    @classmethod
    def get(cls) -> "State | None":
        """None in a process that has not had to do with workers yet. Does not change that."""
        return cls.WORKER if is_spawned() else _Process.state


class _Process:
    """What has been found out about this process, once."""

    state: State | None = None
    worker_command: WorkerCommand | None = None
    masters = 0  # master servers that there are now


def is_spawned() -> bool:
    """Whether this process was spawned as a worker and has not been set up as one yet."""
    return os.environ.get(MARKER) == MARKER_VALUE


def note(state: State) -> None:
    """The first one stays: a worker that spawns is still a worker."""
    _Process.state = _Process.state or state


def become_master(more: int) -> None:
    """So many master servers have been started here; a negative number of them has ended."""
    _Process.masters += more
    note(State.MASTER)


def become_worker() -> None:
    """Notes that this process serves as a spawned worker. Raises UsageError when it has a master server."""
    if _Process.masters:
        raise UsageError("this process has called start_master_server: it cannot be a worker of another master too")
    note(State.WORKER)


def start_workers_with(command: WorkerCommand | None) -> None:
    """From now on, masters that are started without a command of their own start workers with this one."""
    _Process.worker_command = command


def worker_command() -> WorkerCommand | None:
    """How this program starts its workers; None: with the generic entry, `python -m workerlib`."""
    return _Process.worker_command
