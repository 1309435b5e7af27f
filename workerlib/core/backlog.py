"""Log entries that journald has not taken yet: first in, first out, so many bytes, and gaps where some are missing."""

from collections import deque

Gap = int
"""So many entries are missing here."""


class Backlog:
    """When it is full, new entries are lost, not old ones: what led to the trouble is worth more than its echo."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._items: deque[bytes | Gap] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def push(self, entry: bytes) -> None:
        """Puts an entry at the end. One alone may be larger than the limit."""
        if self._size and self._size + len(entry) > self._limit:
            self._miss(1)
        else:
            self._items.append(entry)
            self._size += len(entry)

    def head(self) -> bytes | Gap:
        """What is to be sent next. Raises IndexError when nothing is."""
        return self._items[0]

    def pop(self) -> None:
        """Takes what has been sent away."""
        item = self._items.popleft()
        if isinstance(item, bytes):
            self._size -= len(item)

    def lose_all(self) -> None:
        """Makes one gap of everything."""
        count = sum(1 if isinstance(item, bytes) else item for item in self._items)
        self._items.clear()
        self._size = 0
        if count:
            self._miss(count)

    def _miss(self, count: int) -> None:
        if self._items and isinstance(last := self._items[-1], int):
            self._items[-1] = last + count
        else:
            self._items.append(count)
