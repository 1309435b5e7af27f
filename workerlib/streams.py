"""Streams as their caller reads them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar

from workerlib.core.calling import failure, is_last, read_items, read_snapshot, tells_failure
from workerlib.core.frames import Frame
from workerlib.core.payload import Outgoing
from workerlib.errors import ProtocolError, UsageError
from workerlib.inflow import Inflow

R = TypeVar("R")

UNWANTED = "the caller does not want more"


class Stream(Generic[R]):
    """The items that a function gives, in order. Iterate it once; leaving the loop early aborts the function.

    Items are taken with the caller's pace: when half of the window is used up, the worker is granted as many more.
    """

    def __init__(
        self,
        function: str,
        outgoing: Outgoing | None,
        window: int,
        grant: Callable[[int], object],
        give_up: Callable[[str], object],
    ) -> None:
        self._function = function
        self._outgoing = outgoing
        self._give_up = give_up
        self._inflow: Inflow[R] = Inflow(window, grant, give_up)
        self._iterating = False

    def take(self, frame: Frame) -> None:
        """A frame of this stream has come. Raises ProtocolError when it cannot be read."""
        inflow = self._inflow
        if inflow.ended:
            return  # items that were under way when it was given up
        if tells_failure(frame):
            inflow.end(failure(frame, self._outgoing, self._function))
            return
        try:
            items = read_items(frame, self._outgoing, self._function)
        except ProtocolError:
            raise
        except Exception as error:  # noqa: BLE001 - also what the caller's adaption raises
            if not is_last(frame):
                self._give_up("an item could not be taken")
            inflow.end(error)
        else:
            if items is None:
                inflow.end(None)
            else:
                inflow.put(items)

    def fail(self, error: Exception) -> None:
        """No more items will come; `error` is raised after those that are there."""
        self._inflow.end(error)

    def abort(self, reason: str = UNWANTED) -> None:
        """Gives the stream up: the function in the worker is told. Items that have come can still be taken."""
        self._inflow.abort(reason)

    def __aiter__(self) -> AsyncIterator[R]:
        if self._iterating:
            raise UsageError(f"the stream of {self._function} is being read already")
        self._iterating = True
        return self._inflow.items(UNWANTED)


class StateStream(Stream[R]):
    """The changes after a snapshot, which comes first."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.opened: asyncio.Future[tuple[Any, Stream[R]]] = asyncio.get_running_loop().create_future()
        """The snapshot and this stream. Cancelling it gives the stream up."""
        self.opened.add_done_callback(self._on_opened)

    def _on_opened(self, opened: "asyncio.Future[Any]") -> None:
        if opened.cancelled():
            self.abort("cancelled by the caller")

    def take(self, frame: Frame) -> None:
        if self.opened.done():
            super().take(frame)
            return
        try:
            snapshot = read_snapshot(frame, self._outgoing, self._function)
        except ProtocolError:
            raise
        except Exception as error:  # noqa: BLE001 - what the function raised
            if not is_last(frame):
                self._give_up("the snapshot is not of the declared type")
            self.fail(error)
        else:
            self.opened.set_result((snapshot, self))

    def fail(self, error: Exception) -> None:
        if not self.opened.done():
            self.opened.set_exception(error)
        super().fail(error)
