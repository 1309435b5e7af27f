"""The calling end: a connection to a worker, on which its functions are run."""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, ParamSpec, Self, TypeVar, cast, overload

import msgspec

from workerlib.core import frames
from workerlib.core.frames import Frame
from workerlib.core.payload import NO_KEYWORDS, Outgoing, call_prefix, decode, encode, error_from_wire
from workerlib.core.session import ClientSession, Closed, CloseKind, Event, parse_dialect
from workerlib.core.uri import TcpLocation, Uri
from workerlib.errors import ArgumentError, HandshakeError, ProtocolError, StreamAborted, UnknownFunction, UsageError
from workerlib.shell.transport import Wire, inflate, open_connection
from workerlib.spec import Function, Kind, OneWay, Pipe, Rpc, RpcSettings, nearest

P = ParamSpec("P")
R = TypeVar("R")


class Reply(asyncio.Future[R]):
    """The result of a call under way. Cancelling it cancels the function in the worker."""

    connection: "Connection"
    outgoing: Outgoing | None
    seq: int

    def cancel(self, msg: Any | None = None) -> bool:
        if self.done():
            return False
        self.connection.send_abort(self.seq, "cancelled by the caller")
        return super().cancel(msg)

    def take(self, frame: Frame) -> None:
        """The answer has come."""
        if self.done():
            return  # it was cancelled; this is the worker's late answer
        outgoing = self.outgoing
        if frame.flags & (frames.EXCEPTION | frames.ITEM_STREAM):
            declared = outgoing.function.errors if outgoing is not None else ()
            self.set_exception(error_from_wire(decode(frame.payload), declared))
        elif outgoing is None:
            self.set_result(decode(frame.payload))
        else:
            try:
                self.set_result(outgoing.results.one(frame.payload))
            except msgspec.MsgspecError as error:
                self.set_exception(outgoing.results.error(error))


class Stream(Generic[R]):
    """The items that a pipe function yields, in order. Iterate it once; leaving the loop early aborts the function.

    Items are taken with the caller's pace: when half of the window is used up, the worker is granted as many more.
    """

    def __init__(self, connection: "Connection", function: str, decode_many: Callable[[bytes], list[R]]) -> None:
        self._connection = connection
        self._function = function
        self._decode_many = decode_many
        self._batches: deque[list[R]] = deque()
        self._ended = False
        self._error: Exception | None = None
        self._arrived: asyncio.Future[None] | None = None
        self._iterating = False
        self.seq = 0
        self.declared: tuple[type[Exception], ...] = ()

    def take(self, frame: Frame) -> None:
        """A frame of this stream has come."""
        kind = frame.type
        if kind == frames.ITEM:
            if not self._ended:
                try:
                    self._batches.append(self._decode_many(frame.payload))
                except msgspec.MsgspecError as error:
                    self.abort(f"an item is not of the declared type: {error}")
                    self.fail(StreamAborted(f"{self._function} yielded something else than it declares: {error}"))
        elif kind == frames.ABORT:
            self.fail(StreamAborted(f"{self._function}: {decode(frame.payload)}"))
        elif frame.flags & frames.EXCEPTION:
            self.fail(error_from_wire(decode(frame.payload), self.declared))
        elif kind == frames.END:
            self.fail(None)
        self._wake()

    def fail(self, error: Exception | None) -> None:
        """No more items will come; `error` is raised after those that are there."""
        if not self._ended:
            self._ended, self._error = True, error
        self._wake()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def abort(self, reason: str = "the caller does not want more") -> None:
        """Gives the stream up: the generator in the worker is closed. Items that have come can still be taken."""
        if not self._ended:
            self._ended = True
            self._connection.send_abort(self.seq, reason)
            self._wake()

    def __aiter__(self) -> AsyncIterator[R]:
        if self._iterating:
            raise UsageError(f"the stream of {self._function} is being read already")
        self._iterating = True
        return self._items()

    async def _items(self) -> AsyncIterator[R]:
        batches, window = self._batches, self._connection.settings.stream_window
        taken = 0
        try:
            while True:
                if batches:
                    batch = batches.popleft()
                    for item in batch:
                        yield item
                    taken += len(batch)
                    if taken * 2 >= window and not self._ended:
                        self._connection.grant(self.seq, taken)
                        taken = 0
                elif self._ended:
                    if self._error is not None:
                        raise self._error
                    return
                else:
                    self._arrived = asyncio.get_running_loop().create_future()
                    await self._arrived
        finally:
            self.abort()


