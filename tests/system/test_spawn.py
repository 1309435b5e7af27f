"""Spawning workers as real processes: what arrives, what is told when it goes wrong, and that nothing is left."""

import asyncio
import gc
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support import ENGINES, alive, children, command_line, open_fds, run_async, wait_until
from workers import BlocksInInit, NeverInitialised, RaisesInInit, Sum

from workerlib import (
    ArgumentError,
    Connection,
    ConnectionLost,
    Executor,
    Handle,
    HandshakeError,
    Redirect,
    ResultError,
    ShutdownOn,
    SpawnError,
    Stage,
    UnknownFunction,
    UsageError,
    Worker,
    connect,
)
from workerlib.runtime import current_master
from workerlib.shell.loop import run
from workerlib.shell.private_dir import base_dir
from workerlib.shell.program import absolute_sys_path, interpreter_command
from workerlib.spawn_options import SpawnOptions

NULL = Redirect.dev_null()
PROGRAMS = Path(__file__).parent / "programs"


def workers_of(master: int) -> list[int]:
    """Living processes whose command line says that they are workers of this master."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if any(f"child-of-{master}@" in part for part in command_line(pid)) and alive(pid)]


@pytest.fixture(autouse=True)
def no_worker_left() -> Any:
    """After each test no worker process and no socket of this process is left."""
    yield
    wait_until(lambda: not workers_of(os.getpid()), what="all workers gone")
    mine = [folder for folder in base_dir().iterdir() if folder.name.startswith(f"{os.getpid()}-")]
    wait_until(
        lambda: not [entry for folder in mine if folder.exists() for entry in folder.iterdir()], what="no socket"
    )


async def spawn(worker: type[Worker] = Sum, *args: Any, **options: Any) -> Connection:
    """A worker whose life hangs on the returned connection."""
    where = {"redirect_stdout": NULL, "redirect_stderr": NULL, **options}
    connection: Connection = await worker.spawn(*args, shutdown_on=ShutdownOn.CONNECTION_CLOSED, **where)
    return connection


async def spawn_reference(reference: str, **options: Any) -> None:
    """Spawns what a reference names, and ends it."""
    master = await current_master()
    _, connection = await master.spawn(
        SpawnOptions(
            reference=reference,
            name="test",
            shutdown_on=ShutdownOn.CONNECTION_CLOSED,
            sys_path=absolute_sys_path(),
            **options,
        )
    )
    assert connection is not None
    await connection.close()


def check(scenario: Callable[[], Awaitable[None]]) -> None:
    """Runs a scenario on uvloop, bounded."""

    async def bounded() -> None:
        async with asyncio.timeout(30):
            await scenario()

    run(bounded())


# What a worker is


def test_a_spawned_worker_is_initialised_and_runs_typed_functions() -> None:
    """spawn returns when init has run with its arguments; rpc, def functions, one_way and pipe work on it."""

    async def scenario() -> None:
        async with await spawn(Sum, 10) as connection:
            assert await connection.run(Sum.add, 5) == 15
            assert await connection.run(Sum.add_in_thread, 1) == 16
            await connection.run(Sum.note, "a")
            assert await connection.run(Sum.notes) == ["a"]
            assert [n async for n in connection.run(Sum.squares, 4)] == [0, 1, 4, 9]
            assert await connection.ping() < 10

    check(scenario)


def test_init_takes_arguments_by_name() -> None:
    """`init=` gives init arguments by name, checked against the types of init."""

    async def scenario() -> None:
        async with await spawn(Sum, init={"start": 3}) as connection:
            assert await connection.run(Sum.add, 0) == 3
        with pytest.raises(SpawnError, match=r"init: argument start: Expected `int`, got `str`"):
            await spawn(Sum, init={"start": "three"})
        with pytest.raises(SpawnError, match="has no argument 'strat'; did you mean 'start'"):
            await spawn(Sum, init={"strat": 3})

    check(scenario)


def test_the_process_is_a_daemon_with_its_lineage_in_its_command_line(tmp_path: Path) -> None:
    """Marker cleared, cd and umask applied, env added, stdin on /dev/null, who started whom at the end of argv."""

    async def scenario() -> None:
        async with await spawn(
            Sum, name="adder", cd=str(tmp_path), umask=0o027, env={"FAVOURITE": "blue"}
        ) as connection:
            facts = await connection.run(Sum.facts)
            assert facts["cwd"] == str(tmp_path)
            assert facts["umask"] == "0o27"
            assert facts["home"] == "blue"
            assert facts["marker"] == "cleared"
            assert facts["stdin"] == "/dev/null"
            assert re.search(rf"-m workerlib workers:Sum child-of-{os.getpid()}@\S+ adder $", facts["argv"])

    check(scenario)


def test_connection_state_comes_from_the_connection_argument() -> None:
    """connect_arg of spawn, and the argument of connect, reach `connected`; what it returns is the session's state."""

    async def scenario() -> None:
        async with await spawn(Sum, connect_arg="spawner") as connection:
            assert await connection.run(Sum.who) == "spawner"
            async with await connect(str(connection.uri), "third") as third:
                assert await third.run(Sum.who) == "third"
            with pytest.raises(HandshakeError, match="PermissionError: nobody may connect"):
                await connect(str(connection.uri), "nobody")
            with pytest.raises(HandshakeError, match="argument who: Expected `str`, got `int`"):
                await connect(str(connection.uri), 7)

    check(scenario)


