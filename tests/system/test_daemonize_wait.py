"""daemonize_wait with real processes: `programs/daemonize_program.py` daemonizes itself, the tests are its launcher.

Not tested here: a kernel without pidfd_open (before 5.3); a foreground process that dies in the few instructions between
the release and its own exit; a helper that hangs (a working directory on a dead network file system).
"""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import alive, children, process_state, wait_until
from tracer import tracing

from workerlib.shell import detach, process

PROGRAM = Path(__file__).parent / "programs" / "daemonize_program.py"
BOUND_S = 20.0
MARK = "DAEMONIZE_TEST"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changing users and pid namespaces need root")


def _default_signals() -> None:
    """Under nohup, or in the background of a shell, the tests inherit an "ignore", which their programs would get, too."""
    for signum in detach.PASSED_ON:
        signal.signal(signum, signal.SIG_DFL)


class Program:
    """One run of the program: the foreground process, and all that comes of it."""

    def __init__(
        self, folder: Path, scenario: str, *arguments: str, prefix: tuple[str, ...] = (), **popen: Any
    ) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.seen: set[tuple[int, int]] = set()
        popen.setdefault("stdin", subprocess.DEVNULL)
        popen.setdefault("stdout", subprocess.PIPE)
        popen.setdefault("stderr", subprocess.PIPE)
        popen.setdefault("preexec_fn", _default_signals)
        self.foreground = subprocess.Popen(
            [*prefix, sys.executable, str(PROGRAM), scenario, str(folder), *arguments],
            env={**os.environ, MARK: self.mark, "PYTHONUNBUFFERED": ""},
            **popen,
        )

    def wait(self) -> int:
        """The foreground's exit status as a shell reports it."""
        status = self.foreground.wait(BOUND_S)
        return 128 - status if status < 0 else status

    def finish(self) -> tuple[int, str, str]:
        """Exit status, stdout and stderr, both read to their ends."""
        out, err = self.foreground.communicate(timeout=BOUND_S)
        status = self.wait()
        return status, (out or b"").decode(), (err or b"").decode()

    def line(self) -> str:
        """The next line of stderr; blocks."""
        assert self.foreground.stderr is not None
        return self.foreground.stderr.readline().decode().rstrip("\n")

    def report(self, name: str) -> Any:
        """What the program wrote in the file, once it is there."""
        return json.loads(wait_until(lambda: self._read(name), within_s=BOUND_S, what=f"the report {name}"))

    def _read(self, name: str) -> bytes:
        path = self.folder / name
        return path.read_bytes() if path.exists() else b""

    def open_gate(self, gate: str) -> None:
        """Lets the process go on that stopped at the gate."""
        self.report(gate)
        fd = wait_until(lambda: self._writer(gate), within_s=BOUND_S, what=f"a process at {gate}")
        os.write(fd, b"x")
        os.close(fd)

    def _writer(self, gate: str) -> int:
        try:
            return os.open(self.folder / f"{gate}.fifo", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return 0

    def survivors(self) -> set[int]:
        """Every living process that descends from the program, found by the environment that it inherited.

        A process that is about to end has no environment any more, so that it is remembered.
        """
        wanted = f"{MARK}={self.mark}".encode()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and wanted in (entry / "environ").read_bytes():
                    self.seen.add((int(entry.name), process.start_time(int(entry.name))))
        return {pid for pid, started in self.seen if alive(pid) and self._started(pid) == started}

    def _started(self, pid: int) -> int:
        with contextlib.suppress(ProcessLookupError):
            return process.start_time(pid)
        return 0

    def gone(self) -> None:
        """Every process of the program has ended."""
        wait_until(lambda: not self.survivors(), within_s=BOUND_S, what="all processes of the program have ended")

    def close(self) -> None:
        while left := self.survivors():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.foreground.wait(BOUND_S)
        for stream in (self.foreground.stdout, self.foreground.stderr):
            if stream is not None:
                stream.close()


Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    programs: list[Program] = []

    def begin(scenario: str, *arguments: str, **popen: Any) -> Program:
        programs.append(Program(tmp_path, scenario, *arguments, **popen))
        return programs[-1]

    yield begin
    for program in programs:
        program.close()


def released(program: Program) -> dict[str, Any]:
    """The daemon's facts, of a program that must be released and end."""
    status, _, err = program.finish()
    assert (status, err) == (0, "")
    program.gone()
    return program.report("facts")


# The promise.


def test_the_caller_is_held_until_the_release(start: Start) -> None:
    """The foreground process lives while the daemon is held, exits 0 when released, and the daemon goes on."""
    program = start("held")
    assert program.line() == "held"
    daemon = program.report("announced")
    assert program.foreground.poll() is None
    program.open_gate("announced")
    assert program.finish() == (0, "", "")
    program.gone()
    assert not alive(daemon)
    assert (program.folder / "err").read_text() == "late\n"


def test_stderr_is_live_before_the_release_and_silent_after(start: Start) -> None:
    """Each line arrives while the daemon is stopped right behind it; after the release stderr ends, without a byte."""
    program = start("live")
    for number in range(3):
        assert program.line() == f"line {number}"
        program.open_gate(f"line{number}")
    assert program.finish() == (0, "", "")
    program.gone()
    assert (program.folder / "err").read_text() == "late\n"


def test_stdout_is_blackholed_until_the_release(start: Start) -> None:
    """What was printed before daemonizing is seen once; until the release nothing is, buffered or not; then the file is."""
    program = start("output")
    assert program.finish() == (0, "from before\n", "")
    program.gone()
    assert (program.folder / "out").read_text() == "heard\n"
    assert (program.folder / "err").read_text() == "error\n"


@pytest.mark.parametrize(("kind", "kept"), [("append", "old\n"), ("truncate", "")])
def test_append_keeps_and_truncate_empties(start: Start, tmp_path: Path, kind: str, kept: str) -> None:
    """`append` adds to what the files held, `truncate` empties them first."""
    for name in ("out", "err"):
        (tmp_path / name).write_text("old\n")
    program = start("redirect", kind, "err")
    assert program.finish() == (0, "", "")
    program.gone()
    for name in ("out", "err"):
        assert (tmp_path / name).read_text() == kept + "".join(f"{name} {number}\n" for number in range(3))


@pytest.mark.parametrize("kind", ["append", "truncate"])
@pytest.mark.parametrize("spelling", ["out", "../{folder}/out"])
def test_both_streams_may_share_a_file(start: Start, tmp_path: Path, kind: str, spelling: str) -> None:
    """stdout and stderr in one file, also when they name it differently, never overwrite each other's lines."""
    program = start("redirect", kind, spelling.format(folder=tmp_path.name))
    assert program.finish() == (0, "", "")
    program.gone()
    assert (tmp_path / "out").read_text() == "out 0\nerr 0\nout 1\nerr 1\nout 2\nerr 2\n"


def test_a_relative_redirect_is_under_the_working_directory(start: Start) -> None:
    """A relative path is resolved in the daemon's `cd`; `dev_null` swallows."""
    program = start("relative_redirect")
    assert program.finish() == (0, "", "")
    program.gone()
    assert (program.folder / "out").read_text() == "heard\n"


@pytest.mark.parametrize(
    ("how", "status"),
    [("7", 7), ("1", 1), ("255", 255), ("raise", 1), ("SIGKILL", 137), ("SIGSEGV", 139), ("SIGTERM", 143)],
)
def test_the_exit_status_before_the_release_is_the_daemons(start: Start, how: str, status: int) -> None:
    """The foreground process ends with exactly the daemon's status, 128+signal for a signal."""
    program = start("end", how)
    found, _, err = program.finish()
    assert found == status
    assert ("LookupError: nothing found" in err) == (how == "raise")
    program.gone()


def test_status_0_without_a_release_is_a_failure(start: Start) -> None:
    """A daemon that exits 0 before it released its caller is not taken for a success: 70, and stderr says why."""
    said = "daemonize_wait: the daemon ended with status 0 before it released its caller\n"
    assert start("end", "0").finish() == (70, "", said)


def test_a_grandchild_that_holds_pipe_and_stderr_does_not_hold_the_caller(start: Start) -> None:
    """The daemon's end is seen at once though a child forked without exec keeps the pipe and stderr open; which is then
    ended, as all that came of a daemon that was not released."""
    program = start("grandchild")
    grandchild = program.report("grandchild")
    links = [str(fd.readlink()) for fd in Path(f"/proc/{grandchild}/fd").iterdir()]
    one_end = [link for link in links if link.startswith("pipe:") and links.count(link) == 1]
    assert len(one_end) == 2, "the release pipe and stderr"
    program.open_gate("daemon")
    assert program.wait() == 7
    assert program.survivors() == set()


def test_orphans_of_the_daemon_are_reaped_and_mean_nothing(start: Start) -> None:
    """Grandchildren re-parented to the foreground process leave no zombie there, and their exits are not the daemon's."""
    program = start("orphans")
    for orphan in program.report("orphans"):
        wait_until(lambda orphan=orphan: process_state(orphan) is None, within_s=BOUND_S)
    wait_until(lambda: children(program.foreground.pid) == {program.report("daemon")}, within_s=BOUND_S)
    program.open_gate("daemon")
    assert program.finish() == (0, "", "")
    program.gone()


def test_children_from_before_mean_nothing(start: Start) -> None:
    """A child that the program had before it daemonized may fail meanwhile."""
    program = start("bystander")
    daemon = program.report("daemon")
    wait_until(lambda: children(program.foreground.pid) == {daemon}, within_s=BOUND_S)
    program.open_gate("daemon")
    assert program.finish() == (0, "", "")
    program.gone()


def test_no_exit_is_overlooked(start: Start) -> None:
    """A child that ends just after the foreground process has looked for such wakes it up again."""
    program = start("late_exit")
    daemon = program.report("daemon")
    program.foreground.send_signal(signal.SIGHUP)
    wait_until(lambda: children(program.foreground.pid) == {daemon}, within_s=BOUND_S)
    program.open_gate("daemon")
    assert program.finish() == (0, "", "")
    program.gone()


def test_a_release_is_not_overlooked_for_the_exit_behind_it(start: Start) -> None:
    """A daemon that releases its caller and ends at once has released it, also when the exit is seen first."""
    program = start("release_and_exit")
    program.report("daemon")
    program.foreground.send_signal(signal.SIGHUP)
    assert program.finish() == (0, "", "")


def test_a_signal_for_a_daemon_that_is_gone_when_it_is_announced(start: Start) -> None:
    """There is nobody to pass it on to, and no stored pid is signalled in its place."""
    assert start("all_at_once").finish() == (0, "", "")


def test_much_output_before_the_release(start: Start) -> None:
    """10 MiB on stderr arrive complete, and the pipe that fills up meanwhile blocks nothing but the daemon."""
    program = start("much")
    status, _, err = program.finish()
    assert (status, len(err)) == (0, 10 << 20)
    program.gone()


# What the daemon is.


def test_the_daemon_is_detached(start: Start) -> None:
    """Own session and process group, leader of neither, no terminal, child of the foreground, no fd but the streams and
    the release pipe, which is gone after the release."""
    program = start("terminal")
    facts = released(program)
    assert program.report("terminal") != 0
    assert facts["terminal"] == 0
    assert facts["session"] == facts["group"] not in {facts["pid"], program.foreground.pid, os.getsid(0)}
    assert facts["ppid"] == program.foreground.pid
    assert facts["fds"]["0"] == facts["fds"]["1"] == "/dev/null"
    assert [target for fd, target in facts["fds"].items() if int(fd) > 2 and target.startswith("pipe")]
    after = program.report("after")["fds"]
    assert after == {"0": "/dev/null", "1": str(program.folder / "out"), "2": str(program.folder / "err")}


def test_umask_is_kept(start: Start) -> None:
    """With umask None the daemon has the launched process's mask. Trap: python-daemon sets 0."""
    assert released(start("umask"))["umask"] == 0o151


def test_umask_and_working_directory_are_set(start: Start, tmp_path: Path) -> None:
    """`umask` and `cd` are the daemon's. Trap: python-daemon goes to / and masks nothing."""
    facts = released(start("arguments", json.dumps({"umask": 0o077, "cd": str(tmp_path)})))
    assert (facts["umask"], facts["cwd"]) == (0o077, str(tmp_path))
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600


def test_the_working_directory_is_the_root_by_default(start: Start) -> None:
    """Without `cd` the daemon works in /, and so keeps no file system busy."""
    assert released(start("facts_only"))["cwd"] == "/"


def test_a_missing_working_directory_is_named(start: Start) -> None:
    """A `cd` that is not there: status 71, and one line on stderr names it."""
    status, _, err = start("arguments", json.dumps({"cd": "/nowhere/at/all"})).finish()
    assert status == 71
    assert err.startswith("daemonize_wait: cannot detach: ")
    assert "'/nowhere/at/all'" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("who", ["first_child", "leader", "daemon"])
@pytest.mark.parametrize(("how", "status"), [("raise", 71), ("kill", 137)])
def test_a_failing_helper_is_a_failure(start: Start, who: str, how: str, status: int) -> None:
    """Whichever process fails on the way, the foreground ends with its status, its reason on stderr, and none is left."""
    program = start("failing", who, how)
    found, _, err = program.finish()
    assert found == status
    assert ("as the test wanted" in err) == (how == "raise")
    program.gone()


# Refusals.


@pytest.mark.parametrize(
    ("scenario", "reason"),
    [
        ("threads", "refused: cannot daemonize: 2 threads run (MainThread, other)"),
        ("loop", "refused: cannot daemonize inside a running event loop"),
        ("closed_descriptor", "refused: cannot preserve descriptor 77: Bad file descriptor"),
        ("no_fork", "failed: [Errno 11] no more processes"),
    ],
)
def test_refusals_come_before_the_fork(start: Start, scenario: str, reason: str) -> None:
    """With threads, in a running loop, for a descriptor that is not open, or without a process: an error, no process."""
    program = start(scenario)
    status, _, err = program.finish()
    assert status == 0
    assert err.startswith(reason)
    assert err.count("\n") == 1
    if scenario == "no_fork":
        assert program.report("same") == {}


def test_a_loop_that_has_ended_is_no_obstacle(start: Start) -> None:
    """asyncio may have been used before, as long as nothing of it runs."""
    released(start("after_a_loop"))


def test_releasing_twice_raises(start: Start) -> None:
    """The second release raises and changes neither stream."""
    program = start("twice")
    assert program.finish() == (0, "", "")
    program.gone()
    assert (program.folder / "first").read_text() == "refused: the caller was released before\n"
    assert not (program.folder / "err").exists()


def test_release_belongs_to_its_thread_and_process(start: Start) -> None:
    """Another thread could not take back the parent death signal, a forked child is not the daemon: both are refused, and
    the daemon survives the exit of the foreground process."""
    program = start("other_thread")
    status, _, err = program.finish()
    assert status == 0
    reason = "refused: release must be called in the process and thread that called daemonize_wait\n"
    assert err == reason * 2
    assert program.report("after")
    program.gone()


@pytest.mark.parametrize(("then", "expected"), [("fail", 1), ("caught", 70), ("again", 0)])
def test_a_redirect_that_cannot_be_opened_changes_nothing(
    start: Start, tmp_path: Path, then: str, expected: int
) -> None:
    """The error names the path on the caller's stderr, the other file is not truncated, and the release can be repeated
    with another redirect; a daemon that ends instead is a failure."""
    (tmp_path / "out").write_text("old\n")
    program = start("bad_redirect", then)
    status, _, err = program.finish()
    assert status == expected
    assert f"[Errno 2] No such file or directory: '{tmp_path}/missing/err'\nstdout is /dev/null\n" in err
    assert (tmp_path / "out").read_text() == "old\n"
    program.gone()


# No orphans.


@pytest.mark.parametrize(
    "stage", ["first_child", "leader_before_setsid", "leader", "daemon", "adopted", "protected", "announced", "cleared"]
)
def test_a_killed_foreground_leaves_nothing(start: Start, stage: str) -> None:
    """kill -9 of the foreground process, at each stage before the release: no process is left, and none goes on."""
    program = start("held") if stage == "announced" else start("stage", stage)
    program.report(stage)
    program.foreground.kill()
    assert program.wait() == 137
    wait_until(lambda: not program.survivors() or let_go(program, stage), within_s=BOUND_S)
    program.gone()
    assert not (program.folder / "escaped").exists()


def let_go(program: Program, gate: str) -> bool:
    """Opens the gate when a process waits at it; a killed one never comes to it."""
    fd = program._writer(gate)
    if fd:
        os.write(fd, b"x")
        os.close(fd)
    return bool(fd)


def test_a_killed_launcher_leaves_nothing(start: Start) -> None:
    """With `parent_pid`, kill -9 of the launcher ends the foreground process and the daemon."""
    launcher = start("launch")
    launcher.report("announced")
    assert len(launcher.survivors()) == 3
    launcher.foreground.kill()
    assert launcher.wait() == 137
    launcher.gone()


def test_a_killed_launcher_leaves_nothing_that_the_daemon_forked(start: Start) -> None:
    """Nor a child of the daemon, which knows neither launcher nor foreground process."""
    launcher = start("launch", "grandchild")
    launcher.report("grandchild")
    launcher.report("daemon")
    assert len(launcher.survivors()) == 4
    launcher.foreground.kill()
    assert launcher.wait() == 137
    launcher.gone()


def test_a_launcher_that_is_dead_already_is_noticed(start: Start) -> None:
    """A parent other than `parent_pid` means that the launcher died before it could be watched."""
    program = start("held", "1")
    assert program.finish() == (137, "", "")
    program.gone()


# Signals.


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("scenario", ["held", "handles"])
def test_signals_are_passed_on_to_the_daemon(start: Start, scenario: str, signum: signal.Signals) -> None:
    """SIGTERM, SIGINT and SIGHUP at the foreground process reach the daemon, which decides how both end.

    Trap: python-daemon makes SIGTERM raise SystemExit with a text, so that the status would be 1."""
    program = start(scenario)
    program.report("announced")
    program.foreground.send_signal(signum)
    status, _, err = program.finish()
    assert status == (5 if scenario == "handles" else 128 + signum)
    assert (f"got {signum.name}\n" in err) == (scenario == "handles")
    program.gone()


@pytest.mark.parametrize("stage", ["first_child", "leader", "daemon", "protected"])
def test_an_early_signal_is_kept_for_the_daemon(start: Start, stage: str) -> None:
    """A SIGTERM that comes before the daemon is known reaches it as soon as it is."""
    program = start("stage", stage, "hold")
    program.report(stage)
    program.foreground.send_signal(signal.SIGTERM)
    program.open_gate(stage)
    assert program.finish() == (143, "", "")
    program.gone()
    assert not (program.folder / "escaped").exists()


def test_the_foreground_process_of_a_traced_daemon_waits(start: Start) -> None:
    """It sleeps until the tracer has seen the daemon's end, and ends as the daemon did."""
    program = start("held")
    daemon, foreground = program.report("announced"), program.foreground.pid
    with tracing(daemon) as tracer:
        os.kill(daemon, signal.SIGKILL)
        wait_until(lambda: process_state(daemon) == "Z", what="it is a zombie")
        wait_until(lambda: {process_state(foreground) for _ in range(100)} == {"S"}, what="it sleeps")
        assert tracer.stdin is not None
        tracer.stdin.close()
        assert program.wait() == 128 + signal.SIGKILL


def test_ctrl_c_before_the_daemon_is_known(start: Start) -> None:
    """A terminal sends SIGINT to the whole group, helpers included: the daemon still comes, and gets it once."""
    program = start("stage", "first_child", "hold", start_new_session=True)
    program.report("first_child")
    os.killpg(program.foreground.pid, signal.SIGINT)
    program.open_gate("first_child")
    status, _, err = program.finish()
    assert status == 130
    assert err.count("KeyboardInterrupt\n") == 1
    program.gone()


def test_signal_handlers_and_mask_are_kept(start: Start) -> None:
    """The daemon finds every disposition and the mask as the program had them.

    Trap: python-daemon handles SIGTERM and ignores SIGTSTP, SIGTTIN and SIGTTOU."""
    program = start("signals")
    facts, before = released(program), program.report("before")
    for key in ("handlers", "blocked", "ignored"):
        assert facts[key] == before[key], key
    assert facts["handlers"]["SIGTERM"] == str(signal.SIG_DFL)


def test_an_ignored_sigchld_loses_no_child(start: Start) -> None:
    """A process that ignores SIGCHLD has its children reaped by the kernel; the foreground would wait for ever."""
    assert start("child_signal_ignored").finish() == (0, "", "")


# Streams.


@pytest.mark.parametrize("closed", [{0}, {1}, {2}, {0, 1, 2}])
def test_streams_that_are_closed_at_the_start(start: Start, closed: set[int]) -> None:
    """A program started without some of its streams is daemonized, released, and can print afterwards.

    Trap: python-daemon fails on a sys.stdin of None, and the release pipe would become one of the streams."""
    redirections = " ".join({0: "<&-", 1: ">&-", 2: "2>&-"}[fd] for fd in sorted(closed))
    program = start("facts_only", prefix=("/bin/sh", "-c", f'exec "$@" {redirections}', "sh"))
    assert released(program)["fds"]["0"] == "/dev/null"
    assert (program.folder / "out").read_text() == "printed\n"
    assert (program.folder / "err").read_text() == "complained\n"


def test_streams_that_are_sockets(start: Start) -> None:
    """Launched with sockets for streams, as inetd does, the program is detached like any other.

    Trap: python-daemon does not detach when stdin is a socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        facts = released(start("facts_only", stdin=theirs, stdout=theirs, stderr=theirs))
    assert facts["session"] not in {os.getsid(0), facts["pid"]}
    assert facts["fds"]["0"] == "/dev/null"


@pytest.mark.parametrize("scenario", ["no_stream_objects", "other_stream_objects"])
def test_stream_objects_of_the_programs_own(start: Start, scenario: str) -> None:
    """sys.stdout and sys.stderr may be any object; what is redirected are the descriptors 1 and 2.

    Trap: python-daemon asks the object for its descriptor, and points that one elsewhere."""
    program = start(scenario)
    status, _, err = program.finish()
    assert status == 0
    assert err == ("on descriptor 2\n" if scenario == "other_stream_objects" else "")
    program.gone()
    if scenario == "other_stream_objects":
        assert (program.folder / "log").read_text() == "in the log\n"


# Other traps of python-daemon.


@needs_root
def test_a_parent_with_pid_1_is_no_obstacle(start: Start) -> None:
    """As pid 1 of a container, the program is detached like any other.

    Trap: python-daemon does not detach when the parent is pid 1."""
    facts = released(start("facts_only", prefix=("unshare", "--pid", "--fork", "--mount-proc")))
    assert facts["ppid"] == 1
    assert facts["session"] == facts["group"] not in {1, facts["pid"]}


def test_preserved_descriptors_stay_and_others_go(start: Start) -> None:
    """`preserve_fds` stay open, the release pipe too, everything else is closed. Trap: python-daemon closes all three."""
    facts = released(start("preserve"))
    assert str(facts["writing"]) in facts["fds"]
    assert str(facts["other"]) not in facts["fds"]
    pipes = [target for fd, target in facts["fds"].items() if int(fd) > 2 and target.startswith("pipe:")]
    assert len(set(pipes)) == len(pipes) == 2, "the preserved one and the release pipe"


def test_descriptors_above_the_limit_are_closed(start: Start) -> None:
    """Trap: python-daemon closes only what is below the hard limit that held when it was imported."""
    assert "/dev/zero" not in released(start("high_descriptor"))["fds"].values()


def test_no_descriptor_is_leaked(start: Start) -> None:
    """Before the release the daemon has its streams and the pipe, and nothing else. Trap: python-daemon leaks one
    descriptor of /dev/null for each stream that it is not given."""
    fds = released(start("facts_only"))["fds"]
    assert [target for fd, target in fds.items() if int(fd) > 2 and not target.startswith("/proc/")] == [
        target for target in fds.values() if target.startswith("pipe:") and target != fds["2"]
    ]


def test_the_core_limit_is_kept(start: Start) -> None:
    """Trap: python-daemon sets the limit for core files to 0."""
    assert released(start("core"))["core"][0] == 4096 or resource.getrlimit(resource.RLIMIT_CORE)[1] == 0


@needs_root
@pytest.mark.parametrize("scenario", ["dropped", "raised"])
def test_user_and_group_ids_are_kept(start: Start, scenario: str) -> None:
    """Real, effective and saved ids and the supplementary groups stay, and closing descriptors works.

    Trap: python-daemon sets the ids from the real ones: a process that gave up root for a while gets it back."""
    status, _, err = start(scenario).finish()
    before, after, closed = err.splitlines()
    assert status == 0
    assert json.loads(before) == json.loads(after)
    assert closed == "failed: [Errno 9] Bad file descriptor"


def test_no_atexit_function_is_added_or_run_twice(start: Start) -> None:
    """Only the daemon runs the program's atexit functions and flushes its buffers. Trap: python-daemon registers one more."""
    program = start("exits")
    status, out, err = program.finish()
    assert (status, out, err) == (0, "once\n", "twice?\n")
    program.gone()
    facts, before = program.report("facts"), program.report("before")
    assert facts["contexts"] == before["contexts"] == 0
    assert [path.name for path in program.folder.glob("atexit.*")] == [f"atexit.{facts['pid']}"]
