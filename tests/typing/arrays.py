"""What a type checker sees of functions that take and give arrays, and pickled values. Never run."""

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

import numpy as np
import numpy.typing as npt

from workerlib import Connection, Pickled, Worker, blocking, pipe, reverse_pipe, rpc


class Parcel:
    """Has no encoding: it travels pickled."""


class Arrays(Worker):
    @rpc
    async def scaled(self, values: npt.NDArray[np.float64], by: float) -> npt.NDArray[np.float64]:
        return values * by

    @pipe
    async def rows(self, values: npt.NDArray[np.float64]) -> AsyncIterator[npt.NDArray[np.float64]]:
        for row in values:
            yield row

    @reverse_pipe
    async def total(self, updates: AsyncIterator[npt.NDArray[np.int64]]) -> int:
        return sum([int(block.sum()) async for block in updates])

    @rpc
    async def packed(self, parcel: Pickled[Parcel]) -> Pickled[Parcel]:
        return parcel


async def calls(
    connection: Connection, values: npt.NDArray[np.float64], blocks: Iterator[npt.NDArray[np.int64]]
) -> None:
    """The types of the elements arrive as well."""
    assert_type(await connection.run(Arrays.scaled, values, 2.0), npt.NDArray[np.float64])
    async for row in connection.run(Arrays.rows, values):
        assert_type(row, npt.NDArray[np.float64])
    assert_type(await connection.run(Arrays.total, blocks), int)
    assert_type(await connection.run(Arrays.packed, Parcel()), Parcel)


def blocking_calls(connection: blocking.Connection, values: npt.NDArray[np.float64]) -> None:
    """The same without a loop."""
    assert_type(connection.run(Arrays.scaled, values, by=2.0), npt.NDArray[np.float64])
    assert_type(connection.run(Arrays.packed, Parcel()), Parcel)


async def mistakes(connection: Connection) -> None:
    """Each line is an error, or the ignored rule would be reported as unused."""
    await connection.run(Arrays.scaled, [1.0], 2.0)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await connection.run(Arrays.packed, "no parcel")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
