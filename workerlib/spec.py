"""What a worker is, as values: its functions with their kinds and types, and the settings of its connections.

Nothing here does anything: the decorators describe, `workerlib.serving` serves, `workerlib.connection` calls.
"""

import enum
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import (
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    cast,
    get_args,
    get_type_hints,
    overload,
)

import msgspec

from workerlib.core.compiled import compiled
from workerlib.errors import UsageError

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")
U = TypeVar("U")


class Kind(enum.Enum):
    """The kinds of function that a worker can offer."""

    RPC = "rpc"
    ONE_WAY = "one_way"
    PIPE = "pipe"
    DIRECT_PIPE = "direct_pipe"
    REVERSE_PIPE = "reverse_pipe"
    REVERSE_DIRECT_PIPE = "reverse_direct_pipe"
    STATE = "state"

    @property
    def sends_items(self) -> bool:
        """Whether the caller sends a stream of items."""
        return self in {Kind.REVERSE_PIPE, Kind.REVERSE_DIRECT_PIPE}


RPC = Kind.RPC
"""For what every call asks: before CPython 3.12, `Kind.RPC` costs as much as a call of a function."""


class ShutdownOn(enum.Enum):
    """What ends a spawned worker's life. Chosen at spawn, safest first; it also decides what `spawn` returns.

    * CONNECTION_CLOSED: `spawn` returns a Connection; when it closes, for whatever reason, the worker shuts down.
    * HEARTBEATER_CONNECTION_TIMEOUT: `spawn` returns a Handle; the worker keeps a connection with heartbeats to its
      master and shuts down with exit status 254 when that is lost.
    * CALLED_SHUTDOWN_FUNCTION: `spawn` returns a Handle; only `handle.shutdown()` or a signal ends the worker. It
      outlives its master: prefer one of the others.
    """

    CONNECTION_CLOSED = "connection_closed"
    HEARTBEATER_CONNECTION_TIMEOUT = "heartbeater_connection_timeout"
    CALLED_SHUTDOWN_FUNCTION = "called_shutdown_function"


class Parameters(msgspec.Struct, frozen=True):
    """The parameters of a function after `self`, and the defaults of the last ones."""

    names: tuple[str, ...]
    types: tuple[Any, ...]
    required: int
    """How many of the first parameters have no default."""
    keyword_only: frozenset[str]
    """Names that only `name=value` can give."""
    required_keywords: frozenset[str] = frozenset()
    """Those of them that have no default."""

    @property
    def by_name(self) -> dict[str, Any]:
        """The type of each."""
        return dict(zip(self.names, self.types, strict=True))


class FunctionTypes(msgspec.Struct, frozen=True):
    """The types of one function, read once from its annotations; an unannotated place is `Any`."""

    parameters: Parameters
    result: Any
    """What it returns, or what a pipe yields; of a state function the snapshot."""
    items: Any = None
    """What the caller sends, when that is a stream; of a state function what it yields after the snapshot."""


def read_parameters(call: Callable[..., Any], skip: int) -> tuple[Parameters, Any]:
    """Parameters of `call` after the first `skip` ones, and its return annotation.

    Raises UsageError for `*args` and `**kwargs`, since a typed call needs to know each parameter by name, and for
    annotations that name nothing.
    """
    try:
        hints = get_type_hints(call, include_extras=True)
    except NameError as error:
        raise UsageError(f"{call.__qualname__}: an annotation cannot be resolved: {error}") from None
    names: list[str] = []
    keyword_only: set[str] = set()
    required_keywords: set[str] = set()
    required = 0
    for parameter in list(inspect.signature(call).parameters.values())[skip:]:
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            raise UsageError(
                f"{call.__qualname__}: a worker function cannot take *{parameter.name}; name each parameter"
            )
        if parameter.kind is parameter.KEYWORD_ONLY:
            keyword_only.add(parameter.name)
            if parameter.default is parameter.empty:
                required_keywords.add(parameter.name)
        elif parameter.default is parameter.empty:
            required += 1
        names.append(parameter.name)
    types = tuple(hints.get(name, Any) for name in names)
    parameters = Parameters(tuple(names), types, required, frozenset(keyword_only), frozenset(required_keywords))
    return parameters, hints.get("return", Any)


