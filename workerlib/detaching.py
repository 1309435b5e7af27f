"""The first steps of a spawned worker: its configuration, its directory, its detaching.

Apart from `workerlib.hosting`, so that the generic entry can take them before it imports that: a process that has
loaded little forks in half the time, and what it writes to afterwards is not copied.
"""

import os
import sys
from collections.abc import Callable

import msgspec

from workerlib.core.config import MARKER, MAX_SIZE, WorkerConfig, decode_config
from workerlib.errors import UsageError
from workerlib.redirects import Redirect, Target
from workerlib.role import State, is_spawned, note, start_workers_with
from workerlib.shell.detach import daemonize_wait, stay_attached
from workerlib.shell.environment import use_settings


class Detached(msgspec.Struct, frozen=True):
    """A worker's process that has detached, if it was to."""

    config: WorkerConfig
    release: Callable[[Redirect, Redirect], None]
    """The completion job: points stdout and stderr to their places and lets the launched process's caller go."""


def detach_worker() -> Detached:
    """Makes this process the worker that its master wants, but for its module search path, which is for the worker's
    own modules. See `workerlib.hosting.worker_init_before_async`.
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
    if sys.pycache_prefix is not None:
        sys.pycache_prefix = os.path.abspath(sys.pycache_prefix)  # the directory is about to be another one
    if not config.daemonize:
        return Detached(config, stay_attached(config.cd, config.umask, config.parent_pid))
    passed = passed_fds(config)
    for fd in passed:
        os.set_inheritable(fd, False)
    release = daemonize_wait(cd=config.cd, umask=config.umask, parent_pid=config.parent_pid, preserve_fds=passed)
    return Detached(config, release)


def passed_fds(config: WorkerConfig) -> set[int]:
    """Descriptors of the master that stdout and stderr will be pointed to."""
    return {redirect.fd for redirect in (config.stdout, config.stderr) if redirect.target is Target.DESCRIPTOR}
