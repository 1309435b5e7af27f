"""A snapshot and then every change after it, with no gap and no overlap: how a client keeps a copy of something."""

import asyncio
from collections.abc import AsyncIterator

import workerlib
from workerlib import Redirect, ShutdownOn

Change = tuple[str, int]


class Stock(workerlib.Worker):
    async def init(self) -> None:
        self.counts = {"tea": 3}
        self.watchers: list[asyncio.Queue[Change]] = []

    @workerlib.rpc
    async def put(self, name: str, count: int) -> None:
        self.counts[name] = count
        for watcher in self.watchers:
            watcher.put_nowait((name, count))

    @workerlib.state
    async def watch(self) -> tuple[dict[str, int], AsyncIterator[Change]]:
        return dict(self.counts), self._changes()  # nothing runs between this snapshot and the first line of _changes

    async def _changes(self) -> AsyncIterator[Change]:
        queue: asyncio.Queue[Change] = asyncio.Queue()
        self.watchers.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self.watchers.remove(queue)


async def main() -> None:
    async with await Stock.spawn(
        shutdown_on=ShutdownOn.CONNECTION_CLOSED,
        redirect_stdout=Redirect.dev_null(),
        redirect_stderr=Redirect.dev_null(),
    ) as connection:
        await connection.run(Stock.put, "coffee", 7)
        copy, changes = await connection.run(Stock.watch)
        print("snapshot:", copy)
        await connection.run(Stock.put, "cake", 1)
        await connection.run(Stock.put, "tea", 0)
        async for name, count in changes:
            copy[name] = count
            print("change:  ", copy)
            if name == "tea":
                break


if __name__ == "__main__":
    asyncio.run(main())
