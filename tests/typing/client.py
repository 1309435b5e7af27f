"""What a client's type checker sees: results of each kind of call, and what `spawn` returns. Never run."""

from typing import assert_type

from job import Auditor, Order, Price, Shop

import workerlib
from workerlib import (
    Connection,
    DirectCall,
    Group,
    Handle,
    LogRecord,
    Managed,
    Redirect,
    RpcSettings,
    ShutdownOn,
    Stream,
    WorkerInfo,
)


async def managed(one: Managed, many: Group) -> None:
    """A managed connection and a group call as a connection does."""
    assert_type(await one.run(Shop.stock, "tea"), int)
    assert_type(await many.run(Shop.price, Order("tea")), Price)
    assert_type(await one.run(Shop.forget, "tea"), None)
    assert_type(await many.connection(), Connection)


async def pickled(connection: Connection) -> None:
    """A Pickled[T] is a T to callers, and something else is a mistake."""
    assert_type(await connection.run(Shop.audit, Auditor(), deep=True), dict[str, Auditor])
    assert_type(connection.run(Shop.auditors), Stream[Auditor])
    await connection.run(Shop.audit, "Ann")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


async def calls(connection: Connection) -> None:
    """The result of `run` depends on the kind of function and on its annotations."""
    assert_type(await connection.run(Shop.price, Order("tea")), Price)
    assert_type(await connection.run(Shop.stock, "tea"), int)
    assert_type(await connection.run(Shop.stock, "tea", reserved=True), int)
    assert_type(await connection.run(Shop.stock, item="tea"), int)
    assert_type(await connection.run(Shop.buy, Order("tea")), list[Price])
    assert_type(await connection.run(Shop.sell_now, Order("tea")), int)
    await connection.run(Shop.forget, "tea")
    await connection.run(Shop.forget_everything)
    assert_type(connection.run(Shop.orders, 3), Stream[Order])
    async for order in connection.run(Shop.orders, at_most=3):
        assert_type(order, Order)
    async for item in connection.run(Shop.items):
        assert_type(item, str)
    async for price in connection.run(Shop.prices, "tea"):
        assert_type(price, Price)
    async for count in connection.run(Shop.counts, "tea"):
        assert_type(count, int)
    async for price in connection.run(Shop.sales, "tea"):
        assert_type(price, Price)
    assert_type(connection.run(Shop.sales_of_all), Stream[Price])
    assert_type(await connection.run(Shop.deliver, [Order("tea")], "Paris"), int)
    assert_type(await connection.run(Shop.deliver, connection.run(Shop.orders, 3)), int)
    deliveries = connection.run(Shop.deliver_slowly)
    assert_type(deliveries, DirectCall[Order, Price])
    deliveries.write(Order("tea"))
    assert_type(await deliveries, Price)
    assert_type(await connection.run(Shop.shelf, "tea"), tuple[int, Stream[Order]])
    shelves, changes = await connection.run(Shop.shelves)
    assert_type(shelves, dict[str, int])
    async for order in changes:
        assert_type(order, Order)
    print(await connection.run(Shop.stock, "tea"))  # what is expected of the result does not change the function's type
    stock: float | None = await connection.run(Shop.stock, "tea")
    print(stock)


async def common_functions(connection: Connection, handle: Handle[Shop]) -> None:
    """What every worker has."""
    assert_type(await connection.info(), WorkerInfo)
    assert_type(await connection.worker_settings(), RpcSettings)
    assert_type(connection.log(last=10), Stream[LogRecord])
    assert_type((await handle.info()).functions, dict[str, str])
    async for record in handle.log():
        assert_type(record.event, str)