def test_a_worker_can_spawn_workers_of_its_own() -> None:
    """A worker is a master too; its handle travels in a result, and its worker dies with it."""

    async def scenario() -> None:
        async with await spawn(Sum, 4) as connection:
            handle = await connection.run(Sum.spawn_another)
            assert isinstance(handle, Handle)
            async with await handle.connect() as grandchild:
                assert await grandchild.run(Sum.add, 1) == 5
                facts = await grandchild.run(Sum.facts)
        wait_until(lambda: not alive(int(facts["pid"])), what="the worker's worker is gone")

    check(scenario)


# Output


def test_output_goes_to_the_redirects_after_the_release(tmp_path: Path) -> None:
    """What init and functions write goes to the files that spawn named; append keeps what is there, truncate does not."""
    out, err = tmp_path / "out", tmp_path / "err"
    out.write_text("before\n")
    err.write_text("before\n")

    async def scenario() -> None:
        options = {"redirect_stdout": Redirect.append(str(out)), "redirect_stderr": Redirect.truncate(str(err))}
        async with await spawn(Sum, 0, "noted", **options) as connection:
            await connection.run(Sum.write, "from a function")

    check(scenario)
    assert out.read_text() == "before\ninit writes to stdout\nfrom a function\n"
    assert err.read_text() == "init writes to stderr noted\nfrom a function\n"


def test_output_can_share_a_descriptor_of_the_master(tmp_path: Path) -> None:
    """Redirect.descriptor points a worker's output to an open file of the master, and leaves no other one open."""

    async def scenario() -> None:
        with (tmp_path / "shared").open("w") as shared:
            async with await spawn(Sum, redirect_stdout=Redirect.descriptor(shared.fileno())) as connection:
                await connection.run(Sum.write, "hello")
                facts = await connection.run(Sum.facts)
            assert not [fd for fd in facts["fds"].split() if int(fd) >= 64]

    check(scenario)
    assert (tmp_path / "shared").read_text() == "init writes to stdout\nhello\n"


def test_stderr_before_the_release_arrives_live_and_prefixed(capfd: pytest.CaptureFixture[str]) -> None:
    """Lines that a worker writes before it is released appear on the spawner's stderr as [WORKER name STDERR]: ..."""

    async def scenario() -> None:
        with pytest.raises(SpawnError):
            await spawn_reference("broken_module:Never")

    check(scenario)
    assert "[WORKER test STDERR]: RuntimeError: this module is broken on purpose\n" in capfd.readouterr().err


def test_ten_mebibytes_of_stderr_before_registering_are_no_obstacle() -> None:
    """A worker that writes 10 MiB to stderr before it registers comes up, and every line arrives, in order."""
    lines: list[str] = []

    async def scenario() -> None:
        await spawn_reference("chatty_module:Chatty", on_stderr=lambda _name, line: lines.append(line))

    check(scenario)
    assert [int(line[:6]) for line in lines] == list(range(10 << 10))


# Lives


