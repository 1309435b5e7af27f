"""Streams that are longer than any memory: ten million items, in each direction, at a constant size."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support import run_async
from workers import Sum, Ticker

from workerlib import Connection, Redirect, ShutdownOn

COUNT = 10_000_000
WARM_UP = 500_000
MOST_GROWTH = 16 << 20
"""Far less than a byte and a half an item: one that was kept would cost eight at least."""


def memory(pid: int | str = "self") -> int:
    """Bytes of memory that a process has resident."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


async def counted(items: AsyncIterator[int], pid: int) -> tuple[int, int]:
    """The number of items, and by how many bytes either process grew after the warm-up."""
    count, before = 0, (0, 0)
    async for _ in items:
        count += 1
        if count == WARM_UP:
            before = memory(), memory(pid)
    return count, max(memory() - before[0], memory(pid) - before[1])


async def spawn(worker: type[Sum] | type[Ticker]) -> Connection:
    null = Redirect.dev_null()
    return await worker.spawn(shutdown_on=ShutdownOn.CONNECTION_CLOSED, redirect_stdout=null, redirect_stderr=null)


@pytest.mark.parametrize("kind", ["pipe", "direct_pipe"])
def test_ten_million_items_from_the_worker_need_no_memory(kind: str) -> None:
    """Neither here nor there, written by a generator or by hand."""

    async def main() -> None:
        async with await spawn(Sum if kind == "pipe" else Ticker) as conn:
            pid = await conn.call("pid")
            stream = conn.run(Sum.squares, COUNT) if kind == "pipe" else conn.run(Ticker.count, COUNT)
            count, growth = await counted(aiter(stream), pid)
            assert count == COUNT
            assert growth < MOST_GROWTH

    run_async(main, "uvloop", within_s=120)


def test_ten_million_items_into_the_worker_need_no_memory() -> None:
    """Neither here nor there."""

    async def main() -> None:
        growths: list[int] = []

        async def source(pid: int) -> AsyncIterator[int]:
            before = 0, 0
            for n in range(COUNT):
                yield n
                if n == WARM_UP:
                    before = memory(), memory(pid)
            growths.extend((memory() - before[0], memory(pid) - before[1]))

        async with await spawn(Sum) as conn:
            total = await conn.run(Sum.add_all, source(await conn.call("pid")))
            assert total == sum(range(COUNT))
            assert max(growths) < MOST_GROWTH

    run_async(main, "uvloop", within_s=120)
