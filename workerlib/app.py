"""`start_app`: a program whose workers are the program itself."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from workerlib.detaching import detach_worker
from workerlib.errors import UsageError
from workerlib.hosting import run_worker
from workerlib.role import State, is_spawned, note, start_workers_with
from workerlib.shell.environment import use_settings
from workerlib.shell.program import program_command
from workerlib.spec import RpcSettings

T = TypeVar("T")


def start_app(main: Callable[[], Coroutine[Any, Any, T]], *, settings: RpcSettings | None = None) -> T:
    """Runs `main()` on uvloop and returns its result; in a process that was spawned as a worker, is the worker.

    For the end of a program's own file, before it looks at its arguments and outside of `main`::

        if __name__ == "__main__":
            workerlib.start_app(main)

    Workers are then started as this same program: its interpreter with its options, script or `-m module`, followed by
    `child-of-PID@HOST NAME`. Without it, they are started as `python -m workerlib`, and find their class by its name.
    `settings` are those of all connections of the program and of its workers that are given none of their own; the
    environment's WORKERLIB_RPC_SETTINGS has the last word.

    Does not return in a worker: raises SystemExit with its exit status. Raises UsageError when it is called for a
    second time or in a running event loop, for a program that was read from stdin, and for a `main` that was called
    already. Raises what `main` raises.
    """
    given: Any = main
    if asyncio.iscoroutine(given):
        given.close()
        raise UsageError(f"start_app calls main by itself, when it knows that it should: give {main!r} without a call")
    if is_spawned():
        sys.exit(run_worker(detach_worker()))
    if (state := State.get()) is not None:
        raise UsageError(
            f"start_app in a process that is a {state.value} already: call it once, below"
            ' `if __name__ == "__main__":`, before anything is spawned'
        )
    if _loop_is_running():
        raise UsageError("start_app runs an event loop of its own: call it where none is running")
    start_workers_with(program_command())
    use_settings(settings)
    note(State.MASTER)
    from workerlib.shell.loop import run  # noqa: PLC0415 - a worker must not set up uvloop before it detaches

    return run(main())


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
