"""A worker's module that writes 10 MiB to stderr while it is imported, that is, before the worker registers."""

import sys

from workerlib import Worker, rpc

for number in range(10 << 10):
    sys.stderr.write(f"{number:06d} {'x' * 1016}\n")


class Chatty(Worker):
    @rpc
    async def ping(self) -> str:
        return "pong"
