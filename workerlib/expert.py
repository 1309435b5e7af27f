"""For programs that start their own workers as *themselves*, with a command line of their own.

Everybody else needs none of this: `Worker.spawn` starts workers through the generic entry `python -m workerlib`.

A program of this kind calls `await start_master_server(worker_command_args=["worker"])` before its first spawn, and in
the part of it that `program worker ...` reaches, before any event loop or thread exists, `sys.exit(worker_command())`.
A program that needs more control over its workers calls `worker_init_before_async()` and `start_worker_server` there.
"""

from collections.abc import Sequence

from workerlib.detaching import detach_worker
from workerlib.errors import UsageError
from workerlib.hosting import Hosted, WorkerEnv, run_worker, start_worker_server, worker_init_before_async
from workerlib.role import is_spawned as is_worker
from workerlib.runtime import Master, start_master
from workerlib.shell.program import program_command
from workerlib.spawn_options import check_text
from workerlib.spec import RpcSettings


async def start_master_server(
    *, worker_command_args: Sequence[str], pass_name: bool = True, settings: RpcSettings | None = None
) -> Master:
    """Starts the master server of the running event loop, whose workers are started as this same program.

    A worker's command line is this process's interpreter with its options, script or `-m module`, then
    `worker_command_args`, then `child-of-PID@HOST NAME`, without the name when `pass_name` is false: for a program
    whose own command line would not know what to do with it. What the workers spawn is started in the same way.

    Raises UsageError when the loop has a master server already (an earlier spawn starts one), in a spawned worker, in a
    program that calls `start_app`, for a program that was read from stdin, and for arguments that are not text.
    """
    if isinstance(worker_command_args, str):
        raise UsageError(f"worker_command_args is a list of words, not one text: {worker_command_args!r}")
    for word in worker_command_args:
        check_text("one of worker_command_args", word)
    command = program_command(*worker_command_args, pass_name=pass_name)
    return await start_master(settings=settings, worker_command=command)


def worker_command() -> int:
    """The whole life of a worker, for the command that `worker_command_args` reaches; returns its exit status.

    Raises UsageError in a process that was not spawned. In the launched process it does not return.
    """
    return run_worker(detach_worker())


__all__ = [
    "Hosted",
    "WorkerEnv",
    "is_worker",
    "start_master_server",
    "start_worker_server",
    "worker_command",
    "worker_init_before_async",
]
