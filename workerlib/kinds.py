"""Further kinds of functions, as values: those whose streams are written by hand, or go from the caller to the worker.

The plain kinds are in `workerlib.spec`. Nothing here does anything, as there.
"""

import abc
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, get_args, overload

import msgspec

from workerlib.errors import UsageError
from workerlib.spec import Function, FunctionTypes, Kind, Parameters, first_argument

P = ParamSpec("P")
Q = ParamSpec("Q")
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")
T = TypeVar("T")
U = TypeVar("U")
T_contra = TypeVar("T_contra", contravariant=True)
S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)


class DirectWriter(abc.ABC, Generic[T_contra]):
    """Writes one stream by hand, without waiting. Belongs to the event loop that it was made in.

    Items wait here while the reader has no room for them, at most `RpcSettings.stream_buffer` of them; one more ends
    the stream with StreamOverflow at the reader. Who writes faster than readers read awaits `flushed` now and then.
    """

    @abc.abstractmethod
    def write(self, item: T_contra) -> bool:
        """Writes an item; never waits. False, and nothing is written, when the stream has ended.

        An item that cannot be encoded ends the stream with ResultError at the reader, after the items before it.
        """

    @abc.abstractmethod
    async def flushed(self) -> None:
        """Waits until everything that was written is on its way, or the stream has ended.

        Raises UsageError inside of a direct pipe function: its items are sent after it has returned.
        """

    @abc.abstractmethod
    def close(self, error: Exception | None = None) -> None:
        """Ends the stream after the items that were written; with `error`, the reader gets that. Idempotent."""

    @property
    @abc.abstractmethod
    def closed(self) -> str | None:
        """Why no more is taken, in words (closed here, given up by the reader, connection lost), or None."""

    @abc.abstractmethod
    async def wait_closed(self) -> str:
        """Waits until the stream has ended, from whichever side; returns why."""


class DirectCall(DirectWriter[T_contra], Awaitable[R_co]):
    """A call whose items are written by hand: what `run` gives for a reverse_direct_pipe. Await it for the result.

    The result may come before or after the end of the items; close the writer when there are no more. An `await` that
    is cancelled cancels the function in the worker.
    """


def _require_async(call: Callable[..., Any], kind: Kind) -> None:
    if not inspect.iscoroutinefunction(call):
        raise UsageError(f"{call.__qualname__}: a {kind.value} function must be an `async def` that returns")


def _split_first(call: Callable[..., Any], parameters: Parameters, what: str) -> tuple[Any, Parameters]:
    """The item type of the stream that is the first parameter, and the other parameters. Raises UsageError."""
    if not parameters.names or parameters.required < 1 or parameters.names[0] in parameters.keyword_only:
        raise UsageError(f"{call.__qualname__}: its first parameter must be {what}")
    others = msgspec.structs.replace(
        parameters, names=parameters.names[1:], types=parameters.types[1:], required=parameters.required - 1
    )
    return first_argument(parameters.types[0]), others


class DirectPipe(Function[P, R_co]):
    """One call, a stream of items that the function writes by hand. Dispatch as a Pipe. See `direct_pipe`."""

    kind = Kind.DIRECT_PIPE

    def __init__(
        self, call: Callable[..., Any], *, name: str | None = None, errors: tuple[type[Exception], ...] = ()
    ) -> None:
        super().__init__(call, name=name, errors=errors)
        _require_async(call, self.kind)

    def _read_types(self, parameters: Parameters, result: Any) -> FunctionTypes:  # noqa: ARG002 - it returns nothing
        item, others = _split_first(self.call, parameters, "the DirectWriter that it gets")
        return FunctionTypes(others, item)

    def map(self, after: Callable[[R_co], U]) -> "DirectPipe[P, U]":
        """The same function for callers that want something else of each item; see `Pipe.map`."""
        return cast("DirectPipe[P, U]", self.adapted(after=after))

    def contra_map(self, before: Callable[Q, Any]) -> "DirectPipe[Q, R_co]":
        """The same function, of one argument, for callers that have something else; see `Rpc.contra_map`."""
        return cast("DirectPipe[Q, R_co]", self.adapted(before=before))


