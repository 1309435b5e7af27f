"""The last events, numbered, for those who follow: nothing is lost without being counted. Layer 1.

Numbers grow by one from event to event and go on over restarts of parsupd, so that a reader who names the last one that
it has seen gets what came since, or is told how much of that is not kept any more.
"""

from collections import deque
from typing import Any

import msgspec

CAPACITY = 4096
"""So many events are kept: about a megabyte."""


class Entry(msgspec.Struct, frozen=True):
    """One event. `at` is Unix time, for people."""

    number: int
    at: float
    event: str
    unit: str = ""
    instance: str = ""
    """`unit@N`; empty, as `unit` is, for what concerns parsupd itself."""
    fields: dict[str, Any] = {}


class EventRing:
    """The events that are kept."""

    def __init__(self, last: int = 0, capacity: int = CAPACITY) -> None:
        """`last` is the number of the last event that an earlier ring had."""
        self.last = last
        self._kept: deque[Entry] = deque(maxlen=capacity)

    def add(self, at: float, event: str, instance: str = "", **fields: Any) -> None:
        self.last += 1
        unit = instance.rpartition("@")[0] or instance
        self._kept.append(Entry(self.last, at, event, unit, instance, fields))

    def since(self, number: int) -> tuple[int, list[Entry]]:
        """How many events after this number are lost, and those that are kept, oldest first.

        A number that was never given is of a parsupd that this one knows nothing of: then all are new.
        """
        if number > self.last:
            number = 0
        missing = self.last - number
        kept = min(missing, len(self._kept))
        return missing - kept, [self._kept[index] for index in range(len(self._kept) - kept, len(self._kept))]

    @property
    def oldest(self) -> int:
        """The number before the first that is kept: what `since` takes to give all of them."""
        return self.last - len(self._kept)
