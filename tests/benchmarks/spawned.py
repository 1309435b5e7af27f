"""What is spawned to be measured: a file of its own, so that a worker imports this and not the benchmarks."""

from workerlib import Worker, rpc


class Adder(Worker):
    @rpc
    async def add(self, n: int) -> int:
        return n + 1


def add(n: int) -> int:
    """The same for pools."""
    return n + 1
