"""Workers whose module tells its pid on stderr when it is imported, before the worker registers."""

import os
import signal
import sys

from workerlib import Session, Worker, rpc

print(f"importing in {os.getpid()}", file=sys.stderr, flush=True)


class Announcing(Worker):
    @rpc
    async def pid(self) -> int:
        return os.getpid()


class DiesWhenConnected(Worker):
    async def connected(self, session: Session) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
