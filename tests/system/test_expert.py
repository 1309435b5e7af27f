"""The Expert way: command lines of one's own, the manual path, and each thing that is refused on it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from workerlib import UsageError, expert
from workerlib.core.config import MARKER
from workerlib.shell.program import program_command

PROGRAM = Path(__file__).parent / "programs" / "own_command_line.py"


def run_program(*arguments: str, **options: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, **options)


def said(*arguments: str) -> list[str]:
    done = run_program(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("path", ["worker", "deep down internal worker", ""])
def test_the_worker_command_may_be_at_any_path(path: str) -> None:
    """worker_command_args are the words of the worker's command line, then who started whom, then its name; its own
    workers are started in the same way."""
    words = [repr(word) for word in path.split()]
    lineage = r"'child-of-\d+@\S+'"
    worker, nested = said("master", "simple", "named", *path.split())
    for line, name in ((worker, "adder"), (nested, "inner")):
        assert re.fullmatch(rf"\[{', '.join([*words, lineage, repr(name)])}\] 3", line)


def test_the_name_can_be_left_out() -> None:
    """With pass_name=False, for a command line that would not know what to do with it."""
    for line in said("master", "simple", "unnamed", "worker"):
        assert re.fullmatch(r"\['worker', 'child-of-\d+@\S+'\] 3", line)


def test_the_manual_path() -> None:
    """worker_init_before_async and then start_worker_server: what worker_command does, by hand."""
    for line in said("master", "manual", "named", "by-hand"):
        assert re.fullmatch(r"\['by-hand', 'child-of-\d+@\S+', '(adder|inner)'\] 3", line)


@pytest.mark.parametrize(
    ("mistake", "complaint"),
    [
        ("loop", "cannot daemonize inside a running event loop"),
        ("thread", r"cannot daemonize: 2 threads run \(MainThread, Thread-1 "),
        ("stdin", r"was stdin read before worker_init_before_async\(\)\?"),
        ("twice", "this process was not spawned as a worker"),
        ("master", "this process has called start_master_server: it cannot be a worker of another master too"),
        ("explicit", r"this process is a spawned worker: it cannot call start_master_server \(it can spawn, though\)"),
    ],
)
def test_a_worker_that_does_things_in_the_wrong_order_says_so(mistake: str, complaint: str) -> None:
    """On the stderr of its spawner, in SpawnError, and no process is left."""
    (line,) = said("master", mistake, "named", "by-hand", mistake)
    assert re.search(complaint, line), line


def test_a_process_that_was_not_spawned_is_no_worker() -> None:
    """Neither the simple nor the manual way lets a person start one."""
    for arguments in (["worker"], ["by-hand"]):
        done = run_program(*arguments)
        assert done.returncode == 1
        assert "this process was not spawned as a worker: workers are started with Worker.spawn" in done.stderr


def test_a_marker_alone_makes_no_worker() -> None:
    """Without a configuration on stdin it says what is missing."""
    done = run_program("by-hand", env={**os.environ, MARKER: "1"}, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert "no worker configuration on stdin" in done.stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("worker", "worker_command_args is a list of words, not one text: 'worker'"),
        (["a\0"], "one of worker_command_args cannot hold a NUL"),
        ([3], "one of worker_command_args must be text, not 3"),
    ],
)
def test_words_that_no_command_line_can_hold_are_refused(words: object, complaint: str) -> None:
    """Before anything is started."""
    coroutine = expert.start_master_server(worker_command_args=words)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=complaint):
        coroutine.send(None)


@pytest.mark.parametrize(
    ("orig", "argv", "expected"),
    [
        (["python", "-X", "dev", "tool.py", "a", "b"], ["tool.py", "a", "b"], ["-X", "dev", "tool.py"]),
        (["python", "-m", "tool", "a"], ["/x/tool.py", "a"], ["-m", "tool"]),
        (["python", "/venv/bin/tool"], ["/venv/bin/tool"], ["/venv/bin/tool"]),
    ],
)
def test_a_program_is_started_again_as_it_was(
    orig: list[str], argv: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its interpreter with its options, its script or module, and other words in the place of its arguments."""
    monkeypatch.setattr(sys, "orig_argv", orig)
    monkeypatch.setattr(sys, "argv", argv)
    command = program_command("worker")
    assert command.argv == (sys.executable, *expected, "worker")
    assert command.cwd == os.getcwd()


@pytest.mark.parametrize("argv", [[""], ["-"], []])
def test_a_program_without_a_file_cannot_be_started_again(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Typed in, or read from stdin."""
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(UsageError, match="read from stdin, so it cannot be started again"):
        program_command()
