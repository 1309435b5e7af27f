"""Spawns that end at the stages between registration and readiness, and who may be a master or a worker."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from announcing_module import Announcing, DiesWhenConnected
from support import alive

from workerlib import Redirect, ShutdownOn, SpawnError, Stage, UsageError, Worker, connect, expert, rpc
from workerlib.role import become_worker
from workerlib.runtime import current_master
from workerlib.shell.loop import run

NULL = Redirect.dev_null()


class WouldBeMaster(Worker):
    @rpc
    async def start_master_server(self) -> str:
        try:
            await expert.start_master_server(worker_command_args=["worker"])
        except UsageError as error:
            return str(error)
        return "it could"


def check(scenario: Callable[[], Awaitable[None]]) -> None:
    """Runs a scenario on uvloop, bounded."""

    async def bounded() -> None:
        async with asyncio.timeout(30):
            await scenario()

    run(bounded())


def test_kill_between_registration_and_release(tmp_path: Path) -> None:
    """kill -9 of a worker that has registered and hangs before its release: its foreground process tells the signal."""
    fifo = tmp_path / "nobody reads this"
    os.mkfifo(fifo)  # opening it for the redirect waits for a reader, so that the release never comes
    pids: list[int] = []

    async def scenario() -> None:
        attempt = asyncio.ensure_future(
            Announcing.spawn(
                shutdown_on=ShutdownOn.CONNECTION_CLOSED,
                redirect_stdout=Redirect.append(str(fifo)),
                redirect_stderr=NULL,
                connection_timeout_s=20,
                on_stderr=lambda _name, line: pids.append(int(line.removeprefix("importing in "))),
            )
        )
        while not any(
            record.registered and record.registered.done() for record in (await current_master()).workers.values()
        ):
            await asyncio.sleep(0.01)
        os.kill(pids[0], signal.SIGKILL)
        with pytest.raises(SpawnError) as info:
            await attempt
        assert info.value.stage is Stage.REGISTERED
        assert info.value.cause == "was killed by SIGKILL"

    check(scenario)
    assert not alive(pids[0])


def test_a_release_that_never_comes(tmp_path: Path) -> None:
    """connection_timeout_s also bounds the way from the registration to the release."""
    fifo = tmp_path / "nobody reads this"
    os.mkfifo(fifo)

    async def scenario() -> None:
        with pytest.raises(SpawnError, match=r"was not released within 1\.5 s") as info:
            await Announcing.spawn(
                shutdown_on=ShutdownOn.CONNECTION_CLOSED,
                redirect_stdout=Redirect.append(str(fifo)),
                redirect_stderr=NULL,
                connection_timeout_s=1.5,
            )
        assert info.value.stage is Stage.REGISTERED

    check(scenario)


def test_death_between_initialisation_and_connection() -> None:
    """A worker that dies while its spawner connects fails the spawn at the stage that it had reached."""

    async def scenario() -> None:
        with pytest.raises(SpawnError) as info:
            await DiesWhenConnected.spawn(
                shutdown_on=ShutdownOn.CONNECTION_CLOSED, redirect_stdout=NULL, redirect_stderr=NULL
            )
        assert info.value.stage is Stage.INITIALISED

    check(scenario)


def test_a_process_is_a_worker_or_an_explicit_master() -> None:
    """A process with a master server cannot become a worker; a spawned worker cannot call start_master_server."""

    async def scenario() -> None:
        async with await WouldBeMaster.spawn(
            shutdown_on=ShutdownOn.CONNECTION_CLOSED, redirect_stdout=NULL, redirect_stderr=NULL
        ) as connection:
            assert "cannot call start_master_server" in await connection.run(WouldBeMaster.start_master_server)
            with pytest.raises(UsageError, match="cannot be a worker of another master"):
                become_worker()
            with pytest.raises(UsageError, match="has a master server already"):
                await expert.start_master_server(worker_command_args=["worker"])

    check(scenario)


def test_a_worker_served_in_this_process() -> None:
    """serve offers a worker without a process of its own; closing it ends its connections and removes its socket."""

    async def scenario() -> None:
        async with await Announcing.serve(name="here") as served:
            assert served.handle.name == "here"
            connection = await served.handle.connect()
            assert await connection.run(Announcing.pid) == os.getpid()
            path = Path(str(connection.uri.location).removeprefix("./u:"))
            assert path.exists()
        assert not path.exists()
        assert "closed" in await connection.wait_closed()
        with pytest.raises(OSError, match=str(path)):
            await connect(str(connection.uri))
        with pytest.raises(UsageError, match="takes no init argument"):
            await Announcing.serve(5)

    check(scenario)
