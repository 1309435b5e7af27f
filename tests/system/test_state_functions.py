"""A snapshot and then the changes: nothing missed, nothing twice, whatever happens meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import Pyro5.client
import pytest
from served import collect, serving, until
from support import run_async

from workerlib import blocking
from workerlib.connection import Connection, open_to
from workerlib.core.calling import Offer
from workerlib.core.uri import Uri
from workerlib.errors import ConnectionLost, ResultError, StreamAborted, UsageError
from workerlib.kinds import state
from workerlib.spec import RpcSettings, one_way, rpc


class OwnError(Exception):
    pass


class Board:
    """A number that everybody may watch."""

    def __init__(self) -> None:
        self.number = 0
        self.watchers: set[asyncio.Queue[int]] = set()
        self.log: list[str] = []
        self.go_on = asyncio.Event()

    def _add(self) -> None:
        self.number += 1
        for queue in self.watchers:
            queue.put_nowait(self.number)

    async def _changes(self) -> AsyncIterator[int]:
        queue: asyncio.Queue[int] = asyncio.Queue()
        self.watchers.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self.watchers.discard(queue)
            self.log.append("unsubscribed")

    @state
    async def watch(self) -> tuple[int, AsyncIterator[int]]:
        return self.number, self._changes()

    @state
    async def watch_later(self) -> tuple[int, AsyncIterator[int]]:
        await self.go_on.wait()
        return self.number, self._changes()

    @state(name="countdown", errors=(OwnError,))
    async def count_down(self, start: int, fails: bool = False) -> tuple[dict[str, int], AsyncIterator[int]]:
        if start < 0:
            raise OwnError("below zero")

        async def changes() -> AsyncIterator[int]:
            for n in reversed(range(start)):
                yield n
            if fails:
                raise OwnError("at the end")

        return {"from": start}, changes()

    @state
    async def no_pair(self) -> tuple[int, AsyncIterator[int]]:
        return 5  # type: ignore[return-value]

    @state
    async def opaque(self, what: str) -> tuple[Any, AsyncIterator[Any]]:
        async def changes() -> AsyncIterator[Any]:
            yield object()

        return {"snapshot": object(), "long": "x" * 100_000}.get(what, 1), changes()

    @state
    async def wrong(self) -> tuple[int, AsyncIterator[int]]:
        return "text", self._changes()  # type: ignore[return-value]

    @one_way
    async def add(self) -> None:
        self._add()

    @rpc
    async def plain(self) -> int:
        return self.number


Main = Callable[[Board, Connection], Coroutine[Any, Any, None]]


@pytest.fixture
def with_board(engine: str, tmp_path: Path) -> Callable[..., None]:
    """Runs a test's body with a worker and a connection to it; afterwards no call may be under way."""

    def run(main: Main, settings: RpcSettings | None = None) -> None:
        async def whole() -> None:
            worker = Board()
            settings_ = settings or RpcSettings()
            async with (
                serving(worker, tmp_path / "w.sock", settings_) as uri,
                await open_to(uri, settings=settings_) as conn,
            ):
                await main(worker, conn)
                if conn.closed is None:
                    await until(lambda: not conn._session._pending)
                    assert not conn._streams

        run_async(whole, engine)

    return run


def test_between_snapshot_and_changes_there_is_no_gap_and_no_overlap(with_board) -> None:
    """While others change the state all the time, each watcher sees every number after its snapshot exactly once."""

    async def main(worker: Board, conn: Connection) -> None:
        stop = False

        async def change() -> None:
            while not stop:
                worker._add()
                await conn.run(Board.add)
                await asyncio.sleep(0)

        async def watch() -> None:
            snapshot, changes = await conn.run(Board.watch)
            expected = snapshot
            async for number in changes:
                expected += 1
                assert number == expected
                if number >= snapshot + 200:
                    break

        changing = asyncio.create_task(change())
        await asyncio.gather(*(watch() for _ in range(20)))
        stop = True
        await changing
        await until(lambda: not worker.watchers)

    with_board(main, RpcSettings(stream_window=16))


def test_snapshot_and_changes_of_their_types(with_board) -> None:
    """Each checked against its own, by name as plain data, and the end is the end of the changes."""

    async def main(worker: Board, conn: Connection) -> None:
        snapshot, changes = await conn.run(Board.count_down, 3)
        assert snapshot == {"from": 3}
        assert [n async for n in changes] == [2, 1, 0]
        snapshot, changes = await conn.call("countdown", 2)
        assert snapshot == {"from": 2}
        assert [n async for n in changes] == [1, 0]

    with_board(main)


