"""What tests with both ends in one loop, over a real socket, share."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from workerlib.core.uri import UnixLocation, Uri
from workerlib.server import Server
from workerlib.spec import RpcSettings


@contextlib.asynccontextmanager
async def serving(
    worker: object, path: Path | None = None, settings: RpcSettings | None = None, location: Any = None, **kwargs: Any
) -> AsyncIterator[Uri]:
    """A server in this process with one object `w`; its URI."""
    server = Server(settings or RpcSettings(), **kwargs)
    server.add("w", worker)
    where = await server.listen(location or UnixLocation(str(path)))
    try:
        yield Uri("w", where)
    finally:
        await server.close()


async def collect(stream: Any, into: list[Any]) -> None:
    async for item in stream:
        into.append(item)


async def until(condition: Callable[[], Any]) -> None:
    """Waits in the loop until the condition holds; whoever runs the loop bounds it."""
    while not condition():
        await asyncio.sleep(0.001)
