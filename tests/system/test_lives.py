"""What the lives of workers promise beside spawning itself: chains, many servers, connections that stay, ends that are told."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from early_child import Early
from support import ENGINES, alive, children, open_fds, run_async, wait_until
from test_spawn import NULL, spawn, workers_of
from workers import Forker, Link, Sum, Ticker

from workerlib import (
    Connection,
    ConnectionLost,
    Handle,
    RpcSettings,
    ShutdownOn,
    SpawnError,
    connect,
)
from workerlib.runtime import current_master

DEPTH = 10
PROGRAMS = Path(__file__).parent / "programs"


def check(scenario: Callable[[], Awaitable[None]], engine: str = "uvloop") -> None:
    async def whole() -> None:
        await scenario()

    run_async(whole, engine, within_s=110)


@pytest.mark.timeout(120)
def test_a_chain_of_ten_masters_works_and_ends_from_its_head() -> None:
    """Each worker spawns the next; a call goes down to the last and its answer comes back; kill -9 of the first ends all."""

    async def scenario() -> None:
        connection = await Link.spawn(
            DEPTH - 1,
            shutdown_on=ShutdownOn.CONNECTION_CLOSED,
            redirect_stdout=NULL,
            redirect_stderr=NULL,
            connection_timeout_s=100,
        )
        pids = await connection.run(Link.pids)
        assert len(set(pids)) == DEPTH
        os.kill(pids[0], signal.SIGKILL)
        with pytest.raises(ConnectionLost):
            await connection.run(Link.pids)
        while any(alive(pid) for pid in pids):
            await asyncio.sleep(0.01)

    check(scenario)


@pytest.mark.parametrize("engine", ENGINES)
def test_many_servers_live_in_one_process(engine: str) -> None:
    """Of the same and of different classes, each with its own state; closing one leaves the others and their clients."""

    async def scenario() -> None:
        async with (
            await Sum.serve(1) as first,
            await Sum.serve(2) as second,
            await Ticker.serve() as third,
            await first.handle.connect() as one,
            await second.handle.connect() as two,
            await third.handle.connect() as ticker,
        ):
            assert (await one.run(Sum.add, 1), await two.run(Sum.add, 1)) == (2, 3)
            assert await ticker.run(Ticker.subscribers) == 0
            await one.close_server()
            with pytest.raises(OSError, match="No such file"):
                await first.handle.connect()
            async with await second.handle.connect() as more:
                assert await more.run(Sum.add, 0) == 3
            assert await one.run(Sum.add, 1) == 3  # who is connected stays
            await first.close()
            assert "closed" in await one.wait_closed()
            assert await two.run(Sum.add, 1) == 4

    check(scenario, engine)


def test_a_handle_travels_as_argument_and_result() -> None:
    """One worker connects to another by the handle that it was given, and gives it back."""

    async def scenario() -> None:
        first = await Sum.spawn(
            5, shutdown_on=ShutdownOn.HEARTBEATER_CONNECTION_TIMEOUT, redirect_stdout=NULL, redirect_stderr=NULL
        )
        async with await spawn(Sum) as second:
            assert await second.run(Sum.add_at, first, 2) == (7, first)
        await first.shutdown()

    check(scenario)


def test_each_end_of_a_connection_is_told_with_its_reason() -> None:
    """Closed here, closed by the worker's shutdown, and by its death: `wait_closed` and lost calls say which."""

    async def scenario() -> None:
        async with await spawn(Sum) as connection:
            third = await connect(str(connection.uri))
            await third.close("enough of it")
            assert "enough of it" in await third.wait_closed()
            with pytest.raises(ConnectionLost, match="enough of it"):
                await third.run(Sum.add, 1)
            pid = await connection.run(Sum.pid)
            waiting = asyncio.ensure_future(connection.wait_closed())
            os.kill(pid, signal.SIGKILL)
            assert await waiting == "closed by the peer"

    check(scenario)


@pytest.mark.parametrize("name", ["a worker with spaces", "grüße"])
def test_the_name_is_in_every_error_of_a_spawn(name: str) -> None:
    """And before each line of the worker's stderr."""
    heard: list[str] = []

    async def scenario() -> None:
        with pytest.raises(SpawnError, match=f"worker '{name}' refused its initialisation: Sum.init: argument start"):
            await spawn(Sum, "not a number", name=name)
        with pytest.raises(SpawnError, match=f"worker '{name}' exited with 71"):
            await spawn(Sum, name=name, cd="/not/there", on_stderr=lambda who, _line: heard.append(who))
        with pytest.raises(SpawnError, match=f"worker '{name}' did not register within 0.001 s"):
            await spawn(Sum, name=name, connection_timeout_s=0.001, on_stderr=lambda *_: None)

    check(scenario)
    assert set(heard) == {name}


@pytest.mark.parametrize("engine", ENGINES)
def test_twenty_calls_of_spawn_that_fail_leave_nothing(engine: str) -> None:
    """Neither a process nor a descriptor, nor a record at the master."""

    async def scenario() -> None:
        master = await current_master()
        fds, kids = set(open_fds()), children()
        for _ in range(5):
            with pytest.raises(SpawnError):
                await spawn(Sum, cd="/not/there", on_stderr=lambda *_: None)
        assert not master.workers
        while set(open_fds()) != fds or any(alive(pid) for pid in children() - kids):
            await asyncio.sleep(0.01)

    check(scenario, engine)


