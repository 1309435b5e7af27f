"""Many small messages share system calls, in order; a large one is read to its place. On both event loops."""

import asyncio
from pathlib import Path

import pytest
from served import serving, until
from support import ENGINES, run_async

from workerlib.connection import open_to
from workerlib.errors import ConnectionLost
from workerlib.shell import transport
from workerlib.spec import RpcSettings, one_way, rpc

SETTINGS = RpcSettings()
MIB = 1 << 20


class Noting:
    """Keeps what it is called with, in order."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    @one_way
    async def note(self, n: int) -> None:
        self.seen.append(n)

    @rpc
    async def note_and_tell(self, n: int) -> int:
        self.seen.append(n)
        return n

    @rpc
    async def wait_for_ever(self) -> None:
        await asyncio.Event().wait()

    @rpc
    async def echo(self, data: bytes) -> bytes:
        return data


@pytest.mark.parametrize("engine", ENGINES)
def test_calls_of_one_turn_are_sent_in_few_pieces(tmp_path: Path, engine: str) -> None:
    """The first at once, so that the worker begins; the others a kilobyte at a time. The answers as well."""

    async def main() -> None:
        worker = Noting()
        async with (
            serving(worker, tmp_path / "s") as uri,
            await open_to(uri, settings=SETTINGS) as connection,
        ):
            wire = connection._wire
            assert wire is not None
            written: list[int] = []
            read: list[int] = []
            write, receive = wire.write, wire.machine.receive
            wire.write = lambda data: (written.append(len(data)), write(data))
            wire.machine.receive = lambda data, now: (read.append(len(data)), receive(data, now))[1]  # type: ignore[method-assign]
            for _ in range(3):
                assert await asyncio.gather(*(connection.run(Noting.note_and_tell, n) for n in range(100))) == list(
                    range(100)
                )
            assert worker.seen == list(range(100)) * 3
            assert len(written) <= 3 * (2 + sum(written) // 3 // transport.TOGETHER)
            assert max(written) < 2 * transport.TOGETHER
            assert len(read) <= 3 * 20
            written.clear()
            for n in range(10):  # one after the other: none waits for company
                await connection.run(Noting.note_and_tell, n)
            assert len(written) == 10

    run_async(main, engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_written_in_one_turn_keeps_its_order(tmp_path: Path, engine: str) -> None:
    """Calls, one_ways and the aborts of cancelled calls, large ones among them."""

    async def main() -> None:
        worker = Noting()
        async with (
            serving(worker, tmp_path / "s") as uri,
            await open_to(uri, settings=SETTINGS) as connection,
        ):
            waiting = []
            for n in range(0, 300, 3):
                call = connection.run(Noting.note_and_tell, n)
                connection.run(Noting.note, n + 1)
                for_ever = asyncio.ensure_future(connection.run(Noting.wait_for_ever))
                echo = connection.run(Noting.echo, bytes(n * 100))
                waiting += [call, connection.run(Noting.note_and_tell, n + 2), echo]
                for_ever.cancel()
            await asyncio.gather(*waiting)
            assert worker.seen == list(range(300))
            await connection.ping()

    run_async(main, engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_was_written_in_the_turn_of_the_close_is_sent(tmp_path: Path, engine: str) -> None:
    """Closing sends first; aborting does not, and the calls fail."""

    async def main() -> None:
        worker = Noting()
        async with serving(worker, tmp_path / "s") as uri:
            connection = await open_to(uri, settings=SETTINGS)
            calls = [connection.run(Noting.note_and_tell, n) for n in range(50)]
            await connection.close()
            assert all(isinstance(e, ConnectionLost) for e in await asyncio.gather(*calls, return_exceptions=True))
            await until(lambda: len(worker.seen) == 50)
            connection = await open_to(uri, settings=SETTINGS)
            calls = [connection.run(Noting.note_and_tell, 100 + n) for n in range(50)]
            connection.abort()
            assert all(isinstance(e, ConnectionLost) for e in await asyncio.gather(*calls, return_exceptions=True))
            async with await open_to(uri, settings=SETTINGS) as other:
                await other.run(Noting.note_and_tell, 1000)
            assert worker.seen[-1] == 1000
            assert 149 not in worker.seen

    run_async(main, engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_large_values_between_small_ones(tmp_path: Path, engine: str) -> None:
    """Many at a time, in both directions: each arrives as it was, whatever the socket did with it."""

    async def main() -> None:
        worker = Noting()
        async with (
            serving(worker, tmp_path / "s") as uri,
            await open_to(uri, settings=SETTINGS) as connection,
        ):
            sizes = [0, 10, 3 * MIB + 5, 100, transport.DIRECTLY - 1, transport.DIRECTLY + 100, MIB, 5, 300_000]
            values = [bytes([n]) * size for n, size in enumerate(sizes)] * 3
            assert await asyncio.gather(*(connection.run(Noting.echo, value) for value in values)) == values
            await connection.ping()

    run_async(main, engine)