async def adapted_calls(connection: Connection) -> None:
    """What `map` gives and `contra_map` takes is what `run` gives and takes."""
    cents = Shop.price.map(lambda price: price.cents)
    assert_type(await connection.run(cents, Order("tea")), int)
    by_name = Shop.price.contra_map(Order)
    assert_type(await connection.run(by_name, "tea", 5), Price)
    texts = Shop.orders.map(repr).contra_map(len)
    assert_type(connection.run(texts, "abc"), Stream[str])
    sales = Shop.sales.map(repr)
    assert_type(connection.run(sales, "tea"), Stream[str])
    delivered = Shop.deliver.map(str)
    assert_type(await connection.run(delivered, [Order("tea")]), str)
    forget = Shop.forget.contra_map(repr)
    await connection.run(forget, 5)
    await connection.run(by_name, 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    cents.map(len)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def wrong_calls(connection: Connection) -> None:
    """Arguments that the worker would refuse are refused before anything runs."""
    await connection.run(Shop.price, "tea")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await connection.run(Shop.stock, 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await connection.run(Shop.stock, "tea", True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await connection.run(Shop.stock)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await connection.run(Shop.stock, "tea", resreved=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await connection.run(Shop.forget, 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await connection.run(Shop.deliver, [5])  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await connection.run(Shop.deliver, Order("tea"))  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await connection.run(Shop.deliver, [Order("tea")], 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    connection.run(Shop.deliver_slowly).write(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    connection.run(Shop.sales, 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await connection.run(Shop.orders, 3)  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    async for _ in connection.run(Shop.price, Order("tea")):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues, reportUnknownVariableType]
        pass


async def spawns() -> None:
    """`shutdown_on` decides what is returned; the redirects cannot be left out."""
    null = Redirect.dev_null()
    async with await Shop.spawn(
        "EUR", shutdown_on=ShutdownOn.CONNECTION_CLOSED, redirect_stdout=null, redirect_stderr=null
    ) as connection:
        assert_type(connection, Connection)
    handle = await Shop.spawn(
        "EUR",
        shutdown_on=ShutdownOn.HEARTBEATER_CONNECTION_TIMEOUT,
        redirect_stdout=Redirect.append("/var/log/shop"),
        redirect_stderr=Redirect.truncate("/var/log/shop.errors"),
    )
    assert_type(handle, Handle[Shop])
    other = await Shop.spawn(
        init={"currency": "EUR"},
        shutdown_on=ShutdownOn.CALLED_SHUTDOWN_FUNCTION,
        redirect_stdout=null,
        redirect_stderr=null,
        on_failure=lambda error: print(type(error)),
    )
    assert_type(other, Handle[Shop])
    assert_type(await handle.connect("me"), Connection)
    await handle.shutdown()
    await Shop.spawn(shutdown_on=ShutdownOn.CONNECTION_CLOSED)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await Shop.spawn(redirect_stdout=null, redirect_stderr=null)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


async def spawns_in_foreground() -> None:
    """The same, with the process; there is nothing to redirect."""
    connection, process = await Shop.spawn_in_foreground("EUR", shutdown_on=ShutdownOn.CONNECTION_CLOSED)
    assert_type(connection, Connection)
    assert_type(await process.wait(), int)
    handle, _ = await Shop.spawn_in_foreground(shutdown_on=ShutdownOn.CALLED_SHUTDOWN_FUNCTION)
    assert_type(handle, Handle[Shop])
    await Shop.spawn_in_foreground("EUR")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


async def number() -> int:
    return 3


def apps() -> None:
    """start_app returns what main does, and needs main itself, not its coroutine."""
    assert_type(workerlib.start_app(number), int)
    workerlib.start_app(number())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(workerlib.State.get(), workerlib.State | None)


async def serves() -> None:
    """A worker in this process is reached by its handle, and its object is at hand with its own type."""
    async with await Shop.serve("EUR") as served:
        assert_type(served.worker, Shop)
        assert_type(served.handle, Handle[Shop])
        async with await served.handle.connect() as connection:
            assert_type(connection, Connection)
    async with await workerlib.connect("PYRO:shop@./u:/run/shop.sock", within_s=1, worker=Shop) as connection:
        assert_type(await connection.ping(), float)
