"""The calls of one connection at the serving end that are streams, each kind in its own way."""

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from workerlib.core.frames import Frame
from workerlib.core.session import CloseKind, ServerSession
from workerlib.errors import ProtocolError
from workerlib.outflow import BATCH, ItemWriter, Outflow, Slot
from workerlib.pump import Pump, as_async
from workerlib.servant import Callee
from workerlib.shell.transport import Wire
from workerlib.spec import Kind, Pipe, RpcSettings

Arguments = tuple[Any, ...]
Named = Mapping[str, Any]


class HasThreads(Protocol):
    """A server, with its pool of threads, which is made when it is first needed."""

    settings: RpcSettings

    @property
    def threads(self) -> ThreadPoolExecutor: ...


def _threads(callee: Callee, server: HasThreads) -> ThreadPoolExecutor | None:
    return None if callee.runs_on_loop else server.threads


async def pulled(callee: Callee, args: Arguments, kwargs: Named, server: HasThreads) -> AsyncGenerator[Any, None]:
    """The items of a call whose client pulls them one by one. Raises what the function raises before the first."""
    if callee.kind is Kind.PIPE:
        return as_async(callee.method(*args, **kwargs), _threads(callee, server))
    slot = Slot()
    writer = ItemWriter(slot, callee.where, server.settings.stream_buffer)
    await callee.method(writer, *args, **kwargs)
    writer.start()
    return slot.items(writer)


class StreamCalls:
    """Runs the functions whose items go to a client that speaks the dialect, and keeps what sends them."""

    def __init__(
        self,
        wire: Wire,
        session: ServerSession,
        server: HasThreads,
        answer_error: Callable[[Frame, BaseException], object],
    ) -> None:
        self._wire = wire
        self._session = session
        self._server = server
        self._answer_error = answer_error
        self._pumps: dict[int, Pump] = {}
        self._writers: dict[int, ItemWriter] = {}

    async def run(self, frame: Frame, callee: Callee, args: Arguments, kwargs: Named) -> None:
        """Runs one call as the coroutine of an own task, and answers it."""
        function = callee.function
        if function.kind is Kind.DIRECT_PIPE:
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

    # Each kind

    def _open(self, seq: int) -> bool:
        try:
            self._wire.write(self._session.open_stream(seq))
        except ProtocolError as error:
            self._wire.close(CloseKind.PROTOCOL, str(error))
            return False
        return True

    def _outflow(self, seq: int, where: str) -> Outflow:
        return Outflow(self._wire, self._session, seq, where, functools.partial(self._writers.pop, seq, None))

    def _writer(self, seq: int, where: str) -> ItemWriter:
        writer = ItemWriter(self._outflow(seq, where), where, self._server.settings.stream_buffer)
        if self._writers.setdefault(seq, writer) is not writer:
            self._wire.close(CloseKind.PROTOCOL, f"two calls at a time with sequence number {seq}")
        return writer

    async def _run_pipe(self, frame: Frame, callee: Callee, args: Arguments, kwargs: Named) -> None:
        if not self._open(frame.seq):
            return
        task = asyncio.current_task()
        assert task is not None, "runs as a task of its own"
        pump = self._pumps[frame.seq] = Pump(self._wire, self._session, frame.seq, callee.where, task.cancel)
        try:
            await pump.run(as_async(callee.method(*args, **kwargs), _threads(callee, self._server), pump.room))
        except asyncio.CancelledError:
            if pump.failure is not None:
                pump.out.end(pump.failure)
                return
            pump.out.abort("aborted by the caller")
            raise
        except Exception as error:  # noqa: BLE001 - user code
            pump.out.end(error)
        finally:
            del self._pumps[frame.seq]

    async def _run_unhindered(self, frame: Frame, callee: Callee, args: Arguments, kwargs: Named) -> None:
        if not self._open(frame.seq):
            return
        writer = self._writer(frame.seq, callee.where)
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
        writer = self._writer(frame.seq, callee.where)
        try:
            await callee.method(writer, *args, **kwargs)
        except BaseException as error:
            writer.drop(f"{type(error).__name__}: {error}")
            self._writers.pop(frame.seq, None)
            if self._session.closed is None:
                self._answer_error(frame, error)
            if not isinstance(error, Exception):
                raise
            return
        if writer.dropped:
            self._outflow(frame.seq, callee.where).abort("aborted by the caller")
        elif self._open(frame.seq):
            writer.start()