def test_closing_the_connection_ends_a_worker_on_connection_closed() -> None:
    """CONNECTION_CLOSED: the worker is gone soon after its connection is closed."""

    async def scenario() -> None:
        connection = await spawn()
        pid = int((await connection.run(Sum.facts))["pid"])
        await connection.close()
        wait_until(lambda: not alive(pid), what="the worker is gone")

    check(scenario)


def test_a_heartbeater_worker_outlives_connections_and_ends_on_shutdown() -> None:
    """HEARTBEATER_CONNECTION_TIMEOUT: spawn returns a handle; closing connections does nothing, shutdown ends it."""

    async def scenario() -> None:
        handle = await Sum.spawn(
            1, shutdown_on=ShutdownOn.HEARTBEATER_CONNECTION_TIMEOUT, redirect_stdout=NULL, redirect_stderr=NULL
        )
        for total in (2, 3):
            async with await handle.connect() as connection:
                assert await connection.run(Sum.add, 1) == total
                pid = int((await connection.run(Sum.facts))["pid"])
        await handle.shutdown()
        wait_until(lambda: not alive(pid), what="the worker is gone")
        await handle.shutdown()  # idempotent
        with pytest.raises(OSError, match=re.escape(handle.uri.partition("@")[2])):
            await handle.connect()

    check(scenario)


@pytest.mark.parametrize("stage", ["importing", "initialising", *(one.value for one in ShutdownOn)])
def test_death_of_the_master(stage: str, tmp_path: Path) -> None:
    """kill -9 of the master at each stage of a spawn, and after it, leaves no worker; except CALLED_SHUTDOWN_FUNCTION,
    whose worker lives until it is shut down."""
    pid_file = tmp_path / "pid"
    master = subprocess.Popen(
        [sys.executable, PROGRAMS / "master_program.py", stage, str(pid_file)], stdout=subprocess.PIPE, text=True
    )
    assert master.stdout is not None
    if stage == "initialising":
        wait_until(lambda: pid_file.exists() and pid_file.read_text(), what="init runs")
        line = ""
    else:
        line = master.stdout.readline()
    assert workers_of(master.pid)
    master.kill()
    master.wait()
    master.stdout.close()
    if stage == ShutdownOn.CALLED_SHUTDOWN_FUNCTION.value:
        uri = line.split()[1]

        async def scenario() -> None:
            async with await connect(uri) as connection:
                assert await connection.run(Sum.add, 1) == 1
            await Handle[Sum](uri.split(":", 1)[1].split("@")[0], uri, "Sum").shutdown()

        check(scenario)
    wait_until(lambda: not workers_of(master.pid), what="no worker is left")


def test_failures_outside_of_calls_reach_on_failure_and_end_the_worker() -> None:
    """An error after a function returned is given to on_failure with its remote traceback; the worker shuts down."""
    failures: list[Exception] = []

    async def scenario() -> None:
        connection = await spawn(on_failure=failures.append)
        assert await connection.run(Sum.raise_later) == "returned before it"
        await connection.wait_closed()
        while not failures:
            await asyncio.sleep(0.001)

    check(scenario)
    assert [str(error) for error in failures] == ["after the function had returned"]
    assert isinstance(failures[0], RuntimeError)
    assert "in _raise" in "".join(failures[0].__notes__)


def test_a_loop_that_ends_with_open_connections_leaves_nothing() -> None:
    """A program that forgets to close what spawn returned ends its workers with its event loop."""

    async def scenario() -> None:
        await spawn()
        await Sum.spawn(
            shutdown_on=ShutdownOn.HEARTBEATER_CONNECTION_TIMEOUT, redirect_stdout=NULL, redirect_stderr=NULL
        )

    check(scenario)


# Spawns that fail


def failure(scenario: Callable[[], Awaitable[Any]]) -> SpawnError:
    caught: list[SpawnError] = []

    async def attempt() -> None:
        with pytest.raises(SpawnError) as info:
            await scenario()
        caught.append(info.value)

    check(attempt)
    return caught[0]