class DirectPipeDecorator(Protocol):
    """What `direct_pipe(errors=...)` returns."""

    def __call__(
        self, call: Callable[Concatenate[Any, DirectWriter[T], P], Coroutine[Any, Any, None]], /
    ) -> DirectPipe[P, T]: ...


@overload
def direct_pipe(
    call: Callable[Concatenate[Any, DirectWriter[T], P], Coroutine[Any, Any, None]], /
) -> DirectPipe[P, T]: ...
@overload
def direct_pipe(*, name: str | None = None, errors: tuple[type[Exception], ...] = ()) -> DirectPipeDecorator: ...
def direct_pipe(call: Any = None, /, *, name: str | None = None, errors: tuple[type[Exception], ...] = ()) -> Any:
    """Makes an `async def` method a stream that it writes by hand: it gets a DirectWriter as its first argument.

    The stream begins when the function returns: what it has written until then waits, and is delivered first. When it
    raises, the caller gets that error and no item. The writer may be kept and written to afterwards, from anywhere in
    the worker, until `close`: the stream lasts until then, until the caller gives it up or the connection ends.
    """
    if call is None:
        return lambda method: DirectPipe(method, name=name, errors=errors)
    return DirectPipe(call)


class _TakesItems(Function[P, R_co], Generic[T_contra, P, R_co]):
    """What both kinds share whose caller sends items."""

    def __init__(
        self, call: Callable[..., Any], *, name: str | None = None, errors: tuple[type[Exception], ...] = ()
    ) -> None:
        super().__init__(call, name=name, errors=errors)
        _require_async(call, self.kind)

    def _read_types(self, parameters: Parameters, result: Any) -> FunctionTypes:
        item, others = _split_first(self.call, parameters, "the AsyncIterator of the caller's items")
        return FunctionTypes(others, result, item)


class ReversePipe(_TakesItems[T_contra, P, R_co]):
    """A stream of items from the caller, one result. Dispatch with `await connection.run(Sum.total, items)`."""

    kind = Kind.REVERSE_PIPE

    def map(self, after: Callable[[R_co], U]) -> "ReversePipe[T_contra, P, U]":
        """The same function for callers that want something else of its result; see `Rpc.map`."""
        return cast("ReversePipe[T_contra, P, U]", self.adapted(after=after))


class ReverseDirectPipe(_TakesItems[T_contra, P, R_co]):
    """The same, with items that the caller writes by hand: `connection.run(Sum.gather)` gives a `DirectCall`."""

    kind = Kind.REVERSE_DIRECT_PIPE

    def map(self, after: Callable[[R_co], U]) -> "ReverseDirectPipe[T_contra, P, U]":
        """The same function for callers that want something else of its result; see `Rpc.map`."""
        return cast("ReverseDirectPipe[T_contra, P, U]", self.adapted(after=after))


class ReversePipeDecorator(Protocol):
    """What `reverse_pipe(errors=...)` returns."""

    def __call__(
        self, call: Callable[Concatenate[Any, AsyncIterator[T], P], Coroutine[Any, Any, R]], /
    ) -> ReversePipe[T, P, R]: ...


class ReverseDirectPipeDecorator(Protocol):
    """What `reverse_direct_pipe(errors=...)` returns."""

    def __call__(
        self, call: Callable[Concatenate[Any, AsyncIterator[T], P], Coroutine[Any, Any, R]], /
    ) -> ReverseDirectPipe[T, P, R]: ...


