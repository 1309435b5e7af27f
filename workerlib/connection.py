"""The calling end: a connection to a worker, on which its functions are run."""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, ParamSpec, Self, TypeVar, cast, overload

import msgspec

from workerlib.core import frames
from workerlib.core.frames import Frame
from workerlib.core.payload import (
    MSGPACK,
    NO_ENCODING,
    NO_KEYWORDS,
    REFUSED,
    Outgoing,
    call_prefix,
    decode,
    encode,
    error_from_wire,
)
from workerlib.core.session import ClientSession, Closed, CloseKind, Event, parse_dialect
from workerlib.core.uri import TcpLocation, Uri
from workerlib.errors import (
    ArgumentError,
    HandshakeError,
    ProtocolError,
    ResultError,
    StreamAborted,
    UnknownFunction,
    UsageError,
)
from workerlib.shell.compression import inflate
from workerlib.shell.transport import Wire, open_connection
from workerlib.spec import Function, Kind, OneWay, Pipe, Rpc, RpcSettings, nearest

P = ParamSpec("P")
R = TypeVar("R")

_STREAM_START = frames.ITEM_STREAM | frames.EXCEPTION
"""A result is the start of a stream when of these flags it has only the first."""


def _read(frame: Frame) -> Any:
    """The plain data in a frame. Raises ProtocolError."""
    try:
        return decode(frame.payload)
    except REFUSED as error:
        raise ProtocolError(f"the payload cannot be read: {error}") from None


