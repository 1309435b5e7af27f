"""What a script's type checker sees of the blocking client. Never run."""

from collections.abc import Iterator
from typing import assert_type

from job import Order, Price, Shop

from workerlib import blocking


def calls(uri: str) -> None:
    """An rpc gives its result, a one_way nothing, a pipe an iterator of items."""
    with blocking.connect(uri, within_s=1.0, timeout_s=5.0) as connection:
        assert_type(connection.run(Shop.price, Order("tea")), Price)
        assert_type(connection.run(Shop.stock, "tea", reserved=True), int)
        connection.run(Shop.forget, "tea")
        assert_type(connection.run(Shop.sales, "tea"), blocking.Stream[Price])
        assert_type(connection.run(Shop.deliver, [Order("tea")], city="Paris"), int)
        assert_type(connection.run(Shop.deliver_slowly, (Order(item) for item in ("tea", "salt"))), Price)
        assert_type(connection.run(Shop.shelf, "tea"), tuple[int, blocking.Stream[Order]])
        stream = connection.run(Shop.orders, 3)
        assert_type(stream, blocking.Stream[Order])
        items: Iterator[Order] = stream
        for order in items:
            assert_type(order, Order)
        with connection.run(Shop.counts, "tea") as counts:
            assert_type(next(counts), int)


def mistakes(connection: blocking.Connection) -> None:
    """Each line is an error, or the ignored rule would be reported as unused."""
    connection.run(Shop.stock, 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    connection.run(Shop.stock)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
