"""Our own two ends: a server in a forked process, a connection to it here, both on uvloop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from ends import other_end, socket_path

from workerlib import Connection, DirectWriter, RpcSettings, direct_pipe, pipe, rpc
from workerlib.connection import open_to
from workerlib.core.uri import UnixLocation, Uri
from workerlib.server import Server
from workerlib.shell.loop import run

T = TypeVar("T")


class Adder:
    """What is served: the function that every case calls, and the streams."""

    @rpc
    async def add(self, n: int) -> int:
        return n + 1

    @pipe
    async def numbers(self, below: int) -> AsyncIterator[int]:
        for number in range(below):
            yield number

    @direct_pipe
    async def direct_numbers(self, out: DirectWriter[int], below: int) -> None:
        async def write() -> None:
            for number in range(below):
                out.write(number)
                if not number % 1000:
                    await out.flushed()
            out.close()

        self.writing = asyncio.create_task(write())

    @pipe
    async def batches(self, count: int, size: int) -> AsyncIterator[list[int]]:
        batch = list(range(size))
        for _ in range(count):
            yield batch

    @pipe
    async def texts(self, count: int, size: int) -> AsyncIterator[str]:
        text = "x" * size
        for _ in range(count):
            yield text

    @pipe
    async def blocks(self, count: int, size: int) -> AsyncIterator[bytes]:
        block = bytes(size)
        for _ in range(count):
            yield block


@contextlib.contextmanager
def served(worker: type = Adder) -> Iterator[Uri]:
    with socket_path() as path:

        def serve(ready: Callable[[str], object]) -> None:
            async def main() -> None:
                server = Server(RpcSettings())
                server.add("adder", worker())
                await server.listen(UnixLocation(path))
                ready(path)
                await asyncio.Event().wait()

            run(main())

        with other_end(serve):
            yield Uri("adder", UnixLocation(path))


def with_connection(body: Callable[[Connection], Coroutine[Any, Any, T]], worker: type = Adder) -> T:
    """Runs `body` with a connection to an Adder, or another worker, in another process."""

    async def main(uri: Uri) -> T:
        async with await open_to(uri, settings=RpcSettings()) as connection:
            return await body(connection)

    with served(worker) as uri:
        return run(main(uri))
