"""The daemon's reaper and its process groups, with real processes."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from reaping import check
from support import alive, process_state, wait_until
from support import children as own_children

from parsupd.shell import leftovers
from parsupd.shell.children import Child, Children
from workerlib.core.daemonizing import Exited, Killed
from workerlib.shell import process
from workerlib.shell.loop import run

SH = "/bin/sh"


def shell(children: Children, script: str, **environment: str) -> Child:
    return children.spawn(
        [SH, "-c", script], env={**os.environ, **environment}, cwd="/", umask=None, stdout=2, stderr=2
    )


def test_exit_codes_and_signals_are_exact() -> None:
    """A child's exit is told once, with its code or signal, and its group is empty then."""

    async def scenario(children: Children) -> None:
        for script, cause in (("exit 7", Exited(7)), ("kill -SEGV $$", Killed(signal.SIGSEGV)), ("exit 0", Exited(0))):
            child = shell(children, script)
            assert await child.exited == cause
            await child.group_empty

    check(scenario)


def test_each_child_has_its_own_session_and_null_stdin() -> None:
    """A unit's main process leads a session and a process group of its own, with stdin on /dev/null."""

    async def scenario(children: Children) -> None:
        child = shell(children, "sleep 600")
        assert os.getsid(child.pid) == os.getpgid(child.pid) == child.pid
        assert os.readlink(f"/proc/{child.pid}/fd/0") == "/dev/null"
        children.signal_all(child, signal.SIGKILL)
        assert await child.exited == Killed(signal.SIGKILL)
        await child.group_empty

    check(scenario)


def test_a_group_is_empty_only_when_its_last_member_has_gone() -> None:
    """The main process ends, a grandchild lives on: group_empty waits for it, and the signal still reaches it."""

    async def scenario(children: Children) -> None:
        child = shell(children, "sleep 600 & exit 3")
        assert await child.exited == Exited(3)
        await asyncio.sleep(0.05)
        assert not child.group_empty.done()
        children.signal_all(child, signal.SIGTERM)
        await child.group_empty
        children.signal_all(child, signal.SIGTERM)  # nobody is there: nothing happens

    check(scenario)


def test_orphans_are_reaped() -> None:
    """An orphan that left its group becomes a child of the daemon; when it ends, no zombie of it stays."""

    async def scenario(children: Children) -> None:
        known = own_children()
        child = shell(children, "setsid sh -c 'exec sleep 0.2' & exit 0")
        await child.exited
        while not (orphans := own_children() - known):
            await asyncio.sleep(0.01)
        while own_children() & orphans:
            await asyncio.sleep(0.01)

    check(scenario)


SETSID_AND_EXIT = """out=$(mktemp -u); mkfifo $out
setsid sh -c "echo >$out; exec sleep 600" & read line <$out; rm $out"""


def test_a_process_that_leaves_its_group_late_is_not_waited_for(tmp_path: Path) -> None:
    """A member of the group that makes a session of its own after the main process has exited leaves the group empty."""

    async def scenario(children: Children) -> None:
        go = tmp_path / "go"
        os.mkfifo(go)
        member = f"import os; open({str(go)!r}).read(); os.setsid(); open({str(go)!r}).read()"
        child = children.spawn(
            [SH, "-c", f'{sys.executable} -c "{member}" & exit 0'],
            env=os.environ,
            cwd="/",
            umask=None,
            stdout=2,
            stderr=2,
        )
        await child.exited
        assert not child.group_empty.done()
        go.write_text("")  # opened by the member, whose setsid follows
        while process_group_exists(child.group):
            await asyncio.sleep(0.01)
        children.signal_all(child, signal.SIGTERM)
        await child.group_empty
        go.write_text("")

    check(scenario)


def process_group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_strays_that_left_their_group_are_ended() -> None:
    """A process that made a session of its own is found by its token, and ended."""

    async def scenario(children: Children) -> None:
        token = f"test:{os.getpid()}"
        child = shell(children, SETSID_AND_EXIT, **{leftovers.TOKEN: token})
        await child.exited
        await child.group_empty
        while not (found := leftovers.find(token)):
            await asyncio.sleep(0.01)
        assert await children.end_strays(lambda pid: leftovers.carries(pid, token), within_s=5) == [
            one.pid for one in found
        ]
        assert not leftovers.find(token)

    check(scenario)


