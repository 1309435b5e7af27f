"""The calling end: a connection to a worker, on which its functions are run."""

import asyncio
import functools
import itertools
import ssl
import time
import types
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, ParamSpec, Self, TypeVar, cast, overload

from workerlib.common import Common, WorkerInfo
from workerlib.core import frames
from workerlib.core.calling import (
    Offer,
    check_size,
    failure,
    is_last,
    kind_of,
    plain_call,
    prepare,
    read,
    read_greeting,
    read_result,
    starts_stream,
    tells_failure,
)
from workerlib.core.client_session import ClientSession
from workerlib.core.compiled import compiled
from workerlib.core.config import CONTROL
from workerlib.core.frames import Frame
from workerlib.core.payload import (
    MSGPACK,
    NIL,
    NO_ENCODING,
    Outgoing,
    encode,
)
from workerlib.core.session import (
    Closed,
    CloseKind,
    Event,
)
from workerlib.core.uri import TcpLocation, Uri
from workerlib.errors import (
    ArgumentError,
    HandshakeError,
    ProtocolError,
    UsageError,
)
from workerlib.feeding import CallWriter, Feed, SourceFeed, as_source
from workerlib.kinds import DirectCall, DirectPipe, ReverseDirectPipe, ReversePipe, StatePipe
from workerlib.outflow import Updates
from workerlib.shell.alarm import Deadline, alarm_of
from workerlib.shell.compression import inflate
from workerlib.shell.pickling import why_not_trusted
from workerlib.shell.recent_log import LogRecord
from workerlib.shell.transport import Peer, Wire, open_connection
from workerlib.spec import RPC, Function, Kind, OneWay, Pipe, Rpc, RpcSettings
from workerlib.streams import StateStream, Stream

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")


CANCELLED_SEEN_WITHIN_S = 0.005
"""How long after a call was cancelled its worker may hear of it at most.

A Future of our own class could tell at once, but costs 3 us of a 35 us call: asyncio takes its fast paths for its own
class only. So a call gets a callback for its cancellation when it is still under way after this time.
"""

NO_FUNCTIONS: Mapping[str, Function[..., Any]] = MappingProxyType({})

runner: Callable[..., Any] | None = compiled("runner", None)
result_taker: Callable[..., Callable[[bytes], bool]] | None = compiled("result_taker", None)

Reply = tuple["asyncio.Future[Any]", Outgoing | None, str, bool]
"""A call under way: who waits for it, how its result is decoded, the function's name, and whether it would be noticed
at once if it were cancelled.
"""
NO_REPLY: Any = (None, None, "", False)


