"""Workers that talk to each other: one streams numbers, others subscribe to it and report to this program.

A Handle names a worker and can travel: here it is the argument with which the subscribers are initialised.
"""

import asyncio
from collections.abc import AsyncIterator

import workerlib
from workerlib import Handle, Redirect, ShutdownOn

NULL = Redirect.dev_null()


class Source(workerlib.Worker):
    @workerlib.pipe
    async def numbers(self, below: int) -> AsyncIterator[int]:
        for number in range(below):
            yield number  # waits here while a subscriber does not keep up


class Subscriber(workerlib.Worker):
    async def init(self, source: Handle[Source], residue: int) -> None:
        self.source = source
        self.residue = residue

    @workerlib.rpc
    async def sum_of_mine(self, below: int) -> int:
        """The sum of those numbers of the stream that are mine."""
        total = 0
        async with await self.source.connect() as connection:
            async for number in connection.run(Source.numbers, below):
                if number % 2 == self.residue:
                    total += number
        return total


async def main() -> None:
    # The source has to be there for several connections: its life hangs on the connection to its master instead.
    source = await Source.spawn(
        shutdown_on=ShutdownOn.HEARTBEATER_CONNECTION_TIMEOUT, redirect_stdout=NULL, redirect_stderr=NULL
    )
    subscribers = [
        await Subscriber.spawn(
            source,
            residue,
            shutdown_on=ShutdownOn.CONNECTION_CLOSED,
            redirect_stdout=NULL,
            redirect_stderr=NULL,
        )
        for residue in (0, 1)
    ]
    even, odd = await asyncio.gather(*(one.run(Subscriber.sum_of_mine, 10_001) for one in subscribers))
    print(f"even numbers: {even}, odd numbers: {odd}")
    for subscriber in subscribers:
        await subscriber.close()
    await source.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
