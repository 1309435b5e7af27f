"""One map under way: what `workerlib.core.mapping` decides, carried out on worker processes."""

import asyncio
import contextlib
import functools
import inspect
import itertools
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from collections.abc import Set as AbstractSet
from typing import Any, TypeVar, cast

import msgspec

from workerlib.connection import Connection
from workerlib.core.gathering import Gatherer, Tree
from workerlib.core.mapping import (
    Answered,
    Effect,
    Event,
    Fail,
    Failure,
    Fetch,
    Finish,
    Give,
    Item,
    Job,
    Joined,
    Kill,
    Lost,
    NotSpawned,
    Progress,
    Read,
    ReadFailed,
    Scheduler,
    Send,
    Spawn,
    Taken,
)
from workerlib.core.payload import NO_ENCODING, encode, error_from_wire
from workerlib.errors import ArgumentError, ConnectionLost, ItemError, ResultError, UsageError, WorkerlibError
from workerlib.map_pool import Config, Member
from workerlib.map_worker import ONE_ARRAY, Answer, MapHost, MapWorker, ReduceWorker, list_decoder, types_of
from workerlib.references import reference_of

T = TypeVar("T")

Items = Iterable[T] | AsyncIterable[T]
OnProgress = Callable[[Progress], object]
Init = Sequence[Any] | Mapping[str, Any]
"""Arguments for the `init` of a MapWorker: by position, or by name."""

READ_AT_ONCE = 1024
"""Items of a plain iterable that are taken in one turn of the loop."""


class Plan:
    """What is to be done with the items, checked before anything is spawned. Raises UsageError."""

    def __init__(self, function: Callable[..., Any], combine: Callable[..., Any] | None, init: Init, keep: str) -> None:
        self.is_class = isinstance(function, type) and issubclass(function, MapWorker)
        call = cast("type[MapWorker[Any, Any]]", function).map if self.is_class else function
        if init and not self.is_class:
            raise UsageError(f"{function!r} is a function: only a MapWorker takes an init argument")
        if keep == "one":
            combine = self._combine_of(function, combine)
        self.where = getattr(call, "__qualname__", repr(call))
        self.one_at_a_time = not inspect.iscoroutinefunction(call)
        if combine is not None and inspect.iscoroutinefunction(combine) is self.one_at_a_time:
            raise UsageError(f"{self.where} and what combines its results must both be `def`, or both `async def`")
        by_position, by_name = ([], dict(init)) if isinstance(init, Mapping) else (list(init), {})
        reference = "" if self.is_class or combine is None else reference_of(combine)
        self._arguments = (reference_of(function), reference, keep), (by_position, by_name)
        self.name = function.__name__
        types = types_of(call, skip=1 if self.is_class else 0)
        list_decoder(types.item, f"{self.where}, item")  # the worker's; here it is only tried
        self._values = list_decoder(types.result, f"{self.where}, result")

    def _combine_of(self, function: Callable[..., Any], combine: Callable[..., Any] | None) -> Callable[..., Any]:
        if not self.is_class:
            if combine is None:
                raise UsageError(f"{function!r} maps: name the function that combines two results with combine=")
            return combine
        if combine is not None or not issubclass(cast("type", function), ReduceWorker):
            raise UsageError(f"{function!r}: a class that maps and combines is a ReduceWorker, without combine=")
        return cast("type[ReduceWorker[Any, Any]]", function).combine

    def arguments(self, index: int) -> list[Any]:
        """For the `init` of a MapHost."""
        named, (by_position, by_name) = self._arguments
        return [*named, index, by_position, by_name]

    def decode_one(self, value: bytes) -> Any:
        """The same of a reduction's result."""
        return self.decode(msgspec.Raw(ONE_ARRAY + value))[0]

    def decode(self, values: msgspec.Raw) -> list[Any]:
        """Results as the function declares them. Raises ResultError."""
        try:
            return self._values(values)
        except Exception as error:  # noqa: BLE001 - the types' own checks are user code
            raise ResultError(f"{self.where} returned something else than it declares: {error}") from None


