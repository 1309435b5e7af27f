"""`Executor`: the interface of `concurrent.futures` on worker processes, for functions importable by name.

Where a program says `ProcessPoolExecutor()`, it can say `workerlib.Executor()`. What differs: nothing is pickled.
Functions travel as their names; arguments and results as data of the types that the function's annotations name, and
as plain data where it has none (a tuple arrives as a list then). Functions run in one thread of the worker, which is
not its main thread.
"""

import asyncio
import atexit
import concurrent.futures
import contextlib
import functools
import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar, cast, overload

import msgspec

from workerlib.call_worker import CallAnswer, CallHost
from workerlib.connection import Connection
from workerlib.core.payload import NO_ENCODING, encode, error_from_wire
from workerlib.errors import ArgumentError, ConnectionLost, ResultError, UsageError, WorkerlibError
from workerlib.map_pool import Config, Member, usable_cpus
from workerlib.map_worker import list_decoder, types_of
from workerlib.references import reference_of
from workerlib.shell.loop import run

P = ParamSpec("P")
R = TypeVar("R")


class BrokenWorkers(concurrent.futures.BrokenExecutor, WorkerlibError):  # noqa: N818 - as the library's BrokenExecutor
    """A worker of an Executor was lost or could not be brought up: all calls that are not done fail with this."""


class _Each:
    """Marks a function that `map` calls for each of several tuples of arguments in one message."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


class _Target:
    """A function as an executor sends it. Raises UsageError for one that cannot be found by name."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.reference = reference_of(function)
        self.where = getattr(function, "__qualname__", self.reference)
        self.results = list_decoder(types_of(function).result, f"{self.where}, result")


class _Job(msgspec.Struct, eq=False):
    """One message, and the future that waits for its answer."""

    future: "concurrent.futures.Future[Any]"
    target: _Target
    each: list[msgspec.Raw]
    """The positional arguments of each call."""
    kwargs: msgspec.Raw
    single: bool
    """One call, whose future gets its result; otherwise the future gets a list."""