def test_an_unknown_module_and_class_are_named() -> None:
    """A worker class that is not there fails the spawn with the name, and the nearest one, in its stderr lines."""
    error = failure(lambda: spawn_reference("no_such_module:Any"))
    assert error.stage is Stage.LAUNCHED
    assert error.cause == "exited with 1"
    assert error.stderr == ("there is no module 'no_such_module' for the worker 'no_such_module:Any'",)
    error = failure(lambda: spawn_reference("workers:Sun"))
    assert error.stderr == ("workers has no worker class 'Sun'; did you mean 'Sum'?",)
    error = failure(lambda: spawn_reference("workers:Path"))
    assert error.stderr == ("'workers:Path' is a type, not a subclass of workerlib.Worker",)


def test_an_import_error_of_the_workers_module_is_shown_whole() -> None:
    """The traceback of a module that cannot be imported is in SpawnError."""
    error = failure(lambda: spawn_reference("broken_module:Never"))
    assert error.stage is Stage.LAUNCHED
    assert error.stderr[0] == "Traceback (most recent call last):"
    assert error.stderr[-1] == "RuntimeError: this module is broken on purpose"
    assert "broken_module.py" in str(error)


def test_types_that_cannot_travel_are_named() -> None:
    """A function with a type that has no encoding fails the spawn, naming function and argument."""
    error = failure(lambda: spawn_reference("workers:Impolite"))
    assert error.stderr == ("Impolite.take_bad_type: an annotation cannot be resolved: name 'Unknown' is not defined",)


def test_init_that_raises() -> None:
    """The error of init is in SpawnError, and the worker is gone."""
    error = failure(lambda: spawn(RaisesInInit))
    assert error.stage is Stage.REGISTERED
    assert error.cause == "raised ValueError in init: init does not like today"


@pytest.mark.parametrize("worker", [NeverInitialised, BlocksInInit])
def test_init_that_never_returns(worker: type[Worker], tmp_path: Path) -> None:
    """spawn_timeout_s ends a spawn whose init does not return, also when it blocks the loop and ignores SIGTERM."""
    error = failure(lambda: spawn(worker, str(tmp_path / "pid"), spawn_timeout_s=1.5))
    assert error.stage is Stage.REGISTERED
    assert error.cause == "did not return from init within 1.5 s of its launch"
    assert not alive(int((tmp_path / "pid").read_text()))


def test_a_worker_that_does_not_register_in_time() -> None:
    """connection_timeout_s ends a spawn whose worker hangs before it registers."""
    error = failure(lambda: spawn_reference("hanging_module:Any", connection_timeout_s=1.5))
    assert error.stage is Stage.LAUNCHED
    assert error.cause == "did not register within 1.5 s"
    assert error.stderr[0].startswith("importing in ")


@pytest.mark.parametrize("victim", ["worker", "foreground"])
def test_kill_before_registration(victim: str) -> None:
    """kill -9 of the worker, or of the launched process in the foreground, while the module is imported."""

    def kill(_name: str, line: str) -> None:
        pid = int(line.removeprefix("importing in "))
        if victim == "foreground":
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(pid, signal.SIGKILL)

    error = failure(lambda: spawn_reference("hanging_module:Any", on_stderr=kill))
    assert error.stage is Stage.LAUNCHED
    assert error.cause == "was killed by SIGKILL"


def test_kill_during_init(tmp_path: Path) -> None:
    """kill -9 of a worker whose init is running fails the spawn at once."""
    pid_file = tmp_path / "pid"

    async def scenario() -> None:
        attempt = asyncio.ensure_future(spawn(NeverInitialised, str(pid_file), spawn_timeout_s=50))
        while not (pid_file.exists() and pid_file.read_text()):
            await asyncio.sleep(0.01)
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
        await attempt

    error = failure(scenario)
    assert error.stage is Stage.REGISTERED
    assert "ended" in error.cause


def test_cancelling_a_spawn_leaves_nothing(tmp_path: Path) -> None:
    """A cancelled spawn has ended its worker when the cancellation is over."""
    pid_file = tmp_path / "pid"

    async def scenario() -> None:
        attempt = asyncio.ensure_future(spawn(NeverInitialised, str(pid_file)))
        while not (pid_file.exists() and pid_file.read_text()):
            await asyncio.sleep(0.01)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        assert not alive(int(pid_file.read_text()))

    check(scenario)


