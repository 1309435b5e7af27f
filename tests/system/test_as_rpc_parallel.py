"""One test for each behaviour that Rpc_parallel's own test programs show, or where it is.

| Rpc_parallel's program | what it shows | here |
|---|---|---|
| `add_numbers`, `number_stats`, `stream_workers`, ... | its examples | `test_examples.py` |
| sum and state workers | functions, worker state, connection state | `test_spawn.py`, from `test_a_spawned_worker_is_...` on; `test_state_functions.py` |
| `managed` on failure | a lost worker, with a stated policy for its calls | `test_managed.py`; `on_failure`: `test_failures_outside_of_calls_...` in `test_spawn.py` |
| master pid in the command line | who started whom, in `ps` | `test_the_process_is_a_daemon_with_its_lineage_...` in `test_spawn.py` |
| `breaking_things` | a function that the worker does not have | `test_a_function_of_no_worker_breaks_nothing` |
| `buffer_age_limit` | who does not read is cut off | `test_a_worker_that_does_not_read_is_cut_off`; for servers and their clients `test_hostile_peers.py` |
| `env_test` | variables, whatever is in them | `test_variables_arrive_as_they_are` |
| `fd` | sockets after each step | `test_sockets_are_counted_after_each_step` |
| `raise_on_connection_state_init` | `connected` that raises | `test_a_connection_state_that_raises_is_told_to_whoever_connects` |
| `run_exn` | a function that raises | `test_a_function_that_raises_...` |
| `remove_running_executable` | the program's file is gone for a while | `test_the_program_is_removed_while_it_runs` |
| `shutdown_during_worker_init` | the master ends while `init` runs | `test_death_of_the_master_while_init_runs` |
| `exit_before_daemonize` | stderr of a worker that never comes up | `test_stderr_before_the_release_...` and the failing spawns in `test_spawn.py` |
| `spawn_in_foreground_zombie` | no zombie | `test_foreground.py` |
| `rpc-settings` | settings agree everywhere | `test_start_app.py` |
| `timeouts` | a blocked loop | `test_blocked_loops.py` |
| `wrap_test` | another command line around the worker's | `test_wrapping_a_launcher` |
| `alternative_init`, `krb_expert` | the Expert way | `test_expert.py` |
| `qtest` | map, map_unordered, map_reduce, map_reduce_commutative | `test_mapreduce.py` |
| `copy_executable`, `-worker HOST` | other hosts | not yet |
| `stress_test` | 20 workers, 30 times | `test_stress` |
"""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import alive, children, open_fds, run_async, wait_until
from test_spawn import NULL, spawn, workers_of
from workers import Sum

from workerlib import (
    ConnectionLost,
    FunctionsDiffer,
    HandshakeError,
    RpcSettings,
    ShutdownOn,
    SpawnError,
    Stage,
    UnknownFunction,
    Worker,
    connect,
    current_session,
    rpc,
)
from workerlib.launchers.local import Launched, LocalLauncher
from workerlib.runtime import current_master, start_master

PROGRAMS = Path(__file__).parent / "programs"


def check(scenario: Callable[[], Awaitable[None]], *, within_s: float = 30) -> None:
    async def whole() -> None:
        await scenario()

    run_async(whole, "uvloop", within_s=within_s)
    wait_until(lambda: not workers_of(os.getpid()), what="all workers gone")


class Other(Worker):
    """Has a function that no Sum has."""

    @rpc
    async def add_one(self, n: int) -> int:
        return n + 1


def test_a_function_of_no_worker_breaks_nothing() -> None:
    """It is refused before a byte is sent; the connection and the worker go on."""

    async def scenario() -> None:
        async with await spawn(Sum) as connection:
            for _ in range(2):
                with pytest.raises((UnknownFunction, FunctionsDiffer), match="add_one"):
                    await connection.run(Other.add_one, 10)
                assert await connection.run(Sum.add, 0) == 0

    check(scenario)