class _Engine:
    """The thread with the event loop, and the workers. It does not know the Executor, so that that can be collected."""

    def __init__(
        self, config: Config, most: int, setup: tuple[str, list[Any]], errors: tuple[type[Exception], ...]
    ) -> None:
        self._config, self._most, self._setup, self._errors = config, most, setup, errors
        self._lock = threading.RLock()  # the collector may call `close` anywhere
        self._jobs: deque[_Job] = deque()
        self._running: set[_Job] = set()
        self._closing = False
        self._broken: BrokenWorkers | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        # The rest belongs to the thread of the loop.
        self._lives: set[asyncio.Task[None]] = set()
        self._spawning = 0
        self._free: list[Connection] = []

    # From any thread

    def submit(self, job: _Job) -> None:
        with self._lock:
            if self._broken is not None:
                raise BrokenWorkers(str(self._broken)) from self._broken.__cause__
            if self._closing:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._jobs.append(job)
            if self._thread is None:
                # A daemon, ended by `_end_all`: otherwise a program that forgets `shutdown` would never exit.
                self._thread = threading.Thread(target=self._run, name="workerlib-executor", daemon=True)
                _engines.add(self)
                self._thread.start()
        self._poke()

    def close(self, *, cancel: bool = False) -> None:
        """No more calls; those that were accepted are done, unless they shall be cancelled. Does not wait."""
        cancelled: list[_Job] = []
        with self._lock:
            self._closing = True
            if cancel:
                cancelled, self._jobs = list(self._jobs), deque()
        for job in cancelled:
            if job.future.cancel():
                job.future.set_running_or_notify_cancel()  # so that `as_completed` hears of it
        self._poke()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _poke(self) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(self._look)

    # In the thread

    def _run(self) -> None:
        try:
            run(self._main())
        except Exception as error:  # noqa: BLE001 - nobody would hear of it, and the futures would wait for ever
            self._fail_all(f"the event loop of the executor failed: {error!r}", error)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._look()
        await self._over
        for life in self._lives:
            life.cancel()
        await asyncio.gather(*self._lives, return_exceptions=True)

    def _look(self) -> None:
        """Gives calls to workers that are free, spawns a worker when there are more calls, and sees the end."""
        while self._free and (job := self._next()) is not None:
            self._send(self._free.pop(), job)
        while len(self._jobs) > self._spawning and len(self._lives) < self._most and self._broken is None:
            self._spawning += 1
            number = len(self._lives)
            self._lives.add(asyncio.get_running_loop().create_task(self._live(number)))
        with self._lock:
            over = self._broken is not None or (self._closing and not self._jobs and not self._running)
        if over and not self._over.done():
            self._over.set_result(None)

    def _next(self) -> _Job | None:
        """The next call that was not cancelled while it waited."""
        with self._lock:
            while self._jobs:
                job = self._jobs.popleft()
                if job.future.set_running_or_notify_cancel():
                    self._running.add(job)
                    return job
        return None

    async def _live(self, number: int) -> None:
        """The life of one worker."""
        member = Member()
        try:
            connection = await member.spawn(self._config, CallHost, f"executor-{number}", self._setup)
            self._spawning -= 1
            self._free.append(connection)
            self._look()
            self._break(f"a worker was lost: {await member.wait_lost()}", None)
        except Exception as error:  # noqa: BLE001 - SpawnError, UsageError, and what the system refuses
            self._break(f"a worker could not be brought up: {error}", error)
        finally:
            await member.end()

    def _send(self, connection: Connection, job: _Job) -> None:
        try:
            answer = connection.run(CallHost.call, job.target.reference, job.each, job.kwargs)
        except ConnectionLost:
            pass  # `_live` tells of it
        except ArgumentError as error:  # longer than a message may be
            # Not at once: of many such calls each would begin the next one inside of itself.
            asyncio.get_running_loop().call_soon(self._settle, connection, job, None, error)
        else:
            asyncio.ensure_future(answer).add_done_callback(functools.partial(self._take, connection, job))

    def _take(self, connection: Connection, job: _Job, future: "asyncio.Future[msgspec.Raw]") -> None:
        error = None if future.cancelled() else future.exception()
        if future.cancelled() or isinstance(error, ConnectionLost):
            return  # `_live` tells of it
        if error is not None:
            self._settle(connection, job, None, error)
            return
        answer = msgspec.msgpack.decode(future.result(), type=CallAnswer)
        if answer.error is not None:
            self._settle(connection, job, None, error_from_wire(answer.error, self._errors))
            return
        try:
            values = job.target.results(answer.values)
        except Exception as refused:  # noqa: BLE001 - the types' own checks are user code
            text = f"{job.target.where} returned something else than it declares: {refused}"
            self._settle(connection, job, None, ResultError(text))
        else:
            self._settle(connection, job, values[0] if job.single else values, None)

    def _settle(self, connection: Connection, job: _Job, value: Any, error: BaseException | None) -> None:
        with self._lock:
            if job not in self._running:
                return  # it failed with the others
            self._running.discard(job)
        if error is not None:
            job.future.set_exception(error)
        else:
            job.future.set_result(value)
        self._free.append(connection)
        self._look()

    def _break(self, reason: str, cause: Exception | None) -> None:
        self._fail_all(reason, cause)
        self._look()

    def _fail_all(self, reason: str, cause: Exception | None) -> None:
        """Fails every call that is not done, and those to come. The first reason counts."""
        with self._lock:
            if self._broken is not None:
                return
            self._broken = broken = BrokenWorkers(f"{reason}; the executor takes no more calls")
            broken.__cause__ = cause
            waiting, self._jobs = [job for job in self._jobs if job.future.set_running_or_notify_cancel()], deque()
            running, self._running = list(self._running), set()
        for job in (*running, *waiting):
            job.future.set_exception(broken)


_engines: "weakref.WeakSet[_Engine]" = weakref.WeakSet()
"""Those whose threads run."""


