"""Workers in processes of their own for the length of a test, and the proof that nothing of them is left."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any, Self, TypeVar

from workerlib import blocking
from workerlib.connection import Connection
from workerlib.redirects import Redirect
from workerlib.shell.process import group_members
from workerlib.spec import RpcSettings, ShutdownOn
from workerlib.testing.leaks import STEP_S, LeakError, command_line
from workerlib.worker import Worker

T = TypeVar("T")

END_S = 5.0
"""How long a worker has to end, with all that it has started, once its connection is closed."""


class _Group:
    """The processes of one worker: itself, and what it started without giving it a group of its own."""

    def __init__(self, worker: type[Worker], pid: int) -> None:
        self._name = worker.__qualname__
        self._number = os.getpgid(pid)

    async def end(self) -> None:
        """Waits until all have ended. Raises LeakError when they have not in time; then they are killed."""
        give_up_at = time.monotonic() + END_S
        while left := group_members(self._number):
            if time.monotonic() > give_up_at:
                told = ", ".join(f"{pid}: {' '.join(command_line(pid))}" for pid in sorted(left))
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._number, signal.SIGKILL)
                raise LeakError(f"left by worker {self._name}, {END_S:g} s after its connection was closed: {told}")
            await asyncio.sleep(STEP_S)


@contextlib.asynccontextmanager
async def spawned(
    worker: type[Worker],
    *args: Any,
    init: Mapping[str, Any] | None = None,
    connect_arg: Any = None,
    env: Mapping[str, str] | None = None,
    settings: RpcSettings | None = None,
) -> AsyncIterator[Connection]:
    """A connection to a worker in a process of its own, which ends with the context.

    It writes to this process's stdout and stderr; its arguments are those of `Worker.spawn`. Raises what that does, and
    LeakError when the worker, or a process that it has started, does not end with its connection. Then they are killed.
    """
    connection = await worker.spawn(
        *args,
        init=init,
        connect_arg=connect_arg,
        env=env,
        settings=settings,
        shutdown_on=ShutdownOn.CONNECTION_CLOSED,
        redirect_stdout=Redirect.descriptor(1),
        redirect_stderr=Redirect.descriptor(2),
    )
    group = None
    try:
        group = _Group(worker, (await connection.info()).pid)
        yield connection
    except BaseException:
        await connection.close()
        if group is not None:
            with contextlib.suppress(LeakError):  # the error that is under way says more
                await group.end()
        raise
    await connection.close()
    await group.end()


class Spawner:
    """Spawns workers for code without an event loop; what the fixture `spawned` gives. A context manager.

    Leaving it closes all of them. Raises LeakError as the async `spawned` does.
    """

    def __init__(self) -> None:
        self._running: tuple[asyncio.AbstractEventLoop, threading.Thread] | None = None
        self._workers = contextlib.AsyncExitStack()
        self._connections = contextlib.ExitStack()

    def __call__(
        self,
        worker: type[Worker],
        *args: Any,
        init: Mapping[str, Any] | None = None,
        connect_arg: Any = None,
        env: Mapping[str, str] | None = None,
        settings: RpcSettings | None = None,
        timeout_s: float | None = None,
    ) -> blocking.Connection:
        """A blocking connection to a new worker; `timeout_s` bounds each of its calls. See `spawned` for the rest.

        The worker ends when this object is closed, not with the connection.
        """
        context = spawned(worker, *args, init=init, connect_arg=connect_arg, env=env, settings=settings)
        lease = self._await(self._workers.enter_async_context(context))
        found = blocking.connect(str(lease.uri), connect_arg, settings=settings, timeout_s=timeout_s, worker=worker)
        return self._connections.enter_context(found)

    def _await(self, what: Coroutine[Any, Any, T]) -> T:
        if self._running is None:
            # The thread lives as long as the workers: the kernel ends them with it, not with the process.
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="workerlib-spawner")
            thread.start()
            self._running = loop, thread
        return asyncio.run_coroutine_threadsafe(what, self._running[0]).result()

    def close(self) -> None:
        """Ends the workers; returns when they have. Idempotent. Raises LeakError."""
        self._connections.close()
        if self._running is None:
            return
        loop, thread = self._running
        try:
            self._await(self._workers.aclose())
        finally:
            self._await(loop.shutdown_asyncgens())  # ends this loop's master
            self._running = None
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