def test_a_class_that_no_process_can_find_is_refused() -> None:
    """A class that was defined inside a function cannot be spawned; nothing is started."""

    class Local(Worker): ...

    async def scenario() -> None:
        with pytest.raises(UsageError, match="defined inside a function"):
            await spawn(Local)
        with pytest.raises(UsageError, match="WORKERLIB_WORKER"):
            await spawn(Sum, env={"WORKERLIB_WORKER": "1"})

    check(scenario)


def test_a_program_that_cannot_be_started() -> None:
    """A missing interpreter or working directory is told with its path."""
    error = failure(lambda: spawn_reference("workers:Sum", python="/no/such/python"))
    assert "/no/such/python" in error.cause
    error = failure(lambda: spawn(Sum, cd="/no/such/directory"))
    assert "/no/such/directory" in error.stderr[-1]


def test_an_output_file_that_cannot_be_opened() -> None:
    """A redirect to a path that cannot be opened fails the spawn before the release, with the path in its lines."""
    error = failure(lambda: spawn(Sum, redirect_stdout=Redirect.append("/no/such/directory/out")))
    assert error.stage is Stage.REGISTERED
    assert any("/no/such/directory/out" in line for line in error.stderr)


# Who may do what


def test_a_wrong_token_is_refused_by_master_and_worker() -> None:
    """Registration needs the token that the master gave out, initialisation and lease need it at the worker."""

    async def scenario() -> None:
        async with await spawn() as connection:
            for name, arguments in (("initialise", ["wrong", [], {}]), ("lease", ["wrong"])):
                with pytest.raises(Exception, match="only the master that spawned this worker may do that"):
                    await connection.call(name, *arguments, target="workerlib.Control")
            master = await current_master()
            async with await connect(str(master.uri)) as other:
                (worker_id,) = master.workers
                with pytest.raises(Exception, match="with that token is expected here"):
                    await other.call("register", worker_id, "wrong")
                with pytest.raises(Exception, match="with that token is expected here"):
                    await other.call("register", "nobody", "wrong")

    check(scenario)


def test_a_wrong_worker_id_is_refused() -> None:
    """The id is checked, not the address: a socket that another worker has taken over refuses its old clients."""

    async def scenario() -> None:
        async with await spawn() as connection:
            with pytest.raises(HandshakeError, match="no object 'Sum-000000000000' is served here"):
                await connect(f"PYRO:Sum-000000000000@{connection.uri.location}")

    check(scenario)


def test_sockets_and_directories_are_private() -> None:
    """Sockets have mode 0600 in directories of mode 0700."""

    async def scenario() -> None:
        async with await spawn() as connection:
            path = Path(str(connection.uri.location).removeprefix("./u:"))
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700

    check(scenario)


# Calls that go wrong


def test_bad_calls_are_refused_before_user_code() -> None:
    """Wrong argument types with their path, unknown functions with the nearest name, results without an encoding."""

    async def scenario() -> None:
        async with await spawn() as connection:
            with pytest.raises(ArgumentError, match=r"Sum.add: argument n: Expected `int`, got `str`"):
                await connection.run(Sum.add, "five")  # type: ignore[arg-type]
            with pytest.raises(UnknownFunction, match="has no function 'ad'; did you mean 'add'"):
                await connection.call("ad", 1)
            with pytest.raises(ResultError, match=r"result of Sum\.result_that_cannot_travel cannot be encoded"):
                await connection.run(Sum.result_that_cannot_travel)
            with pytest.raises(ValueError, match="not this value") as info:
                await connection.run(Sum.raise_value_error)
            assert info.value.args == ("not this value", 3)
            assert "in raise_value_error" in "".join(info.value.__notes__)
            assert await connection.run(Sum.add, 1) == 1

    check(scenario)


def test_a_killed_worker_ends_calls_with_connection_lost() -> None:
    """Calls under way on a worker that is killed end with ConnectionLost; its socket file goes too."""

    async def scenario() -> None:
        connection = await spawn()
        pid = int((await connection.run(Sum.facts))["pid"])
        stream = connection.run(Sum.squares, 10**9)
        items = aiter(stream)
        assert await anext(items) == 0
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ConnectionLost):
            async for _ in items:
                pass
        with pytest.raises(ConnectionLost):
            await connection.run(Sum.add, 1)
        path = Path(str(connection.uri.location).removeprefix("./u:"))
        while path.exists():
            await asyncio.sleep(0.01)

    check(scenario)


