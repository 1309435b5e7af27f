"""Tells those who wait which instances have changed, so that one who waits for many looks only at those."""

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from parsupd.core.units import InstanceName


class Watch:
    """What one of them has not looked at yet."""

    def __init__(self) -> None:
        self._changed: set[InstanceName] = set()
        self._news = asyncio.Event()

    def tell(self, changed: Collection[InstanceName]) -> None:
        self._changed.update(changed)
        self._news.set()

    async def changed(self) -> set[InstanceName]:
        """The instances that have changed since this was asked last; waits until there are some."""
        await self._news.wait()
        self._news.clear()
        found, self._changed = self._changed, set()
        return found


class Watches:
    """All that are open."""

    def __init__(self) -> None:
        self._open: set[Watch] = set()

    @contextmanager
    def open(self) -> Iterator[Watch]:
        """One for the time of the block; what changes from now on is told."""
        watch = Watch()
        self._open.add(watch)
        try:
            yield watch
        finally:
            self._open.remove(watch)

    def tell(self, changed: Collection[InstanceName]) -> None:
        if changed:
            for watch in self._open:
                watch.tell(changed)
