"""The worker's end of a map: `MapWorker`, which users subclass, and the process that calls it or a plain function."""

import asyncio
import inspect
import queue
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

import msgspec

from workerlib.core.packing import refuse_forms
from workerlib.core.payload import (
    NO_ENCODING,
    NO_KEYWORDS,
    REFUSED,
    Signature,
    encode,
    error_to_wire,
)
from workerlib.errors import ArgumentError, ResultError, UsageError
from workerlib.references import load_named
from workerlib.spec import Parameters, read_parameters, rpc
from workerlib.worker import Worker, initialise

T = TypeVar("T")
R = TypeVar("R")

STOP_AFTER_S = 0.05
"""A worker that has worked on one job for so long answers with what it has, and the rest goes to whoever is free."""
STOP_AFTER_BYTES = 1 << 20
"""The same for the length of the answer."""

ONE_ARRAY = b"\x91"
"""MessagePack's start of an array of one."""


class MapWorker(Generic[T, R]):
    """What works on items when a plain function is not enough: a class with state, one instance in each worker.

    `init`, if there is one, is called once with the `init` argument of `map`, checked against its types. `index` is the
    worker's number, from 0; the replacement of a lost worker has its number. `map` and `combine` may be `def`, and run
    one after the other in a thread of their own then, or `async def`, and run on the worker's event loop then, as many
    at a time as `Config.in_flight` says. Their annotations are the types that travel.
    """

    index: int = 0

    def map(self, item: T) -> R | Awaitable[R]:
        """The result for one item."""
        raise NotImplementedError(f"{type(self).__qualname__} has no map")


class ReduceWorker(MapWorker[T, R]):
    """A MapWorker for `map_reduce` and `map_reduce_commutative`."""

    def combine(self, first: R, second: R) -> R | Awaitable[R]:
        """One result for two: of the items of `first` followed by those of `second`. Must be associative."""
        raise NotImplementedError(f"{type(self).__qualname__} has no combine")


class CallTypes(msgspec.Struct, frozen=True):
    """What is known of a function that was not written for workerlib."""

    parameters: Parameters | None
    """None: it cannot be read, or there are *arguments: what is given is passed on as plain data."""
    result: Any

    @property
    def item(self) -> Any:
        """The type of its first parameter."""
        return self.parameters.types[0] if self.parameters is not None and self.parameters.types else Any


def types_of(call: Callable[..., Any], *, skip: int = 0) -> CallTypes:
    """Its types after the first `skip` parameters. Raises UsageError for annotations that name nothing."""
    try:
        inspect.signature(call)
    except (ValueError, TypeError):  # builtins such as `int`
        return CallTypes(None, Any)
    if any(p.kind in {p.VAR_POSITIONAL, p.VAR_KEYWORD} for p in inspect.signature(call).parameters.values()):
        return CallTypes(None, Any)
    parameters, result = read_parameters(call, skip)
    return CallTypes(parameters, result if not isinstance(call, type) else Any)


def list_decoder(kind: Any, where: str) -> Callable[[bytes | msgspec.Raw], list[Any]]:
    """Decodes lists of this type. Raises UsageError for a type that cannot travel; `where` names it there."""
    refuse_forms(kind, where)
    try:
        return msgspec.msgpack.Decoder(list[kind]).decode
    except (TypeError, NotImplementedError) as error:
        raise UsageError(f"{where}: this type cannot travel between processes: {error}") from None


class Answer(msgspec.Struct, array_like=True):
    """What a worker answers for a job: the first `count` items are done, and `error`, if any, stopped it there."""

    count: int
    values: msgspec.Raw
    """Each result, each hit, or, as an array of at most one, what they were combined to."""
    error: dict[str, Any] | None = None


class SteadyThread:
    """One thread that makes calls in their order.

    A daemon: a function that runs for long must not keep the process from ending. An executor's threads would.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="workerlib-items", daemon=True).start()

    async def run(self, call: Callable[[], T]) -> T:
        """What `call` returns or raises. Cancelled before its turn it is not made."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._calls.put((call, future))
        return await future

    def _run(self) -> None:
        while True:
            call, future = self._calls.get()
            if future.cancelled():
                continue
            try:
                value, error = call(), None
            except BaseException as raised:  # noqa: BLE001 - SystemExit in a function must not end the thread
                value, error = None, raised
            self._loop.call_soon_threadsafe(_settle, future, value, error)