# Directories


def test_a_directory_that_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary directory in which nothing can be made is named in the error."""
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, not a directory")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setattr("tempfile.tempdir", str(blocked))

    async def scenario() -> None:
        with pytest.raises(UsageError, match=re.escape(str(blocked))):
            await spawn()

    check(scenario)
    monkeypatch.undo()


def test_a_socket_path_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory whose sockets would have more than 107 bytes is refused with the number and the way out."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))

    async def scenario() -> None:
        with pytest.raises(UsageError, match="Linux accepts 107: choose a shorter directory"):
            await spawn()

    check(scenario)
    monkeypatch.undo()


# The Expert path


def test_a_program_can_start_its_workers_as_itself() -> None:
    """With start_master_server, a worker is the same program with worker_command_args and its lineage appended."""
    result = subprocess.run(
        [sys.executable, PROGRAMS / "expert_program.py"], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stderr == ""
    echo, argv = result.stdout.splitlines()
    assert echo == "HELLO"
    assert re.search(r"expert_program.py', 'job', 'worker', 'child-of-\d+@\S+', 'Echo'\]$", argv)


def test_the_worker_entries_refuse_processes_that_were_not_spawned() -> None:
    """Both entries say what they are for when a person starts them."""
    result = subprocess.run([sys.executable, "-m", "workerlib"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "use Worker.spawn" in result.stderr
    result = subprocess.run(
        [sys.executable, PROGRAMS / "expert_program.py", "job", "worker"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "this process was not spawned as a worker" in result.stderr


def test_stdin_that_was_read_before_is_told() -> None:
    """A worker program that has read its stdin before the configuration says so."""
    result = subprocess.run(
        [sys.executable, "-m", "workerlib", "workers:Sum"],
        env={**os.environ, "WORKERLIB_WORKER": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "was stdin read before worker_init_before_async()?" in result.stderr


# How the master runs

JOB = """
from __future__ import annotations
import asyncio, os, sys
from dataclasses import dataclass
from workerlib import Redirect, ShutdownOn, Worker, rpc

@dataclass
class Point:
    x: int
    next: Point | None = None

class Job(Worker):
    @rpc
    async def following(self, point: Point) -> Point:
        return Point(point.x + 1, point)

NULL = Redirect.dev_null()

async def spawn(**options):
    how = {"shutdown_on": ShutdownOn.CONNECTION_CLOSED, "redirect_stdout": NULL, "redirect_stderr": NULL, **options}
    return await Job.spawn(**how)

async def main():
    async with await spawn() as connection:
        print(await connection.run(Job.following, Point(1)))

if __name__ == "__main__":
    asyncio.run(main())
