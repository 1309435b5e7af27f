"""workerlib.testing: clock, joined sessions, scripted peers, leak checks, workers for the length of a test."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support import ENGINES, alive, run_async, wait_until
from workers import Sum

from workerlib import ArgumentError, ConnectionLost, HandshakeError, UsageError, Worker, blocking, pipe, rpc
from workerlib.core.frames import CONNECT, INVOKE, PING, Frame
from workerlib.spec import RpcSettings
from workerlib.testing import (
    Ends,
    Expect,
    FakeClock,
    LeakError,
    ScriptedPeer,
    ScriptError,
    Silence,
    Spawner,
    joined,
    no_leaks,
    scripted_server,
    spawned,
)
from workerlib.testing.memory import join
from workerlib.testing.script import answer, call, hello, message, welcome


class Reminder(Worker):
    async def init(self, greeting: str = "hello") -> None:
        self.greeting = greeting
        self.reminded = 0

    @rpc
    async def remind(self, after_s: float) -> str:
        await asyncio.sleep(after_s)
        self.reminded += 1
        return self.greeting

    @rpc
    async def hang(self) -> None:
        await asyncio.Event().wait()

    @rpc
    async def echo(self, data: bytes) -> bytes:
        return data

    @pipe
    async def ticks(self, every_s: float) -> AsyncIterator[int]:
        for number in range(1_000_000):
            yield number
            await asyncio.sleep(every_s)


# The clock


def test_advancing_the_clock_runs_timers_in_order_and_what_they_set_off() -> None:
    """Each timer sees its own instant; chains of timers within the time run, and nothing beyond it."""
    clock = FakeClock()
    seen: list[tuple[str, float]] = []

    async def chain() -> None:
        for name in ("a", "b", "c"):
            await asyncio.sleep(10)
            seen.append((name, clock.now))

    async def main() -> None:
        task = asyncio.create_task(chain())
        asyncio.get_running_loop().call_later(15, lambda: seen.append(("timer", clock.now)))
        await clock.advance(20)
        assert seen == [("a", 10), ("timer", 15), ("b", 20)]
        assert clock.now == 20 == asyncio.get_running_loop().time()
        await clock.advance(9.5)
        assert not task.done()
        await clock.advance(0.5)
        assert task.done()

    clock.run(main())


def test_only_one_task_moves_the_clock_and_only_forward() -> None:
    """The other one is told; so is who is in another loop."""
    clock = FakeClock()

    async def main() -> None:
        first = asyncio.create_task(clock.advance(5))
        await asyncio.sleep(0)
        with pytest.raises(UsageError, match="another task advances this clock"):
            await clock.advance(1)
        await first
        with pytest.raises(UsageError, match="cannot go back"):
            await clock.advance(-1)
        with pytest.raises(UsageError, match="in the loop of its clock"):
            await FakeClock().advance(1)

    clock.run(main())
    with pytest.raises(UsageError, match=r"start it with FakeClock\.run"):
        run_async(lambda: clock.advance(1))


def test_what_comes_from_a_thread_wakes_a_loop_whose_clock_stands_still() -> None:
    """Waiting for a thread is not waiting for the clock, also while a timer is pending."""
    clock = FakeClock()

    async def main() -> None:
        asyncio.get_running_loop().call_later(100, lambda: None)
        assert await asyncio.to_thread(lambda: 5) == 5
        assert clock.now == 0

    clock.run(main())


def test_a_clock_that_nobody_moves_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that forgot to advance fails with the reason, it does not hang."""
    monkeypatch.setattr("workerlib.testing.clock.STUCK_S", 0.05)
    with pytest.raises(RuntimeError, match=r"the next timer is 3 s away: nobody advances the clock"):
        FakeClock().run(asyncio.sleep(3))


# Both ends in one loop


