"""Scenarios of the daemon's reaper."""

import asyncio
from collections.abc import Awaitable, Callable

from parsupd.shell.children import Children
from parsupd.shell.kernel import Kernel
from workerlib.shell.loop import run


def check(scenario: Callable[[Children], Awaitable[None]], kernel: Kernel | None = None) -> None:
    """Runs one with a reaper of its own, on this kernel or another one."""

    async def bounded() -> None:
        children = Children(kernel)
        try:
            async with asyncio.timeout(30):
                await scenario(children)
        finally:
            children.close()

    run(bounded())
