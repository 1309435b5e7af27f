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
from workerlib.core.config import CONTROL
from workerlib.core.payload import NO_ENCODING, Outgoing
from workerlib.core.session import OPEN, CloseKind
from workerlib.core.uri import TcpLocation, Uri, parse_uri
from workerlib.errors import ArgumentError, HandshakeError, ProtocolError, ResultError, UsageError
from workerlib.exchange import Call, Exchange
from workerlib.kinds import DirectPipe, ReverseDirectPipe, ReversePipe, StatePipe
from workerlib.outflow import Updates
from workerlib.shell.blocking_socket import now
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


class Stream(Iterator[R], Generic[R]):
    """The items that a pipe function yields, in order. Leaving the loop early aborts the function.

    Items are taken with the caller's pace: when half of the window is used up, the worker is granted as many more.
    Other calls may be made on the connection in between. Also a context manager, which closes the stream.
    """

    def __init__(self, exchange: Exchange, call: Call) -> None:
        self._exchange = exchange
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
        call, exchange = self._call, self._exchange
        if self._count * 2 >= exchange.settings.stream_window:
            exchange.grant(call.seq, self._count)
            self._count = 0
        frame = None
        try:
            frame = exchange.next_frame(call)
            items = read_items(frame, call.outgoing, call.name)
        except ProtocolError as error:
            self._ended = True
            exchange.fail(error)
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
            self._exchange.give_up(self._call, reason)

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
        self._outgoing: dict[Function[..., Any], Outgoing] = {}
        self._exchange = Exchange(settings, timeout_s)
        self._session = self._exchange.session

    @property
    def timeout_s(self) -> float | None:
        """How long each call, and each wait for an item of a stream, may take; None: as long as the worker lives.

        Set it before a call. What takes longer raises TimeoutError: the function is cancelled in the worker, and the
        connection stays usable. Only when not even the request could be written, the connection is closed.
        """
        return self._exchange.timeout_s

    @timeout_s.setter
    def timeout_s(self, seconds: float | None) -> None:
        self._exchange.timeout_s = seconds

    def open(
        self, value: Any, within_s: float | None, expected: Mapping[str, Function[..., Any]] = NO_FUNCTIONS
    ) -> None:
        """Connects and does the handshake; see `connect` for what is raised."""
        try:
            hello = self._session.connect(self.uri.target, value)
        except NO_ENCODING as error:
            raise ArgumentError(f"the connection's argument cannot travel between processes: {error}") from None
        check_size(hello, self.settings.max_message_size, "the connection's argument")
        greeting = self._exchange.open(self.uri, hello, within_s)
        try:
            dialect, self._offer = read_greeting(greeting, self.uri)
            self.functions = self._offer.kinds
            self._offer.check(expected, self.uri, all_needed=True)
            self._session.opened(dialect, now())
            self._session.hold(now())
        except HandshakeError:
            self._exchange.drop(CloseKind.REJECTED)
            raise
        except BaseException:
            self._exchange.drop(CloseKind.LOCAL)
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
        return why_not_trusted(self._exchange.peer_uid, str(self.uri.location))

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
        return self._exchange.ping()

    def _dispatch(self, kind: Kind, payload: bytes, outgoing: Outgoing | None, name: str) -> Any:
        exchange = self._exchange
        if self._session.state is not OPEN or len(payload) > self.settings.max_message_size:
            exchange.check_open()
            check_size(payload, self.settings.max_message_size, f"the arguments of {name}")
        if kind is RPC:
            return self._call(payload, outgoing, name)
        if kind is Kind.ONE_WAY:
            exchange.write(self._session.call_one_way(payload))
            exchange.push(name)
            return None
        seq, data = self._session.call(payload)
        call = exchange.calls[seq] = Call(seq, name, outgoing)
        exchange.write(data)
        if kind is Kind.STATE:
            return self._open_state(call)
        exchange.flush()
        return Stream(exchange, call)

    def _call(self, payload: bytes, outgoing: Outgoing | None, name: str) -> Any:
        """A call with one result. Most are answered soon, by one whole message: those take half the work."""
        seq, data = self._session.call(payload)
        exchange = self._exchange
        arrived = exchange.swap(data)
        if arrived and outgoing is not None and self._session.sole_result(arrived, seq) == seq:
            try:
                return outgoing.results.one(arrived[frames.HEADER_SIZE :])
            except Exception as error:  # noqa: BLE001 - the types' own checks are user code
                raise outgoing.results.error(error) from None
        call = exchange.calls[seq] = Call(seq, name, outgoing)
        if arrived:
            exchange.arrived(arrived)
        frame = exchange.next_frame(call)
        try:
            return read_result(frame, outgoing, name)
        except ProtocolError as error:
            exchange.fail(error)
            raise
        finally:
            if starts_stream(frame):
                exchange.give_up(call, "the caller expected one result")

    def _open_state(self, call: Call) -> tuple[Any, Stream[Any]]:
        exchange = self._exchange
        frame = exchange.next_frame(call)
        try:
            return read_snapshot(frame, call.outgoing, call.name), Stream(exchange, call)
        except ProtocolError as error:
            exchange.fail(error)
            raise
        except ResultError:
            exchange.give_up(call, "the snapshot is not of the declared type")
            raise

    def _send_items(
        self,
        args: tuple[Any, ...],
        payload_of: Callable[[tuple[Any, ...]], bytes],
        outgoing: Outgoing | None,
        name: str,
    ) -> Any:
        """A call that sends items, from its first argument."""
        exchange = self._exchange
        exchange.check_open()
        if not args or not isinstance(args[0], Iterable):
            raise UsageError(f"{name}: its first argument must be the source of its items, which can be iterated")
        source, payload = args[0], payload_of(args[1:])
        check_size(payload, self.settings.max_message_size, f"the arguments of {name}")
        seq, data = self._session.call_with_items(payload)
        call = exchange.calls[seq] = exchange.feeds[seq] = Call(seq, name, outgoing)
        exchange.write(data)
        form = outgoing.item_form if outgoing is not None else None
        try:
            self._feed(call, Updates(exchange, self._session, seq, name, form=form), source)
            return read_result(exchange.next_frame(call), outgoing, name)
        except ProtocolError as error:
            exchange.fail(error)
            raise
        finally:
            del exchange.feeds[seq]

    def _feed(self, call: Call, updates: Updates, source: Iterable[Any]) -> None:
        """Sends what the source gives, until its end or until the worker wants no more."""
        exchange, session, items = self._exchange, self._session, iter(source)
        try:
            for item in items:
                exchange.wait(
                    lambda: call.stopped or session.credit(call.seq) > 0, f"{call.name}: no room for its items"
                )
                exchange.check_open()
                if call.stopped:
                    break
                updates.send([item, *islice(items, updates.room() - 1)])
                exchange.wait(
                    lambda: call.stopped or not exchange.unsent, f"{call.name}: its items could not be written"
                )
        except TimeoutError:
            exchange.give_up(call, "the caller's time is over")
            raise
        except Exception as error:
            if session.closed is None:  # the source's own, or an item that cannot travel
                updates.end(error)
                exchange.calls.pop(call.seq, None)
                exchange.flush()
            raise
        finally:
            if isinstance(source, Generator):
                source.close()
        updates.end(None)

    # The end

    @property
    def closed(self) -> str | None:
        """Why the connection has ended, in words, or None while it is open as far as is known."""
        return str(self._session.closed) if self._session.closed is not None else None

    @property
    def peer_pid(self) -> int | None:
        """The process at the other end of a Unix socket; None for TCP and after the end."""
        return self._exchange.peer_pid

    def wait_closed(self) -> str:
        """Waits until the worker has ended the connection, or `timeout_s` is over (TimeoutError); returns why."""
        if self._session.closed is None:
            self._exchange.wait(lambda: False, f"{self.uri} was not closed")
        return str(self._session.closed)

    def close(self) -> None:
        """Closes; streams that are open end with ConnectionLost. Idempotent, does not block."""
        self._exchange.drop(CloseKind.LOCAL)

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
