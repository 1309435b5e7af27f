"""workerlib without an event loop: a connection whose calls block, for scripts and tools.

It drives the same machine as `workerlib.connection`, over a blocking socket: no thread, and asyncio is not imported::

    with workerlib.blocking.connect(uri) as connection:
        print(connection.run(Sum.add, 5))
        for n in connection.run(Sum.squares, 4):
            print(n)

A connection belongs to one thread at a time. It reads only while one of its methods waits, so it answers nothing in
between; it says so when it connects (`"heartbeat": false`), and the worker does not take its silence for death. While
it waits, it asks the worker for signs of life itself: a call to a worker that is stopped ends with ConnectionLost.
"""

import _thread
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar, overload

from workerlib.core import frames
from workerlib.core.calling import (
    Offer,
    check_size,
    is_last,
    kind_of,
    plain_call,
    prepare,
    read_greeting,
    read_items,
    read_result,
    read_snapshot,
    starts_stream,
)
from workerlib.core.client_session import ClientSession
from workerlib.core.config import CONTROL
from workerlib.core.frames import Frame
from workerlib.core.payload import NO_ENCODING, Outgoing
from workerlib.core.session import (
    Closed,
    CloseKind,
    Event,
)
from workerlib.core.uri import TcpLocation, Uri, parse_uri
from workerlib.errors import ArgumentError, HandshakeError, ProtocolError, ResultError, UsageError
from workerlib.kinds import DirectPipe, ReverseDirectPipe, ReversePipe, StatePipe
from workerlib.outflow import Updates
from workerlib.shell.blocking_socket import SOON_S, BlockingSocket, now, open_socket
from workerlib.shell.compression import inflate
from workerlib.shell.environment import effective_settings
from workerlib.shell.pickling import why_not_trusted
from workerlib.spec import RPC, Function, Kind, OneWay, Pipe, Rpc, RpcSettings, functions_of

if TYPE_CHECKING:
    from workerlib.common import WorkerInfo
    from workerlib.shell.recent_log import LogRecord

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")

_NOTHING: Any = object()
NO_FUNCTIONS: Mapping[str, Function[..., Any]] = MappingProxyType({})


class _Call:
    """What has come for one call and was not taken yet."""

    __slots__ = ("frames", "name", "outgoing", "seq", "stopped")

    def __init__(self, seq: int, name: str, outgoing: Outgoing | None) -> None:
        self.seq = seq
        self.name = name
        self.outgoing = outgoing
        self.frames: deque[Frame] = deque()
        self.stopped = False  # the worker wants no more of the items that the call sends


class _Port:
    """Where the items of a call are written to."""

    paused = False

    def __init__(self, out: deque[memoryview]) -> None:
        self._out = out

    def write(self, data: bytes) -> None:
        self._out.append(memoryview(data))


class Stream(Iterator[R], Generic[R]):
    """The items that a pipe function yields, in order. Leaving the loop early aborts the function.

    Items are taken with the caller's pace: when half of the window is used up, the worker is granted as many more.
    Other calls may be made on the connection in between. Also a context manager, which closes the stream.
    """

    def __init__(self, connection: "Connection", call: _Call) -> None:
        self._connection = connection
        self._call = call
        self._batch: Iterator[R] = iter(())
        self._ended = False
        self._count = 0  # items in batches taken since the last grant

    def __next__(self) -> R:
        """Waits for the next item, at most `connection.timeout_s`: then TimeoutError, and the function is aborted."""
        while (item := next(self._batch, _NOTHING)) is _NOTHING:
            if self._ended:
                raise StopIteration
            self._take()
        return item

    def _take(self) -> None:
        call, connection = self._call, self._connection
        if self._count * 2 >= connection.settings.stream_window:
            connection.grant(call.seq, self._count)
            self._count = 0
        frame = None
        try:
            frame = connection.next_frame(call)
            items = read_items(frame, call.outgoing, call.name)
        except ProtocolError as error:
            self._ended = True
            connection.fail(error)
            raise
        except BaseException:
            if frame is not None and not is_last(frame):  # else the function raised, or the connection has ended
                self._end("an item could not be taken")
            self._ended = True
            raise
        if items is None:
            self._ended = True
        else:
            self._count += len(items)
            self._batch = iter(items)

    def _end(self, reason: str) -> None:
        if not self._ended:
            self._ended = True
            self._connection.give_up(self._call, reason)

    def close(self) -> None:
        """Gives the stream up: the generator in the worker is closed, no more items are given. Idempotent."""
        self._batch = iter(())
        self._end("the caller does not want more")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_ended", True):
            self._end("the caller does not want more")


