"""A master that kills itself with SIGKILL at one moment of its spawn: `launch`, or `before` or `after` an event."""

import asyncio
import os
import signal
import sys
from typing import Any

from workers import Sum

from workerlib import Redirect, ShutdownOn
from workerlib.core import spawning
from workerlib.launchers.local import Launched

NULL = Redirect.dev_null()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def prepare(moment: str) -> None:
    when, _, event_name = moment.partition(" ")
    real_init, real_step = Launched.__init__, spawning.step

    def init(self: Launched, *args: Any) -> None:
        real_init(self, *args)
        if when == "launch":
            die()

    def step(spawn: Any, event: Any) -> Any:
        hit = type(event).__name__ == event_name
        if hit and when == "before":
            die()
        if hit and when == "after":  # what follows from it has begun
            asyncio.get_running_loop().call_soon(asyncio.get_running_loop().call_soon, die)
        return real_step(spawn, event)

    Launched.__init__ = init  # type: ignore[method-assign]
    spawning.step = step


async def main(life: str, foreground: bool) -> None:
    chosen = ShutdownOn(life)
    if foreground:
        await Sum.spawn_in_foreground(shutdown_on=chosen)  # type: ignore[call-overload]
    else:
        await Sum.spawn(shutdown_on=chosen, redirect_stdout=NULL, redirect_stderr=NULL)  # type: ignore[call-overload]
    await asyncio.Event().wait()


if __name__ == "__main__":
    prepare(sys.argv[1])
    asyncio.run(main(sys.argv[2], sys.argv[3:] == ["foreground"]))