class Reply(asyncio.Future[R]):
    """The result of a call under way. Cancelling it cancels the function in the worker."""

    __slots__ = ("connection", "outgoing", "seq")

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
        if frame.type != frames.RESULT or frame.flags & (frames.EXCEPTION | frames.ITEM_STREAM):
            self._take_other(frame)
        elif outgoing is None:
            self.set_result(_read(frame))
        else:
            try:
                self.set_result(outgoing.results.one(frame.payload))
            except Exception as error:  # noqa: BLE001 - the types' own checks are user code
                self.set_exception(outgoing.results.error(error))

    def _take_other(self, frame: Frame) -> None:
        if frame.type == frames.ABORT:
            self.set_exception(StreamAborted(str(_read(frame))))
        elif frame.flags & frames.EXCEPTION:
            declared = self.outgoing.function.errors if self.outgoing is not None else ()
            self.set_exception(error_from_wire(_read(frame), declared))
        else:
            self.connection.send_abort(self.seq, "the caller expected one result")
            self.set_exception(UsageError("this function is a pipe: its result is a stream, not one value"))


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
                except Exception as error:  # noqa: BLE001 - the types' own checks are user code
                    self.fail(ResultError(f"{self._function} yielded something else than it declares: {error}"))
                    self._connection.send_abort(self.seq, "an item is not of the declared type")
        elif kind == frames.ABORT:
            self.fail(StreamAborted(f"{self._function}: {_read(frame)}"))
        elif frame.flags & frames.EXCEPTION:
            self.fail(error_from_wire(_read(frame), self.declared))
        elif kind == frames.END:
            self.fail(None)
        elif not frame.flags & frames.ITEM_STREAM:
            self.fail(UsageError(f"{self._function} is no pipe in this worker: it answered with one value"))
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
        self._handshake: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[Closed] = self._loop.create_future()

    async def open(self, value: Any, *, tls: ssl.SSLContext | None, within_s: float | None = None) -> None:
        """Connects and does the handshake.

        Raises OSError, HandshakeError, ConnectionLost, ProtocolError, TimeoutError, and ArgumentError for a `value`
        that cannot be encoded.
        """

        def factory() -> Wire:
            self._wire = Wire(self._session, self._on_event, self._shortcut, hold_reading=False)
            return self._wire

        try:
            async with asyncio.timeout(within_s):
                wire = await open_connection(self.uri.location, factory, tls=tls)
                wire.write(self._hello(value))
                await self._handshake
        except BaseException:
            self.abort()
            raise

    def _hello(self, value: Any) -> bytes:
        try:
            hello = self._session.connect(self.uri.target, value)
        except NO_ENCODING as error:
            raise ArgumentError(f"the connection's argument cannot travel between processes: {error}") from None
        self._check_size(hello, "the connection's argument")
        return hello

    def _take_handshake(self, frame: Frame) -> None:
        if self._handshake.done():
            return  # `open` was cancelled
        try:
            self._read_handshake(frame)
        except (HandshakeError, ProtocolError) as error:
            self._handshake.set_exception(error)
        else:
            self._handshake.set_result(None)

    def _read_handshake(self, frame: Frame) -> None:
        answer = _read(frame)
        if frame.type == frames.CONNECT_FAIL:
            raise HandshakeError(f"{self.uri}: {answer}")
        if not isinstance(answer, dict) or (dialect := parse_dialect(answer.get("handshake"))) is None:
            raise ProtocolError(f"{self.uri} is served by a stock Pyro5 daemon; use Pyro5.api.Proxy for that")
        try:
            self.functions = msgspec.convert(dialect.get("functions", {}), dict[str, Kind])
        except msgspec.ValidationError as error:
            raise ProtocolError(f"the functions of {self.uri} cannot be read: {error}") from None
        self._session.opened(dialect, self._loop.time())
        if self._wire is not None:
            self._wire.refresh_deadline()

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
        return self._dispatch(outgoing.kind, outgoing.payload(args, kwargs), outgoing, outgoing.name)

    def call(self, name: str, *args: Any, target: str | None = None, **kwargs: Any) -> Any:
        """The same by name, without types: values are plain data. For tools; programs use `run`.

        `target` names another object of the same server. Raises UnknownFunction.
        """
        kind = Kind.RPC
        if target is None:
            if name not in self.functions:
                raise UnknownFunction(
                    f"{self.uri.target} has no function {name!r}{nearest(name, list(self.functions))}"
                )
            kind = self.functions[name]
        try:
            payload = (
                call_prefix(target or self.uri.target, name)
                + encode(args)
                + (encode(kwargs) if kwargs else NO_KEYWORDS)
            )
        except NO_ENCODING as error:
            raise ArgumentError(f"{name}: an argument cannot travel between processes: {error}") from None
        return self._dispatch(kind, payload, None, name)

    def _dispatch(self, kind: Kind, payload: bytes, outgoing: Outgoing | None, name: str) -> Any:
        session, wire = self._session, self._wire
        if session.closed is not None or wire is None:
            raise (session.closed or Closed(CloseKind.LOCAL, "not yet open")).as_error()
        if len(payload) > self.settings.max_message_size:
            self._check_size(payload, f"the arguments of {name}")
        if kind is Kind.RPC:
            seq, data = session.call(payload)
            reply: Reply[Any] = Reply(loop=self._loop)
            reply.connection, reply.outgoing, reply.seq = self, outgoing, seq
            self._replies[seq] = reply
            wire.write(data)
            return reply
        if kind is Kind.ONE_WAY:
            wire.write(session.call_one_way(payload))
            return wire.writable()
        seq, data = session.call(payload)
        stream: Stream[Any] = Stream(self, name, outgoing.results.many if outgoing else decode)
        stream.seq = seq
        stream.declared = outgoing.function.errors if outgoing else ()
        self._streams[seq] = stream
        wire.write(data)
        return stream

    def _check_size(self, data: bytes, what: str) -> None:
        most = self.settings.max_message_size
        if len(data) > most:
            raise ArgumentError(f"{what}: {len(data)} bytes; a message may have {most} (max_message_size)")

    async def ping(self) -> float:
        """Seconds from here to the worker's connection and back; its functions are not involved."""
        if self._wire is None or self._session.closed is not None:
            raise (self._session.closed or Closed(CloseKind.LOCAL, "not yet open")).as_error()
        seq, data = self._session.ping()
        self._pings[seq] = answered = self._loop.create_future()
        began = time.perf_counter()
        self._wire.write(data)
        try:
            await answered
        finally:
            self._pings.pop(seq, None)
        return time.perf_counter() - began  # finer than the loop's clock

    def send_abort(self, seq: int, reason: str) -> None:
        if self._wire is not None and self._session.closed is None:
            self._wire.write(self._session.abort(seq, reason))

    def grant(self, seq: int, count: int) -> None:
        if self._wire is not None and self._session.closed is None:
            self._wire.write(self._session.grant(seq, count))

    # Events

    def _shortcut(self, data: bytes) -> bool:
        """One plain result of a call that waits: half the work of the long way."""
        seq = self._session.sole_result(data)
        if seq < 0:
            return False
        reply = self._replies.pop(seq, None)
        if reply is None or reply.outgoing is None:
            frame = Frame(frames.RESULT, MSGPACK, 0, seq, data[frames.HEADER_SIZE :])
            if reply is not None:
                reply.take(frame)
            else:
                self._on_event(frame)
        elif not reply.done():
            try:
                reply.set_result(reply.outgoing.results.one(data[frames.HEADER_SIZE :]))
            except Exception as error:  # noqa: BLE001 - the types' own checks are user code
                reply.set_exception(reply.outgoing.results.error(error))
        return True

    def _on_event(self, event: Event) -> None:
        if type(event) is not Frame:
            self._on_closed(cast("Closed", event))
            return
        seq = event.seq
        # What waits is forgotten after it was told: if the frame cannot be read, it ends with the connection.
        if event.type == frames.RESULT and (reply := self._replies.get(seq)) is not None:
            reply.take(event)
            del self._replies[seq]
        elif event.type != frames.PING and (stream := self._streams.get(seq)) is not None:
            stream.take(event)
            # The last frame of a stream: END, ABORT, or a RESULT that is not the start of it.
            if event.type in {frames.END, frames.ABORT} or (
                event.type == frames.RESULT and event.flags & _STREAM_START != frames.ITEM_STREAM
            ):
                del self._streams[seq]
        else:
            self._on_rare_event(event)

    def _on_rare_event(self, event: Frame) -> None:
        if event.type in {frames.CONNECT_OK, frames.CONNECT_FAIL}:
            self._take_handshake(event)
        elif event.type == frames.PING:
            answered = self._pings.pop(event.seq, None)
            if answered is not None and not answered.done():
                answered.set_result(None)
        elif event.type == frames.ABORT and (reply := self._replies.get(event.seq)) is not None:
            reply.take(event)
            del self._replies[event.seq]

    def _on_closed(self, closed: Closed) -> None:
        if not self._closed.done():
            self._closed.set_result(closed)
        if not self._handshake.done():
            self._handshake.set_exception(closed.as_error())
            self._handshake.exception()  # read here: `open` may have given up before
        replies, self._replies = self._replies, {}
        pings, self._pings = self._pings, {}
        for waiting in (*replies.values(), *pings.values()):
            if not waiting.done():
                waiting.set_exception(closed.as_error())
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
        """Sends what is written and closes; calls under way end with ConnectionLost. Idempotent.

        Returns when the socket is closed. A peer that does not read is cut off as always; cancel this to do it at once.
        """
        if self._wire is not None:
            self._wire.close(CloseKind.LOCAL, reason)
            try:
                await self._wire.wait_gone()
            except asyncio.CancelledError:
                self._wire.abort()
                raise

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

    Raises UsageError for TCP without `tls` unless `insecure` says that this is wanted, and what `Connection.open` does.
    """
    if isinstance(uri.location, TcpLocation) and tls is None and not insecure:
        raise UsageError(f"{uri}: TCP without TLS shows every byte to the network; give tls=, or insecure=True")
    connection = Connection(uri, settings)
    await connection.open(value, tls=tls, within_s=within_s)
    return connection
