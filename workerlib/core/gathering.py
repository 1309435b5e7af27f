"""What becomes of the results of a map: given in order, given as they come, searched, or combined in a tree.

A gatherer is told which items went out together and what came back for them. It holds no more than what is under way,
and a tree about one value for each time that the number of batches has doubled.
"""

import heapq
from collections import deque
from typing import Any, Protocol

import msgspec


class Combine(msgspec.Struct, frozen=True):
    """Values to be combined into one, in this order."""

    node: tuple[int, int]
    """Where the result belongs; the gatherer knows."""
    values: tuple[bytes, ...]


class Gatherer(Protocol):
    """What the scheduler asks of all of them."""

    holds_results: bool
    """Whether what is given waits for a consumer; otherwise an item is done with when it is mapped."""

    def opened(self, count: int) -> int:
        """The next so many items go out for the first time. Returns the group that `mapped` gives for their parts."""
        ...

    def mapped(self, group: int, start: int, count: int, values: list[Any]) -> list[Any]:
        """Items from `start` on, of one group, have been mapped to `values`. Returns what can be given now."""
        ...

    def combined(self, node: tuple[int, int], value: bytes) -> None:
        """The values of a Combine have become this one."""
        ...

    def due(self) -> Combine | None:
        """The next combining step, if one can be made."""
        ...

    def conclude(self) -> bool:
        """All items are mapped and no combining step is under way: whether that was all; else there are steps due."""
        ...

    def reached(self, index: int) -> bool:
        """Whether an error at this item may be told now."""
        ...

    def satisfied(self) -> bool:
        """Whether the rest does not matter any more."""
        ...


class AsTheyCome:
    """Gives every result at once."""

    holds_results = True

    def opened(self, count: int) -> int:  # noqa: ARG002 - the protocol's
        return 0

    def mapped(self, group: int, start: int, count: int, values: list[Any]) -> list[Any]:  # noqa: ARG002 - same
        return values

    def combined(self, node: tuple[int, int], value: bytes) -> None:
        raise AssertionError(f"nothing is combined here: {node}, {value!r}")

    def due(self) -> Combine | None:
        return None

    def conclude(self) -> bool:
        return True

    def reached(self, index: int) -> bool:  # noqa: ARG002 - same
        return True

    def satisfied(self) -> bool:
        return False


class InOrder(AsTheyCome):
    """Gives results in the order of their items; those that are early wait."""

    def __init__(self) -> None:
        self._early: list[tuple[int, list[Any]]] = []
        self._next = 0

    def mapped(self, group: int, start: int, count: int, values: list[Any]) -> list[Any]:  # noqa: ARG002 - same
        if start == self._next and not self._early:
            self._next += count
            return values
        heapq.heappush(self._early, (start, values))
        given: list[Any] = []
        while self._early and self._early[0][0] == self._next:
            _, values = heapq.heappop(self._early)
            given += values
            self._next += len(values)
        return given

    def reached(self, index: int) -> bool:
        return self._next >= index


class FirstHit(AsTheyCome):
    """Gives one value, the first that comes; `values` holds hits only."""

    holds_results = False

    def __init__(self) -> None:
        self._found = False

    def mapped(self, group: int, start: int, count: int, values: list[Any]) -> list[Any]:  # noqa: ARG002 - same
        if self._found or not values:
            return []
        self._found = True
        return values[:1]

    def satisfied(self) -> bool:
        return self._found


class _Leaf:
    """The items that went out together: a value for each part of them that has come back."""

    __slots__ = ("missing", "parts")

    def __init__(self, missing: int) -> None:
        self.missing = missing
        self.parts: list[tuple[int, bytes]] = []


REST = -1
"""The level of combining steps after the last item, when the tree is not full."""


class Tree:
    """Combines neighbours two by two, as in a knock-out tournament: leaves, pairs of them, pairs of pairs, ...

    A tree and not a running total: the values that are combined have seen about the same number of items, so that a
    large accumulated value does not travel once for each batch, and several workers combine at a time. Leaves are
    numbered when they go out, which keeps the order of the items whenever they come back; where the order does not
    matter they are numbered as they come back, so that nothing waits for a slow one.
    """

    holds_results = False

    def __init__(self, *, ordered: bool) -> None:
        self._ordered = ordered
        self._next_leaf = 0
        self._leaves: dict[int, _Leaf] = {}
        self._waiting: dict[tuple[int, int], bytes] = {}
        """Level and number of a node whose sibling is not there yet."""
        self._due: deque[Combine] = deque()
        self._rest: list[bytes] | None = None

    def opened(self, count: int) -> int:
        leaf = self._next_leaf
        if self._ordered:
            self._next_leaf += 1
            self._leaves[leaf] = _Leaf(count)
        return leaf

    def mapped(self, group: int, start: int, count: int, values: list[Any]) -> list[Any]:
        [value] = values
        if not self._ordered:
            self._next_leaf += 1
            self._place(0, self._next_leaf - 1, value)
            return []
        leaf = self._leaves[group]
        leaf.parts.append((start, value))
        leaf.missing -= count
        if leaf.missing == 0:
            del self._leaves[group]
            if len(leaf.parts) == 1:
                self._place(0, group, value)
            else:
                leaf.parts.sort()
                self._due.append(Combine((0, group), tuple(part for _, part in leaf.parts)))
        return []

    def _place(self, level: int, number: int, value: bytes) -> None:
        sibling = self._waiting.pop((level, number ^ 1), None)
        if sibling is None:
            self._waiting[level, number] = value
        else:
            pair = (value, sibling) if number % 2 == 0 else (sibling, value)
            self._due.append(Combine((level + 1, number // 2), pair))

    def combined(self, node: tuple[int, int], value: bytes) -> None:
        level, number = node
        if level == REST:
            assert self._rest is not None
            self._rest.append(value)
        else:
            self._place(level, number, value)

    def due(self) -> Combine | None:
        return self._due.popleft() if self._due else None

    def conclude(self) -> bool:
        assert not self._leaves, "an item is missing"
        if self._rest is None:
            first_leaf = {(level, number): number << level for level, number in self._waiting}
            self._rest = [self._waiting.pop(node) for node in sorted(first_leaf, key=first_leaf.__getitem__)]
        if len(self._rest) <= 1:
            return True
        # The last ones first: they have seen the fewest items.
        last = self._rest.pop()
        self._due.append(Combine((REST, 0), (self._rest.pop(), last)))
        return False

    def result(self) -> bytes | None:
        """The one value in the end; None when there was no item."""
        return self._rest[0] if self._rest else None

    def reached(self, index: int) -> bool:  # noqa: ARG002 - the protocol's
        return True

    def satisfied(self) -> bool:
        return False

    @property
    def held(self) -> int:
        """Values that wait here."""
        return len(self._waiting) + sum(len(leaf.parts) for leaf in self._leaves.values())
