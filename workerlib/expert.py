"""For programs that start their own workers as *themselves*, with a command line of their own.

Everybody else needs none of this: `Worker.spawn` starts workers through the generic entry `python -m workerlib`.

A program of this kind calls `await start_master_server(worker_command_args=["worker"])` before its first spawn, and in
the part of it that `program worker ...` reaches, before any event loop or thread exists, `sys.exit(worker_command())`.
A program that needs more control over its workers calls `worker_init_before_async()` and `start_worker_server` there.
"""

from collections.abc import Sequence

from workerlib.hosting import (
    Hosted,
    WorkerEnv,
    is_worker,
    load_worker,
    run_worker,
    start_worker_server,
    worker_init_before_async,
)
from workerlib.runtime import Master, program_command, start_master
from workerlib.spec import RpcSettings


async def start_master_server(*, worker_command_args: Sequence[str], settings: RpcSettings | None = None) -> Master:
    """Starts the master server of the running event loop, whose workers are started as this same program.

    A worker's command line is this process's interpreter with its options, script or `-m module`, then
    `worker_command_args`, then `child-of-PID@HOST NAME`. Raises UsageError when the loop has a master server already
    (an earlier spawn starts one), and in a process that has called `start_worker_server`.
    """
    return await start_master(settings=settings, worker_command=[*program_command(), *worker_command_args])


def worker_command() -> int:
    """The whole life of a worker, for the command that `worker_command_args` reaches; returns its exit status.

    Raises UsageError in a process that was not spawned. In the launched process it does not return.
    """
    return run_worker(lambda env: load_worker(env.config.worker))


__all__ = [
    "Hosted",
    "WorkerEnv",
    "is_worker",
    "start_master_server",
    "start_worker_server",
    "worker_command",
    "worker_init_before_async",
]
