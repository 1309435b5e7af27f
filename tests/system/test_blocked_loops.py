"""Long computations: who is taken for dead, by the setting that says where signs of life come from."""

import asyncio
import os
import signal
import threading
from typing import Any

import pytest
from blocking_worker import Blocker
from support import ENGINES, run_async

from workerlib import Connection, ConnectionLost, Redirect, RpcSettings, ShutdownOn, UsageError, connect

NULL = Redirect.dev_null()
QUICK = {"heartbeat_interval_s": 0.1, "heartbeat_timeout_s": 0.4}


async def spawn(**settings: Any) -> Connection:
    connection: Connection = await Blocker.spawn(
        shutdown_on=ShutdownOn.CONNECTION_CLOSED,
        redirect_stdout=NULL,
        redirect_stderr=NULL,
        settings=RpcSettings(**settings),
    )
    return connection


def test_a_loop_that_beats_itself_is_taken_for_dead_while_it_is_blocked() -> None:
    """By its caller, after the timeout, with the reason. A plain `def` of the same length is not."""

    async def scenario() -> None:
        async with await spawn(**QUICK) as connection:
            assert await connection.run(Blocker.in_thread, 1.2) == "computed"
            pid = await connection.run(Blocker.pid)
            with pytest.raises(ConnectionLost, match="no sign of life"):
                await connection.run(Blocker.block, 30)
            os.kill(pid, signal.SIGKILL)

    run_async(scenario, "uvloop", within_s=20)


def test_a_longer_timeout_waits_for_it() -> None:
    """What the environment, or the program, says about heartbeats is enough for a computation whose length is known."""

    async def scenario() -> None:
        async with await spawn(heartbeat_interval_s=0.1, heartbeat_timeout_s=20) as connection:
            assert await connection.run(Blocker.block, 1.2) == "computed"

    run_async(scenario, "uvloop", within_s=20)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_thread_beats_for_a_blocked_loop(engine: str) -> None:
    """Its caller, its master and a client that only waits keep it, for many timeouts, and calls go on afterwards."""

    async def scenario() -> None:
        async with (
            await spawn(heartbeat_from="thread", **QUICK) as connection,
            await connect(str(connection.uri), settings=RpcSettings(**QUICK)) as other,
        ):
            assert await connection.run(Blocker.block, 2) == "computed"
            assert await other.run(Blocker.echo, b"hello") == b"hello"
            assert await connection.run(Blocker.echo, b"x" * (8 << 20)) == b"x" * (8 << 20)

    run_async(scenario, engine, within_s=20)
    assert not [thread for thread in threading.enumerate() if thread.name == "workerlib-beat"]


def test_a_stopped_process_is_dead_also_with_a_thread() -> None:
    """SIGSTOP stops the thread as well: the timeout is still one."""

    async def scenario() -> None:
        async with await spawn(heartbeat_from="thread", **QUICK) as connection:
            pid = await connection.run(Blocker.pid)
            os.kill(pid, signal.SIGSTOP)
            try:
                with pytest.raises(ConnectionLost, match="no sign of life"):
                    await connection.run(Blocker.pid)
            finally:
                os.kill(pid, signal.SIGKILL)

    run_async(scenario, "uvloop", within_s=20)


@pytest.mark.parametrize("engine", ENGINES)
def test_beats_between_large_messages_cut_none_in_two(engine: str) -> None:
    """With beats far more often than any sane setting, both ways, while each end is busy and its socket often full."""

    async def scenario() -> None:
        settings = {"heartbeat_from": "thread", "heartbeat_interval_s": 0.001, "heartbeat_timeout_s": 20}
        async with await spawn(**settings) as connection:
            for size in (10, 100_000, 1_000_000):
                sent = [bytes([n]) * size for n in range(12)]
                assert await asyncio.gather(*(connection.run(Blocker.echo, data) for data in sent)) == sent

    run_async(scenario, engine, within_s=30)


def test_another_place_for_heartbeats_is_refused() -> None:
    """With the two that there are."""
    with pytest.raises(UsageError, match="heartbeat_from must be 'loop' or 'thread', not 'cloud'"):
        RpcSettings(heartbeat_from="cloud")  # type: ignore[arg-type]
