"""What a type checker sees of maps, reductions and executors. Never run."""

from collections.abc import AsyncIterator
from concurrent.futures import Executor as StandardExecutor
from typing import assert_type

from job import Order, Price

import workerlib
from workerlib import Config, Executor, MapWorker, Progress, ProgressBar, ReduceWorker, Results


def price(order: Order) -> Price: ...  # type: ignore[empty-body]
async def price_later(order: Order) -> Price: ...  # type: ignore[empty-body]
def cheap(order: Order) -> Price | None: ...
def cheaper(first: Price, second: Price) -> Price: ...  # type: ignore[empty-body]
async def orders() -> AsyncIterator[Order]:
    yield Order("tea")


class Pricing(MapWorker[Order, Price]):
    async def init(self, currency: str) -> None:
        self.currency = currency

    def map(self, item: Order) -> Price:
        return price(item)


class PricingLater(MapWorker[Order, Price]):
    async def map(self, item: Order) -> Price:
        assert_type(self.index, int)
        return price(item)


class Totals(ReduceWorker[Order, int]):
    def map(self, item: Order) -> int:
        return item.count

    def combine(self, first: int, second: int) -> int:
        return first + second


async def maps(some: list[Order]) -> None:
    """Results have the type of the function's, whether it is plain, async, or a class; items may be async, too."""
    two = Config(local=2, in_flight=4, item_timeout_s=1.5)
    assert_type(workerlib.map(price, some, two), Results[Price])
    assert_type(workerlib.map(price_later, orders()), Results[Price])
    assert_type(workerlib.map(Pricing, some, two, init=["EUR"]), Results[Price])
    assert_type(workerlib.map_unordered(PricingLater, some, two), Results[Price])
    async with workerlib.map_unordered(price, orders(), two) as prices:
        async for one in prices:
            assert_type(one, Price)
    assert_type(await workerlib.find_map(cheap, some, two), Price | None)
    assert_type(await workerlib.map_reduce(price, some, two, combine=cheaper), Price | None)
    assert_type(await workerlib.map_reduce_commutative(Totals, some, two), int | None)
    with ProgressBar("pricing") as bar:
        workerlib.map(price, some, on_progress=bar)
    workerlib.map(price, some, on_progress=show)


def show(progress: Progress) -> None:
    assert_type(progress.done, int)
    assert_type(progress.total, int | None)


async def wrong_maps(some: list[str]) -> None:
    """Items of the wrong type, and a reduction of what cannot be combined, are refused."""
    workerlib.map(price, some)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    workerlib.map(price, [Order("tea")], init=["EUR"])  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    Config(2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def executes(executor: Executor) -> None:
    """An Executor is one of the standard library's; what a coroutine function returns is what its future gives."""
    plain: StandardExecutor = executor
    assert_type(plain.submit(price, Order("tea")).result(), Price)
    assert_type(executor.submit(price, Order("tea")).result(), Price)
    assert_type(executor.submit(price_later, order=Order("tea")).result(), Price)
    for one in executor.map(price, [Order("tea")], chunksize=10):
        assert_type(one, Price)
    executor.submit(price, "tea")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