def test_a_shutdown_while_calls_run_ends_them() -> None:
    """The handle's shutdown returns when the worker has ended its connections; who waited is told."""

    async def scenario() -> None:
        handle: Handle[Sum] = await Sum.spawn(
            shutdown_on=ShutdownOn.CALLED_SHUTDOWN_FUNCTION, redirect_stdout=NULL, redirect_stderr=NULL
        )
        connection: Connection = await handle.connect()
        pid = await connection.run(Sum.pid)
        call = asyncio.ensure_future(connection.run(Sum.wait_for_ever))
        await asyncio.sleep(0)
        await handle.shutdown()
        with pytest.raises((ConnectionLost, asyncio.CancelledError)):
            await call
        wait_until(lambda: not alive(pid), what="the worker is gone")

    check(scenario)
    assert not workers_of(os.getpid())


CLOSED, HEARTBEATER, CALLED = ShutdownOn
MOMENTS = [
    "launch",
    *(f"{when} {event}" for event in ("Registered", "ForegroundExited", "Initialised") for when in ("before", "after")),
]


@pytest.mark.parametrize(
    ("moment", "life"),
    [
        *((moment, CLOSED) for moment in (*MOMENTS, "before Connected", "after Connected")),
        ("after Registered", HEARTBEATER),
        ("after Initialised", HEARTBEATER),
        *((moment, CALLED) for moment in ("launch", "after Registered", "before ForegroundExited")),
    ],
)
def test_kill_9_of_the_master_at_each_moment_of_a_spawn(moment: str, life: ShutdownOn) -> None:
    """Just after the launch, and before and after each event of the spawn: no process of the worker is left, soon."""
    kill_9(moment, life)


@pytest.mark.parametrize("moment", ["launch", "before Registered", "after Initialised"])
def test_kill_9_of_the_master_of_a_worker_in_the_foreground(moment: str) -> None:
    """The same."""
    kill_9(moment, CLOSED, "foreground")


def kill_9(moment: str, life: ShutdownOn, *how: str) -> None:
    master = subprocess.Popen(
        [sys.executable, PROGRAMS / "dying_master.py", moment, life.value, *how],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert master.wait(timeout=40) == -signal.SIGKILL
    # Far less than the timeouts that would end it otherwise.
    wait_until(lambda: not workers_of(master.pid), within_s=5, what="no worker is left")


@pytest.mark.parametrize(
    ("how", "heart"), [("exit", "loop"), ("exit", "thread"), ("raise", "loop"), ("return", "loop")]
)
def test_a_child_that_a_function_forks_answers_nobody(how: str, heart: Any) -> None:
    """The parent's answer is the only one; its connections, its listening and its threads work on, whatever becomes of
    the child; and the worker's end is seen though the child lives."""

    async def scenario() -> None:
        beating = RpcSettings(heartbeat_from=heart, heartbeat_interval_s=0.001, heartbeat_timeout_s=10)
        async with await spawn(Forker, settings=beating) as connection, await connect(str(connection.uri)) as other:
            pid = await connection.run(Forker.pid)
            child = await connection.run(Forker.fork, how)
            assert child > 0
            while alive(child):  # also one that would go on as a copy of the worker
                await asyncio.sleep(0.005)
            for each in (connection, other, connection):
                assert await each.run(Forker.pid) == pid
                assert await each.run(Forker.from_thread) == "woken up"
            async with await connect(str(connection.uri)) as new:
                assert await new.run(Forker.pid) == pid
            waiting = await connection.run(Forker.fork, "wait")
            os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(5):
                await connection.wait_closed()
            os.kill(waiting, signal.SIGKILL)

    run_async(scenario, "uvloop", within_s=30)


@pytest.mark.parametrize("spoil", ["exit", "hang", "raise"])
@pytest.mark.parametrize("how", ["daemon", "foreground"])
def test_what_a_worker_started_before_its_release_ends_with_a_failed_spawn(
    spoil: str, how: str, tmp_path: Path
) -> None:
    """A child that its module forked, and a program that it started, both in sessions of their own."""
    note = tmp_path / "pids"

    async def scenario() -> None:
        options: dict[str, Any] = {
            "shutdown_on": ShutdownOn.CONNECTION_CLOSED,
            "env": {"NOTE": str(note), "SPOIL": spoil},
            "connection_timeout_s": 4 if spoil == "hang" else 20,
            "on_stderr": lambda *_: None,
        }
        if how == "daemon":
            options |= {"redirect_stdout": NULL, "redirect_stderr": NULL}
        spawn = Early.spawn if how == "daemon" else Early.spawn_in_foreground
        with pytest.raises(SpawnError):
            await spawn(**options)

    run_async(scenario, "uvloop", within_s=40)
    pids = [int(pid) for pid in note.read_text().split()]
    assert len(pids) == 2
    assert not [pid for pid in pids if alive(pid)]


def test_a_child_that_a_worker_forked_early_dies_with_its_master(tmp_path: Path) -> None:
    """kill -9 of the master while the worker's module hangs: neither the worker nor its child is left."""
    note = tmp_path / "pids"
    program = f"""
import asyncio, sys
sys.path.insert(0, {str(PROGRAMS)!r})
from early_child import Early
from workerlib import Redirect, ShutdownOn
NULL = Redirect.dev_null()
asyncio.run(Early.spawn(shutdown_on=ShutdownOn.CONNECTION_CLOSED, redirect_stdout=NULL, redirect_stderr=NULL,
    env={{"NOTE": {str(note)!r}, "SPOIL": "hang"}}))
"""
    with subprocess.Popen([sys.executable, "-c", program]) as master:
        pids = wait_until(lambda: note.exists() and note.read_text().split(), what="both run")
        master.kill()
    wait_until(lambda: not any(alive(int(pid)) for pid in pids), what="both have gone")
    wait_until(lambda: not workers_of(master.pid), what="the launched process, which ended them, has gone")
