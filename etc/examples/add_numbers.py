"""The smallest one: a worker process that adds numbers, spawned, called, and gone.

The part after `if __name__ == "__main__"` matters: the worker imports this same file to find the class in it.
"""

import asyncio

import workerlib
from workerlib import Redirect, ShutdownOn


class Adder(workerlib.Worker):
    @workerlib.rpc
    def sum_to(self, n: int) -> int:
        """A plain `def` runs in a thread of the worker, which goes on answering others meanwhile."""
        return sum(range(n + 1))


async def main() -> None:
    async with await Adder.spawn(
        shutdown_on=ShutdownOn.CONNECTION_CLOSED,  # the worker's life hangs on this connection
        redirect_stdout=Redirect.dev_null(),
        redirect_stderr=Redirect.dev_null(),
    ) as connection:
        for n in (10, 1000, 1_000_000):
            print(f"0 + ... + {n} = {await connection.run(Adder.sum_to, n)}")


if __name__ == "__main__":
    asyncio.run(main())
