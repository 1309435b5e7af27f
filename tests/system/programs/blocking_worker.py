"""A worker that holds up its event loop."""

import os
import time

from workerlib import Worker, rpc


class Blocker(Worker):
    @rpc
    async def block(self, seconds: float) -> str:
        """A long computation on the loop."""
        time.sleep(seconds)
        return "computed"

    @rpc
    def in_thread(self, seconds: float) -> str:
        time.sleep(seconds)
        return "computed"

    @rpc
    async def echo(self, data: bytes) -> bytes:
        return data

    @rpc
    async def pid(self) -> int:
        return os.getpid()
