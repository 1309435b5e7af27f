"""What the daemon's reaper relies on: the same cases with real processes, and with the fake ones of other tests.

So the fake cannot drift from the kernel, and what only it can be made to do is worth something.
"""

import signal
from collections.abc import Iterator

import pytest
from fake_kernel import FakeKernel
from reaping import check
from served import until
from worlds import OURS, FakeWorld, RealWorld, World

from parsupd.shell.children import Children
from parsupd.shell.kernel import Kernel
from workerlib.core.daemonizing import Exited, Killed


@pytest.fixture(params=[FakeWorld, RealWorld], ids=["fake", "real"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made: World = request.param()
    try:
        yield made
    finally:
        made.close()


def test_the_fake_leaves_nothing_to_the_real_one() -> None:
    """It has each call of its own: one that came to the machine would be about somebody else's processes."""
    calls = {name for name in vars(Kernel) if not name.startswith("_")}
    assert calls <= vars(FakeKernel).keys()


def test_an_end_is_told_exactly(world: World) -> None:
    """By its code or its signal; afterwards nothing is left of it, and its group is empty."""

    async def scenario(children: Children) -> None:
        child = world.unit(children)
        assert world.kernel.group_of(child.pid) == child.pid
        assert child.pid in world.kernel.children()
        world.exit(child.pid, 7)
        assert await child.exited == Exited(7)
        await child.group_empty
        assert child.pid not in world.kernel.children()
        other = world.unit(children)
        children.signal_all(other, signal.SIGTERM)
        assert await other.exited == Killed(signal.SIGTERM)
        await other.group_empty

    check(scenario, world.kernel)


def test_those_that_are_left_in_the_group(world: World) -> None:
    """They are waited for, and get the signals, also what they fork when those before them have gone."""

    async def scenario(children: Children) -> None:
        child = world.unit(children)
        first = world.fork(child.pid)
        world.exit(child.pid, 3)
        assert await child.exited == Exited(3)
        assert not child.group_empty.done()
        second = world.fork(first)
        world.exit(first, 0)
        await until(lambda: first not in world.kernel.children())
        await until(lambda: second in child.members)
        assert not child.group_empty.done()
        children.signal_all(child, signal.SIGTERM)
        await child.group_empty
        assert not world.kernel.is_running(second)

    check(scenario, world.kernel)


def test_a_signal_that_is_ignored_ends_nobody(world: World) -> None:
    """Whoever ignores it goes on, and so does the wait for it; SIGKILL ends it."""

    async def scenario(children: Children) -> None:
        child = world.unit(children)
        world.ignore(child.pid, signal.SIGTERM)
        member = world.fork(child.pid)
        children.signal_all(child, signal.SIGTERM, resume=True)
        children.signal_main(child, signal.SIGTERM)
        assert world.kernel.is_running(child.pid)
        assert world.kernel.is_running(member)
        children.signal_main(child, signal.SIGKILL)
        assert await child.exited == Killed(signal.SIGKILL)
        assert not child.group_empty.done()
        children.signal_all(child, signal.SIGKILL)
        await child.group_empty

    check(scenario, world.kernel)


@pytest.mark.parametrize("main_lives", [True, False])
def test_those_that_left_the_group(main_lives: bool, world: World) -> None:
    """A daemon that has forked twice, in a session of its own, is the daemon's child, and still of the unit."""

    async def scenario(children: Children) -> None:
        child = world.unit(children)
        step = world.fork(child.pid)
        world.setsid(step)
        escaped = world.fork(step)
        world.exit(step, 0)
        if not main_lives:
            world.exit(child.pid, 0)
            await child.exited
            await until(lambda: escaped in world.kernel.children())
            assert not child.group_empty.done()
        children.signal_all(child, signal.SIGTERM)
        await child.group_empty
        await until(lambda: escaped not in world.kernel.children())

    check(scenario, world.kernel)


def test_another_main_process(world: World) -> None:
    """From then on its end is the unit's, and the one that was it before is one among others."""

    async def scenario(children: Children) -> None:
        child = world.unit(children)
        first, second = child.pid, world.fork(child.pid)
        assert children.succeed(child, second)
        assert not children.succeed(child, 1)
        world.exit(first, 1)
        await until(lambda: second in world.kernel.children())
        assert not child.exited.done()
        world.exit(second, 5)
        assert await child.exited == Exited(5)
        await child.group_empty

    check(scenario, world.kernel)


# Of an earlier daemon


def test_a_process_is_taken_over(world: World) -> None:
    """Signals reach it and what it has left, and its end is known, though somebody else is its parent."""

    async def scenario(children: Children) -> None:
        pid = world.foreign()
        child = children.take_over(pid, world.kernel.start_time(pid), pid, tag=OURS)
        member = world.fork(pid)
        world.setsid(member)
        world.exit(pid, 4)
        assert await child.exited == Exited(4)
        assert not child.group_empty.done()
        children.signal_all(child, signal.SIGTERM)
        await child.group_empty
        assert not world.kernel.is_running(member)

    check(scenario, world.kernel)


def test_what_a_process_has_left_is_taken_over(world: World) -> None:
    """It has ended meanwhile, nobody can tell how; others of its group are still of the unit."""

    async def scenario(children: Children) -> None:
        pid = world.foreign()
        started = world.kernel.start_time(pid)
        member = world.fork(pid)
        world.exit(pid, 4)
        world.reap(pid)
        child = children.take_over(pid, started, pid, tag=OURS)
        assert await child.exited is None
        await until(lambda: member in child.members)
        children.signal_all(child, signal.SIGTERM)
        await child.group_empty
        assert not world.kernel.is_running(member)

    check(scenario, world.kernel)


# Numbers that somebody else has got


def test_a_pid_that_was_used_again_meanwhile(world: World) -> None:
    """Who has it now is not taken over, not waited for, and gets no signal, though he leads a group of that number."""

    async def scenario(children: Children) -> None:
        pid = world.foreign()
        started = world.kernel.start_time(pid)
        world.exit(pid, 0)
        world.reap(pid)
        world.take(pid, started)
        child = children.take_over(pid, started, pid, tag=OURS)
        assert await child.exited is None
        assert not children.owns(child, pid)
        assert not children.succeed(child, pid)
        children.signal_all(child, signal.SIGKILL)
        children.signal_main(child, signal.SIGKILL)
        await child.group_empty
        assert world.kernel.is_running(pid)

    check(scenario, world.kernel)


def test_a_pid_that_is_a_threads_now(world: World) -> None:
    """It is as good as gone."""

    async def scenario(children: Children) -> None:
        with pytest.raises(ProcessLookupError):
            world.kernel.open(number := world.thread())
        child = children.take_over(number, 1, number, tag=OURS)
        assert await child.exited is None
        await child.group_empty

    check(scenario, world.kernel)


@pytest.mark.parametrize("leads", [True, False], ids=["its leader", "what its leader left"])
@pytest.mark.parametrize("asked", [True, False], ids=["at a stop", "at its end"])
def test_a_groups_number_that_was_used_again(leads: bool, asked: bool, world: World) -> None:
    """The last of the unit has left the group, which nobody was told; then the number is a stranger's group."""

    async def scenario(children: Children) -> None:
        child = world.unit(children)
        number = child.pid
        member = world.fork(number)
        world.exit(number, 0)
        await child.exited
        assert not child.group_empty.done()
        world.setsid(member)
        world.take(number, child.started)
        stranger = number
        if not leads:
            stranger = world.fork(number)
            world.exit(number, 0)
            world.reap(number)
        if asked:
            children.signal_all(child, signal.SIGKILL)
        else:
            world.exit(member, 0)
        await child.group_empty
        children.signal_all(child, signal.SIGKILL)
        assert world.kernel.is_running(stranger)

    check(scenario, world.kernel)
