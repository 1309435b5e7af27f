"""One stream on its way in: what has come, who takes it, and the credit for more."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Inflow(Generic[T]):
    """The items of one stream that have come and were not taken yet.

    `grant` allows the sender more items; `give_up` tells it, with a reason, that no more are wanted.
    """

    def __init__(self, window: int, grant: Callable[[int], object], give_up: Callable[[str], object]) -> None:
        self._window = window
        self._grant = grant
        self._give_up = give_up
        self._batches: deque[list[T]] = deque()
        self._error: Exception | None = None
        self._arrived: asyncio.Future[None] | None = None
        self.ended = False
        """Whether no more items come, or none are wanted."""
        self.count = 0
        """Items that have come."""

    def put(self, items: list[T]) -> None:
        """Items have come."""
        self.count += len(items)
        if items:
            self._batches.append(items)
            self._wake()

    def end(self, error: Exception | None) -> None:
        """No more items will come; `error` is raised after those that are there."""
        if not self.ended:
            self.ended, self._error = True, error
        self._wake()

    def abort(self, reason: str) -> None:
        """No more items are wanted. What is there can still be taken."""
        if not self.ended:
            self.ended = True
            self._give_up(reason)
            self._wake()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    async def items(self, reason: str) -> AsyncIterator[T]:
        """The items, to be iterated once; leaving early gives the stream up with `reason`."""
        batches, window = self._batches, self._window
        taken = 0
        try:
            while True:
                if batches:
                    batch = batches.popleft()
                    for item in batch:
                        yield item
                    taken += len(batch)
                    if taken * 2 >= window and not self.ended:
                        self._grant(taken)
                        taken = 0
                elif self.ended:
                    if self._error is not None:
                        raise self._error
                    return
                else:
                    self._arrived = asyncio.get_running_loop().create_future()
                    await self._arrived
        finally:
            self.abort(reason)


class Incoming(AsyncIterator[Any]):
    """The caller's items, as the function gets them. When nobody holds it any more, the stream is given up."""

    def __init__(self, inflow: Inflow[Any], where: str) -> None:
        self._inflow = inflow
        self._reason = f"{where} reads no more"
        self._loop = asyncio.get_running_loop()
        self._items: AsyncIterator[Any] | None = None  # knows nothing of this object: no cycle keeps it alive

    def __aiter__(self) -> AsyncIterator[Any]:  # noqa: PYI034 - through itself, each item would cost a call more
        if self._items is None:
            self._items = self._inflow.items(self._reason)
        return self._items

    def __anext__(self) -> Awaitable[Any]:
        return anext(self.__aiter__())

    def __del__(self) -> None:
        # An iteration that has begun gives the stream up by itself. Objects die in any thread, hence not at once.
        if self._items is None and not self._inflow.ended:
            with contextlib.suppress(RuntimeError):  # the loop was closed
                self._loop.call_soon_threadsafe(self._inflow.abort, self._reason)
