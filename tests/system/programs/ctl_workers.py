"""The worker that the tests of parsupctl call."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from dataclasses import dataclass

from workerlib import DirectWriter, Worker, direct_pipe, one_way, pipe, reverse_pipe, rpc, state


@dataclass
class Order:
    symbol: str
    amount: int = 0


class Pricing(Worker):
    async def init(self) -> None:
        self.noted: list[str] = []

    @rpc
    async def quote(self, symbol: str, factor: float = 1.0) -> dict[str, float]:
        return {symbol: 1.5 * factor}

    @rpc
    async def book(self, orders: list[Order]) -> int:
        return sum(order.amount for order in orders)

    @rpc
    async def only_by_name(self, *, text: str) -> str:
        return text

    @rpc
    async def odd(self) -> tuple[dt.date, bytes]:
        return dt.date(2024, 2, 29), b"\x00\xff"

    @rpc
    async def no_json(self) -> dict[tuple[int, int], str]:
        return {(1, 2): "a pair as a key"}

    @rpc
    async def fail(self) -> None:
        raise KeyError("x")

    @rpc
    async def look_up(self) -> None:
        raise LookupError("this is the function's own error")

    @rpc
    async def hang(self) -> None:
        await asyncio.Event().wait()

    @one_way
    async def note(self, text: str) -> None:
        self.noted.append(text)

    @rpc
    async def notes(self) -> list[str]:
        return self.noted

    @pipe
    async def ticks(self, count: int) -> AsyncIterator[int]:
        for n in range(count):
            yield n

    @direct_pipe
    async def written(self, out: DirectWriter[int], count: int) -> None:
        for n in range(count):
            out.write(n)
        out.close()

    @state
    async def countdown(self, start: int) -> tuple[int, AsyncIterator[int]]:
        return start, self.ticks(2)

    @reverse_pipe
    async def total(self, updates: AsyncIterator[int], start: int = 0) -> int:
        async for n in updates:
            start += n
        return start

    @pipe
    async def one_then_wait(self) -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()
