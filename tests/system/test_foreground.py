"""Workers that do not detach: whose children they are, where their output goes, and that nothing of them is left."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from foreground_workers import Talker
from support import ENGINES, alive, children, open_fds, process_state, run_async, wait_until
from test_spawn import workers_of

from workerlib import Connection, Process, ShutdownOn, SpawnError, Stage
from workerlib.runtime import current_master

PROGRAMS = Path(__file__).parent / "programs"


async def spawn(*args: Any, **options: Any) -> tuple[Connection, Process]:
    found: tuple[Connection, Process] = await Talker.spawn_in_foreground(
        *args, shutdown_on=ShutdownOn.CONNECTION_CLOSED, **options
    )
    return found


def check(scenario: Callable[[], Awaitable[None]], engine: str = "uvloop") -> None:
    """Runs a scenario, bounded, with the master that it needs; afterwards it has no child and no descriptor more."""

    async def whole() -> None:
        await current_master()
        kids, fds = children(), set(open_fds())
        await scenario()
        while set(open_fds()) != fds:
            await asyncio.sleep(0.005)
        assert children() == kids

    run_async(whole, engine, within_s=30)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_worker_is_a_child_of_its_spawner(engine: str, tmp_path: Path) -> None:
    """In its session and process group, in `cd`, with `umask` and `env`, stdin on the null device, marker cleared."""

    async def scenario() -> None:
        connection, process = await spawn(cd=str(tmp_path), umask=0o027, env={"COLOUR": "blue"})
        async with connection:
            facts = await connection.run(Talker.facts)
        assert await process.wait() == 0
        assert facts == {
            "pid": str(process.pid),
            "ppid": str(os.getpid()),
            "session": str(os.getsid(0)),
            "group": str(os.getpgid(0)),
            "cwd": str(tmp_path),
            "umask": "0o27",
            "colour": "blue",
            "marker": "cleared",
            "stdin": "/dev/null",
        }

    check(scenario, engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_it_writes_arrives_line_by_line(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    """For its whole life, and also what it wrote last: when `wait` returns all has been passed on, with its name."""

    async def scenario() -> None:
        connection, process = await spawn(name="talker")
        async with connection:
            await connection.run(Talker.say, "hello")
        assert await process.wait() == 0

    check(scenario, engine)
    out, error = capsys.readouterr()
    assert out == "[WORKER talker STDOUT]: hello\n"
    assert "[WORKER talker STDERR]: HELLO\n" in error


def test_ten_mebibytes_while_it_is_initialised_are_no_obstacle() -> None:
    """Every line arrives, in order, at the callback."""
    lines: list[str] = []

    async def scenario() -> None:
        connection, process = await spawn(100_000, on_stdout=lambda _name, line: lines.append(line))
        await connection.close()
        await process.wait()

    check(scenario)
    assert [int(line[:7]) for line in lines] == list(range(100_000))


@pytest.mark.parametrize("engine", ENGINES)
def test_no_zombie_and_no_descriptor_stays_though_nobody_waits(engine: str) -> None:
    """Neither when it ends by itself nor when it is killed, nor when a grandchild holds its pipes (as in Rpc_parallel's
    spawn_in_foreground_zombie)."""
    grandchildren: list[int] = []

    async def scenario() -> None:
        connection, process = await spawn()
        await connection.close()
        while process_state(process.pid) is not None:
            await asyncio.sleep(0.005)
        connection, process = await spawn()
        grandchildren.append(await connection.run(Talker.leave_a_child))
        process.send_signal(signal.SIGKILL)
        await connection.wait_closed()
        while process_state(process.pid) is not None:
            await asyncio.sleep(0.005)
        assert await process.wait() == 128 + signal.SIGKILL
        process.send_signal(signal.SIGTERM)  # to nobody
        os.kill(grandchildren[0], signal.SIGKILL)
        os.waitpid(grandchildren[0], 0)  # the tests are its subreaper

    check(scenario, engine)


@pytest.mark.parametrize(
    ("spoil", "stage", "cause"),
    [
        ("import", Stage.LAUNCHED, "exited with 3"),
        ("init", Stage.REGISTERED, "was killed by SIGKILL"),
        ("hang", Stage.REGISTERED, "did not return from init within 4 s of its launch"),
    ],
)
def test_a_spawn_that_fails_tells_where_and_leaves_nothing(spoil: str, stage: Stage, cause: str) -> None:
    """With the exact end of the process, which no daemon stands in between."""

    async def scenario() -> None:
        within_s = 4 if spoil == "hang" else 20
        with pytest.raises(SpawnError) as info:
            await spawn(
                env={"SPOIL": spoil}, spawn_timeout_s=within_s, on_stderr=lambda *_: None, on_stdout=lambda *_: None
            )
        assert (info.value.stage, info.value.cause) == (stage, cause)
        if spoil == "import":
            assert info.value.stderr == ("this module is broken on purpose",)

    check(scenario)


def test_a_missing_working_directory_is_named() -> None:
    """In the lines of the error."""

    async def scenario() -> None:
        with pytest.raises(SpawnError, match="a worker cannot work in '/not/there': No such file or directory"):
            await spawn(cd="/not/there", on_stderr=lambda *_: None)

    check(scenario)


def test_a_handle_for_a_life_of_its_own() -> None:
    """HEARTBEATER_CONNECTION_TIMEOUT: closing connections does nothing, shutdown ends it with status 0."""

    async def scenario() -> None:
        handle, process = await Talker.spawn_in_foreground(shutdown_on=ShutdownOn.HEARTBEATER_CONNECTION_TIMEOUT)
        for _ in range(2):
            async with await handle.connect() as connection:
                assert (await connection.run(Talker.facts))["pid"] == str(process.pid)
        await handle.shutdown()
        assert await process.wait() == 0

    check(scenario)


def test_it_ends_with_its_spawners_loop() -> None:
    """Also when nothing was closed: the process is reaped, its pipes are closed."""

    async def scenario() -> None:
        await spawn()

    run_async(scenario, "uvloop")
    assert not workers_of(os.getpid())


@pytest.mark.parametrize("stage", ["importing", "initialising", *(one.value for one in ShutdownOn)])
def test_death_of_the_spawner(stage: str) -> None:
    """kill -9 of it leaves no worker, at no stage; but the one that only a shutdown ends, which lives on."""
    program = f"""
import asyncio, sys
sys.path.insert(0, {str(PROGRAMS)!r})
from foreground_workers import Talker
from workerlib import ShutdownOn

async def main():
    say = lambda name, line: print(line, flush=True)
    spoil = {{"importing": "hang at import", "initialising": "hang"}}.get({stage!r}, "")
    life = ShutdownOn({stage!r}) if not spoil else ShutdownOn.CONNECTION_CLOSED
    await Talker.spawn_in_foreground(shutdown_on=life, env={{"SPOIL": spoil}}, on_stdout=say, on_stderr=say)
    print("ready", flush=True)
    await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as master:
        assert master.stdout is not None
        assert master.stdout.readline()
        workers = workers_of(master.pid)
        assert len(workers) == 1
        master.kill()
    if stage == ShutdownOn.CALLED_SHUTDOWN_FUNCTION.value:
        assert alive(workers[0])
        os.kill(workers[0], signal.SIGTERM)
    wait_until(lambda: not workers_of(master.pid), what="no worker is left")
