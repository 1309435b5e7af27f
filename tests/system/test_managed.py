"""Managed connections and groups: workers that are killed, restarted and replaced under their callers."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
import workers
from live_daemon import WORKER, daemon
from support import run_async

from workerlib import (
    ConnectionLost,
    Group,
    Managed,
    UsageError,
    WhenLost,
    Worker,
    find_units,
    one_way,
    rpc,
)
from workerlib.core.uri import UnixLocation

UNIT = f"[unit.sum]\n{WORKER}\ninstances = 2\nrestart_sec = 0\n"


class Place(Worker):
    """Says who it is, and can be kept from answering."""

    async def init(self, name: str = "") -> None:
        self.name = name
        self.calls = 0
        self.go_on = asyncio.Event()

    @rpc
    async def who(self) -> str:
        self.calls += 1
        return self.name

    @rpc(idempotent=True)
    async def wait(self) -> str:
        self.calls += 1
        await self.go_on.wait()
        return self.name

    @rpc
    async def wait_once(self) -> str:
        self.calls += 1
        await self.go_on.wait()
        return self.name

    @one_way
    async def tell(self) -> None:
        self.calls += 1


async def until(condition: object) -> None:
    """Waits for a condition of this loop."""
    while not condition():  # type: ignore[operator]
        await asyncio.sleep(0.001)


def test_the_worker_of_a_unit_is_found_again_after_its_restart(tmp_path: Path) -> None:
    """A call that waits for the next connection reaches the restarted worker, under its name, at a new address."""
    with daemon(tmp_path, UNIT) as parsupd:
        for name in ("sum@1", "sum@2"):
            parsupd.wait_for(name, lambda status: status["sub_state"] == "running")

        async def main() -> None:
            path = str(parsupd.socket)
            assert (await find_units("sum", path)).keys() == {"sum@1", "sum@2"}
            assert (await find_units("sum@2", path)).keys() == {"sum@2"}
            assert await find_units("su", path) == {}

            async with Managed.unit("sum@1", supervisor=path, when_lost=WhenLost.WAIT) as managed:
                assert await managed.run(workers.Sum.add, 5) == 5
                old = parsupd.status("sum@1")["pid"]
                os.kill(old, signal.SIGKILL)
                await until(lambda: not managed.connected)
                assert await managed.run(workers.Sum.add, 5) == 5
                assert parsupd.status("sum@1")["pid"] != old

        run_async(main)


def test_a_group_spreads_calls_over_all_ready_instances(tmp_path: Path) -> None:
    """Each call goes to the instance with the fewest calls under way; one that has come is found, one that ends is not missed."""
    with daemon(tmp_path, UNIT) as parsupd:
        for name in ("sum@1", "sum@2"):
            parsupd.wait_for(name, lambda status: status["sub_state"] == "running")

        async def main() -> None:

            async with Group.unit("sum", supervisor=str(parsupd.socket), when_lost=WhenLost.WAIT) as group:
                assert sorted(group.connected) == ["sum@1", "sum@2"]
                totals = await asyncio.gather(*[group.run(workers.Sum.add, 1) for _ in range(10)])
                assert sorted(totals) == sorted([*range(1, 6), *range(1, 6)])
                os.kill(parsupd.status("sum@2")["pid"], signal.SIGKILL)
                await until(lambda: group.connected == ["sum@1"])
                assert await group.run(workers.Sum.add, 1) == 6
                await until(lambda: sorted(group.connected) == ["sum@1", "sum@2"])

        run_async(main)


def test_fail_fails_at_once(tmp_path: Path) -> None:
    """With FAIL, a call without a connection raises ConnectionLost, and so does entering when there is no worker."""

    async def main() -> None:
        location = UnixLocation(str(tmp_path / "place.sock"))
        served = await Place.serve("first", location=location)
        async with Managed(served.handle, when_lost=WhenLost.FAIL) as managed:
            assert await managed.run(Place.who) == "first"
            await managed.run(Place.tell)
            calling = asyncio.ensure_future(managed.run(Place.wait))
            await until(lambda: served.worker.calls == 3)
            await served.close()
            with pytest.raises(ConnectionLost):
                await calling
            with pytest.raises(ConnectionLost, match="no connection now"):
                await managed.run(Place.who)
        with pytest.raises(FileNotFoundError):
            async with Managed(served.handle, when_lost=WhenLost.FAIL):
                pass

    run_async(main)


def test_only_idempotent_calls_are_repeated(tmp_path: Path) -> None:
    """With RETRY, a call that was lost under way is made again when its function says so, and fails when it does not."""

    async def main() -> None:
        location = UnixLocation(str(tmp_path / "place.sock"))
        serving = [await Place.serve("first", location=location)]

        async def find() -> dict[str, str]:
            return {"place": serving[-1].handle.uri}

        async with Managed(find, when_lost=WhenLost.RETRY) as managed:
            repeated, lost = (asyncio.ensure_future(managed.run(each)) for each in (Place.wait, Place.wait_once))
            await until(lambda: serving[0].worker.calls == 2)
            await serving[0].close()
            serving.append(await Place.serve("second", location=location))
            with pytest.raises(ConnectionLost):
                await lost
            await until(lambda: serving[1].worker.calls == 1)
            serving[1].worker.go_on.set()
            assert await repeated == "second"
        await serving[1].close()

    run_async(main)


def test_waiting_ends_with_the_managed_connection(tmp_path: Path) -> None:
    """A call that waits for a connection ends when this is closed; outside of it nothing can be called."""

    async def main() -> None:
        managed = Managed(f"PYRO:nobody@./u:{tmp_path}/none", when_lost=WhenLost.WAIT)
        with pytest.raises(UsageError, match="async with"):
            await managed.run(Place.who)
        async with managed:
            waiting = asyncio.ensure_future(managed.run(Place.who))
            await asyncio.sleep(0)
        with pytest.raises(UsageError):
            await waiting

    run_async(main)


def test_which_parsupd_must_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a socket's path and outside of a unit, the error names both ways out."""
    monkeypatch.delenv("PARSUP_SOCKET", raising=False)

    async def main() -> None:
        with pytest.raises(UsageError, match=r"supervisor=.*PARSUP_SOCKET"):
            await find_units("sum")

    run_async(main)
