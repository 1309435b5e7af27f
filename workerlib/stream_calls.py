"""The calls of one connection at the serving end that are streams, each kind in its own way."""

import asyncio
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from typing import Any, Protocol

from workerlib.core import frames
from workerlib.core.calling import read
from workerlib.core.form import Form
from workerlib.core.frames import Frame
from workerlib.core.payload import NIL, encode_result, error_from_wire, pack_result
from workerlib.core.session import CloseKind, ServerSession
from workerlib.errors import ArgumentError, ConnectionLost, ProtocolError, ResultError, StreamAborted, UsageError
from workerlib.inflow import Incoming, Inflow
from workerlib.outflow import BATCH, Outflow
from workerlib.pump import Pump, Room, as_async
from workerlib.servant import Callee
from workerlib.shell.transport import Wire
from workerlib.spec import Kind, Pipe, RpcSettings
from workerlib.writers import ItemWriter, Slot

Arguments = tuple[Any, ...]
Named = Mapping[str, Any]


class HasThreads(Protocol):
    """A server, with its pool of threads, which is made when it is first needed."""

    settings: RpcSettings

    @property
    def threads(self) -> Executor: ...


def _threads(callee: Callee, server: HasThreads) -> Executor | None:
    return None if callee.runs_on_loop else server.threads


async def pulled(callee: Callee, args: Arguments, kwargs: Named, server: HasThreads) -> AsyncGenerator[Any, None]:
    """The items of a call whose client pulls them one by one.

    Raises what the function raises before the first, and UsageError for a kind that cannot be pulled.
    """
    if callee.kind.sends_items:
        raise UsageError(f"{callee.where} takes a stream from its caller, which only workerlib's clients can send")
    if callee.kind is Kind.STATE:
        raise UsageError(f"{callee.where} gives a snapshot and its changes, which only workerlib's clients can take")
    if callee.kind is Kind.PIPE:
        return as_async(callee.method(*args, **kwargs), _threads(callee, server))
    slot = Slot()
    writer = ItemWriter(slot, callee.where, server.settings.stream_buffer)
    await callee.method(writer, *args, **kwargs)
    writer.start()
    return slot.items(writer)


def check_takes_items(frame: Frame, callee: Callee) -> None:
    """Raises UsageError when the ends disagree about whether the caller sends items."""
    sends = bool(frame.flags & frames.ITEM_STREAM)
    if sends is not (callee.items is not None):
        takes = "takes no stream of items" if sends else "takes a stream of items"
        raise UsageError(f"{callee.where} {takes} in this worker: there it is of the kind {callee.kind.value}")


def _pair(where: str, given: Any) -> tuple[Any, AsyncIterator[Any]]:
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], AsyncIterator):
        return given
    raise TypeError(f"{where} must return a snapshot and an async iterator of changes, not {type(given).__qualname__}")


