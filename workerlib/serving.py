"""One client's connection at the serving end: its handshake, its calls, its answers."""

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Executor
from typing import Any, NamedTuple, cast

from workerlib.core import frames
from workerlib.core.calling import read
from workerlib.core.compiled import compiled
from workerlib.core.frames import Frame
from workerlib.core.payload import (
    MAY_BE_LARGE,
    MSGPACK,
    CallHead,
    call_prefix,
    decode,
    decode_call_head,
    encode,
    encode_result,
    encode_stock_result,
    error_to_wire,
)
from workerlib.core.session import DIALECT, CloseKind, Event, ServerSession, parse_dialect
from workerlib.errors import ArgumentError, NotTrusted, ProtocolError, ResultError, UnknownFunction, WorkerlibError
from workerlib.outflow import format_error
from workerlib.pump import StockStreams, StreamEnd
from workerlib.servant import Callee, Servant, Session, session_variable
from workerlib.shell import journal
from workerlib.shell.compression import inflate
from workerlib.shell.eager import EagerTask, enter_task, leave_task
from workerlib.shell.pickling import why_not_trusted
from workerlib.shell.transport import Peer, Wire
from workerlib.spec import (
    Kind,
    RpcSettings,
)
from workerlib.stream_calls import StreamCalls, check_takes_items, pulled

DEFAULT_HANDSHAKE = "hello"
"""What a stock client sends as its handshake when it was not told otherwise: no connection-state argument."""

SERPENT, MARSHAL, JSON = 1, 2, 3
SERIALIZERS = frozenset({SERPENT, MARSHAL, JSON, MSGPACK})
"""Pyro5's ids."""

THREADS = 8
"""Threads for `def` functions of one server; more calls wait for one to be free."""


answerer: Callable[..., Callable[[bytes], bool]] | None = compiled("answerer", None)


class Hot(NamedTuple):
    """The function that a connection has called last. The shortcut in C takes the fields by their order."""

    prefix: bytes
    """With what a call of it begins."""
    decode: Callable[[bytes | memoryview], Any]
    """Its arguments, of which it always takes the same number."""
    callee: Callee
    method: Callable[..., Any]
    encode: Callable[[Any], bytes]
    """Its result, unless that may be large."""