def _settle(future: "asyncio.Future[Any]", value: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    elif isinstance(error, Exception) and not isinstance(error, StopIteration):
        future.set_exception(error)
    else:  # a future refuses the one, and the others would end the worker
        future.set_exception(RuntimeError(f"the function raised {type(error).__name__}: {error}"))


def describe(error: BaseException) -> dict[str, Any]:
    """An error as it travels. Its traceback begins where user code does; a refusal's text says all there is to say."""
    if isinstance(error, (ArgumentError, ResultError)):
        return error_to_wire(error, "", stock=False)
    first = error.__traceback__
    while first is not None and str(first.tb_frame.f_globals.get("__name__")).startswith("workerlib."):
        first = first.tb_next
    shown = error if first is None else error.with_traceback(first)
    return error_to_wire(error, "".join(traceback.format_exception(shown)), stock=False)


class _NothingYet:
    """What has been combined before the first item."""


_NOTHING_YET = _NothingYet()


class MapHost(Worker):
    """The process: works on jobs with the function or the MapWorker that its master named."""

    async def init(
        self, reference: str, combine: str, keep: str, index: int, args: list[Any], kwargs: dict[str, Any]
    ) -> None:
        """`keep` says what becomes of results: "all" of them, the "hits", or "one" into which they are combined."""
        await self.set_up(load_named(reference, "function"), combine, keep, index, args, kwargs)

    async def set_up(
        self, named: Any, combine: str, keep: str, index: int, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        self._keep = keep
        combines: Callable[..., Any] | None
        if isinstance(named, type) and issubclass(named, MapWorker):
            worker = named()
            worker.index = index
            await initialise(worker, list(args), kwargs)
            self._call, combines = worker.map, getattr(worker, "combine", None)
            self._where = f"{named.__qualname__}.map"
        else:
            if args or kwargs:
                raise UsageError(f"{named!r} is a function: only a MapWorker takes an init argument")
            self._call = named
            combines = load_named(combine, "function") if combine else None
            self._where = getattr(named, "__qualname__", repr(named))
        types = types_of(self._call)
        self._signature = None if types.parameters is None else Signature(self._where, types.parameters)
        self._items = list_decoder(types.item, f"{self._where}, item")
        if combines is not None:
            self._combine = combines
            self._values = list_decoder(types_of(combines).item, f"{self._where}, combined")
        self._awaits = inspect.iscoroutinefunction(self._call)
        self._thread = None if self._awaits else SteadyThread()

    @rpc
    async def map(self, items: msgspec.Raw) -> msgspec.Raw:
        """An Answer for these items."""
        return await self._run(self._map, items)

    @rpc
    async def combine(self, values: msgspec.Raw) -> msgspec.Raw:
        """An Answer with the one value into which these are combined."""
        return await self._run(self._combine_values, values)

    async def _run(self, work: Callable[[msgspec.Raw], Coroutine[Any, Any, Answer]], given: msgspec.Raw) -> msgspec.Raw:
        if self._thread is None:
            answer = await work(given)
        else:
            answer = await self._thread.run(lambda: _drive(work(given)))
        return msgspec.Raw(encode(answer))

    async def _map(self, raw: msgspec.Raw) -> Answer:
        items, refused = self._decode(raw)
        stop_at = time.monotonic() + STOP_AFTER_S
        kept: list[msgspec.Raw] = []
        count = size = 0
        value: Any = _NOTHING_YET
        failure: BaseException | None = None
        for item in items:
            try:
                result = await self._call(item) if self._awaits else self._call(item)
                if self._keep == "one":
                    value = result if value is _NOTHING_YET else await self._combined(value, result)
                elif self._keep == "all" or result is not None:
                    code = self._encode(result)
                    kept.append(msgspec.Raw(code))
                    size += len(code)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - user code
                failure = error
                break
            count += 1
            if size > STOP_AFTER_BYTES or time.monotonic() > stop_at or (kept and self._keep == "hits"):
                break
        else:
            failure = refused
        if value is not _NOTHING_YET:
            try:
                kept = [msgspec.Raw(self._encode(value))]
            except ResultError as error:
                return Answer(0, _array([]), describe(failure or error))
        return Answer(count, _array(kept), describe(failure) if failure is not None else None)

    async def _combined(self, first: Any, second: Any) -> Any:
        combined = self._combine(first, second)
        return await combined if self._awaits else combined

    async def _combine_values(self, raw: msgspec.Raw) -> Answer:
        try:
            value, *rest = self._values(raw)
            for other in rest:
                value = await self._combined(value, other)
            return Answer(0, _array([msgspec.Raw(self._encode(value))]))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - user code
            return Answer(0, _array([]), describe(error))

    def _decode(self, raw: msgspec.Raw) -> tuple[list[Any], Exception | None]:
        """The items, or those before the first that is not of the function's type, and the error that says so."""
        try:
            return self._items(raw), None
        except REFUSED as error:
            items: list[Any] = []
            for one in msgspec.msgpack.decode(raw, type=list[msgspec.Raw]):
                if self._signature is None:
                    return items, error
                try:
                    arguments, _ = self._signature.bind(msgspec.Raw(ONE_ARRAY + bytes(one)), msgspec.Raw(NO_KEYWORDS))
                except Exception as refused:  # noqa: BLE001 - the types' own checks are user code
                    return items, refused
                items.append(arguments[0])
            return items, error

    def _encode(self, value: Any) -> bytes:
        try:
            return encode(value)
        except NO_ENCODING as error:
            raise ResultError(f"the result of {self._where} cannot be encoded: {error}") from None


def _array(values: list[msgspec.Raw]) -> msgspec.Raw:
    return msgspec.Raw(encode(values))


def _drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that awaits nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    raise AssertionError("a plain function awaited something")