"""


def run_python(*arguments: str, cwd: Path, **options: Any) -> str:
    """Runs a master to its end; what it printed. Fails when it failed."""
    command = [sys.executable, *arguments]
    run = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False, **options)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("how", ["script", "module", "package", "joined options", "directory", "zip file", "other -c"])
def test_a_worker_class_is_found_however_its_program_was_started(how: str, tmp_path: Path) -> None:
    """A class of the master's own main module comes up with its types, which refer to each other by name."""
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__main__.py").write_text(JOB)
    with zipfile.ZipFile(tmp_path / "job.zip", "w") as archive:
        archive.writestr("__main__.py", JOB)
    arguments = {
        "script": ["job.py"],
        "module": ["-m", "job"],
        "package": ["-m", "package"],
        "joined options": ["-um", "job"],
        "directory": ["package"],
        "zip file": ["job.zip"],
        "other -c": ["-uc", "import asyncio, job; asyncio.run(job.main())"],
    }
    assert run_python(*arguments[how], cwd=tmp_path) == "Point(x=2, next=Point(x=1, next=None))\n"


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("script.py -m x", ""),
        ("-m module", ""),
        ("-um module", "-u"),
        ("-ucprint() a", "-u"),
        ("-bW error -Xdev -X utf8 script.py", "-bW error -Xdev -X utf8"),
        ("-Werror::BytesWarning -", "-Werror::BytesWarning"),
        ("-i -Bi script.py", "-B"),
        ("--check-hash-based-pycs always -Em module", "--check-hash-based-pycs always -E"),
        ("-E -- script.py", "-E"),
    ],
)
def test_workers_get_the_options_of_the_masters_interpreter(
    line: str, options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All options before the program, however they are joined, but neither the program nor -i, which needs somebody."""
    monkeypatch.setattr(sys, "orig_argv", ["python", *line.split(" ")])
    assert interpreter_command() == [sys.executable, *options.split()]


def test_a_master_can_be_without_working_directory_and_standard_streams(tmp_path: Path) -> None:
    """Its directory was removed, its stdin and stderr are closed: a worker that writes to stderr comes up."""
    (tmp_path / "job.py").write_text(JOB + "if os.environ.get('LOUD'): print('loud', file=sys.stderr)\n")
    (tmp_path / "gone").mkdir()
    program = f"""
import os, sys
os.rmdir(os.getcwd())
sys.path.append({str(tmp_path)!r})
import asyncio, job
async def main():
    async with await job.spawn(env={{"LOUD": "1"}}) as connection:
        print(sys.stderr, await connection.run(job.Job.following, job.Point(1)))
asyncio.run(main())
"""
    command = ["sh", "-c", '"$0" -c "$1" 0<&- 2<&-', sys.executable, program]
    run = subprocess.run(command, cwd=tmp_path / "gone", stdout=subprocess.PIPE, timeout=60, check=False)
    assert run.stdout == b"None Point(x=2, next=Point(x=1, next=None))\n"


def test_a_forked_child_of_the_master_takes_nothing_with_it(tmp_path: Path) -> None:
    """Its end removes no socket and ends no worker of its parent."""
    (tmp_path / "job.py").write_text(JOB)
    program = """
import asyncio, os, sys
from job import *
async def main():
    connection, served = await spawn(), await Job.serve()
    child = os.fork()
    if child == 0:
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    async with asyncio.timeout(20):
        for other in (connection, await served.handle.connect(), await spawn()):
            print((await other.run(Job.following, Point(1))).x)
            await other.close()
    await served.close()
asyncio.run(main())
"""
    assert run_python("-c", program, cwd=tmp_path) == "2\n2\n2\n"


# Many at once, and short of resources


@pytest.mark.parametrize("engine", ENGINES)
def test_first_spawns_at_once_share_one_master(engine: str) -> None:
    """An event loop has one master, also when many ask for it before it listens."""

    async def scenario() -> None:
        masters = await asyncio.gather(*(current_master() for _ in range(5)))
        assert len(set(masters)) == 1

    run_async(scenario, engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_spawn_that_is_cancelled_at_once_leaves_no_process(engine: str) -> None:
    """Cancelled after any number of turns of the loop, the launched process has been reaped when spawn returns."""

    async def scenario() -> None:
        await current_master()
        before = children()
        for turns in range(8):
            spawning = asyncio.ensure_future(spawn())
            for _ in range(turns):
                await asyncio.sleep(0)
            spawning.cancel()
            with pytest.raises(asyncio.CancelledError):
                await spawning
            assert children() == before, f"after {turns} turns"

    run_async(scenario, engine)


def test_a_spawn_for_lack_of_descriptors_leaves_nothing() -> None:
    """Whichever descriptor is the first that cannot be had, SpawnError comes, and the others are closed again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def scenario() -> None:
        async with await spawn() as first:
            fds, kids = set(open_fds()), children()
            for spare in range(4):
                limit = max(fds) + 1 + spare - len(set(range(max(fds))) - fds)
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
                try:
                    with pytest.raises(SpawnError, match="Too many open files"):
                        await spawn()
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                assert (set(open_fds()), children()) == (fds, kids)
            assert await first.run(Sum.add, 1) == 1

    check(scenario)


def test_a_redirect_to_a_descriptor_that_is_closed_leaves_no_other_open() -> None:
    """The descriptor made for stdout is closed again when the one for stderr cannot be made."""

    async def scenario() -> None:
        await current_master()
        fds = set(open_fds())
        with pytest.raises(SpawnError, match="Bad file descriptor"):
            await spawn(redirect_stdout=Redirect.descriptor(1), redirect_stderr=Redirect.descriptor(999))
        assert set(open_fds()) == fds

    check(scenario)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"name": "a\0b"}, r"the name of a worker cannot hold a NUL character: 'a\\x00b'"),
        ({"name": "\ud800"}, r"the name of a worker cannot be encoded: '\\ud800'"),
        ({"name": 3}, "the name of a worker must be text, not 3"),
        ({"cd": "/\0"}, "the working directory of a worker cannot hold a NUL"),
        ({"env": {"A": "x\0"}}, r"\$A for a worker cannot hold a NUL"),
        ({"env": {"A\0": "x"}}, "the name of a variable for a worker cannot hold a NUL"),
        ({"env": {"A": "\ud800"}}, r"\$A for a worker cannot be encoded"),
        ({"env": {"A=B": "x"}}, "a variable for a worker cannot be named 'A=B'"),
        ({"env": {"": "x"}}, "a variable for a worker cannot be named ''"),
        ({"env": {"A": 1}}, r"\$A for a worker must be text, not 1"),
        ({"env": {"WORKERLIB_WORKER": "1"}}, "env cannot set WORKERLIB_WORKER"),
        ({"umask": -1}, "umask must be a number from 0 to 0o777, not -1"),
        ({"connection_timeout_s": 0}, "connection_timeout_s must be a positive number of seconds, not 0"),
        ({"connection_timeout_s": float("nan")}, "connection_timeout_s must be a positive number of seconds, not nan"),
        ({"spawn_timeout_s": "3"}, "spawn_timeout_s must be a positive number of seconds, not '3'"),
        (
            {"redirect_stdout": Redirect.append("/tmp/\udcff")},
            r"a worker cannot be told '/tmp/\\udcff': it is not UTF-8",
        ),
    ],
)
def test_what_no_process_can_be_given_is_refused(options: dict[str, Any], complaint: str) -> None:
    """With UsageError, before anything is started."""

    async def scenario() -> None:
        await current_master()
        before = children()
        with pytest.raises(UsageError, match=complaint):
            await spawn(**options)
        assert children() == before

    check(scenario)