class Host:
    """What the connections of one server share."""

    def __init__(self, settings: RpcSettings, authorize: Callable[[Peer], str | None]) -> None:
        self.settings = settings
        self.authorize = authorize
        self.servants: dict[str, Servant] = {}
        self.connections: set[ServerConnection] = set()
        self.stock_streams = StockStreams()
        self.base_context = contextvars.copy_context()
        self._threads: Executor | None = None

    def find(self, target: str) -> Servant:
        """The object with that id. Raises UnknownFunction."""
        servant = self.servants.get(target)
        if servant is None:
            raise UnknownFunction(f"no object {target!r} is served here")
        return servant

    @property
    def threads(self) -> Executor:
        """The pool for `def` functions, made when the first one is called."""
        if self._threads is None:
            # Importing it takes as long as a small module of ours, and most workers have no `def` functions.
            from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

            self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="workerlib-call")
        return self._threads

    def stop_threads(self) -> None:
        """Waits for none of them: a `def` function that is running cannot be stopped."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


class ServerConnection:
    """One accepted connection: reads calls, runs them, answers."""

    __slots__ = ("__dict__", "__weakref__", "_base_context", "_hot", "_idle_task")  # as slots for the C part

    def __init__(self, server: "Host") -> None:
        self.server = server
        self.loop = asyncio.get_running_loop()
        self.session = ServerSession(server.settings, inflate, self.loop.time())
        self.wire = Wire(self.session, self._on_event, self._make_shortcut, hold_reading=True)
        self.longest = server.settings.max_message_size
        self.encode_result = encode_result
        self.calls: dict[int, EagerTask] = {}
        self.one_ways: set[EagerTask] = set()  # their sequence numbers may be used again while they run
        self.streams = StreamCalls(self.wire, self.session, server, self._answer)
        self.user_session: Session | None = None
        self._base_context = server.base_context
        self._hot: Hot | None = None
        self._was_called = False
        self._idle_task: EagerTask | None = None
        server.connections.add(self)

    # Events

    def _on_event(self, event: Event) -> None:
        if type(event) is not Frame:
            self._on_closed(str(event))
        elif event.type == frames.INVOKE:
            self._invoke(event)
            if event.flags & frames.ITEM_STREAM and not self.streams.takes_items(event.seq):
                self.streams.refuse_items(event.seq, "the call has ended")
        elif event.type == frames.ITEM:
            self.streams.take_items(event)
        elif event.type == frames.END:
            self.streams.take_end(event)
        elif event.type == frames.CREDIT:
            self.streams.wake(event.seq)
        elif event.type == frames.ABORT:
            task = self.calls.get(event.seq)
            self.streams.give_up(event.seq, str(read(event)), answered=task is not None)
            if task is not None:
                task.cancel()
        elif event.type == frames.CONNECT:
            self._check_serializer(event)
            self._start(self._connect(event), event)

    def _on_closed(self, reason: str) -> None:
        """The connection has ended. Idempotent."""
        self.server.connections.discard(self)
        self.streams.connection_ended(reason)
        for task in self._tasks():
            task.cancel()
        if self.user_session is not None:
            self.server.stock_streams.close_owned_by(self.user_session)
        if self.user_session is not None and not self.user_session.closed.done():
            self.user_session.closed.set_result(reason)

    @property
    def is_busy(self) -> bool:
        """Whether a call is under way, or the first one is to come: who has just connected did so to call."""
        return bool(self.calls) or not self._was_called

    def close(self, kind: CloseKind) -> list["asyncio.Future[None]"]:
        """Ends the connection; returns the tasks of its calls, which have been cancelled."""
        tasks = self._tasks()
        self.wire.close(kind)
        return tasks

    def _tasks(self) -> list["asyncio.Future[None]"]:
        """The calls under way, without the one that is running now: it may close its own connection and go on."""
        current: object = asyncio.current_task()
        return [task for task in (*self.calls.values(), *self.one_ways) if task is not current]

    @staticmethod
    def _check_serializer(frame: Frame) -> None:
        if frame.serializer not in SERIALIZERS:  # no answer could be read either: the connection ends
            raise ProtocolError(f"unknown serializer {frame.serializer}")

    # Handshake

    async def _connect(self, frame: Frame) -> None:
        try:
            target, value = self._read_connect(frame)
            dialect = parse_dialect(value)
            if dialect is not None and frame.serializer != MSGPACK:
                raise ProtocolError("workerlib's dialect is spoken in msgpack only")
            servant = await self._welcome(target, value, dialect)
        except Exception as error:  # noqa: BLE001 - `connected` is user code: whatever it raises refuses the client
            reason = str(error) if isinstance(error, WorkerlibError) else f"{type(error).__name__}: {error}"
            reason = reason.encode(errors="backslashreplace").decode()
            if self.session.closed is None:
                self.wire.write(self.session.reject(frame, self._dump(frame.serializer, reason), reason))
                self.wire.close()
            self._on_closed(reason)
            return
        if self.session.closed is not None:
            return  # the client did not wait for `connected`
        if dialect is None:
            self.encode_result = encode_stock_result
        greeting: Any = DEFAULT_HANDSHAKE
        if dialect is not None:
            window = self.server.settings.stream_window
            greeting = {
                "workerlib": DIALECT,
                "window": window,
                "functions": servant.kinds(),
                "schema": servant.schema(),
            }
        payload = self._dump(frame.serializer, {"handshake": greeting, "meta": servant.metadata()})
        self.wire.write(self.session.accept(frame, payload, dialect, self.loop.time()))
        self.wire.refresh_deadline()

    def _read_connect(self, frame: Frame) -> tuple[str, Any]:
        if frame.serializer == MSGPACK:
            data = decode(frame.payload)
        else:
            self._check_trust(frame.serializer)
            data = self._stock(frame.serializer).loads(bytes(frame.payload))
        if not isinstance(data, dict) or not isinstance(data.get("object"), str):
            raise ProtocolError("a handshake that names no object")
        return data["object"], data.get("handshake")

    async def _welcome(self, target: str, value: Any, dialect: Mapping[str, Any] | None) -> Servant:
        if (why := self.server.authorize(self.wire.peer)) is not None:
            journal.warn("connection_refused", peer=self.wire.peer.address, reason=why)
            raise ProtocolError(why)
        servant = self.server.servants.get(target)
        if servant is None:
            raise ProtocolError(f"no object {target!r} is served here: the worker that had this address has gone")
        self.user_session = session = Session(self.wire.peer)
        session.stock = dialect is None
        self._base_context = self.server.base_context.copy()
        self._base_context.run(session_variable.set, session)
        if servant.on_connect is not None and servant.connect_signature is not None:
            given = dialect.get("value") if dialect is not None else None if value == DEFAULT_HANDSHAKE else value
            args = [] if given is None else [given]
            positional, _ = servant.connect_signature.bind_plain(args, {})
            state = servant.on_connect(session, *positional)
            session.state = await state if inspect.isawaitable(state) else state
        return servant

    # Calls

    def _start(self, coroutine: Coroutine[Any, Any, Any], frame: Frame) -> None:
        """Runs a coroutine of ours that answers by itself."""
        task = EagerTask(self.loop)
        task.start(coroutine, self._base_context.copy())
        if not task.ended:
            self._remember(frame, task)
            task.follow(functools.partial(self._ended, frame, task))
        elif task.failure is not None:
            self._ended(frame, task, None, task.failure)

    def _ended(self, frame: Frame, task: EagerTask, _value: Any, error: BaseException | None) -> None:
        self.forget(frame, task)
        if error is not None and not isinstance(error, asyncio.CancelledError):
            journal.fail("call_failed", error)

    def _remember(self, frame: Frame, task: EagerTask) -> None:
        """Keeps a call that has suspended, to be cancelled."""
        if frame.flags & frames.ONE_WAY:
            self.one_ways.add(task)
        elif self.calls.setdefault(frame.seq, task) is not task:
            task.cancel()
            self.wire.close(CloseKind.PROTOCOL, f"two calls at a time with sequence number {frame.seq}")

    def forget(self, frame: Frame, task: EagerTask) -> None:
        """The call has ended."""
        if frame.flags & frames.ONE_WAY:
            self.one_ways.discard(task)
        elif self.calls.get(frame.seq) is task:
            del self.calls[frame.seq]

    def _make_shortcut(self, wire: Wire) -> Callable[[bytes], bool]:
        if answerer is None:
            return self._shortcut
        return answerer(*self.session.in_c, self, wire, self.loop, enter_task, leave_task, MAY_BE_LARGE)

    def _shortcut(self, data: bytes) -> bool:
        """One call of the function that was called last, answered in its first step: half the work of the long way.

        The function is known by the bytes that name it, and the arguments must use up exactly what lies between the
        name and the last byte, so that it finds what `_read_call` would; what does not fit goes there, to be told.
        """
        hot, task = self._hot, self._idle_task
        if hot is None or task is None or (seq := self.session.sole_call(data, hot.prefix)) < 0:
            return False
        try:
            args = hot.decode(data[frames.HEADER_SIZE + len(hot.prefix) : -1])
        except Exception:  # noqa: BLE001 - the types' own checks are user code
            return False
        hot.callee.calls += 1
        self._idle_task = None
        if task.start(hot.method(*args), self._base_context.copy()) and type(task.value) not in MAY_BE_LARGE:
            try:
                payload = hot.encode(task.value)
            except Exception:  # noqa: BLE001, S110 - it is encoded once more, by what tells why it cannot be
                pass
            else:
                if len(payload) <= self.longest:
                    self.wire.write(ServerSession.result(seq, payload))
                    task.value = None
                    self._idle_task = task
                    return True
        self.answer_slowly(seq, hot.callee, task)
        return True

    def answer_slowly(self, seq: int, callee: Callee, task: EagerTask) -> None:
        """What the shortcut began: the call goes on, or has ended in another way than most do."""
        self._conclude(Frame(frames.INVOKE, MSGPACK, 0, seq, b""), callee, task)

    def _invoke(self, frame: Frame) -> None:
        self._was_called = True  # here, not in the shortcut: that knows a function only from a call before
        if frame.serializer != MSGPACK or frame.flags & ~(frames.ONE_WAY | frames.ITEM_STREAM):
            self._check_serializer(frame)
            self._start(self._invoke_other(frame), frame)
            return
        try:
            callee, args, kwargs = self._read_call(frame)
            self._run(frame, callee, args, kwargs)
        except Exception as error:  # noqa: BLE001 - hostile bytes and the types' own checks raise all kinds
            self._refuse(frame, error)

    def _refuse(self, frame: Frame, error: Exception) -> None:
        if isinstance(error, ArgumentError) and not self.session.dialect:
            # Perhaps it has one of Pyro5's own MessagePack extensions (dates, long integers): read it that way.
            self._start(self._invoke_other(frame), frame)
            return
        if not isinstance(error, WorkerlibError):
            error = ArgumentError(f"the call cannot be read: {error}")
        if frame.flags & frames.ONE_WAY:
            journal.warn("one_way_refused", reason=str(error), peer=self.wire.peer.address)
        else:
            self.answer_error(frame, error, with_traceback=False)

    def _read_call(self, frame: Frame) -> tuple[Callee, tuple[Any, ...], dict[str, Any]]:
        hot, payload = self._hot, frame.payload
        if hot is not None and not frame.flags and payload[-1] == 0x80 and payload[: len(hot.prefix)] == hot.prefix:
            try:
                args = hot.decode(payload[len(hot.prefix) : -1])
            except Exception:  # noqa: BLE001, S110 - the types' own checks are user code; the long way tells what is wrong
                pass
            else:
                hot.callee.calls += 1
                return hot.callee, args, {}
        head: CallHead = decode_call_head(payload)
        callee = self._find(head.object, head.method)
        if self.session.dialect:
            check_takes_items(frame, callee)
        args, kwargs = callee.signature.bind(head.args, head.kwargs, payload)
        if callee.signature.exact and callee.runs_on_loop and callee.kind is Kind.RPC:
            encode_it = encode if self.session.dialect else functools.partial(encode_stock_result, callee.where)
            prefix = call_prefix(head.object, head.method)
            self._hot = Hot(prefix, callee.signature.bind_exact, callee, callee.method, encode_it)
        return callee, args, kwargs

    def _find(self, target: str, method: str) -> Callee:
        """Raises UnknownFunction, and NotTrusted before any argument of the call is looked at."""
        callee = self.server.find(target).find(method)
        if callee.forms and not self.session.dialect:
            raise NotTrusted(f"{callee.where} takes or gives {callee.forms} values: a stock Pyro5 client has none")
        if callee.same_user_only and (why := why_not_trusted(self.wire.peer.uid, self.wire.peer.address)) is not None:
            raise NotTrusted(f"{callee.where} takes or gives Pickled values: {why}")
        return callee

    def _run(self, frame: Frame, callee: Callee, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not callee.is_plain or frame.flags & frames.ITEM_STREAM:
            _check_wants_stream(frame, callee)
            self._start(self._run_stream(frame, callee, args, kwargs), frame)
            return
        task, self._idle_task = self._idle_task or EagerTask(self.loop), None
        task.start(self._call(callee, args, kwargs), self._base_context.copy())
        self._conclude(frame, callee, task)

    def _conclude(self, frame: Frame, callee: Callee, task: EagerTask) -> None:
        """Answers a call that has ended in its first step; keeps one that has suspended."""
        if task.ended:
            value, failure = task.value, task.failure
            if task.reusable:
                task.value = task.failure = None
                self._idle_task = task
            self._answer(frame, callee, value, failure)
        else:
            self._remember(frame, task)
            task.follow(functools.partial(self._answer_late, frame, callee, task))

    def _answer_late(
        self, frame: Frame, callee: Callee, task: EagerTask, value: Any, error: BaseException | None
    ) -> None:
        self.forget(frame, task)
        self._answer(frame, callee, value, error)

    def _answer(self, frame: Frame, callee: Callee, value: Any, error: BaseException | None) -> None:
        """Gives the outcome of a MessagePack call to the client."""
        if frame.flags & frames.ONE_WAY:
            if error is not None:
                journal.fail("one_way_failed", error, function=callee.where)
        elif error is not None:
            self.answer_error(frame, error)
        else:
            try:
                payload = self.encode_result(callee.where, value)
                if len(payload) > self.longest:
                    self.refuse_length(callee.where, len(payload))
            except ResultError as refused:
                self.answer_error(frame, refused)
            else:
                self.wire.write(ServerSession.result(frame.seq, payload))

    def _call(self, callee: Callee, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Coroutine[Any, Any, Any]:
        """The coroutine of one call: the function's own, or one that waits for a thread."""
        if callee.runs_on_loop:
            return cast("Coroutine[Any, Any, Any]", callee.method(*args, **kwargs))
        return self._in_thread(callee, args, kwargs)

    async def _in_thread(self, callee: Callee, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        context = contextvars.copy_context()

        def call() -> Any:
            try:
                return context.run(callee.method, *args, **kwargs)
            except StopIteration as error:  # a future cannot carry it: its waiter would wait for ever
                raise RuntimeError("the function raised StopIteration") from error

        return await self.loop.run_in_executor(self.server.threads, call)

    async def _run_stream(self, frame: Frame, callee: Callee, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A call whose answer is a stream. Answers by itself."""
        if self.session.dialect:
            await self.streams.run(frame, callee, args, kwargs)
            return
        try:
            items = await pulled(callee, args, kwargs, self.server)
            stream_id = self.server.stock_streams.open(self.user_session, items)
        except Exception as error:  # noqa: BLE001 - user code
            self.answer_error(frame, error)
        else:
            self._answer_stock_stream(frame, stream_id)

    # Stock clients: other serializers, batches, and the Pyro.Daemon object

    async def _invoke_other(self, frame: Frame) -> None:
        try:
            target, method, args, kwargs = self._loads_call(frame)
            if frame.flags & frames.KEEP_SERIALIZED:
                raise ProtocolError("SerializedBlob is not supported: the worker checks every argument")
            if frame.flags & frames.BATCH:
                result: Any = await self._batch(target, args, one_way=bool(frame.flags & frames.ONE_WAY))
            else:
                callee = self._find(target, method)
                positional, named = callee.signature.bind_plain(args, kwargs)
                if not callee.is_plain:
                    _check_wants_stream(frame, callee)
                    await self._run_stream(frame, callee, positional, named)
                    return
                result = await self._call(callee, positional, named)
        except asyncio.CancelledError as error:
            if not frame.flags & frames.ONE_WAY and self.session.closed is None:
                self.answer_error(frame, error)
            raise
        except Exception as error:  # noqa: BLE001 - user code
            if frame.flags & frames.ONE_WAY:
                journal.fail("one_way_failed", error, peer=self.wire.peer.address)
            else:
                self.answer_error(frame, error)
            return
        if not frame.flags & frames.ONE_WAY:
            self.answer_value(frame, result, method, flags=frame.flags & frames.BATCH)

    def _loads_call(self, frame: Frame) -> tuple[str, str, Any, Any]:
        if frame.serializer != MSGPACK or not self.session.dialect:
            self._check_trust(frame.serializer)
            target, method, args, kwargs = self._stock(frame.serializer).loads_call(bytes(frame.payload))
        else:
            data = decode(frame.payload)
            if not isinstance(data, list) or len(data) != 4:
                raise ProtocolError("a call that is not (object, method, arguments, keyword arguments)")
            target, method, args, kwargs = data
        if not isinstance(target, str) or not isinstance(method, str):
            raise ProtocolError("a call whose object and method are not text")
        return target, method, args, kwargs or {}

    async def _batch(self, target: str, calls: Iterable[Any], *, one_way: bool) -> list[Any]:
        """Pyro5's batch: the calls in order, up to the first that fails; its error is the last result."""
        results: list[Any] = []
        for method, args, kwargs in calls:
            try:
                callee = self._find(target, method)
                if not callee.is_plain:
                    raise ProtocolError(f"{callee.function.qualified_name} is a stream; a batch cannot hold one")
                positional, named = callee.signature.bind_plain(args, kwargs or {})
                results.append(await self._call(callee, positional, named))
            except Exception as error:  # noqa: BLE001 - user code
                if one_way:
                    journal.fail("one_way_failed", error, function=method)
                wire = error_to_wire(error, format_error(error), stock=True)
                results.append({"__class__": "Pyro5.core._ExceptionWrapper", "exception": wire})
                break
        return results

    def _answer_stock_stream(self, frame: Frame, stream_id: str) -> None:
        # Pyro5 puts an error beside the stream's id, for clients from before it had streams.
        error = {
            "__class__": "Pyro5.errors.ProtocolError",
            "args": ["result of call is an iterator"],
            "__exception__": True,
        }
        payload = self._dump(frame.serializer, error)
        flags = frames.EXCEPTION | frames.ITEM_STREAM
        self.wire.write(self.session.answer(frame, payload, flags, {"STRM": stream_id.encode()}))

    # Answers

    def answer_value(self, frame: Frame, value: Any, where: str, flags: int = 0) -> None:
        """Answers in the serializer of the call."""
        try:
            payload = self._dump(frame.serializer, value)
            if len(payload) > self.longest:
                self.refuse_length(where, len(payload))
        except ResultError as error:
            self.answer_error(frame, error)
        except Exception as error:  # noqa: BLE001 - each serializer has errors of its own
            self.answer_error(frame, ResultError(f"the result of {where} cannot be encoded: {error}"))
        else:
            self.wire.write(self.session.answer(frame, payload, flags))

    def refuse_length(self, where: str, length: int) -> None:
        """Raises the ResultError of a result that is too long; the peer would end the connection over it."""
        raise ResultError(f"the result of {where} has {length} bytes; a message may have {self.longest}")

    def answer_error(self, frame: Frame, error: BaseException, *, with_traceback: bool = True) -> None:
        if isinstance(error, StreamEnd):
            error, with_traceback = StopIteration(), False
        # A refusal has no traceback that would tell more than its text; Pyro5's clients show what is there.
        text = f"{type(error).__name__}: {error}" if not self.session.dialect else ""
        if with_traceback:
            text = format_error(error)
        data = error_to_wire(error, text, stock=not self.session.dialect)
        payload = self._dump(frame.serializer, data)
        if len(payload) > self.longest:
            short = RuntimeError(f"{type(error).__name__}, whose text has {len(payload)} bytes")
            payload = self._dump(frame.serializer, error_to_wire(short, "", stock=True))
        self.wire.write(self.session.answer(frame, payload, frames.EXCEPTION))

    def _dump(self, serializer: int, value: Any) -> bytes:
        return encode(value) if serializer == MSGPACK else cast("bytes", self._stock(serializer).dumps(value))

    def _check_trust(self, serializer: int) -> None:
        if serializer == MARSHAL and self.wire.peer.uid is None:
            raise ProtocolError("the marshal serializer is accepted from local peers only; use json or msgpack")

    @staticmethod
    def _stock(number: int) -> Any:
        # Loading Pyro5 takes 60 ms: only a worker that a stock client calls pays for it.
        from workerlib.shell.naming import stock_serializer  # noqa: PLC0415

        return stock_serializer(number)


def _check_wants_stream(frame: Frame, callee: Callee) -> None:
    if frame.flags & frames.ONE_WAY:
        raise ProtocolError(f"{callee.function.qualified_name} is a stream; a one-way call cannot take it")
