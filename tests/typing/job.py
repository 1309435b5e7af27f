"""A job binary as a user writes it: every kind of function, with what a type checker must see in it. Never run."""

import datetime as dt
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, assert_type

import msgspec

import workerlib
from workerlib import DirectPipe, DirectWriter, OneWay, Pickled, Pipe, ReverseDirectPipe, Rpc


@dataclass
class Order:
    item: str
    count: int = 1


class Price(msgspec.Struct):
    cents: int
    at: dt.datetime


class OutOfStockError(Exception):
    """An error of the job's own, which arrives at the caller as itself."""


class Auditor:
    """Something that only pickle can carry."""

    name = "Ann"


async def aiter_orders() -> AsyncIterator[Order]:
    yield Order("tea")


class Shop(workerlib.Worker):
    async def init(self, currency: str = "EUR") -> None:
        self.currency = currency
        self.sold = 0

    async def connected(self, session: workerlib.Session, who: str = "") -> str:
        session.state = who
        return who

    @workerlib.rpc
    async def price(self, order: Order) -> Price:
        return Price(100 * order.count, dt.datetime.now(dt.UTC))

    @workerlib.rpc
    def stock(self, item: str, *, reserved: bool = False) -> int:
        return len(item) if reserved else 0

    @workerlib.rpc(errors=(OutOfStockError,))
    async def buy(self, order: Order) -> list[Price]:
        self.sold += order.count
        return [await self.price(order)]

    @workerlib.rpc(errors=(OutOfStockError,), name="sell")
    def sell_now(self, order: Order) -> int:
        self.sold += order.count
        return self.sold

    @workerlib.rpc
    async def audit(self, by: Pickled[Auditor], *, deep: bool = False) -> Pickled[dict[str, Auditor]]:
        return {by.name: by}

    @workerlib.pipe
    async def auditors(self) -> AsyncIterator[Pickled[Auditor]]:
        yield Auditor()

    @workerlib.one_way
    async def forget(self, item: str) -> None:
        self.sold = 0

    @workerlib.one_way(name="forget_all")
    def forget_everything(self) -> None:
        self.sold = 0

    @workerlib.pipe
    async def orders(self, at_most: int) -> AsyncIterator[Order]:
        for number in range(at_most):
            yield Order(str(number))

    @workerlib.pipe
    def items(self) -> Iterator[str]:
        yield from "abc"

    @workerlib.pipe(errors=(OutOfStockError,))
    async def prices(self, item: str) -> AsyncIterator[Price]:
        yield await self.price(Order(item))

    @workerlib.pipe(errors=(OutOfStockError,))
    def counts(self, item: str) -> Iterator[int]:
        yield len(item)

    @workerlib.pipe(client_pushes_back=False)
    async def quotes(self) -> AsyncIterator[Price]:
        yield await self.price(Order("tea"))

    @workerlib.direct_pipe
    async def sales(self, out: DirectWriter[Price], item: str) -> None:
        assert_type(out.write(await self.price(Order(item))), bool)
        out.write(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await out.flushed()
        out.close()

    @workerlib.direct_pipe(name="all_sales", errors=(OutOfStockError,))
    async def sales_of_all(self, out: DirectWriter[Price]) -> None:
        out.close(OutOfStockError())

    @workerlib.reverse_pipe
    async def deliver(self, orders: AsyncIterator[Order], city: str = "") -> int:
        async for order in orders:
            assert_type(order, Order)
        return len(city)

    @workerlib.reverse_direct_pipe(errors=(OutOfStockError,))
    async def deliver_slowly(self, orders: AsyncIterator[Order]) -> Price:
        price: Price = await self.price(await anext(orders))
        return price

    @workerlib.reverse_pipe  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async def deliver_nothing(self) -> int:
        return 0

    @workerlib.state
    async def shelf(self, item: str) -> tuple[int, AsyncIterator[Order]]:
        return len(item), aiter_orders()

    @workerlib.state(name="all_shelves")
    async def shelves(self) -> tuple[dict[str, int], AsyncIterator[Order]]:
        return {}, aiter_orders()

    @workerlib.state  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async def no_shelf(self) -> int:
        return 0

    @workerlib.direct_pipe  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async def sales_without_writer(self) -> None: ...


# Taken from the class, a function knows its kind and its result (client.py shows its parameters).
assert_type(Shop.forget_everything, OneWay[[]])
assert_type(Shop.items, Pipe[[], str])
assert_type(Shop.quotes, Pipe[[], Price])
assert_type(Shop.sales_of_all, DirectPipe[[], Price])
assert_type(Shop.deliver_slowly, ReverseDirectPipe[Order, [], Price])


def from_inside(shop: Shop) -> None:
    """Taken from an instance it is the method, so that a worker can call its own functions."""
    assert_type(shop.forget_everything, Callable[[], Any])
    shop.stock("tea", reserved=True)
    shop.stock(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class Boutique(Shop):
    """Functions are inherited."""

    @workerlib.rpc
    async def greet(self) -> str:
        return self.currency


assert_type(Boutique.greet, Rpc[[], str])
assert_type(Boutique.items, Pipe[[], str])