@pytest.mark.parametrize("engine", ENGINES)
def test_a_joined_worker_answers_as_a_real_one(engine: str) -> None:
    """Init and connection argument, types checked, streams, threads, errors, what every worker has."""

    async def main() -> None:
        async with no_leaks(), joined(Sum, 5, init={"note": "x"}, connect_arg="ann") as connection:
            assert await connection.run(Sum.add, 5) == 10
            assert await connection.run(Sum.add_in_thread, 1) == 11
            assert await connection.run(Sum.who) == "ann"
            assert [n async for n in connection.run(Sum.squares, 5000)] == [n * n for n in range(5000)]
            assert await connection.run(Sum.add_all, range(5000)) == 11 + sum(range(5000))
            with pytest.raises(ValueError, match="not this value"):
                await connection.run(Sum.raise_value_error)
            with pytest.raises(ArgumentError, match="argument n: Expected `int`, got `str`"):
                await connection.run(Sum.add, "5")  # type: ignore[arg-type]
            assert (await connection.info()).pid == os.getpid()
            assert await connection.ping() >= 0
            under_way = connection.run(Sum.pid)
        assert connection.closed == "closed here"
        with pytest.raises(ConnectionLost):
            await under_way

    run_async(main, engine)


def test_long_messages_and_long_streams_pass() -> None:
    """10 MiB each way, and more items than a window, until the reader has enough."""

    async def main() -> None:
        worker = Reminder()
        narrow = RpcSettings(stream_window=16)
        async with joined(worker) as one, joined(worker, settings=narrow) as other:
            assert await one.run(Reminder.echo, bytes(10 << 20)) == bytes(10 << 20)
            seen = 0
            async for number in other.run(Reminder.ticks, 0.0):
                assert number == seen
                seen += 1
                if seen == 500:
                    break
            assert await one.ping() >= 0

    run_async(main)


def test_a_worker_that_the_test_has_made_can_be_looked_into() -> None:
    """It is the test's own object, shared by several connections, and is not initialised again."""

    async def main() -> None:
        worker = Reminder()
        worker.greeting, worker.reminded = "hi", 0
        async with joined(worker) as one, joined(worker) as other:
            assert await one.run(Reminder.remind, 0.0) == await other.run(Reminder.remind, 0.0) == "hi"
        assert worker.reminded == 2
        with pytest.raises(UsageError, match="not initialised"):
            async with joined(worker, "x"):
                pass

    run_async(main)


def test_what_refuses_a_client_refuses_a_joined_one() -> None:
    """An init argument of a wrong type, and what `connected` raises; nothing is left."""

    async def main() -> None:
        async with no_leaks():
            with pytest.raises(ArgumentError, match="argument start"):
                async with joined(Sum, "five"):
                    pass
            with pytest.raises(HandshakeError, match="nobody may connect"):
                async with joined(Sum, connect_arg="nobody"):
                    pass

    run_async(main)


def test_hours_of_a_joined_worker_take_no_time() -> None:
    """Its timers run by the fake clock, and so do the heartbeats of both ends, which stay connected."""
    clock = FakeClock()

    async def main() -> None:
        async with joined(Reminder, "an hour is over") as connection:
            reminded = asyncio.ensure_future(connection.run(Reminder.remind, 3600.0))
            await clock.advance(3599)
            assert not reminded.done()
            await clock.advance(1)
            assert reminded.done()
            assert await reminded == "an hour is over"
            assert connection.closed is None

    clock.run(main())


class Recorder(asyncio.Protocol):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.seen.append(data)

    def pause_writing(self) -> None:
        self.seen.append("pause")

    def resume_writing(self) -> None:
        self.seen.append("resume")

    def connection_lost(self, error: Exception | None) -> None:
        self.seen.append("lost")


def test_joined_transports_behave_as_sockets_do() -> None:
    """A full buffer pauses the writer, closing sends the rest, aborting loses it, and each end learns of the end once."""

    async def turns() -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    async def main() -> None:
        one, other = Recorder(), Recorder()
        join(one, other)
        other.transport.pause_reading()
        one.transport.write(bytes(200_000))
        assert one.seen == ["pause"]
        one.transport.close()
        one.transport.write(b"too late")
        await turns()
        assert other.seen == []
        other.transport.resume_reading()
        await turns()
        assert b"".join(other.seen[:-1]) == bytes(200_000)
        assert max(map(len, other.seen[:-1])) <= 1 << 16
        assert (one.seen[-1], other.seen[-1]) == ("lost", "lost")
        assert one.seen.count("lost") == other.seen.count("lost") == 1
        one, other = Recorder(), Recorder()
        join(one, other)
        one.transport.write(b"lost")
        one.transport.abort()
        await turns()
        assert (one.seen, other.seen) == (["lost"], ["lost"])
        one, other = Recorder(), Recorder()
        join(one, other)
        other.transport.pause_reading()
        one.transport.write(bytes(200_000))
        other.transport.abort()
        await turns()
        assert one.seen == ["pause", "resume", "lost"]

    run_async(main)