class Connection:
    """A connection to one worker, with its own connection state there. Made by `connect` and `spawn`.

    All of it belongs to the event loop that made it. An async context manager: leaving it closes the connection.
    """

    __slots__ = ("__dict__", "__weakref__", "_will_look")  # as a slot for the C part

    def __init__(
        self, uri: Uri, settings: RpcSettings, expected: Mapping[str, Function[..., Any]] = NO_FUNCTIONS
    ) -> None:
        self.uri = uri
        self._expected = expected
        self.settings = settings
        self.functions: dict[str, Kind] = {}
        """Names and kinds of the functions that the worker offers."""
        self._offer = Offer()
        self._loop = asyncio.get_running_loop()
        self._alarm = alarm_of(self._loop)
        self._session = ClientSession(settings, inflate, self._loop.time())
        self._wire: Wire | None = None
        # The C part has these two: they are emptied, not replaced.
        self._outgoing: dict[Function[..., Any], Outgoing] = {}
        self._replies: dict[int, Reply] = {}
        self._will_look: Deadline | asyncio.TimerHandle | None = None
        self._streams: dict[int, Stream[Any]] = {}
        self._feeds: dict[int, Feed] = {}
        self._pings: dict[int, asyncio.Future[None]] = {}
        self._handshake: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[Closed] = self._loop.create_future()

    async def open(
        self,
        value: Any,
        *,
        tls: ssl.SSLContext | None,
        within_s: float | None = None,
        connect: Callable[..., Awaitable[Wire]] = open_connection,
    ) -> None:
        """Connects, by a socket unless `connect` knows another way, and does the handshake.

        Raises OSError, HandshakeError, ConnectionLost, ProtocolError, TimeoutError, and ArgumentError for a `value`
        that cannot be encoded.
        """

        def factory() -> Wire:
            self._wire = Wire(self._session, self._on_event, self._make_shortcut, hold_reading=False)
            return self._wire

        try:
            async with asyncio.timeout(within_s):
                wire = await connect(self.uri.location, factory, tls=tls)
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
        check_size(hello, self.settings.max_message_size, "the connection's argument")
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
        dialect, self._offer = read_greeting(frame, self.uri)
        self.functions = self._offer.kinds
        self._offer.check(self._expected, self.uri, all_needed=True)
        self._session.opened(dialect, self._loop.time())
        if self._wire is not None:
            self._wire.refresh_deadline()

    # Calls

    @overload
    def run(self, function: Pipe[P, R] | DirectPipe[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Stream[R]: ...
    @overload
    def run(
        self, function: StatePipe[P, S, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Awaitable[tuple[S, Stream[R]]]: ...
    @overload
    def run(
        self,
        function: ReversePipe[T, P, R],
        source: AsyncIterable[T] | Iterable[T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Awaitable[R]: ...
    @overload
    def run(self, function: ReverseDirectPipe[T, P, R], /, *args: P.args, **kwargs: P.kwargs) -> DirectCall[T, R]: ...
    @overload
    def run(self, function: OneWay[P], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[None]: ...
    @overload
    def run(self, function: Rpc[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]: ...
    def run(self, function: Function[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Dispatches one typed function. Does not block; the call is written before this returns.

        An rpc gives an awaitable result, a pipe or direct_pipe a `Stream`, a state function an awaitable snapshot with
        a `Stream` of its changes, a one_way an awaitable that waits only for room to write. A reverse_pipe takes the
        source of its items before the arguments, and gives an awaitable result; a source that is an async generator is
        closed when the worker wants no more of it, and what the source raises goes to the function and to whoever
        awaits the result. A reverse_direct_pipe gives a `DirectCall`. Raises ArgumentError when an argument cannot be
        encoded. The result raises what the function raised (builtin and declared errors as themselves, others as
        RemoteError), ArgumentError when the worker refuses an argument, and ConnectionLost. Cancelling the awaiting
        task cancels the function in the worker.
        """
        outgoing = self._outgoing.get(function)
        if outgoing is None:
            outgoing = prepare(function, self._outgoing, self._offer, self.uri, self._why_not_trusted)
        if outgoing.sends_items:
            return self._feed(outgoing.kind, args, functools.partial(outgoing.payload, kwargs=kwargs), outgoing)
        return self._dispatch(outgoing.kind, outgoing.payload(args, kwargs), outgoing, outgoing.name)

    def _why_not_trusted(self) -> str | None:
        peer = self._wire.peer if self._wire is not None else Peer("nobody")
        return why_not_trusted(peer.uid, peer.address)

    def call(self, name: str, *args: Any, target: str | None = None, **kwargs: Any) -> Any:
        """The same by name, without types: values are plain data. For tools; programs use `run`.

        `target` names another object of the same server. Raises UnknownFunction.
        """
        kind = Kind.RPC if target is not None else kind_of(name, self.functions, self.uri.target)
        if kind.sends_items:
            return self._feed(kind, args, lambda args: plain_call(self.uri.target, name, args, kwargs), None, name)
        return self._dispatch(kind, plain_call(target or self.uri.target, name, args, kwargs), None, name)

    def _check_open(self, payload: bytes, name: str) -> Wire:
        if self._session.closed is not None or self._wire is None:
            raise (self._session.closed or Closed(CloseKind.LOCAL, "not yet open")).as_error()
        if len(payload) > self.settings.max_message_size:
            check_size(payload, self.settings.max_message_size, f"the arguments of {name}")
        return self._wire

    def _feed(
        self,
        kind: Kind,
        args: tuple[Any, ...],
        payload_of: Callable[[tuple[Any, ...]], bytes],
        outgoing: Outgoing | None,
        name: str = "",
    ) -> Any:
        """A call that sends items: from its first argument, or by hand."""
        name = name or (outgoing.name if outgoing is not None else "")
        source: Any = None
        if kind is Kind.REVERSE_PIPE:
            if not args:
                raise ArgumentError(f"{name}: the source of its items is missing")
            source, args = as_source(args[0], name), args[1:]
        payload = payload_of(args)
        wire = self._check_open(payload, name)
        seq, data = self._session.call_with_items(payload)
        future = self._loop.create_future()
        self._expect(seq, future, outgoing, name)
        wire.write(data)
        form = outgoing.item_form if outgoing is not None else None
        updates = Updates(wire, self._session, seq, name, functools.partial(self._feeds.pop, seq, None), form)
        if source is not None:
            self._feeds[seq] = SourceFeed(wire, self._session, seq, updates, source, future)
            return future
        writer = self._feeds[seq] = CallWriter(updates, name, self.settings.stream_buffer, wire, future)
        return writer

    def _dispatch(self, kind: Kind, payload: bytes, outgoing: Outgoing | None, name: str) -> Any:
        session, wire = self._session, self._wire
        if session.closed is not None or wire is None or len(payload) > self.settings.max_message_size:
            wire = self._check_open(payload, name)
        if kind is RPC:
            seq, data = session.call(payload)
            future = self._loop.create_future()
            if seq - 1 in self._replies:  # the call before has no answer yet: there may be many at a time
                wire.write_together()
            self._expect(seq, future, outgoing, name)
            wire.write(data)
            return future
        if kind is Kind.ONE_WAY:
            wire.write(session.call_one_way(payload))
            return wire.writable()
        seq, data = session.call(payload)
        made = StateStream if kind is Kind.STATE else Stream
        grant, give_up = functools.partial(self.grant, seq), functools.partial(self.send_abort, seq)
        stream = self._streams[seq] = made(name, outgoing, self.settings.stream_window, grant, give_up)
        wire.write(data)
        return stream.opened if isinstance(stream, StateStream) else stream

    def _expect(self, seq: int, future: "asyncio.Future[Any]", outgoing: Outgoing | None, name: str) -> None:
        self._replies[seq] = future, outgoing, name, False
        if self._will_look is None:
            self.look_soon()

    def look_soon(self) -> None:
        """Some calls will be noticed when they are cancelled, those that are still under way then."""
        self._will_look = self._alarm.call_at(self._loop.time() + CANCELLED_SEEN_WITHIN_S, self._look)

    def _look(self) -> None:
        """Notices calls that were cancelled, and sees to it that the others will be noticed at once."""
        self._will_look = None
        young = itertools.takewhile(lambda call: not call[1][3], reversed(self._replies.items()))
        for seq, (future, outgoing, name, _) in list(young):
            self._replies[seq] = future, outgoing, name, True
            if future.done():
                self._on_done(seq, future)
            else:
                future.add_done_callback(functools.partial(self._on_done, seq))

    def _on_done(self, seq: int, future: "asyncio.Future[Any]") -> None:
        if future.cancelled() and seq in self._replies and self._replies[seq][0] is future:
            self.send_abort(seq, "cancelled by the caller")
            if seq in self._feeds:
                self._feeds.pop(seq).cut("the call was cancelled")

    # What every worker has

    async def info(self) -> WorkerInfo:
        """The worker as it sees itself: pid, start, memory, connections, functions with their types."""
        info: WorkerInfo = await self._run_common(Common.info)
        return info

    async def worker_settings(self) -> RpcSettings:
        """The bounds and deadlines that the worker holds this connection to; `settings` are this end's own."""
        settings: RpcSettings = await self._run_common(Common.settings)
        return settings

    async def close_server(self) -> None:
        """Makes the worker accept no more connections; those that exist stay, this one included. Idempotent."""
        await self._run_common(Common.close_server)

    def log(self, last: int = 0) -> Stream[LogRecord]:
        """The records of the worker's log from now on, after the `last` ones that it has kept (at most 1000).

        With `last`, also what was logged before anybody could connect. Records below INFO are not there unless the
        worker's own code lowers the level of the root logger. Any number of subscribers may read at a time; one that
        falls too far behind gets StreamOverflow, and does not hold the worker up.
        """
        return self._run_common(Common.log, last)  # type: ignore[no-any-return]

    def _run_common(self, function: Function[..., Any], *args: Any) -> Any:
        outgoing = self._outgoing.get(function)
        if outgoing is None:
            outgoing = self._outgoing[function] = Outgoing(function, CONTROL)
        return self._dispatch(function.kind, outgoing.payload(args, {}), outgoing, outgoing.name)

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

    def _make_shortcut(self, wire: Wire) -> Callable[[bytes], bool]:
        if runner is None or result_taker is None:
            return self._shortcut
        known = self._session.in_c
        kind = type(self._loop.create_future())
        make: tuple[Any, Any] = (kind, {"loop": self._loop})
        if kind is not asyncio.Future:  # which every loop makes thus; another class its loop knows to make
            make = (self._loop.create_future, {})
        if type(self).run is _RUN:  # and not that of a subclass, or of a test
            # As an attribute it goes before the method: nothing of Python is in between.
            method = types.MethodType(_RUN, self)
            self.run = runner(  # type: ignore[method-assign]
                *known, self._replies, self, wire, method, self._outgoing, *make, encode
            )
        return result_taker(*known, self._replies, kind.done, kind.set_result)

    def _shortcut(self, data: bytes) -> bool:
        """One plain result of a call that waits: half the work of the long way."""
        seq = self._session.sole_result(data)
        if seq < 0:
            return False
        future, outgoing, _, _ = self._replies.get(seq, NO_REPLY)
        if outgoing is None:
            self._on_event(Frame(frames.RESULT, MSGPACK, 0, seq, data[frames.HEADER_SIZE :]))
            return True
        if not future.done():
            try:
                value = outgoing.results.one(data[frames.HEADER_SIZE :])
            except Exception as error:  # noqa: BLE001 - the types' own checks are user code
                _tell(future, error=outgoing.results.error(error))
            else:
                _tell(future, value)
        self._replies.pop(seq, None)
        return True

    def _on_event(self, event: Event) -> None:
        if type(event) is not Frame:
            self._on_closed(cast("Closed", event))
            return
        seq = event.seq
        # What waits is forgotten after it was told: if the frame cannot be read, it ends with the connection. The
        # caller's own code may have ended that meanwhile.
        if event.type == frames.RESULT and (reply := self._replies.get(seq)) is not None:
            self._take_reply(reply, event)
            self._replies.pop(seq, None)
        elif event.type != frames.PING and (stream := self._streams.get(seq)) is not None:
            stream.take(event)
            if is_last(event):
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
        elif event.type == frames.CREDIT and (feed := self._feeds.get(event.seq)) is not None:
            feed.wake()
        elif event.type == frames.END and (feed := self._feeds.pop(event.seq, None)) is not None:
            feed.cut(f"the worker wants no more: {read(event)}")
            if self._session.closed is None and self._wire is not None:
                self._wire.write(self._session.end(event.seq, NIL))
        elif event.type == frames.ABORT and (reply := self._replies.get(event.seq)) is not None:
            self._take_reply(reply, event)
            self._replies.pop(event.seq, None)

    def _take_reply(self, reply: Reply, frame: Frame) -> None:
        """Gives a call its answer. Raises ProtocolError when that cannot be read."""
        future, outgoing, name, _ = reply
        if future.done():
            return  # it was cancelled; this is the worker's late answer
        if tells_failure(frame):
            future.set_exception(failure(frame, outgoing, name))
            return
        try:
            value = read_result(frame, outgoing, name)
        except ProtocolError:
            raise
        except Exception as error:  # noqa: BLE001 - also what the caller's adaption raises
            if starts_stream(frame):
                self.send_abort(frame.seq, "the caller expected one result")
            _tell(future, error=error)
        else:
            _tell(future, value)

    def _on_closed(self, closed: Closed) -> None:
        if self._will_look is not None:
            self._will_look.cancel()
            self._will_look = None
        if not self._closed.done():
            self._closed.set_result(closed)
        if not self._handshake.done():
            self._handshake.set_exception(closed.as_error())
            self._handshake.exception()  # read here: `open` may have given up before
        replies = self._replies.copy()
        self._replies.clear()
        pings, self._pings = self._pings, {}
        for waiting in (*(future for future, *_ in replies.values()), *pings.values()):
            if not waiting.done():
                waiting.set_exception(closed.as_error())
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(closed.as_error())
        feeds, self._feeds = self._feeds, {}
        for feed in feeds.values():
            feed.cut(str(closed))

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


_RUN = Connection.run


def _tell(future: "asyncio.Future[Any]", value: Any = None, *, error: Exception | None = None) -> None:
    """Gives a call its outcome, unless what made that of the answer, the caller's own code, has ended the call."""
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)


async def open_to(
    uri: Uri,
    value: Any = None,
    *,
    settings: RpcSettings,
    tls: ssl.SSLContext | None = None,
    insecure: bool = False,
    within_s: float | None = None,
    expected: Mapping[str, Function[..., Any]] = NO_FUNCTIONS,
) -> Connection:
    """A connection to the object at `uri`, refused unless it has the `expected` functions; `value` is its
    connection-state argument.

    Raises FunctionsDiffer, UsageError for TCP without `tls` unless `insecure` says that this is wanted, and what
    `Connection.open` does.
    """
    if isinstance(uri.location, TcpLocation) and tls is None and not insecure:
        raise UsageError(f"{uri}: TCP without TLS shows every byte to the network; give tls=, or insecure=True")
    connection = Connection(uri, settings, expected)
    await connection.open(value, tls=tls, within_s=within_s)
    return connection
