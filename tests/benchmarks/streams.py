"""Streams from one process to another over a Unix socket: single items, batches, long texts."""

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from ends import other_end
from harness import OURS, Bench, Budget, Row

BATCH = 1000
MIB = 1 << 20


def per_second(take: Callable[[int], int], seconds: float, first: int) -> float:
    """Things a second: `take(n)` takes n of them; n doubles until one run fills the time."""
    count = first
    while True:
        began = time.perf_counter()
        done = take(count)
        took = time.perf_counter() - began
        if took >= seconds / 2 or count >= first << 12:
            return done / took
        count *= 2


async def aper_second(take: Callable[[int], Any], seconds: float, first: int) -> float:
    """The same on an event loop."""
    count = first
    while True:
        began = time.perf_counter()
        done = await take(count)
        took = time.perf_counter() - began
        if took >= seconds / 2 or count >= first << 12:
            return done / took
        count *= 2


def raw_bytes(seconds: float) -> float:
    """GB/s through a Unix socket pair, in blocks of 1 MiB into one buffer."""
    here, there = socket.socketpair()
    for end in (here, there):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)

    def serve(ready: Callable[[str], object]) -> None:
        here.close()
        block = bytes(MIB)
        ready("")
        while True:
            there.sendall(block)

    with here, other_end(serve):
        there.close()
        buffer = memoryview(bytearray(MIB))

        def take(count: int) -> int:
            left = count * MIB
            while left > 0:
                left -= here.recv_into(buffer)
            return count * MIB - left

        return per_second(take, seconds, 64) / 1e9


def _singly(function: Any, seconds: float) -> float:
    """Items a second, each taken by itself."""
    from ours import with_connection

    async def body(connection: Any) -> float:
        async def take(count: int) -> int:
            taken = 0
            async for _ in connection.run(function, count):
                taken += 1
            assert taken == count
            return taken

        return await aper_second(take, seconds, 20_000)

    return with_connection(body)


def _in_blocks(
    function: Any,
    size: int,
    seconds: float,
    first: int,
    size_of: Callable[[Any], int] = len,
    worker: type | None = None,
) -> float:
    """What `size_of` counts, a second, in items that have `size` of it; served by an Adder or another worker."""
    from ours import Adder, with_connection

    async def body(connection: Any) -> float:
        async def take(count: int) -> int:
            taken = 0
            async for block in connection.run(function, count, size):
                taken += size_of(block)
            assert taken == count * size
            return taken

        return await aper_second(take, seconds, first)

    return with_connection(body, worker or Adder)


def ours_items(seconds: float) -> float:
    """Million items a second: each yielded by itself, each taken by itself."""
    from ours import Adder

    return _singly(Adder.numbers, seconds) / 1e6


def ours_direct(seconds: float) -> float:
    """Million items a second: each written by hand, each taken by itself."""
    from ours import Adder

    return _singly(Adder.direct_numbers, seconds) / 1e6


def ours_batches(seconds: float) -> float:
    """Million items a second, in lists of 1000."""
    from ours import Adder

    return _in_blocks(Adder.batches, BATCH, seconds, 100) / 1e6


def ours_texts(seconds: float) -> float:
    """GB/s in texts of 1 MiB."""
    from ours import Adder

    return _in_blocks(Adder.texts, MIB, seconds, 16) / 1e9


def ours_blocks(seconds: float) -> float:
    """GB/s in bytes of 1 MiB."""
    from ours import Adder

    return _in_blocks(Adder.blocks, MIB, seconds, 16) / 1e9


def ours_arrays(seconds: float) -> float:
    """GB/s in arrays of numpy of 1 MiB, received as views of their messages."""
    from our_arrays import Arrays

    return _in_blocks(Arrays.arrays, MIB, seconds, 16, lambda array: int(array.nbytes), Arrays) / 1e9


def pyro_items(seconds: float) -> float:
    from calls import pyro_proxy

    with pyro_proxy("msgpack") as proxy:

        def take(count: int) -> int:
            return sum(1 for _ in proxy.numbers(count))

        return per_second(take, seconds, 500) / 1e6


def pyro_texts(seconds: float) -> float:
    from calls import pyro_proxy

    with pyro_proxy("msgpack") as proxy:

        def take(count: int) -> int:
            return sum(len(proxy.text(MIB)) for _ in range(count))

        return per_second(take, seconds, 4) / 1e9


KINDS: dict[str, tuple[str, str, dict[str, Callable[[float], float]]]] = {
    "stream, one by one": ("ints yielded singly", "M/s", {OURS: ours_items, "Pyro5 msgpack": pyro_items}),
    "stream, written by hand": ("ints by a DirectWriter", "M/s", {OURS: ours_direct}),
    "stream, in batches": ("ints in lists of 1000", "M/s", {OURS: ours_batches}),
    "stream, 1 MiB strings": (
        "texts of 1 MiB",
        "GB/s",
        {"raw Unix socket": raw_bytes, OURS: ours_texts, "Pyro5 msgpack": pyro_texts},
    ),
    "stream, 1 MiB bytes": ("bytes of 1 MiB", "GB/s", {"raw Unix socket": raw_bytes, OURS: ours_blocks}),
    "stream, 1 MiB arrays": ("numpy arrays of 1 MiB", "GB/s", {"raw Unix socket": raw_bytes, OURS: ours_arrays}),
}
BUDGETS = {
    "stream, one by one": Budget(at_least=2),
    "stream, written by hand": Budget(at_least=2),
    "stream, in batches": Budget(at_least=10),
    "stream, 1 MiB strings": Budget(at_least=1.5),
}
"""Unpinned: with both ends on one CPU, two processes share what the budgets are about."""
CASES = {f"{name}: {case}": measure for name, (_, _, cases) in KINDS.items() for case, measure in cases.items()}


def rows(bench: Bench) -> Iterator[Row]:
    for pinned in (True, False):
        for name, (what, unit, cases) in KINDS.items():
            taken, trouble = bench.programs_in_turns(
                "streams", "streams", [f"{name}: {c}" for c in cases], pinned=pinned
            )
            series = {case: taken[f"{name}: {case}"].named(case) for case in cases if f"{name}: {case}" in taken}
            limit, own = series.pop("raw Unix socket", None), series.pop(OURS, None)
            yield Row(
                name=f"{name}, {'pinned' if pinned else 'unpinned'}",
                what=what,
                unit=unit,
                ours=own,
                limit=limit,
                others=tuple(series.values()),
                more_is_better=True,
                budget=None if pinned else BUDGETS.get(name),
                skipped="; ".join(trouble),
            )
