"""Map and reduce over worker processes that are spawned for it and end with it.

The function is one that another process can import by name, or a `MapWorker` class for what needs state. Items come
from any iterable, of unbounded length, and are read no faster than they are worked on and results are taken::

    async with workerlib.map(count_words, paths, Config(local=4)) as counts:
        async for count in counts:
            ...

All of these end their workers when they end: by the last result, an error, cancellation, or because the consumer has
had enough. Which worker gets what is decided in `workerlib.core.mapping`; here its decisions are carried out.
"""

# ruff: noqa: A001 - `map` is named after the builtin that it is like

import contextlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
)
from typing import Any, Generic, Self, TypeVar, overload

from workerlib.core.gathering import AsTheyCome, FirstHit, InOrder, Tree
from workerlib.errors import UsageError
from workerlib.map_pool import Config
from workerlib.map_run import Init, Items, OnProgress, Plan, start
from workerlib.map_worker import MapWorker, ReduceWorker

T = TypeVar("T")
R = TypeVar("R")


class Results(Generic[R]):
    """The results of a map, to be taken once with `async for`.

    An async context manager: leaving it ends the workers, and returns when they are gone. Without it, a loop that is
    left early has its workers ended by the event loop a moment later.
    """

    def __init__(self, batches: AsyncGenerator[list[R], None]) -> None:
        self._batches: AsyncGenerator[list[R], None] | None = batches
        self._items: AsyncGenerator[R, None] | None = None

    def __aiter__(self) -> AsyncIterator[R]:
        if self._batches is None:
            raise UsageError("the results of this map have been read already")
        batches, self._batches = self._batches, None
        self._items = _flatten(batches)
        return self._items

    async def aclose(self) -> None:
        """Ends the workers; waits until they are gone. Idempotent."""
        for generator in (self._items, self._batches):
            if generator is not None:
                await generator.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def _flatten(batches: AsyncGenerator[list[R], None]) -> AsyncGenerator[R, None]:
    async with contextlib.aclosing(batches):
        async for batch in batches:
            for value in batch:
                yield value