class Function(Generic[P, R_co]):
    """One function of a worker class: a name, a kind, and types. Made by the decorators below.

    Taken from the class (`Sum.add`) it is the Function, to be given to `Connection.run`; taken from an instance it is
    the plain method, so that a worker can call its own functions.
    """

    kind: Kind
    origin: Any = None
    """What this one was adapted from, by `map` or `contra_map`: the function that the worker has."""
    before: Callable[..., Any] | None = None
    """Makes the one argument of `origin`."""
    after: Callable[[Any], Any] | None = None
    """Makes the result, or each item of a stream, from that of `origin`."""

    def __init__(
        self, call: Callable[..., Any], *, name: str | None = None, errors: tuple[type[Exception], ...] = ()
    ) -> None:
        self.call = call
        self.name = name or call.__name__
        self.errors = errors
        self.__doc__ = call.__doc__
        if self.name.startswith("_"):
            raise UsageError(f"{call.__qualname__}: the name of a worker function cannot start with an underscore")

    @property
    def qualified_name(self) -> str:
        return self.call.__qualname__

    @property
    def types(self) -> FunctionTypes:
        """The types, read from the annotations when first asked for, so that forward references work."""
        found = cast("FunctionTypes | None", self.__dict__.get("_types"))
        if found is None:
            found = self.__dict__["_types"] = self._read_types(*read_parameters(self.call, skip=1))
        return found

    def _read_types(self, parameters: Parameters, result: Any) -> FunctionTypes:
        return FunctionTypes(parameters, result)

    def adapted(self, *, before: Callable[..., Any] | None = None, after: Callable[[Any], Any] | None = None) -> Any:
        """The same function with other arguments or results; `map` and `contra_map` tell type checkers of which."""
        adapted: Function[..., Any] = object.__new__(type(self))
        vars(adapted).update(vars(self))
        adapted.origin = self.origin or self
        adapted.before = _composed(before, self.before)
        adapted.after = _composed(self.after, after)
        return adapted

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Callable[P, Any]: ...
    def __get__(self, instance: object | None, owner: type) -> Any:
        return self if instance is None else self.call.__get__(instance, owner)

    def __repr__(self) -> str:
        return f"<{self.kind.value} {self.qualified_name}>"


get_in_python = Function.__get__
# Who writes `connection.run(Sum.add, 1)` comes by there for each call. In C it is made for the class that has it.
Function.__get__ = compiled("binder", lambda _: get_in_python)(Function)  # type: ignore[method-assign]


def _composed(first: Callable[..., Any] | None, then: Callable[[Any], Any] | None) -> Callable[..., Any] | None:
    if first is None or then is None:
        return first or then
    return lambda *args, **kwargs: then(first(*args, **kwargs))


class Rpc(Function[P, R_co]):
    """One call, one result. Dispatch with `await connection.run(Sum.add, 5)`."""

    kind = Kind.RPC

    def __init__(
        self,
        call: Callable[..., Any],
        *,
        name: str | None = None,
        errors: tuple[type[Exception], ...] = (),
        idempotent: bool = False,
    ) -> None:
        super().__init__(call, name=name, errors=errors)
        self.idempotent = idempotent

    def map(self, after: Callable[[R_co], U]) -> "Rpc[P, U]":
        """The same function for callers that want something else of its result: `after` is called with it, here.

        What `after` raises is raised to whoever awaits the result. Taken from the worker's class as it is declared, a
        function stays as it is.
        """
        return cast("Rpc[P, U]", self.adapted(after=after))

    def contra_map(self, before: Callable[Q, Any]) -> "Rpc[Q, R_co]":
        """The same function, of one argument, for callers that have something else: `before` makes it of theirs, here.

        What `before` raises, `run` raises, and nothing is sent; what it gives is checked by the worker, as mypy cannot
        see through a function's own parameters to the type that it would have to be.
        """
        return cast("Rpc[Q, R_co]", self.adapted(before=before))