class Connection:
    """A blocking connection to one worker, with its own connection state there. Made by `connect`.

    A context manager: leaving it closes the connection. An exception that interrupts a wait from outside, such as
    KeyboardInterrupt, closes it as well, since a message may have been cut through.
    """

    def __init__(self, uri: Uri, settings: RpcSettings, *, timeout_s: float | None = None) -> None:
        self.uri = uri
        self.settings = settings
        self.functions: dict[str, Kind] = {}
        """Names and kinds of the functions that the worker offers."""
        self._offer = Offer()
        self.timeout_s = timeout_s
        """How long each call, and each wait for an item of a stream, may take; None: as long as the worker lives.

        Set it before a call. What takes longer raises TimeoutError: the function is cancelled in the worker, and the
        connection stays usable. Only when not even the request could be written, the connection is closed.
        """
        self._session = ClientSession(settings, inflate, now(), always_reading=False)
        self._socket: BlockingSocket | None = None
        self._out: deque[memoryview] = deque()  # to be sent, in order; complete messages except perhaps the first
        self._sendable = True  # until the peer refuses more; what it had sent before is still read then
        self._moved_at = 0.0  # when the peer last took something that was sent
        self._greeting: Frame | None = None
        self._calls: dict[int, _Call] = {}
        self._feeds: dict[int, _Call] = {}  # calls that send items
        self._pongs: set[int] = set()
        self._outgoing: dict[Function[..., Any], Outgoing] = {}
        self._user = _thread.get_ident()  # the thread that waits now, or else waited last
        self._waiting = False

    def open(
        self, value: Any, within_s: float | None, expected: Mapping[str, Function[..., Any]] = NO_FUNCTIONS
    ) -> None:
        """Connects and does the handshake; see `connect` for what is raised."""
        try:
            hello = self._session.connect(self.uri.target, value)
        except NO_ENCODING as error:
            raise ArgumentError(f"the connection's argument cannot travel between processes: {error}") from None
        check_size(hello, self.settings.max_message_size, "the connection's argument")
        until = self._until(within_s)
        limit = min(self.settings.handshake_timeout_s, math.inf if within_s is None else within_s)
        self._socket = open_socket(self.uri.location, limit)
        try:
            self._out.append(memoryview(hello))
            self._flush()
            while self._greeting is None:
                self._check_open()
                if now() >= until:
                    raise TimeoutError(f"{self.uri}: no answer within {within_s:g} s")
                self._turn(until)
            dialect, self._offer = read_greeting(self._greeting, self.uri)
            self.functions = self._offer.kinds
            self._offer.check(expected, self.uri, all_needed=True)
            self._session.opened(dialect, now())
            self._session.hold(now())
        except HandshakeError:
            self._drop(CloseKind.REJECTED)
            raise
        except BaseException:
            self._drop(CloseKind.LOCAL)
            raise

    # Calls

    @overload
    def run(self, function: Pipe[P, R] | DirectPipe[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Stream[R]: ...
    @overload
    def run(self, function: StatePipe[P, S, R], /, *args: P.args, **kwargs: P.kwargs) -> tuple[S, Stream[R]]: ...
    @overload
    def run(
        self,
        function: ReversePipe[T, P, R] | ReverseDirectPipe[T, P, R],
        source: Iterable[T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R: ...
    @overload
    def run(self, function: OneWay[P], /, *args: P.args, **kwargs: P.kwargs) -> None: ...
    @overload
    def run(self, function: Rpc[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def run(self, function: Function[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Runs one typed function. An rpc returns its result, a one_way when it is written, a pipe or direct_pipe a
        `Stream` at once, a state function the snapshot and a `Stream` of its changes. A reverse_pipe or
        reverse_direct_pipe takes the source of its items before the arguments, and returns its result when that has
        come and the source is at its end or the worker wants no more of it.

        Raises what the function raised (builtin and declared errors as themselves, others as RemoteError),
        ArgumentError when the worker refuses an argument or one cannot be encoded, ConnectionLost, and TimeoutError
        after `timeout_s`.
        """
        outgoing = self._outgoing.get(function)
        if outgoing is None:
            outgoing = prepare(function, self._outgoing, self._offer, self.uri, self._why_not_trusted)
        if outgoing.sends_items:
            return self._send_items(args, lambda args: outgoing.payload(args, kwargs), outgoing, outgoing.name)
        return self._dispatch(outgoing.kind, outgoing.payload(args, kwargs), outgoing, outgoing.name)

    def _why_not_trusted(self) -> str | None:
        uid = self._socket.peer_uid() if self._socket is not None else None
        return why_not_trusted(uid, str(self.uri.location))

    def call(self, name: str, *args: Any, target: str | None = None, **kwargs: Any) -> Any:
        """The same by name, without types: values are plain data. For tools; programs use `run`.

        `target` names another object of the same server. Raises UnknownFunction.
        """
        kind = Kind.RPC if target is not None else kind_of(name, self.functions, self.uri.target)
        if kind.sends_items:
            return self._send_items(args, lambda args: plain_call(self.uri.target, name, args, kwargs), None, name)
        return self._dispatch(kind, plain_call(target or self.uri.target, name, args, kwargs), None, name)

    # What every worker has

    def info(self) -> "WorkerInfo":
        """The worker as it sees itself: pid, start, memory, connections, functions with their types."""
        from workerlib.common import Common  # noqa: PLC0415 - most scripts never ask

        return self._run_common(Common.info)  # type: ignore[no-any-return]

    def worker_settings(self) -> RpcSettings:
        """The bounds and deadlines that the worker holds this connection to; `settings` are this end's own."""
        from workerlib.common import Common  # noqa: PLC0415 - most scripts never ask

        return self._run_common(Common.settings)  # type: ignore[no-any-return]

    def close_server(self) -> None:
        """Makes the worker accept no more connections; those that exist stay, this one included. Idempotent."""
        from workerlib.common import Common  # noqa: PLC0415 - most scripts never ask

        self._run_common(Common.close_server)

    def log(self, last: int = 0) -> "Stream[LogRecord]":
        """The records of the worker's log from now on, after the `last` ones that it has kept (at most 1000).

        With `last`, also what was logged before anybody could connect. Records below INFO are not there unless the
        worker's own code lowers the level of the root logger. Any number of subscribers may read at a time; one that
        falls too far behind gets StreamOverflow, and does not hold the worker up.
        """
        from workerlib.common import Common  # noqa: PLC0415 - most scripts never ask

        return self._run_common(Common.log, last)  # type: ignore[no-any-return]

    def _run_common(self, function: Function[..., Any], *args: Any) -> Any:
        outgoing = self._outgoing.get(function)
        if outgoing is None:
            outgoing = self._outgoing[function] = Outgoing(function, CONTROL)
        return self._dispatch(function.kind, outgoing.payload(args, {}), outgoing, outgoing.name)

    def ping(self) -> float:
        """Seconds from here to the worker's connection and back; its functions are not involved."""
        self._check_open()
        began = now()
        seq, data = self._session.ping()
        self._out.append(memoryview(data))
        self._pongs.add(seq)
        try:
            self._wait(lambda: seq not in self._pongs, "no answer to a ping")
            if seq in self._pongs:
                self._check_open()
        finally:
            self._pongs.discard(seq)
        return now() - began

    def _dispatch(self, kind: Kind, payload: bytes, outgoing: Outgoing | None, name: str) -> Any:
        if self._socket is None or len(payload) > self.settings.max_message_size:
            self._check_open()
            check_size(payload, self.settings.max_message_size, f"the arguments of {name}")
        if kind is RPC:
            return self._call(payload, outgoing, name)
        if kind is Kind.ONE_WAY:
            self._out.append(memoryview(self._session.call_one_way(payload)))
            self._wait(lambda: not self._out and self._sendable, f"{name} could not be written")
            if self._out or not self._sendable:
                self._check_open()
            return None
        seq, data = self._session.call(payload)
        call = self._calls[seq] = _Call(seq, name, outgoing)
        self._out.append(memoryview(data))
        if kind is Kind.STATE:
            return self._open_state(call)
        self._flush()
        return Stream(self, call)

    def _call(self, payload: bytes, outgoing: Outgoing | None, name: str) -> Any:
        """A call with one result. Most are answered soon, by one whole message: those take half the work."""
        seq, data = self._session.call(payload)
        arrived = self._exchange(data)
        if arrived and outgoing is not None and self._session.sole_result(arrived, seq) == seq:
            try:
                return outgoing.results.one(arrived[frames.HEADER_SIZE :])
            except Exception as error:  # noqa: BLE001 - the types' own checks are user code
                raise outgoing.results.error(error) from None
        call = self._calls[seq] = _Call(seq, name, outgoing)
        if arrived:
            self._session.unhold(now())
            self._arrived(arrived)
            self._session.hold(now())
        frame = self.next_frame(call)
        try:
            return read_result(frame, outgoing, name)
        except ProtocolError as error:
            self.fail(error)
            raise
        finally:
            if starts_stream(frame):
                self.give_up(call, "the caller expected one result")

    def _open_state(self, call: _Call) -> tuple[Any, Stream[Any]]:
        frame = self.next_frame(call)
        try:
            return read_snapshot(frame, call.outgoing, call.name), Stream(self, call)
        except ProtocolError as error:
            self.fail(error)
            raise
        except ResultError:
            self.give_up(call, "the snapshot is not of the declared type")
            raise

    def _send_items(
        self,
        args: tuple[Any, ...],
        payload_of: Callable[[tuple[Any, ...]], bytes],
        outgoing: Outgoing | None,
        name: str,
    ) -> Any:
        """A call that sends items, from its first argument."""
        self._check_open()
        if not args or not isinstance(args[0], Iterable):
            raise UsageError(f"{name}: its first argument must be the source of its items, which can be iterated")
        source, payload = args[0], payload_of(args[1:])
        check_size(payload, self.settings.max_message_size, f"the arguments of {name}")
        seq, data = self._session.call_with_items(payload)
        call = self._calls[seq] = self._feeds[seq] = _Call(seq, name, outgoing)
        self._out.append(memoryview(data))
        form = outgoing.item_form if outgoing is not None else None
        try:
            self._feed(call, Updates(_Port(self._out), self._session, seq, name, form=form), source)
            return read_result(self.next_frame(call), outgoing, name)
        except ProtocolError as error:
            self.fail(error)
            raise
        finally:
            del self._feeds[seq]

    def _feed(self, call: _Call, updates: Updates, source: Iterable[Any]) -> None:
        """Sends what the source gives, until its end or until the worker wants no more."""
        session, items = self._session, iter(source)
        try:
            for item in items:
                self._wait(lambda: call.stopped or session.credit(call.seq) > 0, f"{call.name}: no room for its items")
                self._check_open()
                if call.stopped:
                    break
                updates.send([item, *islice(items, updates.room() - 1)])
                self._wait(lambda: call.stopped or not self._out, f"{call.name}: its items could not be written")
        except TimeoutError:
            self.give_up(call, "the caller's time is over")
            raise
        except Exception as error:
            if session.closed is None:  # the source's own, or an item that cannot travel
                updates.end(error)
                self._calls.pop(call.seq, None)
                self._flush()
            raise
        finally:
            if isinstance(source, Generator):
                source.close()
        updates.end(None)

    # For Stream

    def next_frame(self, call: _Call) -> Frame:
        """The next frame of a call. Raises ConnectionLost, and TimeoutError when the call was given up."""
        arrived = call.frames
        if not arrived:
            try:
                self._wait(lambda: bool(arrived), f"{call.name}: no answer")
            except TimeoutError:
                self.give_up(call, "the caller's time is over")
                raise
            if not arrived:
                self._check_open()
        return arrived.popleft()

    def grant(self, seq: int, count: int) -> None:
        """Lets the worker send more items of a stream."""
        if self._session.closed is None and (credit := self._session.grant(seq, count)):
            self._out.append(memoryview(credit))
            self._flush()

    def give_up(self, call: _Call, reason: str) -> None:
        """Cancels a call in the worker. What still comes for it is dropped."""
        if self._calls.pop(call.seq, None) is not None and self._session.closed is None:
            self._out.append(memoryview(self._session.abort(call.seq, reason)))
            # A stream may be forgotten, and collected, in the middle of a wait or in another thread: the next wait
            # sends it then.
            if not self._waiting and self._user == _thread.get_ident():
                self._flush()

    def fail(self, error: ProtocolError) -> None:
        """The peer sent something that cannot be read: ends the connection."""
        self._drop(CloseKind.PROTOCOL, str(error))

    # Waiting

    def _until(self, within_s: float | None) -> float:
        return math.inf if within_s is None else now() + within_s

    def _check_open(self) -> None:
        if self._session.closed is not None:
            raise self._session.closed.as_error()
        if self._socket is None:
            raise UsageError("this connection was not opened; use workerlib.blocking.connect")

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        """Exchanges bytes with the peer until `done()`, or the end of the connection. Raises TimeoutError."""
        until = self._until(self.timeout_s)
        self._user, self._waiting = _thread.get_ident(), True
        session = self._session
        started = self._moved_at = now()
        session.unhold(started)
        try:
            self._flush()
            while not done() and session.closed is None:
                if now() >= until:
                    raise TimeoutError(f"{what} within {self.timeout_s:g} s")
                self._turn(until)
        except TimeoutError:
            if self._out:
                self._drop(CloseKind.NOT_READING, f"for {self.timeout_s:g} s")
            raise
        except BaseException:
            self._drop(CloseKind.LOCAL, "interrupted")
            raise
        finally:
            self._waiting = False
            session.hold(now())

    def _exchange(self, data: bytes) -> bytes | None:
        """Sends, and waits for the next thing to come, for SOON_S at most: no deadline is late by more than that."""
        sock = self._socket
        if sock is None or self._out or (self.timeout_s is not None and self.timeout_s <= SOON_S):
            self._out.append(memoryview(data))
            return None
        self._user, self._waiting = _thread.get_ident(), True
        sent = -1
        try:
            sent = sock.send(data)
            if sent == len(data):
                return sock.receive_soon()
            self._out.append(memoryview(data)[sent:])
        except OSError as error:
            if sent < 0:
                self._sendable = False  # reading tells why: what the peer said before it closed comes first
            else:
                self._lost(error)
        except BaseException:
            self._drop(CloseKind.LOCAL, "interrupted")
            raise
        finally:
            self._waiting = False
        return None

    def _lost(self, error: OSError) -> None:
        kind = CloseKind.PEER if isinstance(error, ConnectionError) else CloseKind.TRANSPORT
        self._drop(kind, error.strerror or "")

    def _turn(self, until: float) -> None:
        """Waits for something to happen or for `until`, takes what has come, sends what can be sent."""
        session, sock = self._session, self._socket
        assert sock is not None, "a connection that is open has a socket"
        stuck_at = self._moved_at + self.settings.buffer_age_limit_s if self._out else math.inf
        sock.wait(min(until, session.deadline_at, stuck_at) - now(), writing=bool(self._out))
        try:
            ended = self._receive(sock)
        except OSError as error:
            self._lost(error)
            return
        if ended:
            self._drop(CloseKind.PEER)
        elif self._out and now() >= stuck_at:
            self._drop(CloseKind.NOT_READING, f"for {self.settings.buffer_age_limit_s:g} s")
        elif now() >= session.deadline_at:  # last: signs of life that were there have been taken
            self._handle(session.tick(now()))
        self._flush()

    def _receive(self, sock: BlockingSocket) -> bool:
        """Takes what has come; whether that is the end of the stream. A large message is read to its place."""
        session = self._session
        if session.missing:
            size = sock.receive_into(session.room())
            if size:
                self._handle(session.receive_filled(size, now()))
            return size == 0
        data = sock.receive()
        if data:
            self._arrived(data)
        return data == b""

    def _arrived(self, data: bytes) -> None:
        self._handle(self._session.receive(data, now()))

    def _handle(self, events: Iterable[Event]) -> None:
        for event in events:
            self._take(event)
        if output := self._session.take_output():
            self._out.append(memoryview(output))

    def _take(self, event: Event) -> None:
        if isinstance(event, Closed):
            self._drop(event.kind, event.detail)
        elif event.type in {frames.CONNECT_OK, frames.CONNECT_FAIL}:
            self._greeting = event
        elif event.type == frames.PING:
            self._pongs.discard(event.seq)
        elif event.type == frames.END and (call := self._feeds.get(event.seq)) is not None:
            call.stopped = True
        elif event.type == frames.CREDIT:
            pass  # the session counts it, and who waits for it looks there
        elif (call := self._calls.get(event.seq)) is not None:  # else it was given up
            call.frames.append(event)
            if is_last(event):
                del self._calls[event.seq]

    def _flush(self) -> None:
        """Sends what can be sent at once; the rest goes with the next wait."""
        out, sock = self._out, self._socket
        while out and sock is not None and self._sendable:
            data = out[0]
            try:
                sent = sock.send(data)
            except OSError:
                self._sendable = False  # reading tells why: what the peer said before it closed comes first
                break
            if not sent:
                return
            self._moved_at = now()
            if sent == len(data):
                out.popleft()
            else:
                out[0] = data[sent:]
        if not self._sendable:
            out.clear()

    # The end

    @property
    def closed(self) -> str | None:
        """Why the connection has ended, in words, or None while it is open as far as is known."""
        return str(self._session.closed) if self._session.closed is not None else None

    @property
    def peer_pid(self) -> int | None:
        """The process at the other end of a Unix socket; None for TCP and after the end."""
        return self._socket.peer_pid() if self._socket is not None else None

    def wait_closed(self) -> str:
        """Waits until the worker has ended the connection, or `timeout_s` is over (TimeoutError); returns why."""
        if self._session.closed is None:
            self._wait(lambda: False, f"{self.uri} was not closed")
        return str(self._session.closed)

    def close(self) -> None:
        """Closes; streams that are open end with ConnectionLost. Idempotent, does not block."""
        self._drop(CloseKind.LOCAL)

    def _drop(self, kind: CloseKind, detail: str = "") -> None:
        self._session.close(kind, detail)
        self._out.clear()
        self._calls.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(
    uri: str,
    arg: Any = None,
    *,
    settings: RpcSettings | None = None,
    insecure: bool = False,
    within_s: float | None = None,
    timeout_s: float | None = None,
    worker: type | None = None,
) -> Connection:
    """Connects to a worker by its URI, as a handle or a name server gives it. `arg` goes to the worker's `connected`.

    `worker` is the class that is expected there: a worker without its functions, or with other types of them, is
    refused with FunctionsDiffer. Without it, each function is compared when it is run for the first time.

    `within_s` bounds connecting, `timeout_s` each call (see `Connection.timeout_s`). TCP goes unencrypted here and
    must be asked for with `insecure`.

    Raises OSError when nobody listens, HandshakeError when the worker refuses (its id is not the URI's, `connected`
    raised), UsageError for a malformed URI and for TCP without `insecure`, TimeoutError after `within_s`,
    ConnectionLost, ProtocolError.
    """
    parsed = parse_uri(uri)
    if isinstance(parsed.location, TcpLocation) and not insecure:
        raise UsageError(f"{uri}: TCP without TLS shows every byte to the network; give insecure=True if that is fine")
    connection = Connection(parsed, effective_settings(settings), timeout_s=timeout_s)
    connection.open(arg, within_s, functions_of(worker) if worker is not None else NO_FUNCTIONS)
    return connection