def test_a_worker_that_does_not_read_is_cut_off() -> None:
    """Stopped, it takes nothing: after `buffer_age_limit_s` the connection ends with that reason, heartbeats aside."""

    async def scenario() -> None:
        settings = RpcSettings(buffer_age_limit_s=0.3)
        connection = await spawn(Sum, settings=settings)
        pid = await connection.run(Sum.pid)
        os.kill(pid, signal.SIGSTOP)
        try:
            note = connection.run(Sum.note, "x" * (4 << 20))
            assert "the peer does not read" in await connection.wait_closed()
            with pytest.raises(ConnectionLost):
                await connection.run(Sum.add, 1)
            await note
        finally:
            os.kill(pid, signal.SIGKILL)

    check(scenario)


def test_variables_arrive_as_they_are() -> None:
    """They extend the spawner's: quotes, line ends and brackets are characters as others are, and none is set twice."""
    problematic = 'potentially "problematic" \\"test\\" string ()!\n$(x) `y`'

    async def scenario() -> None:
        os.environ["FAVOURITE"] = "the spawner's"
        os.environ["STAYS"] = "here"
        try:
            async with await spawn(Sum, env={"FAVOURITE": problematic}) as connection:
                assert bytes.fromhex(await connection.run(Sum.favourite)).decode() == problematic
            async with await spawn(Sum) as connection:
                assert bytes.fromhex(await connection.run(Sum.favourite)).decode() == "the spawner's"
        finally:
            del os.environ["FAVOURITE"], os.environ["STAYS"]

    check(scenario)


LISTENING, ESTABLISHED = "LISTEN", "ESTABLISHED"


def sockets(pid: int) -> Counter[str]:
    """How many Unix sockets with a name, or connected to one, a process has, by state."""
    inodes = {to[8:-1] for to in open_fds(pid).values() if to.startswith("socket:[")}
    found: Counter[str] = Counter()
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        _, _, _, flags, _, state, inode, *_ = line.split()
        if inode in inodes:
            found[LISTENING if int(flags, 16) & 0x10000 else ESTABLISHED if state == "03" else "other"] += 1
    return found


def test_sockets_are_counted_after_each_step() -> None:
    """LISTEN and ESTABLISHED of master and worker, after the first spawn, each connection, each end and a shutdown."""

    async def settle(pid: int, listening: int, established: int) -> None:
        expected = +Counter({LISTENING: listening, ESTABLISHED: established})
        async with asyncio.timeout(10):
            while sockets(pid) - base != expected:
                await asyncio.sleep(0.005)

    here = os.getpid()
    base: Counter[str] = Counter()

    async def scenario() -> None:
        base.update(sockets(here))  # the pair that uvloop has for itself, here as there
        await current_master()
        await settle(here, 1, 0)  # the master's server
        handle = await Sum.spawn(
            shutdown_on=ShutdownOn.HEARTBEATER_CONNECTION_TIMEOUT, redirect_stdout=NULL, redirect_stderr=NULL
        )
        await settle(here, 1, 1)  # the worker's connection to its master
        connection = await handle.connect()
        pid = await connection.run(Sum.pid)
        await settle(here, 1, 2)
        await settle(pid, 1, 2)
        another = await handle.connect()
        await settle(here, 1, 3)
        await settle(pid, 1, 3)
        await another.run(Sum.add, 1)
        await connection.close()
        await another.close()
        await settle(here, 1, 1)
        await settle(pid, 1, 1)
        leased = await spawn(Sum)
        await settle(here, 1, 3)  # its connection here, and this one there
        await leased.close()
        await settle(here, 1, 1)
        await handle.shutdown()
        await settle(here, 1, 0)
        async with await Sum.serve() as served, await served.handle.connect():
            await settle(here, 2, 2)  # both ends are here
        await settle(here, 1, 0)

    check(scenario)


def test_a_connection_state_that_raises_is_told_to_whoever_connects() -> None:
    """To a client, and to the spawner, whose spawn fails at that stage and leaves no process."""

    async def scenario() -> None:
        with pytest.raises(SpawnError, match="PermissionError: nobody may connect") as info:
            await spawn(Sum, connect_arg="nobody", name="refusing")
        assert info.value.stage is Stage.INITIALISED
        assert "'refusing'" in str(info.value)
        async with await spawn(Sum) as connection:
            with pytest.raises(HandshakeError, match="PermissionError: nobody may connect"):
                await connect(str(connection.uri), "nobody")
            assert await connection.run(Sum.add, 1) == 1

    check(scenario)


