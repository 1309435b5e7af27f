"""The deadlines of many instances, the nearest first. Layer 0."""

import heapq
from collections.abc import Callable, Collection

from parsupd.core.units import InstanceName

DeadlineOf = Callable[[InstanceName], float | None]
"""The deadline that an instance has now; an entry that says otherwise is stale."""


class Deadlines:
    """A heap: a deadline that changes leaves its old entry, which is passed over when its time comes."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, InstanceName]] = []

    def __len__(self) -> int:
        """How many entries are kept, stale ones too."""
        return len(self._heap)

    def add(self, at: float, instance: InstanceName) -> None:
        """The instance has this deadline from now on."""
        heapq.heappush(self._heap, (at, instance))

    def next_at(self, deadline_of: DeadlineOf) -> float | None:
        """The nearest one; None when there is none."""
        while self._heap:
            at, instance = self._heap[0]
            if deadline_of(instance) == at:
                return at
            heapq.heappop(self._heap)
        return None

    def take_due(self, deadline_of: DeadlineOf, now: float) -> InstanceName | None:
        """Takes the nearest one out when it is due, and returns whose it is."""
        at = self.next_at(deadline_of)
        return heapq.heappop(self._heap)[1] if at is not None and at <= now else None

    def tidy(self, deadline_of: DeadlineOf, instances: Collection[InstanceName]) -> None:
        """Forgets stale entries once they are the most."""
        if len(self._heap) > 2 * len(instances) + 64:
            live = ((deadline_of(instance), instance) for instance in instances)
            self._heap = [(at, instance) for at, instance in live if at is not None]
            heapq.heapify(self._heap)