# Scripted peers


def test_a_scripted_worker_checks_what_its_client_sends(tmp_path: Path) -> None:
    """Frames with their values, silence, and the end of the connection; the client sees what a worker would send."""
    script = [
        Expect(CONNECT, seq=0),
        welcome(add="rpc"),
        Expect(INVOKE, value=["w", "add", [2], {"b": 3}]),
        Silence(0.05),
        answer(5),
        Ends(),
    ]
    with scripted_server(script, tmp_path / "s") as uri, blocking.connect(uri, within_s=10) as connection:
        assert connection.call("add", 2, b=3) == 5


def test_a_script_that_is_not_followed_is_told_with_its_step(tmp_path: Path) -> None:
    """What was expected and what came; also when nobody connects, and when a frame's check raises."""
    script = [Expect(CONNECT), welcome(add="rpc"), Expect(INVOKE, value=["w", "add", [1], {}])]

    def call_it() -> None:
        with scripted_server(script, tmp_path / "s") as uri, blocking.connect(uri, within_s=10) as connection:
            connection.call("add", 2)

    def refuse(frame: Frame) -> None:
        raise ZeroDivisionError(frame.seq)

    with pytest.raises(ConnectionLost) as caught:
        call_it()
    (note,) = caught.value.__notes__
    assert "step 2 of the script" in note
    assert "it has ['w', 'add', [2], {}], not ['w', 'add', [1], {}]" in note
    with (
        pytest.raises(ScriptError, match=r"nobody connected within 0.05 s"),
        scripted_server(script, tmp_path / "t", within_s=0.05),
    ):
        pass
    with pytest.raises(ZeroDivisionError), scripted_server([Expect(CONNECT, check=refuse)], tmp_path / "u") as uri:
        open_and_lose(uri)


def open_and_lose(uri: str) -> None:
    with pytest.raises(ConnectionLost):
        blocking.connect(uri, within_s=10)


def test_half_an_answer_and_then_the_end_reaches_the_client_as_such(tmp_path: Path) -> None:
    """The peer's bytes are sent as they are, cut anywhere."""
    script = [
        Expect(CONNECT),
        welcome(add="rpc"),
        Expect(INVOKE),
        lambda frame: answer(5)(frame)[:20],
    ]
    with (
        scripted_server(script, tmp_path / "s") as uri,
        blocking.connect(uri, within_s=10) as connection,
        pytest.raises(ConnectionLost, match="closed by the peer"),
    ):
        connection.call("add", 2)


def test_an_error_of_the_test_does_not_wait_for_the_script(tmp_path: Path) -> None:
    """The test's own error is what is raised, at once."""
    with pytest.raises(ZeroDivisionError), scripted_server([Expect(CONNECT)], tmp_path / "s"):
        raise ZeroDivisionError


def test_a_scripted_client_talks_to_a_real_worker(spawned: Spawner) -> None:
    """It speaks the protocol by hand; a worker that closes instead of answering is told."""
    uri = str(spawned(Sum, 1).uri)
    target = uri.partition(":")[2].partition("@")[0]
    with ScriptedPeer.connect(uri) as peer:
        peer.play([hello(target, "ann"), Expect(2), call(target, "add", 4), Expect(5, value=5, seq=1)])
        peer.send(message(PING, seq=7))
        peer.expect(Expect(PING, seq=7))
        peer.play([b"GET / HTTP/1.1\r\n\r\n", Ends()])
        with pytest.raises(ScriptError, match="the connection was closed instead"):
            peer.expect(Expect(5))
    with ScriptedPeer.connect(uri, within_s=0.05) as silent, pytest.raises(ScriptError, match=r"nothing came within"):
        silent.play([Expect(2)])


# Leaks