@overload
def reverse_pipe(
    call: Callable[Concatenate[Any, AsyncIterator[T], P], Coroutine[Any, Any, R]], /
) -> ReversePipe[T, P, R]: ...
@overload
def reverse_pipe(*, name: str | None = None, errors: tuple[type[Exception], ...] = ()) -> ReversePipeDecorator: ...
def reverse_pipe(call: Any = None, /, *, name: str | None = None, errors: tuple[type[Exception], ...] = ()) -> Any:
    """Makes an `async def` method take a stream of items from its caller, as its first argument.

    The function's pace reaches the caller's source, as with `pipe` the other way round. It may return before the end:
    whoever still holds the iterator then goes on reading (a task that was given it, say); when nobody does, the source
    is closed. The iterator raises what the caller's source raised, ArgumentError for an item that does not fit its
    type, StreamAborted when the caller has given the call up, and ConnectionLost. An error that the function raises
    closes the source as well. `errors` lists exception classes that arrive as themselves, in either direction.
    """
    if call is None:
        return lambda method: ReversePipe(method, name=name, errors=errors)
    return ReversePipe(call)


@overload
def reverse_direct_pipe(
    call: Callable[Concatenate[Any, AsyncIterator[T], P], Coroutine[Any, Any, R]], /
) -> ReverseDirectPipe[T, P, R]: ...
@overload
def reverse_direct_pipe(
    *, name: str | None = None, errors: tuple[type[Exception], ...] = ()
) -> ReverseDirectPipeDecorator: ...
def reverse_direct_pipe(
    call: Any = None, /, *, name: str | None = None, errors: tuple[type[Exception], ...] = ()
) -> Any:
    """The same as `reverse_pipe` for the function; its caller writes the items by hand, with a `DirectCall`.

    The function's pace does not slow the caller down: see `DirectWriter` for what waits, and what happens when too much
    does.
    """
    if call is None:
        return lambda method: ReverseDirectPipe(method, name=name, errors=errors)
    return ReverseDirectPipe(call)


class StatePipe(Function[P, R_co], Generic[P, S_co, R_co]):
    """A snapshot, then the changes to it. Dispatch with `snapshot, changes = await connection.run(Sum.watch)`."""

    kind = Kind.STATE

    def __init__(
        self, call: Callable[..., Any], *, name: str | None = None, errors: tuple[type[Exception], ...] = ()
    ) -> None:
        super().__init__(call, name=name, errors=errors)
        _require_async(call, self.kind)

    def _read_types(self, parameters: Parameters, result: Any) -> FunctionTypes:
        pair = get_args(result)
        if len(pair) != 2:
            raise UsageError(f"{self.call.__qualname__}: it must return tuple[Snapshot, AsyncIterator[Change]]")
        return FunctionTypes(parameters, pair[0], first_argument(pair[1]))


class StateDecorator(Protocol):
    """What `state(errors=...)` returns."""

    def __call__(
        self, call: Callable[Concatenate[Any, P], Coroutine[Any, Any, tuple[S, AsyncIterator[T]]]], /
    ) -> StatePipe[P, S, T]: ...


@overload
def state(
    call: Callable[Concatenate[Any, P], Coroutine[Any, Any, tuple[S, AsyncIterator[T]]]], /
) -> StatePipe[P, S, T]: ...
@overload
def state(*, name: str | None = None, errors: tuple[type[Exception], ...] = ()) -> StateDecorator: ...
def state(call: Any = None, /, *, name: str | None = None, errors: tuple[type[Exception], ...] = ()) -> Any:
    """Makes an `async def` method give a snapshot of something, and a stream of what changes in it afterwards.

    It returns both: `return snapshot, changes`. The iteration of `changes` begins in the very step in which the
    function returns, before anything else runs in the worker's loop. So a generator that subscribes in its first lines
    misses nothing and repeats nothing, as long as the function does not await between taking the snapshot and
    returning. The caller's pace reaches the changes as with `pipe`; whoever must not be slowed down keeps a queue of
    his own there.
    """
    if call is None:
        return lambda method: StatePipe(method, name=name, errors=errors)
    return StatePipe(call)
