"""The first steps of a spawned worker: its configuration, its directory, its detaching.

Apart from `workerlib.hosting`, and before it is imported: a process that has loaded little forks in half the time, and
what it writes to afterwards is not copied.
"""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from workerlib.core.config import MARKER, MAX_SIZE, WorkerConfig, decode_config
from workerlib.errors import UsageError
from workerlib.redirects import Redirect, Target
from workerlib.role import State, is_spawned, note, start_workers_with
from workerlib.shell.detach import daemonize_wait, stay_attached
from workerlib.shell.environment import use_settings

if TYPE_CHECKING:
    from workerlib.shell.recent_log import RecentLog


class WorkerEnv(msgspec.Struct, frozen=True):
    """What `worker_init_before_async` found out; give it to `start_worker_server`."""

    config: WorkerConfig
    release: Callable[[Redirect, Redirect], None]
    """The completion job: points stdout and stderr to their places and lets the launched process's caller go."""
    recent_log: "RecentLog"
    """What the process logs, for `Connection.log`. Not attached yet: `logging.basicConfig` does nothing after that."""


def worker_init_before_async() -> WorkerEnv:
    """Makes this process the worker that its master wants: reads its configuration, changes directory, detaches.

    Must be called before an event loop or a thread exists, and before anything reads stdin. Returns in the daemon only;
    the process that was launched waits in the foreground until `start_worker_server` releases it. One that was spawned
    to stay in the foreground does not detach. Raises UsageError in a process that was not spawned, when stdin holds no
    configuration, and DaemonizeError; see `daemonize_wait`.
    """
    if not is_spawned():
        raise UsageError(
            "this process was not spawned as a worker: workers are started with Worker.spawn or by parsupd"
        )
    del os.environ[MARKER]
    config = decode_config(os.read(0, MAX_SIZE + 1))
    note(State.WORKER)
    start_workers_with(config.worker_command)
    use_settings(config.settings)
    if config.sys_path is not None:
        sys.path[:] = config.sys_path
    release = _detach(config) if config.daemonize else stay_attached(config.cd, config.umask, config.parent_pid)
    from workerlib.shell.recent_log import RecentLog  # noqa: PLC0415 - it imports asyncio

    return WorkerEnv(config, release, RecentLog())


def _detach(config: WorkerConfig) -> Callable[[Redirect, Redirect], None]:
    passed = passed_fds(config)
    for fd in passed:
        os.set_inheritable(fd, False)
    return daemonize_wait(cd=config.cd, umask=config.umask, parent_pid=config.parent_pid, preserve_fds=passed)


def passed_fds(config: WorkerConfig) -> set[int]:
    """Descriptors of the master that stdout and stderr will be pointed to."""
    return {redirect.fd for redirect in (config.stdout, config.stderr) if redirect.target is Target.DESCRIPTOR}
