"""A worker may spawn workers of its own: a foreman splits the work and has two hands do it.

When the foreman ends, for whatever reason, its hands do: their lives hang on connections that it holds.
"""

import asyncio

import workerlib
from workerlib import Redirect, ShutdownOn

NULL = Redirect.dev_null()


class Hand(workerlib.Worker):
    @workerlib.rpc
    def count_primes(self, start: int, end: int) -> int:
        return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(max(start, 2), end))


class Foreman(workerlib.Worker):
    async def init(self, hands: int) -> None:
        self.hands = [
            await Hand.spawn(
                name=f"hand-{number}",
                shutdown_on=ShutdownOn.CONNECTION_CLOSED,
                redirect_stdout=NULL,
                redirect_stderr=NULL,
            )
            for number in range(hands)
        ]

    @workerlib.rpc
    async def count_primes(self, below: int) -> int:
        share = below // len(self.hands)
        starts = [number * share for number in range(len(self.hands))]
        ends = [*starts[1:], below]
        counts = await asyncio.gather(
            *(
                hand.run(Hand.count_primes, start, end)
                for hand, start, end in zip(self.hands, starts, ends, strict=True)
            )
        )
        return sum(counts)


async def main() -> None:
    async with await Foreman.spawn(
        2, shutdown_on=ShutdownOn.CONNECTION_CLOSED, redirect_stdout=NULL, redirect_stderr=NULL
    ) as foreman:
        print(f"primes below 20000: {await foreman.run(Foreman.count_primes, 20_000)}")


if __name__ == "__main__":
    asyncio.run(main())