def test_each_kind_of_thing_that_is_left_is_told() -> None:
    """A descriptor, a thread, a process and a zombie; what ends in time is none."""
    with pytest.raises(LeakError, match=r"fds: \d+: /dev/null"), no_leaks(within_s=0):
        fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="forgotten")
    with pytest.raises(LeakError, match="threads: forgotten"), no_leaks(within_s=0):
        thread.start()
    end.set()
    thread.join()
    with pytest.raises(LeakError, match=r"processes: \d+: .*sleep 600"), no_leaks(within_s=0):
        process = subprocess.Popen(["sleep", "600"])
    process.kill()
    process.wait()

    def leave_a_zombie() -> int:
        pid = os.posix_spawn("/bin/true", ["true"], {})
        wait_until(lambda: not alive(pid), what="the end of it")
        return pid

    with pytest.raises(LeakError, match="zombies, that nobody waited for"), no_leaks(within_s=0):
        pid = leave_a_zombie()
    os.waitpid(pid, 0)
    end.clear()
    with no_leaks(within_s=10):
        thread = threading.Thread(target=end.wait)
        thread.start()
        threading.Timer(0.05, end.set).start()
    assert not thread.is_alive()


def test_a_task_that_is_left_is_told_and_the_loop_goes_on_meanwhile() -> None:
    """In an async context; a task that ends within the time is no leak."""

    async def main() -> None:
        async with no_leaks(within_s=10):
            ends = asyncio.create_task(asyncio.sleep(0.01))
        assert ends.done()
        with pytest.raises(LeakError, match=r"tasks: .*forgotten"):
            async with no_leaks(within_s=0):
                stays = asyncio.create_task(asyncio.sleep(600), name="forgotten")
        stays.cancel()

    run_async(main)


def test_an_error_inside_is_not_hidden_by_what_it_leaves() -> None:
    """Whoever fails in the middle leaves things."""
    fds: list[int] = []

    def fail() -> None:
        fds.append(os.open("/dev/null", os.O_RDONLY))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), no_leaks(within_s=0):
        fail()
    os.close(fds.pop())


# Workers in processes of their own


class Parent(Worker):
    @rpc
    async def start(self, *, own_group: bool) -> int:
        return subprocess.Popen(["sleep", "600"], start_new_session=own_group).pid

    @rpc
    async def pid(self) -> int:
        return os.getpid()


def test_spawned_gives_a_worker_for_the_length_of_a_context() -> None:
    """Its arguments arrive, and its process is gone afterwards; what it wrote came to this process's stderr."""

    async def main() -> None:
        async with spawned(Sum, 5, init={"note": "for the test"}, connect_arg="ann") as connection:
            pid = await connection.run(Sum.pid)
            assert pid != os.getpid()
            assert await connection.run(Sum.who) == "ann"
            assert await connection.run(Sum.add, 1) == 6
        assert not alive(pid)

    run_async(main)


def test_a_process_that_a_spawned_worker_leaves_is_told_and_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names its command line; after an error of the test it is killed as well, and that error stays."""
    monkeypatch.setattr("workerlib.testing.spawning.END_S", 0.3)
    started: list[int] = []

    async def main(error: Exception | None = None) -> None:
        async with spawned(Parent) as connection:
            started.append(await connection.run(Parent.start, own_group=False))
            if error is not None:
                raise error

    with pytest.raises(LeakError, match=r"left by worker Parent, 0.3 s after .*\d+: sleep 600"):
        run_async(main)
    with pytest.raises(ZeroDivisionError):
        run_async(lambda: main(ZeroDivisionError()))
    with pytest.raises(LeakError, match="left by worker Parent"), Spawner() as spawner:
        started.append(spawner(Parent).run(Parent.start, own_group=False))
    for pid in started:
        wait_until(lambda pid=pid: not alive(pid), what="its end")  # type: ignore[misc]


def test_the_fixture_gives_blocking_connections(spawned: Spawner) -> None:
    """Several workers at a time, each with its arguments, without an event loop in the test."""
    one, other = spawned(Sum, 5), spawned(Sum, 7, connect_arg="bob", settings=RpcSettings(stream_window=16))
    assert (one.run(Sum.add, 1), other.run(Sum.add, 1)) == (6, 8)
    assert list(one.run(Sum.squares, 100)) == [n * n for n in range(100)]
    assert other.run(Sum.who) == "bob"
    assert one.run(Sum.pid) != other.run(Sum.pid)


# The plugin


@pytest.fixture
def inner(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project of somebody else, with pytest in a process of its own."""
    pytester.makepyfile(
        jobs="""
        import os, workerlib

        class Counter(workerlib.Worker):
            async def init(self, start: int = 0) -> None:
                self.total = start

            @workerlib.rpc
            async def add(self, n: int) -> int:
                self.total += n
                return self.total

            @workerlib.rpc
            async def fork(self) -> int:
                pid = os.fork()
                if not pid:
                    os.execlp("sleep", "sleep", "600")
                return pid
        """
    )
    return pytester


