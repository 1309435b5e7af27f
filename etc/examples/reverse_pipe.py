"""The caller streams into the worker: measurements go in, one summary comes back.

The worker's pace reaches the source: it is not asked for more than the worker takes.
"""

import asyncio
from collections.abc import AsyncIterator

import workerlib
from workerlib import Redirect, ShutdownOn


class Meter(workerlib.Worker):
    @workerlib.reverse_pipe
    async def highest(self, values: AsyncIterator[int], *, until: int) -> str:
        highest = count = 0
        async for value in values:
            highest = max(highest, value)
            count += 1
            if highest >= until:
                break  # the answer may come before the end: the source is closed then
        return f"{highest} after {count} values"


async def waves() -> AsyncIterator[int]:
    try:
        for n in range(1_000_000):
            yield n * n % 1009
    finally:
        print("the source is closed")


async def main() -> None:
    async with await Meter.spawn(
        shutdown_on=ShutdownOn.CONNECTION_CLOSED,
        redirect_stdout=Redirect.dev_null(),
        redirect_stderr=Redirect.dev_null(),
    ) as connection:
        print(await connection.run(Meter.highest, waves(), until=1005))


if __name__ == "__main__":
    asyncio.run(main())