def test_leftovers_of_a_killed_daemon_are_ended_by_token() -> None:
    """Processes with the token are found whoever their parent is; others, and our own ancestors, are not touched."""
    token = f"test:{os.getpid()}:leftover"
    ours = subprocess.Popen(["sleep", "600"], env={leftovers.TOKEN: token})
    other = subprocess.Popen(["sleep", "600"], env={leftovers.TOKEN: f"{token}x"})
    try:
        assert run(leftovers.end(leftovers.find(token))) == [ours.pid]
        assert ours.wait() == -signal.SIGTERM
        assert alive(other.pid)
    finally:
        other.kill()
        other.wait()


def test_leftovers_that_ignore_sigterm_are_killed() -> None:
    """A leftover that does not end on SIGTERM gets SIGKILL after the given time."""
    token = f"test:{os.getpid()}:stubborn"
    stubborn = subprocess.Popen(
        [SH, "-c", "trap '' TERM; echo ready; sleep 600 & wait; wait"],
        env={**os.environ, leftovers.TOKEN: token},
        stdout=subprocess.PIPE,
    )
    assert stubborn.stdout is not None
    stubborn.stdout.readline()
    stubborn.stdout.close()
    wait_until(lambda: len(leftovers.find(token)) == 2, what="the shell and its sleep")
    assert stubborn.pid in run(leftovers.end(leftovers.find(token), within_s=0.2))
    assert stubborn.wait() == -signal.SIGKILL
    assert not leftovers.find(token)


def test_a_program_that_cannot_be_executed_is_told_by_its_path() -> None:
    """A missing program, a directory and a missing working directory raise OSError that names them."""

    async def scenario(children: Children) -> None:
        for argv, cwd, named in (
            (["/no/such/program"], "/", "/no/such/program"),
            (["/etc"], "/", "/etc"),
            (["/bin/true"], "/no/such/dir", "/no/such/dir"),
        ):
            with pytest.raises(OSError, match=named):
                children.spawn(argv, env={}, cwd=cwd, umask=None, stdout=2, stderr=2)

    check(scenario)


def test_units_get_the_usual_limit_of_descriptors() -> None:
    """The daemon raises its own soft limit of open files; its children have the one that it was started with."""
    script = f"""
import asyncio, resource, sys
sys.path[:] = {sys.path!r}
from parsupd.shell.children import Children
async def main():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    children = Children()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    child = children.spawn(["/bin/sh", "-c", "sleep 0.3; ulimit -n >&2"], env={{}}, cwd="/", umask=None, stdout=2, stderr=2)
    await child.exited
asyncio.run(main())
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "512"


def test_a_thousand_short_lived_children_leave_no_zombie() -> None:
    """1000 children that end at once are all reaped, each with its own status."""

    async def scenario(children: Children) -> None:
        batch = [shell(children, f"exit {number % 256}") for number in range(200)]
        for number, child in enumerate(batch):
            assert await child.exited == Exited(number % 256)
            await child.group_empty

    for _ in range(5):
        check(scenario)


def test_how_a_process_ended_that_somebody_else_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A zombie says it itself; of one that was reaped the pidfd knows it, and on older kernels nobody does."""
    child = subprocess.Popen(["sh", "-c", "exit 3"])
    pidfd, started = os.pidfd_open(child.pid), process.start_time(child.pid)
    try:
        wait_until(lambda: process_state(child.pid) == "Z")
        assert process.strangers_exit_cause(child.pid, started, pidfd) == Exited(3)
        child.wait()
        if tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) >= (6, 15):
            assert process.strangers_exit_cause(child.pid, started, pidfd) == Exited(3)
        monkeypatch.setattr(process, "_PIDFD_GET_INFO", 0xC040FF7F)  # what no kernel knows, as an old one this
        assert process.strangers_exit_cause(child.pid, started, pidfd) is None
    finally:
        os.close(pidfd)