class Connection:
    """A connection to one worker, with its own connection state there. Made by `connect` and `spawn`.

    All of it belongs to the event loop that made it. An async context manager: leaving it closes the connection.
    """

    def __init__(self, uri: Uri, settings: RpcSettings) -> None:
        self.uri = uri
        self.settings = settings
        self.functions: dict[str, Kind] = {}
        """Names and kinds of the functions that the worker offers."""
        self._loop = asyncio.get_running_loop()
        self._session = ClientSession(settings, inflate, self._loop.time())
        self._wire: Wire | None = None
        self._outgoing: dict[Function[..., Any], Outgoing] = {}
        self._replies: dict[int, Reply[Any]] = {}
        self._streams: dict[int, Stream[Any]] = {}
        self._pings: dict[int, asyncio.Future[None]] = {}
        self._handshake: asyncio.Future[Frame] = self._loop.create_future()
        self._closed: asyncio.Future[Closed] = self._loop.create_future()

    async def open(self, value: Any, *, tls: ssl.SSLContext | None, within_s: float | None = None) -> None:
        """Connects and does the handshake. Raises OSError, HandshakeError, ConnectionLost, TimeoutError."""

        def factory() -> Wire:
            self._wire = Wire(self._session, self._on_event, hold_reading=False)
            return self._wire

        try:
            async with asyncio.timeout(within_s):
                wire = await open_connection(self.uri.location, factory, tls=tls)
                wire.write(self._session.connect(self.uri.target, value))
                self._read_handshake(await self._handshake)
                wire.refresh_deadline()
        except BaseException:
            self.abort()
            raise

    def _read_handshake(self, frame: Frame) -> None:
        answer = decode(frame.payload)
        if frame.type == frames.CONNECT_FAIL:
            raise HandshakeError(f"{self.uri}: {answer}")
        if not isinstance(answer, dict) or (dialect := parse_dialect(answer.get("handshake"))) is None:
            raise ProtocolError(f"{self.uri} is served by a stock Pyro5 daemon; use Pyro5.api.Proxy for that")
        self._session.opened(dialect, self._loop.time())
        self.functions = {str(name): Kind(kind) for name, kind in dict(dialect.get("functions", {})).items()}

    # Calls

    @overload
    def run(self, function: Pipe[P, R], *args: P.args, **kwargs: P.kwargs) -> Stream[R]: ...
    @overload
    def run(self, function: OneWay[P], *args: P.args, **kwargs: P.kwargs) -> Awaitable[None]: ...
    @overload
    def run(self, function: Rpc[P, R], *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]: ...
    def run(self, function: Function[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Dispatches one typed function. Does not block; the call is written before this returns.

        An rpc gives an awaitable result, a pipe a `Stream`, a one_way an awaitable that waits only for room to write.
        Raises ArgumentError when an argument cannot be encoded. The result raises what the function raised (builtin and
        declared errors as themselves, others as RemoteError), ArgumentError when the worker refuses an argument, and
        ConnectionLost. Cancelling the awaiting task cancels the function in the worker.
        """
        outgoing = self._outgoing.get(function)
        if outgoing is None:
            outgoing = self._outgoing[function] = Outgoing(function, self.uri.target)
        return self._dispatch(function.kind, outgoing.payload(args, kwargs), outgoing, function.qualified_name)

    def call(self, name: str, *args: Any, target: str | None = None, **kwargs: Any) -> Any:
        """The same by name, without types: values are plain data. For tools; programs use `run`.

        `target` names another object of the same server. Raises UnknownFunction.
        """
        kind = Kind.RPC
        if target is None:
            if name not in self.functions:
                raise UnknownFunction(f"{self.uri.target} has no function {name!r}{nearest(name, list(self.functions))}")
            kind = self.functions[name]
        try:
            payload = call_prefix(target or self.uri.target, name) + encode(args) + (encode(kwargs) if kwargs else NO_KEYWORDS)
        except TypeError as error:
            raise ArgumentError(f"{name}: an argument cannot travel between processes: {error}") from None
        return self._dispatch(kind, payload, None, name)

    def _dispatch(self, kind: Kind, payload: bytes, outgoing: Outgoing | None, name: str) -> Any:
        session, wire = self._session, self._wire
        if session.closed is not None or wire is None:
            raise (session.closed or Closed(CloseKind.LOCAL, "not yet open")).as_error()
        if kind is Kind.ONE_WAY:
            wire.write(session.call_one_way(payload))
            return wire.writable()
        seq, data = session.call(payload)
        if kind is Kind.RPC:
            reply: Reply[Any] = Reply(loop=self._loop)
            reply.connection, reply.outgoing, reply.seq = self, outgoing, seq
            self._replies[seq] = reply
            wire.write(data)
            return reply
        stream: Stream[Any] = Stream(self, name, outgoing.results.many if outgoing else decode)
        stream.seq = seq
        stream.declared = outgoing.function.errors if outgoing else ()
        self._streams[seq] = stream
        wire.write(data)
        return stream

    async def ping(self) -> float:
        """Seconds from here to the worker's connection and back; its functions are not involved."""
        if self._wire is None or self._session.closed is not None:
            raise (self._session.closed or Closed(CloseKind.LOCAL, "not yet open")).as_error()
        seq, data = self._session.ping()
        answered: asyncio.Future[None] = self._loop.create_future()
        self._pings[seq] = answered
        began = self._loop.time()
        self._wire.write(data)
        closed = self._closed
        await asyncio.wait({answered, closed}, return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            raise closed.result().as_error()
        return self._loop.time() - began

    def send_abort(self, seq: int, reason: str) -> None:
        if self._wire is not None and self._session.closed is None:
            self._wire.write(self._session.abort(seq, reason))

    def grant(self, seq: int, count: int) -> None:
        if self._wire is not None and self._session.closed is None:
            self._wire.write(self._session.grant(seq, count))

    # Events

    def _on_event(self, event: Event) -> None:
        if type(event) is not Frame:
            self._on_closed(cast("Closed", event))
            return
        kind, seq = event.type, event.seq
        if kind == frames.RESULT:
            reply = self._replies.pop(seq, None)
            if reply is not None:
                reply.take(event)
            elif event.flags & frames.EXCEPTION:  # the call of a pipe failed before it became a stream
                self._streams.pop(seq).take(event)
        elif kind in {frames.CONNECT_OK, frames.CONNECT_FAIL}:
            if not self._handshake.done():
                self._handshake.set_result(event)
        elif kind == frames.PING:
            answered = self._pings.pop(seq, None)
            if answered is not None and not answered.done():
                answered.set_result(None)
        elif stream := self._streams.get(seq):
            if kind in {frames.END, frames.ABORT}:
                del self._streams[seq]
            stream.take(event)

    def _on_closed(self, closed: Closed) -> None:
        if not self._closed.done():
            self._closed.set_result(closed)
        if not self._handshake.done():
            self._handshake.set_exception(closed.as_error())
            self._handshake.exception()  # read here: `open` may have given up before
        replies, self._replies = self._replies, {}
        for reply in replies.values():
            if not reply.done():
                reply.set_exception(closed.as_error())
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(closed.as_error())

    # The end

    @property
    def closed(self) -> str | None:
        """Why the connection has ended, in words, or None while it is open."""
        return str(self._session.closed) if self._session.closed is not None else None

    async def wait_closed(self) -> str:
        """Waits until the connection has ended, from whichever side; returns why."""
        return str(await asyncio.shield(self._closed))

    async def close(self, reason: str = "") -> None:
        """Sends what is written and closes; calls under way end with ConnectionLost. Idempotent."""
        if self._wire is not None:
            self._wire.close(CloseKind.LOCAL, reason)

    def abort(self) -> None:
        """Ends the connection at once, without sending what is buffered. Idempotent, does not block."""
        if self._wire is not None:
            if self._session.closed is None:
                self._on_closed(self._session.close(CloseKind.LOCAL))
            self._wire.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def open_to(
    uri: Uri,
    value: Any = None,
    *,
    settings: RpcSettings,
    tls: ssl.SSLContext | None = None,
    insecure: bool = False,
    within_s: float | None = None,
) -> Connection:
    """A connection to the object at `uri`; `value` is its connection-state argument.

    Raises UsageError for TCP without `tls` unless `insecure` says that this is wanted; see `Connection.open` for others.
    """
    if isinstance(uri.location, TcpLocation) and tls is None and not insecure:
        raise UsageError(f"{uri}: TCP without TLS shows every byte to the network; give tls=, or insecure=True")
    connection = Connection(uri, settings)
    await connection.open(value, tls=tls, within_s=within_s)
    return connection