def test_the_plugin_gives_spawned_and_tells_what_its_worker_leaves(inner: pytest.Pytester) -> None:
    """A good test passes; one whose worker leaves a process fails when it is over, and the process is killed."""
    inner.makepyfile(
        """
        import workerlib.testing.spawning
        from jobs import Counter

        def test_good(spawned):
            assert spawned(Counter, 5).run(Counter.add, 1) == 6

        def test_fails(spawned):
            assert spawned(Counter).run(Counter.add, 1) == 2

        def test_leaves(spawned):
            workerlib.testing.spawning.END_S = 0.2  # only here: a good worker may take longer on a busy machine
            print("left:", spawned(Counter).run(Counter.fork))
        """
    )
    result = inner.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*left by worker Counter*: sleep 600"])
    pid = next(int(line.split()[1]) for line in result.outlines if line.startswith("left:"))
    wait_until(lambda: not alive(pid), what="its end")


LEAKY = """
import os, subprocess, threading, pytest

def test_leaks():
    os.open("/dev/null", os.O_RDONLY)
    subprocess.Popen(["sleep", "600"])
    subprocess.run("sleep 700 & exit", shell=True, check=True)

def test_fine(tmp_path):
    (tmp_path / "x").write_text("x")
"""


def test_the_ini_option_checks_every_test(inner: pytest.Pytester) -> None:
    """Descriptors, children, and orphans that have detached; what one test leaves does not fail the next."""
    inner.makepyfile(LEAKY)
    inner.makeini("[pytest]\nworkerlib_no_leaks = true")
    result = inner.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.re_match_lines([r".*left behind: fds: \d+: /dev/null; processes: .*"])
    assert "sleep 600" in result.stdout.str()
    assert "sleep 700" in result.stdout.str()


def test_a_mark_checks_one_test(inner: pytest.Pytester) -> None:
    """Without the option, only the tests that use no_leaks; what their fixtures hold until their end is no leak."""
    inner.makepyfile(
        """
        import os, pytest

        @pytest.fixture
        def opened():
            fd = os.open("/dev/null", os.O_RDONLY)
            yield
            os.close(fd)

        @pytest.fixture(scope="module")
        def shared():
            fd = os.open("/dev/null", os.O_RDONLY)
            yield
            os.close(fd)

        @pytest.mark.usefixtures("no_leaks")
        def test_marked():
            os.open("/dev/null", os.O_RDONLY)

        @pytest.mark.usefixtures("no_leaks")
        def test_fixtures(opened, shared): ...

        def test_unmarked():
            os.open("/dev/null", os.O_RDONLY)
        """
    )
    inner.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=3, errors=1)


def test_the_plugin_costs_nothing_when_it_is_not_used(inner: pytest.Pytester) -> None:
    """Neither asyncio nor uvloop nor msgspec nor anything of workerlib but two small files is imported."""
    inner.makepyfile(
        """
        import sys

        def test_loaded(pytestconfig):
            assert pytestconfig.pluginmanager.has_plugin("workerlib")
            assert not {"asyncio", "uvloop", "msgspec", "structlog", "Pyro5"} & set(sys.modules)
            ours = {name for name in sys.modules if name.startswith("workerlib")}
            assert ours == {"workerlib", "workerlib.version", "workerlib.pytest_plugin"}, ours
        """
    )
    result = inner.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:faulthandler")
    result.assert_outcomes(passed=1)


def test_importing_the_kit_loads_only_what_is_used() -> None:
    """Leak checks of programs without an event loop do not pay for one that they have not."""
    code = "import sys, workerlib.testing; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"asyncio", "uvloop", "msgspec", "pytest"} & set(loaded)