class StreamCalls:
    """Runs the functions whose items come from or go to a client that speaks the dialect, and keeps their ends here."""

    def __init__(
        self,
        wire: Wire,
        session: ServerSession,
        server: HasThreads,
        answer: Callable[[Frame, Callee, Any, BaseException | None], object],
    ) -> None:
        self._wire = wire
        self._session = session
        self._server = server
        self._answer = answer
        self._pumps: dict[int, Pump] = {}
        self._writers: dict[int, ItemWriter] = {}
        self._inflows: dict[int, tuple[Inflow[Any], Callee]] = {}

    async def run(self, frame: Frame, callee: Callee, args: Arguments, kwargs: Named) -> None:
        """Runs one call as the coroutine of an own task, and answers it."""
        function = callee.function
        if function.kind.sends_items:
            await self._run_reverse(frame, callee, args, kwargs)
        elif function.kind is Kind.STATE:
            await self._run_state(frame, callee, args, kwargs)
        elif function.kind is Kind.DIRECT_PIPE:
            await self._run_direct(frame, callee, args, kwargs)
        elif isinstance(function, Pipe) and not function.client_pushes_back:
            await self._run_unhindered(frame, callee, args, kwargs)
        else:
            await self._run_pipe(frame, callee, args, kwargs)

    def wake(self, seq: int) -> None:
        """The client has room for more items."""
        flow = self._pumps.get(seq) or self._writers.get(seq)
        if flow is not None:
            flow.wake()

    def give_up(self, seq: int, reason: str, *, answered: bool) -> None:
        """The client wants no more; `answered`: the call's task still runs, and answers that."""
        if seq in self._inflows:
            self._inflows.pop(seq)[0].end(StreamAborted(f"given up by the caller: {reason}"))
        writer = self._writers.get(seq)
        if writer is not None:
            writer.drop(f"given up by the caller: {reason}")
            if not answered:
                self._outflow(seq, "").abort("aborted by the caller")

    def connection_ended(self, reason: str) -> None:
        """Nothing can be sent any more."""
        writers, self._writers = self._writers, {}
        for writer in writers.values():
            writer.drop(reason)
        inflows, self._inflows = self._inflows, {}
        for inflow, _ in inflows.values():
            inflow.end(ConnectionLost(reason))

    def take_items(self, frame: Frame) -> None:
        """Items of a call have come. What nobody wants any more is thrown away."""
        inflow, callee = self._inflows.get(frame.seq, (None, None))
        if inflow is None or callee is None or inflow.ended:
            return
        try:
            inflow.put(callee.items.decode(frame.payload, inflow.count))
        except ArgumentError as error:
            inflow.end(error)
            self.refuse_items(frame.seq, str(error))

    def take_end(self, frame: Frame) -> None:
        """The client has sent its last item. Raises ProtocolError when its error cannot be read."""
        inflow, callee = self._inflows.pop(frame.seq, (None, None))
        if inflow is not None and callee is not None:
            failed = frame.flags & frames.EXCEPTION
            inflow.end(error_from_wire(read(frame), callee.items.errors) if failed else None)

    def refuse_items(self, seq: int, reason: str) -> None:
        """Tells the client, unless it knows, that no more items of a call are wanted."""
        if self._session.closed is None:
            self._wire.write(self._session.stop(seq, reason))

    def takes_items(self, seq: int) -> bool:
        """Whether somebody reads the items of that call."""
        return seq in self._inflows

    # Each kind

    def _open(self, seq: int, payload: bytes = NIL) -> bool:
        try:
            self._wire.write(self._session.open_stream(seq, payload))
        except ProtocolError as error:
            self._wire.close(CloseKind.PROTOCOL, str(error))
            return False
        return True

    def _outflow(self, seq: int, where: str, form: Form | None = None) -> Outflow:
        return Outflow(self._wire, self._session, seq, where, functools.partial(self._writers.pop, seq, None), form)

    def _writer(self, seq: int, callee: Callee) -> ItemWriter:
        out = self._outflow(seq, callee.where, callee.item_form)
        writer = ItemWriter(out, callee.where, self._server.settings.stream_buffer, self._wire)
        if self._writers.setdefault(seq, writer) is not writer:
            self._wire.close(CloseKind.PROTOCOL, f"two calls at a time with sequence number {seq}")
        return writer

    async def _run_pipe(self, frame: Frame, callee: Callee, args: Arguments, kwargs: Named) -> None:
        if self._open(frame.seq):
            threads = _threads(callee, self._server)
            await self._push(frame.seq, callee, lambda room: as_async(callee.method(*args, **kwargs), threads, room))

    async def _push(self, seq: int, callee: Callee, begin: Callable[[Room], AsyncGenerator[Any, None]]) -> None:
        """Sends items with the client's pace, up to the end, which it tells."""
        task = asyncio.current_task()
        assert task is not None, "runs as a task of its own"
        out = Outflow(self._wire, self._session, seq, callee.where, form=callee.item_form)
        pump = self._pumps[seq] = Pump(self._wire, self._session, seq, out, task.cancel)
        try:
            await pump.run(begin(pump.room))
        except asyncio.CancelledError:
            if pump.failure is not None:
                out.end(pump.failure)
                return
            out.abort("aborted by the caller")
            raise
        except Exception as error:  # noqa: BLE001 - user code
            out.end(error)
        finally:
            del self._pumps[seq]

    async def _run_state(self, frame: Frame, callee: Callee, args: Arguments, kwargs: Named) -> None:
        try:
            snapshot, changes = _pair(callee.where, await callee.method(*args, **kwargs))
            if callee.result_form is not None:
                snapshot = pack_result(callee.where, callee.result_form, snapshot)
            payload = encode_result(callee.where, snapshot)
            if len(payload) > (most := self._server.settings.max_message_size):
                raise ResultError(f"the snapshot of {callee.where} has {len(payload)} bytes; a message may have {most}")
        except BaseException as error:
            if self._session.closed is None:
                self._answer(frame, callee, None, error)
            if not isinstance(error, Exception):
                raise
            return
        # No suspension since the function returned, nor before the changes are asked for their first one.
        if self._open(frame.seq, payload):
            await self._push(frame.seq, callee, lambda _: as_async(changes, None))

    async def _run_unhindered(self, frame: Frame, callee: Callee, args: Arguments, kwargs: Named) -> None:
        if not self._open(frame.seq):
            return
        writer = self._writer(frame.seq, callee)
        writer.start()
        try:
            items = as_async(callee.method(*args, **kwargs), _threads(callee, self._server), lambda: BATCH)
            try:
                async for item in items:
                    if not writer.write(item):
                        break
            finally:
                await items.aclose()
        except asyncio.CancelledError:
            writer.drop("cancelled")
            raise
        except Exception as error:  # noqa: BLE001 - user code
            writer.close(error)
        else:
            writer.close()
        finally:
            if writer.dropped:
                self._outflow(frame.seq, callee.where).abort("aborted by the caller")

    async def _run_direct(self, frame: Frame, callee: Callee, args: Arguments, kwargs: Named) -> None:
        writer = self._writer(frame.seq, callee)
        try:
            await callee.method(writer, *args, **kwargs)
        except BaseException as error:
            writer.drop(f"{type(error).__name__}: {error}")
            self._writers.pop(frame.seq, None)
            if self._session.closed is None:
                self._answer(frame, callee, None, error)
            if not isinstance(error, Exception):
                raise
            return
        if writer.dropped:
            self._outflow(frame.seq, callee.where).abort("aborted by the caller")
        elif self._open(frame.seq):
            writer.start()

    def _grant(self, seq: int, count: int) -> None:
        if self._session.closed is None:
            self._wire.write(self._session.grant(seq, count))

    async def _run_reverse(self, frame: Frame, callee: Callee, args: Arguments, kwargs: Named) -> None:
        seq = frame.seq
        inflow: Inflow[Any] = Inflow(
            self._server.settings.stream_window,
            functools.partial(self._grant, seq),
            functools.partial(self.refuse_items, seq),
        )
        self._inflows[seq] = inflow, callee
        try:
            value = await callee.method(Incoming(inflow, callee.where), *args, **kwargs)
        except BaseException as error:
            if self._session.closed is None:
                self._answer(frame, callee, None, error)
            inflow.abort(f"{type(error).__name__}: {error}")
            if not isinstance(error, Exception):
                raise
        else:
            if self._session.closed is None:
                self._answer(frame, callee, value, None)