@overload
def map(
    function: type[MapWorker[T, R]],
    items: Items[T],
    config: Config | None = None,
    *,
    init: Init = (),
    on_progress: OnProgress | None = None,
) -> Results[R]: ...
@overload
def map(
    function: Callable[[T], Coroutine[Any, Any, R]],
    items: Items[T],
    config: Config | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> Results[R]: ...
@overload
def map(
    function: Callable[[T], R],
    items: Items[T],
    config: Config | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> Results[R]: ...
def map(
    function: Any,
    items: Items[Any],
    config: Config | None = None,
    *,
    init: Init = (),
    on_progress: OnProgress | None = None,
) -> Results[Any]:
    """The function's result for each item, in the order of the items, worked on by several processes.

    `function` is a `def` or `async def` that another process can import, or a MapWorker class, which gets `init`.
    Its annotations are the types that travel: an item that does not fit is refused before the function sees it.
    `items` is iterated in this event loop: a plain iterable that blocks, blocks the loop. Nothing is begun before the
    results are iterated. `on_progress` is called with a Progress whenever something has been read, done or lost.

    An item may be worked on more than once: when its worker was lost, it is given to another.

    Raises UsageError at once for a function that cannot be found by name or whose types cannot travel. The iteration
    raises ItemError for the first item that failed, after the results before it; what `items` raises; SpawnError for a
    worker that cannot be brought up; MapError when workers are lost again and again.
    """
    return Results(start(Plan(function, None, init, "all"), items, config, on_progress, InOrder()))


@overload
def map_unordered(
    function: type[MapWorker[T, R]],
    items: Items[T],
    config: Config | None = None,
    *,
    init: Init = (),
    on_progress: OnProgress | None = None,
) -> Results[R]: ...
@overload
def map_unordered(
    function: Callable[[T], Coroutine[Any, Any, R]],
    items: Items[T],
    config: Config | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> Results[R]: ...
@overload
def map_unordered(
    function: Callable[[T], R],
    items: Items[T],
    config: Config | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> Results[R]: ...
def map_unordered(
    function: Any,
    items: Items[Any],
    config: Config | None = None,
    *,
    init: Init = (),
    on_progress: OnProgress | None = None,
) -> Results[Any]:
    """As `map`, with results given as they come: none waits for a slow item before it. An error is raised at once."""
    return Results(start(Plan(function, None, init, "all"), items, config, on_progress, AsTheyCome()))


@overload
async def find_map(
    function: type[MapWorker[T, R | None]],
    items: Items[T],
    config: Config | None = None,
    *,
    init: Init = (),
    on_progress: OnProgress | None = None,
) -> R | None: ...
@overload
async def find_map(
    function: Callable[[T], Coroutine[Any, Any, R | None]],
    items: Items[T],
    config: Config | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> R | None: ...
@overload
async def find_map(
    function: Callable[[T], R | None],
    items: Items[T],
    config: Config | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> R | None: ...
async def find_map(
    function: Any,
    items: Items[Any],
    config: Config | None = None,
    *,
    init: Init = (),
    on_progress: OnProgress | None = None,
) -> Any:
    """The first result that comes and is not None, or None when there is none. The rest is given up then.

    Which one is first depends on the workers: with several hits, it need not be that of the earliest item. Raises what
    `map` does, at once.
    """
    batches = start(Plan(function, None, init, "hits"), items, config, on_progress, FirstHit())
    async with contextlib.aclosing(batches):
        async for batch in batches:
            return batch[0]
    return None


async def _reduce(
    function: Any,
    items: Items[Any],
    config: Config | None,
    init: Init,
    on_progress: OnProgress | None,
    combine: Callable[..., Any] | None,
    tree: Tree,
) -> Any:
    plan = Plan(function, combine, init, "one")
    batches = start(plan, items, config, on_progress, tree)
    async with contextlib.aclosing(batches):
        async for _ in batches:
            raise AssertionError("a tree gives nothing before its end")
    result = tree.result()
    return None if result is None else plan.decode_one(result)


@overload
async def map_reduce(
    function: type[ReduceWorker[T, R]],
    items: Items[T],
    config: Config | None = None,
    *,
    init: Init = (),
    on_progress: OnProgress | None = None,
) -> R | None: ...
@overload
async def map_reduce(
    function: Callable[[T], Coroutine[Any, Any, R]],
    items: Items[T],
    config: Config | None = None,
    *,
    combine: Callable[[R, R], Coroutine[Any, Any, R]],
    on_progress: OnProgress | None = None,
) -> R | None: ...
@overload
async def map_reduce(
    function: Callable[[T], R],
    items: Items[T],
    config: Config | None = None,
    *,
    combine: Callable[[R, R], R],
    on_progress: OnProgress | None = None,
) -> R | None: ...
async def map_reduce(
    function: Any,
    items: Items[Any],
    config: Config | None = None,
    *,
    combine: Any = None,
    init: Init = (),
    on_progress: OnProgress | None = None,
) -> Any:
    """The results of all items combined into one; None when there are no items.

    `combine` must be associative: neighbours are combined, by the workers, in any grouping, but in the order of the
    items. It is another function that can be imported, or the method of a ReduceWorker. Each worker combines what it
    maps, and only what it came to travels. Raises what `map` does, at once; an error of `combine` as itself when it is
    not about one item.
    """
    return await _reduce(function, items, config, init, on_progress, combine, Tree(ordered=True))


@overload
async def map_reduce_commutative(
    function: type[ReduceWorker[T, R]],
    items: Items[T],
    config: Config | None = None,
    *,
    init: Init = (),
    on_progress: OnProgress | None = None,
) -> R | None: ...
@overload
async def map_reduce_commutative(
    function: Callable[[T], Coroutine[Any, Any, R]],
    items: Items[T],
    config: Config | None = None,
    *,
    combine: Callable[[R, R], Coroutine[Any, Any, R]],
    on_progress: OnProgress | None = None,
) -> R | None: ...
@overload
async def map_reduce_commutative(
    function: Callable[[T], R],
    items: Items[T],
    config: Config | None = None,
    *,
    combine: Callable[[R, R], R],
    on_progress: OnProgress | None = None,
) -> R | None: ...
async def map_reduce_commutative(
    function: Any,
    items: Items[Any],
    config: Config | None = None,
    *,
    combine: Any = None,
    init: Init = (),
    on_progress: OnProgress | None = None,
) -> Any:
    """As `map_reduce`, for a `combine` that does not mind the order either: nothing waits for a slow item."""
    return await _reduce(function, items, config, init, on_progress, combine, Tree(ordered=False))