class OneWay(Function[P, None]):
    """A call without an answer: nothing is sent back, an error in it is logged by the worker."""

    kind = Kind.ONE_WAY

    def contra_map(self, before: Callable[Q, Any]) -> "OneWay[Q]":
        """The same function, of one argument, for callers that have something else; see `Rpc.contra_map`."""
        return cast("OneWay[Q]", self.adapted(before=before))


class Pipe(Function[P, R_co]):
    """One call, a stream of results. Dispatch with `async for item in connection.run(Sum.squares, 4)`.

    The caller's pace reaches the generator, unless `client_pushes_back` is false; see `pipe`.
    """

    kind = Kind.PIPE

    def __init__(
        self,
        call: Callable[..., Any],
        *,
        name: str | None = None,
        errors: tuple[type[Exception], ...] = (),
        client_pushes_back: bool = True,
    ) -> None:
        super().__init__(call, name=name, errors=errors)
        self.client_pushes_back = client_pushes_back

    def _read_types(self, parameters: Parameters, result: Any) -> FunctionTypes:
        return FunctionTypes(parameters, first_argument(result))

    def map(self, after: Callable[[R_co], U]) -> "Pipe[P, U]":
        """The same function for callers that want something else of each item; see `Rpc.map`.

        What `after` raises ends the stream, here and in the worker.
        """
        return cast("Pipe[P, U]", self.adapted(after=after))

    def contra_map(self, before: Callable[Q, Any]) -> "Pipe[Q, R_co]":
        """The same function, of one argument, for callers that have something else; see `Rpc.contra_map`."""
        return cast("Pipe[Q, R_co]", self.adapted(before=before))


def first_argument(annotation: Any) -> Any:
    """The `int` of `AsyncIterator[int]`, or Any where nothing is said."""
    arguments = get_args(annotation)
    return arguments[0] if arguments else Any