def test_errors_come_where_they_belong(with_board) -> None:
    """Before the snapshot to who awaits it, in the changes after those before."""

    async def main(worker: Board, conn: Connection) -> None:
        with pytest.raises(OwnError, match="below zero"):
            await conn.run(Board.count_down, -1)
        _, changes = await conn.run(Board.count_down, 2, fails=True)
        found: list[int] = []
        with pytest.raises(OwnError, match="at the end"):
            await collect(changes, found)
        assert found == [1, 0]
        with pytest.raises(TypeError, match=r"Board.no_pair must return a snapshot and an async iterator .* not int"):
            await conn.run(Board.no_pair)
        with pytest.raises(ResultError, match=r"the result of Board.opaque cannot be encoded"):
            await conn.run(Board.opaque, "snapshot")
        with pytest.raises(ResultError, match=r"the snapshot of Board.opaque has 100005 bytes"):
            await conn.run(Board.opaque, "long")
        _, changes = await conn.run(Board.opaque, "change")
        with pytest.raises(ResultError, match=r"the result of Board.opaque cannot be encoded"):
            _ = [n async for n in changes]
        with pytest.raises(ResultError, match=r"Board.wrong returned something else than it declares"):
            await conn.run(Board.wrong)
        await until(lambda: worker.log == ["unsubscribed"])

    with_board(main, RpcSettings(max_message_size=1 << 16))


def test_cancelling_before_the_snapshot_cancels_the_function(with_board) -> None:
    """And giving up the changes closes their generator."""

    async def main(worker: Board, conn: Connection) -> None:
        waiting = asyncio.ensure_future(conn.run(Board.watch_later))
        await conn.ping()
        waiting.cancel()
        await until(lambda: not conn._session._pending)
        _, changes = await conn.run(Board.watch)
        await until(lambda: worker.watchers)
        changes.abort("seen enough")
        await until(lambda: not worker.watchers)

    with_board(main)


def test_the_end_of_the_connection_ends_snapshot_and_changes(with_board) -> None:
    """Both are told."""

    async def main(worker: Board, conn: Connection) -> None:
        waiting = conn.run(Board.watch_later)
        _, changes = await conn.run(Board.watch)
        await conn.close()
        with pytest.raises(ConnectionLost):
            await waiting
        with pytest.raises(ConnectionLost):
            await anext(aiter(changes))
        await until(lambda: not worker.watchers)

    with_board(main)


def test_ends_that_disagree_about_the_kind_are_told(with_board) -> None:
    """One result where a snapshot is expected, and the other way round."""

    class Other:
        @state
        async def plain(self) -> tuple[int, AsyncIterator[int]]: ...

        @rpc
        async def watch(self) -> int: ...

    async def main(worker: Board, conn: Connection) -> None:
        conn._offer = Offer()  # as of a worker that tells no fingerprints
        with pytest.raises(UsageError, match="is no state function in this worker"):
            await conn.run(Other.plain)
        with pytest.raises(UsageError, match="its result is a stream, not one value"):
            await conn.run(Other.watch)

    with_board(main)


def test_a_state_function_must_return_a_pair() -> None:
    """Refused when its types are read; one that is not async, where it is decorated."""

    @state  # type: ignore[arg-type]
    async def single(self: Any) -> int: ...

    with pytest.raises(UsageError, match=r"it must return tuple\[Snapshot, AsyncIterator\[Change\]\]"):
        _ = single.types
    with pytest.raises(UsageError, match="must be an `async def`"):

        @state  # type: ignore[arg-type]
        def plain(self: Any) -> tuple[int, AsyncIterator[int]]: ...


def test_blocking_and_stock_clients(tmp_path: Path) -> None:
    """The one gets the pair, the other is told that it cannot."""

    async def main() -> None:
        async with serving(Board(), tmp_path / "w.sock") as uri:

            def call() -> None:
                with blocking.connect(str(uri), within_s=10, timeout_s=10) as conn:
                    snapshot, changes = conn.run(Board.count_down, 3)
                    assert (snapshot, list(changes)) == ({"from": 3}, [2, 1, 0])
                    snapshot, changes = conn.call("countdown", 1)
                    assert (snapshot, list(changes)) == ({"from": 1}, [0])
                    with pytest.raises(OwnError, match="below zero"):
                        conn.run(Board.count_down, -1)
                    with pytest.raises(ResultError, match="something else than it declares"):
                        conn.run(Board.wrong)
                    snapshot, changes = conn.run(Board.watch)
                    changes.close()
                    with pytest.raises((StopIteration, StreamAborted)):
                        next(changes)
                    assert conn.run(Board.plain) == 0
                with Pyro5.client.Proxy(str(Uri("w", uri.location))) as proxy:
                    with pytest.raises(Exception, match="gives a snapshot and its changes, which only workerlib"):
                        proxy.watch()
                    assert proxy.plain() == 0

            await asyncio.get_running_loop().run_in_executor(None, call)

    run_async(main)