def test_a_function_that_raises_raises_at_its_caller() -> None:
    """As itself, with the worker's traceback; the next call is fine."""

    async def scenario() -> None:
        async with await spawn(Sum) as connection:
            with pytest.raises(ValueError, match="not this value") as info:
                await connection.run(Sum.raise_value_error)
            assert "in raise_value_error" in "".join(info.value.__notes__)
            assert await connection.run(Sum.add, 1) == 1

    check(scenario)


def test_the_program_is_removed_while_it_runs(tmp_path: Path) -> None:
    """Workers that are up go on; a spawn fails and names the file; when it is back, spawning is as before."""
    program, away = tmp_path / "removable.py", tmp_path / "away.py"
    shutil.copy(PROGRAMS / "removable.py", program)
    with subprocess.Popen(
        [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "spawned\n"
        program.rename(away)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "2\n"
        assert re.fullmatch(
            rf"launched exited with 2 .*can't open file '{program}'.*No such file or directory\n",
            process.stdout.readline(),
        )
        away.rename(program)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "3\n"
        assert process.wait(timeout=20) == 0
    wait_until(lambda: not workers_of(process.pid), what="no worker is left")


@pytest.mark.parametrize("life", ShutdownOn)
def test_death_of_the_master_while_init_runs(life: ShutdownOn, tmp_path: Path) -> None:
    """kill -9 of it leaves no worker, whatever its life would have hung on: it was never initialised."""
    pid_file = tmp_path / "pid"
    with subprocess.Popen(
        [sys.executable, PROGRAMS / "master_program.py", f"initialising:{life.value}", str(pid_file)]
    ) as master:
        wait_until(lambda: pid_file.exists() and pid_file.read_text(), what="init runs")
        master.kill()
    wait_until(lambda: not alive(int(pid_file.read_text())), what="the worker is gone")
    assert not workers_of(master.pid)


class Wrapping(LocalLauncher):
    """Starts each worker with `nice`, as an example of a command around it."""

    async def launch(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: bytes,
        on_stderr: Callable[[str], object],
        on_stdout: Callable[[str], object] | None = None,
        pass_fds: Sequence[int],
        cwd: str | None,
    ) -> Launched:
        wrapped = ["nice", "-n", "3", *argv]
        return await super().launch(
            wrapped, env=env, stdin=stdin, on_stderr=on_stderr, on_stdout=on_stdout, pass_fds=pass_fds, cwd=cwd
        )


class Nice(Worker):
    @rpc
    async def nice(self) -> int:
        assert current_session().peer.pid is not None
        return os.nice(0)


def test_wrapping_a_launcher() -> None:
    """A launcher that rewrites the command line: the worker runs inside of it, and is a worker as others are."""

    async def scenario() -> None:
        await start_master(launcher=Wrapping())
        before = os.nice(0)
        async with await spawn(Nice) as connection:
            assert await connection.run(Nice.nice) == min(before + 3, 19)

    check(scenario)


WORKERS, ROUNDS = 20, 30


@pytest.mark.timeout(120)
def test_stress() -> None:
    """Twenty workers at once, thirty rounds of connecting, calling and leaving; then nothing of them is left.

    Starting the twenty takes nearly all of its time: 4 s on two idle processors, 16 s beside eight other jobs.
    """

    async def one(handle: Any) -> None:
        async with await handle.connect() as connection:
            await connection.run(Sum.add, 1)

    async def scenario() -> None:
        await current_master()
        fds, kids = set(open_fds()), children()
        handles = await asyncio.gather(
            *(
                Sum.spawn(
                    shutdown_on=ShutdownOn.HEARTBEATER_CONNECTION_TIMEOUT,
                    redirect_stdout=NULL,
                    redirect_stderr=NULL,
                    connection_timeout_s=80,
                )
                for _ in range(WORKERS)
            )
        )
        for _ in range(ROUNDS):
            await asyncio.gather(*(one(handle) for handle in handles))
        for handle in handles:
            async with await handle.connect() as connection:
                assert await connection.run(Sum.add, 0) == ROUNDS
        await asyncio.gather(*(handle.shutdown() for handle in handles))
        while set(open_fds()) != fds or any(alive(pid) for pid in children() - kids):
            await asyncio.sleep(0.01)

    check(scenario, within_s=110)