class _Run:
    """One map: feeds the scheduler and carries out what it says."""

    def __init__(
        self, plan: Plan, gatherer: Gatherer, items: Items[Any], config: Config, on_progress: OnProgress | None
    ) -> None:
        self._plan, self._config, self._items, self._on_progress = plan, config, items, on_progress
        self._combines = isinstance(gatherer, Tree)
        self._scheduler = Scheduler(config.rules(one_at_a_time=plan.one_at_a_time), gatherer)
        self._total = len(items) if isinstance(items, (Sequence, AbstractSet, Mapping)) else None
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._members: dict[int, tuple[Member, Connection]] = {}
        self._events: deque[Event | None] = deque()
        self._feeding = False
        self._wanted = 0
        """Items to be read now."""
        self._wake_reader: asyncio.Future[None] | None = None
        self._given: deque[list[Any]] = deque()
        self._over = False
        self._error: Exception | None = None
        self._news: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def results(self) -> AsyncGenerator[list[Any], None]:
        """Lists of results. Ends all workers when it is closed."""
        try:
            self._do(self._scheduler.start())
            self._go(self._read())
            while True:
                if self._given:
                    values = self._given.popleft()
                    yield values
                    self._feed(Taken(len(values)))
                elif self._error is not None:
                    raise self._error
                elif self._over:
                    return
                else:
                    self._news = self._loop.create_future()
                    await self._news
        finally:
            await self._close()

    async def _close(self) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # The scheduler

    def _feed(self, event: Event | None) -> None:
        """Takes an event; None: a deadline has come. One that comes amid the effects of another waits for its turn."""
        self._events.append(event)
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._events and not self._over:
                now = self._loop.time()
                event = self._events.popleft()
                self._do(self._scheduler.tick(now) if event is None else self._scheduler.step(event, now))
                if self._on_progress is not None and isinstance(event, (Answered, Read, Lost)):
                    self._on_progress(self._scheduler.progress(self._total))
        except Exception as error:  # noqa: BLE001 - of on_progress; nobody else would hear of it here
            self._end(error)
        finally:
            self._feeding = False
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._over and (by := self._scheduler.next_deadline()) is not None:
            self._timer = self._loop.call_at(by, self._feed, None)

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(worker, job):
                    self._send(worker, job)
                case Give(values):
                    self._given.append(values)
                    self._tell()
                case Fetch(count):
                    self._wanted += count
                    if self._wake_reader is not None and not self._wake_reader.done():
                        self._wake_reader.set_result(None)
                case Spawn(worker):
                    self._go(self._live(worker))
                case Kill(worker):
                    self._members[worker][0].kill()
                case Finish():
                    self._end(None)
                case Fail(failure):
                    self._end(_error_of(failure))

    def _end(self, error: Exception | None) -> None:
        if not self._over:
            self._over, self._error = True, error
            self._tell()

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _go(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._end(error if isinstance(error, Exception) else RuntimeError(repr(error)))

    # Workers

    async def _live(self, number: int) -> None:
        """The life of one worker process."""
        member = Member()
        try:
            try:
                arguments = self._plan.arguments(number)
                connection = await member.spawn(self._config, MapHost, f"{self._plan.name}-{number}", arguments)
            except Exception as error:  # noqa: BLE001 - SpawnError, UsageError, and what the system refuses
                self._feed(NotSpawned(number, error))
                return
            self._members[number] = member, connection
            self._feed(Joined(number))
            reason = await member.wait_lost()
        finally:
            await member.end()
        self._feed(Lost(number, reason))

    def _send(self, number: int, job: Job) -> None:
        _, connection = self._members[number]
        payload = msgspec.Raw(encode([msgspec.Raw(code) for _, code in job.items]))
        try:
            answer = connection.run(MapHost.map if job.node is None else MapHost.combine, payload)
        except ConnectionLost:
            return  # `_live` tells
        except ArgumentError as error:
            self._feed(Answered(number, job, 0, [], error))
            return
        asyncio.ensure_future(answer).add_done_callback(functools.partial(self._take, number, job))

    def _take(self, number: int, job: Job, future: "asyncio.Future[msgspec.Raw]") -> None:
        if future.cancelled() or self._over:
            if not future.cancelled():
                future.exception()
            return
        if (error := future.exception()) is not None:
            if not isinstance(error, ConnectionLost):  # `_live` tells of that
                self._feed(Answered(number, job, 0, [], cast("Exception", error)))
            return
        try:
            answer = self._read_answer(number, job, future.result())
        except Exception as unreadable:  # noqa: BLE001 - nobody else would hear of it here
            self._end(unreadable)
        else:
            self._feed(answer)

    def _read_answer(self, number: int, job: Job, raw: msgspec.Raw) -> Answered:
        answer = msgspec.msgpack.decode(raw, type=Answer)
        try:
            values = self._values_of(answer)
        except ResultError as refused:
            return Answered(number, job, 0, [], refused)
        error = error_from_wire(answer.error) if answer.error is not None else None
        return Answered(number, job, answer.count, values, error)

    def _values_of(self, answer: Answer) -> list[Any]:
        """Raises ResultError."""
        if self._combines:  # they are not looked at here
            return [bytes(value) for value in msgspec.msgpack.decode(answer.values, type=list[msgspec.Raw])]
        return self._plan.decode(answer.values)

    # Items

    async def _read(self) -> None:
        try:
            if isinstance(self._items, AsyncIterable):
                await self._read_async(self._items)
            else:
                await self._read_plain(iter(self._items))
        except _CannotTravelError as error:
            self._feed(ReadFailed(ArgumentError(f"it cannot travel between processes: {error}"), (error.item,)))
        except Exception as error:  # noqa: BLE001 - the iterator is user code
            self._feed(ReadFailed(error))

    async def _wait_for_room(self) -> None:
        while self._wanted <= 0:
            self._wake_reader = self._loop.create_future()
            await self._wake_reader

    async def _read_plain(self, iterator: Iterator[Any]) -> None:
        while True:
            await self._wait_for_room()
            count = min(self._wanted, READ_AT_ONCE)
            batch: list[Item] = []
            try:
                for item in itertools.islice(iterator, count):
                    batch.append((item, _encode(item)))  # noqa: PERF401 - what was read before an error counts
            except Exception:
                self._feed(Read(batch))
                raise
            self._wanted -= len(batch)
            self._feed(Read(batch, ended=len(batch) < count))
            if len(batch) < count:
                return
            await asyncio.sleep(0)

    async def _read_async(self, items: AsyncIterable[Any]) -> None:
        batch: list[Item] = []

        def flush() -> None:
            """Items that came in one turn of the loop go on together."""
            if batch:
                self._feed(Read(batch.copy()))
                batch.clear()

        iterator = aiter(items)
        try:
            while True:
                await self._wait_for_room()
                item = await anext(iterator)
                if not batch:
                    self._loop.call_soon(flush)
                self._wanted -= 1
                batch.append((item, _encode(item)))
        except StopAsyncIteration:
            flush()
            self._feed(Read([], ended=True))
        except Exception:
            flush()
            raise


class _CannotTravelError(Exception):
    """An item has no encoding."""

    def __init__(self, item: Any, error: Exception) -> None:
        super().__init__(str(error))
        self.item = item


def _encode(item: Any) -> bytes:
    try:
        return encode(item)
    except NO_ENCODING as error:
        raise _CannotTravelError(item, error) from None


def _error_of(failure: Failure) -> Exception:
    cause = failure.cause
    if failure.index is None:
        return cause
    why = str(cause) if isinstance(cause, WorkerlibError) else f"{type(cause).__name__}: {cause}"
    error = ItemError(failure.index, failure.item, why)
    error.__cause__ = cause
    return error


def start(
    plan: Plan, items: Items[Any], config: Config | None, on_progress: OnProgress | None, gatherer: Gatherer
) -> AsyncGenerator[list[Any], None]:
    """Lists of what the gatherer gives. Nothing happens before it is iterated; closing it ends all workers."""
    if not isinstance(items, (Iterable, AsyncIterable)):
        raise UsageError(f"items must be an iterable or async iterable, not {items!r}")
    return _batches(plan, items, config or Config(), on_progress, gatherer)


async def _batches(
    plan: Plan, items: Items[Any], config: Config, on_progress: OnProgress | None, gatherer: Gatherer
) -> AsyncGenerator[list[Any], None]:
    run = _Run(plan, gatherer, items, config, on_progress)
    async with contextlib.aclosing(run.results()) as batches:
        async for batch in batches:
            yield batch