def _end_all() -> None:
    """At the end of the program: calls that were accepted are done first, as the standard library's executors do it."""
    for engine in list(_engines):
        engine.close()
        engine.join()


atexit.register(_end_all)


class Executor(concurrent.futures.Executor):
    """Calls functions in worker processes, one call at a time in each; see this module for what differs from others.

    `max_workers`: as many as processors that this process may use when None; each is spawned when it is needed.
    `initializer(*initargs)` is called once in each worker. `errors` lists exception classes that shall arrive as
    themselves; builtin ones always do, others arrive as RemoteError. `config` says how workers are spawned (`local` is
    its number of workers when `max_workers` is None; what concerns maps has no meaning here).

    All methods may be called from any thread. Futures behave as those of ProcessPoolExecutor do: a call that waits can
    be cancelled, one that runs cannot; a function that another process cannot find or an argument that cannot travel is
    an error of the future (UsageError, ArgumentError); when a worker is lost or cannot be brought up, all calls that
    are not done fail with BrokenWorkers, and `submit` raises it from then on. `submit` after `shutdown` raises
    RuntimeError. At the exit of the program, calls that were accepted are done first.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: Sequence[Any] = (),
        errors: tuple[type[Exception], ...] = (),
        config: Config | None = None,
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        config = config or Config()
        setup = "" if initializer is None else reference_of(initializer)
        count = max_workers or config.local or usable_cpus()
        self._engine = _Engine(config, count, (setup, list(initargs)), errors)
        self._targets: dict[Callable[..., Any], _Target] = {}
        weakref.finalize(self, self._engine.close).atexit = False

    @overload
    def submit(
        self, fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> "concurrent.futures.Future[R]": ...
    @overload
    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> "concurrent.futures.Future[R]": ...
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "concurrent.futures.Future[Any]":
        """Calls the function in a worker; an `async def` is awaited there. Does not block.

        Raises BrokenWorkers and RuntimeError; see Executor.
        """
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            job = self._job(future, fn, args, kwargs)
        except (UsageError, ArgumentError) as error:
            future.set_running_or_notify_cancel()
            future.set_exception(error)
        else:
            self._engine.submit(job)
        return future

    def map(
        self, fn: Callable[..., R], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[R]:
        """The results for the items of the iterables, in order. The iterables are read at once.

        `chunksize` calls travel in one message; when one of them fails, all of them have. Iterating raises TimeoutError
        when a result is not there `timeout` seconds after this call, and what the function raised; the calls that still
        wait are cancelled then, and when the iterator is closed.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout)
        calls = zip(*iterables, strict=False)
        chunks = iter(lambda: tuple(itertools.islice(calls, chunksize)), ())
        return _flatten(super().map(cast("Callable[..., list[R]]", _Each(fn)), chunks, timeout=timeout))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the workers when the calls that were accepted are done, or have been cancelled. Idempotent.

        With `wait` it returns when the workers are gone.
        """
        self._engine.close(cancel=cancel_futures)
        if wait:
            self._engine.join()

    def _job(self, future: "concurrent.futures.Future[Any]", fn: Any, args: Any, kwargs: dict[str, Any]) -> _Job:
        calls = None
        if isinstance(fn, _Each):
            fn, [calls] = fn.function, args
        before: tuple[Any, ...] = ()
        if isinstance(fn, functools.partial):  # its parts can travel, where the whole cannot
            fn, before, kwargs = fn.func, fn.args, {**fn.keywords, **kwargs}
        target = self._targets.get(fn)
        if target is None:
            target = self._targets[fn] = _Target(fn)
        try:
            each = [msgspec.Raw(encode((*before, *one))) for one in ([args] if calls is None else calls)]
            return _Job(future, target, each, msgspec.Raw(encode(kwargs)), single=calls is None)
        except NO_ENCODING as error:
            raise ArgumentError(f"{target.where}: an argument cannot travel between processes: {error}") from None


def _flatten(chunks: Iterator[list[R]]) -> Iterator[R]:
    for chunk in chunks:
        yield from chunk