def test_a_variable_need_not_be_utf_8() -> None:
    """As everywhere in Python, its other bytes come and go as surrogates."""

    async def scenario() -> None:
        async with await spawn(env={"FAVOURITE": "\udcff"}) as connection:
            assert await connection.run(Sum.favourite) == "ff"

    check(scenario)


def test_the_masters_path_is_for_the_workers_own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there under the name of a module that workerlib needs is not taken for it."""
    for name in ("asyncio", "logging", "queue", "selectors", "uvloop"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not this one')\n")
    monkeypatch.syspath_prepend(tmp_path)

    async def scenario() -> None:
        async with await spawn() as connection:
            assert await connection.run(Sum.add, 5) == 5

    check(scenario)


def test_a_relative_folder_for_bytecode_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one of the master's directory, also when the worker has another one."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)

    async def scenario() -> None:
        async with await spawn(env={"PYTHONPYCACHEPREFIX": "bytecode"}, cd=str(there)):
            pass

    check(scenario)
    assert list(there.iterdir()) == []


def test_workers_collect_garbage() -> None:
    """None was looked for while they started; what they had imported by then is left out for good."""
    with Executor(max_workers=1) as executor:
        assert executor.submit(gc.isenabled).result()
        assert executor.submit(gc.get_freeze_count).result() > 1000


def test_little_is_loaded_before_a_worker_detaches() -> None:
    """Above all not asyncio."""
    code = "import sys, workerlib.detaching, workerlib.role; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"asyncio", "logging", "uvloop", "ssl", "workerlib.hosting", "workerlib.worker"} & {*loaded}


def test_a_worker_loads_only_what_it_needs() -> None:
    """Each spawn pays for these again: not what only a master does, nor modules that cost more than they are for."""
    code = "import sys, workerlib.hosting; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    ours = {"workerlib.runtime", "workerlib.spawner", "workerlib.launchers.local", "workerlib.mapreduce"}
    assert not loaded & {"pathlib", "dataclasses", "runpy", "structlog", "Pyro5", "numpy", *ours}