class RpcDecorator(Protocol):
    """What `rpc(errors=...)` returns; an `async def` and a `def` that give the same are the same to callers."""

    @overload
    def __call__(self, call: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> Rpc[P, R]: ...
    @overload
    def __call__(self, call: Callable[Concatenate[Any, P], R], /) -> Rpc[P, R]: ...


class PipeDecorator(Protocol):
    """What `pipe(errors=...)` returns."""

    @overload
    def __call__(self, call: Callable[Concatenate[Any, P], AsyncIterator[T]], /) -> Pipe[P, T]: ...
    @overload
    def __call__(self, call: Callable[Concatenate[Any, P], Iterator[T]], /) -> Pipe[P, T]: ...


@overload
def rpc(call: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> Rpc[P, R]: ...
@overload
def rpc(call: Callable[Concatenate[Any, P], R], /) -> Rpc[P, R]: ...
@overload
def rpc(
    *, name: str | None = None, errors: tuple[type[Exception], ...] = (), idempotent: bool = False
) -> RpcDecorator: ...
def rpc(
    call: Any = None,
    /,
    *,
    name: str | None = None,
    errors: tuple[type[Exception], ...] = (),
    idempotent: bool = False,
) -> Any:
    """Makes a method callable by clients: one call, one result.

    `async def` runs on the worker's event loop, `def` in a bounded pool of threads. `errors` lists exception classes of
    your own that shall arrive at the caller as themselves; builtin ones always do. `idempotent` says that a call made
    twice does what one does, so that a `Managed` connection may repeat one that was lost on the way.
    """
    if call is None:
        return lambda method: Rpc(method, name=name, errors=errors, idempotent=idempotent)
    return Rpc(call)


@overload
def one_way(call: Callable[Concatenate[Any, P], Any], /) -> OneWay[P]: ...
@overload
def one_way(*, name: str | None = None) -> Callable[[Callable[Concatenate[Any, P], Any]], OneWay[P]]: ...
def one_way(call: Any = None, /, *, name: str | None = None) -> Any:
    """Makes a method callable without an answer. `connection.run` returns as soon as the call is written."""
    if call is None:
        return lambda method: OneWay(method, name=name)
    return OneWay(call)


@overload
def pipe(call: Callable[Concatenate[Any, P], AsyncIterator[T]], /) -> Pipe[P, T]: ...
@overload
def pipe(call: Callable[Concatenate[Any, P], Iterator[T]], /) -> Pipe[P, T]: ...
@overload
def pipe(
    *, name: str | None = None, errors: tuple[type[Exception], ...] = (), client_pushes_back: bool = True
) -> PipeDecorator: ...
def pipe(
    call: Any = None,
    /,
    *,
    name: str | None = None,
    errors: tuple[type[Exception], ...] = (),
    client_pushes_back: bool = True,
) -> Any:
    """Makes a generator method a stream of items to the caller. A `def` generator is run in the pool of threads.

    The generator is not resumed while the caller has no room for more items (`RpcSettings.stream_window`). With
    `client_pushes_back=False` it runs at its own pace: what the caller has no room for waits in a buffer
    (`RpcSettings.stream_buffer`), and an item for which the buffer has no room ends the stream with StreamOverflow,
    which says how many items are lost. It is never thinned out silently, and nobody else on the connection suffers.
    """
    if call is None:
        return lambda method: Pipe(method, name=name, errors=errors, client_pushes_back=client_pushes_back)
    return Pipe(call)


def functions_of(worker: type) -> dict[str, Function[..., Any]]:
    """The functions that a worker class offers, inherited ones included, by the names that clients use.

    Raises UsageError when two of them claim one name.
    """
    found: dict[str, Function[..., Any]] = {}
    for attribute in dir(worker):
        value = inspect.getattr_static(worker, attribute)
        if isinstance(value, Function):
            if value.name in found:
                raise UsageError(f"{worker.__qualname__}: two functions are named {value.name!r}")
            found[value.name] = value
    return found


def nearest(name: str, names: object) -> str:
    """`; did you mean 'x'?` for the likeliest name meant, or nothing when none is near."""
    import difflib  # noqa: PLC0415 - only who has made a mistake pays for it

    close = difflib.get_close_matches(name, [str(n) for n in cast("list[str]", names)], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


class RpcSettings(msgspec.Struct, frozen=True):
    """Bounds and deadlines of a connection. Each side uses its own."""

    max_message_size: int = 64 << 20
    """Bytes of one message, annotations included; a longer one ends the connection before it is read."""
    handshake_timeout_s: float = 30.0
    """From accepting a connection to the end of its handshake."""
    frame_timeout_s: float = 30.0
    """From the first byte of a message to its last, plus a second for each announced MiB."""
    heartbeat_interval_s: float = 10.0
    """How often a sign of life is asked for."""
    heartbeat_timeout_s: float = 30.0
    """A peer that was silent for so long is lost. Only peers that speak workerlib's dialect are asked."""
    heartbeat_from: Literal["loop", "thread"] = "loop"
    """Who gives this end's signs of life. "loop": its event loop, so that a computation that blocks it (in an `async
    def`) for longer than the peer's timeout is taken for death. "thread": a thread besides, at each interval, so that
    only a process that is stopped or dead is silent, and one whose computation holds the interpreter's lock. Not over
    TLS. A plain `def` runs in a thread by itself and needs neither."""
    buffer_age_limit_s: float = 60.0
    """A peer that does not read what was sent to it for so long is cut off."""
    stream_window: int = 4096
    """Items of one stream that may be under way before the reader must have taken some."""
    stream_buffer: int = 1 << 16
    """Items that may wait for the reader of a stream that its pace does not slow down; one more ends the stream."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if name == "heartbeat_from":
                if value not in {"loop", "thread"}:
                    raise UsageError(f"RpcSettings.heartbeat_from must be 'loop' or 'thread', not {value!r}")
                continue
            if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
                raise UsageError(f"RpcSettings.{name} must be a positive number, not {value!r}")


def parse_settings(text: str, base: RpcSettings, origin: str) -> RpcSettings:
    """Settings from `name=value,name=value` over `base`; `origin` is named in errors. Raises UsageError."""
    known = {name: type(default) for name, default in msgspec.structs.asdict(RpcSettings()).items()}
    changes: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in known:
            raise UsageError(f"{origin}: unknown setting {name!r}{nearest(name, list(known))}")
        try:
            changes[name] = known[name](value)
        except ValueError:
            raise UsageError(f"{origin}: {name} must be a number, not {value!r}") from None
    return msgspec.structs.replace(base, **changes)
