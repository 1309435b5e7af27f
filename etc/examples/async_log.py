"""A worker's log, followed from elsewhere: by its spawner over two subscriptions, one of which begins with what `init`
logged before anybody could have connected.

Leaving a subscription leaves the others alone, and one that does not keep up is told what it missed.
"""

import logging

import workerlib
from workerlib import LogRecord, Redirect, ShutdownOn


class Baker(workerlib.Worker):
    async def init(self) -> None:
        logging.getLogger("baker").warning("the oven is cold")

    @workerlib.rpc
    async def bake(self, what: str, count: int) -> None:
        for n in range(1, count + 1):
            logging.getLogger("baker").warning("%s %d of %d", what, n, count)


async def follow(records: workerlib.Stream[LogRecord], count: int) -> list[str]:
    """The texts of the next `count` records."""
    texts: list[str] = []
    async for record in records:
        texts.append(record.event)
        if len(texts) == count:
            break  # ends the subscription
    return texts


async def main() -> None:
    async with await Baker.spawn(
        shutdown_on=ShutdownOn.CONNECTION_CLOSED,
        redirect_stdout=Redirect.dev_null(),
        redirect_stderr=Redirect.dev_null(),
    ) as baker:
        everything, from_now_on = baker.log(last=100), baker.log()
        await baker.run(Baker.bake, "bread", 3)
        print("from the start:", await follow(everything, 4))
        await baker.run(Baker.bake, "cake", 1)  # the one subscription has ended, the other goes on
        print("from now on:   ", await follow(from_now_on, 4))


if __name__ == "__main__":
    workerlib.start_app(main)  # runs main, or is the worker
