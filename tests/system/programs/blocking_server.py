"""Serves one worker for the tests of the blocking client; prints its URI, and serves until its stdin ends."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from workerlib import (
    RpcSettings,
    Session,
    Worker,
    current_session,
    one_way,
    pipe,
    reverse_direct_pipe,
    reverse_pipe,
    rpc,
)
from workerlib.core.uri import TcpLocation


@dataclass
class Point:
    x: int
    y: int


class OwnError(Exception):
    pass


class Bench(Worker):
    """What the tests call."""

    async def init(self) -> None:
        self.noted: list[str] = []
        self.made = 0
        self.closed_generators = 0
        self.cancelled = 0

    async def connected(self, session: Session, who: str = "") -> str:
        if who == "nobody":
            raise PermissionError("nobody may connect")
        return who

    @rpc
    async def who(self) -> str:
        return str(current_session().state)

    @rpc
    async def add(self, a: int, b: int = 1) -> int:
        return a + b

    @rpc
    async def mirror(self, point: Point) -> Point:
        return Point(point.y, point.x)

    @rpc
    async def echo(self, data: bytes) -> bytes:
        return data

    @one_way
    async def note(self, text: str) -> None:
        self.noted.append(text)

    @rpc
    async def notes(self) -> list[str]:
        return self.noted

    @rpc
    async def divide(self, a: int, b: int) -> float:
        return a / b

    @rpc(errors=(OwnError,))
    async def own(self) -> None:
        raise OwnError("declared")

    @rpc
    async def foreign(self) -> None:
        raise OwnError("not declared")

    @rpc
    async def hang(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled += 1

    @rpc
    async def cancellations(self) -> int:
        return self.cancelled

    @pipe
    async def numbers(self, below: int) -> AsyncIterator[int]:
        try:
            for n in range(below):
                self.made = n + 1
                yield n
        finally:
            self.closed_generators += 1

    @pipe
    def blocking_numbers(self, below: int) -> Iterator[int]:
        yield from range(below)

    @reverse_pipe
    async def total(self, updates: AsyncIterator[int], start: int = 0) -> int:
        async for n in updates:
            start += n
        return start

    @reverse_direct_pipe
    async def first(self, updates: AsyncIterator[int], count: int) -> list[int]:
        return [await anext(updates) for _ in range(count)]

    @reverse_pipe(errors=(OwnError,))
    async def refuse_from(self, updates: AsyncIterator[int], limit: int) -> int:
        async for n in updates:
            if n >= limit:
                raise OwnError(f"{n} is too much")
        return limit

    @reverse_pipe
    async def hold(self, updates: AsyncIterator[int]) -> None:
        await asyncio.Event().wait()

    @pipe
    async def broken(self, after: int) -> AsyncIterator[int]:
        for n in range(after):
            yield n
        raise ValueError(f"after {after}")

    @pipe
    async def wrong(self) -> AsyncIterator[int]:
        yield "text"  # type: ignore[misc]  # this is what the test is about

    @pipe
    async def never(self) -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 1

    @pipe
    async def blocks(self, count: int, size: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield bytes(size)

    @rpc
    async def progress(self) -> tuple[int, int]:
        """Items made by `numbers`, and generators that were closed."""
        return self.made, self.closed_generators


async def main() -> None:
    settings = RpcSettings(heartbeat_interval_s=0.05, heartbeat_timeout_s=0.1) if "beat" in sys.argv else None
    location = TcpLocation("127.0.0.1", 0) if "tcp" in sys.argv else None
    async with await Bench.serve(settings=settings, location=location, insecure=True) as served:
        print(served.handle.uri, flush=True)
        await asyncio.to_thread(sys.stdin.read)


def run() -> None:
    asyncio.run(main())
