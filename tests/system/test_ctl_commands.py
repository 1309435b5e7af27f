"""parsupctl's commands about a unit's life: why, wait, Ctrl-C, show, kill, top, leaks, and ten shells at once."""

import json
import os
import signal

import pytest
from parsupctl_process import Controlled, StartDaemon
from support import wait_until

from workerlib.core.daemonizing import Killed
from workerlib.shell import process

NULL = 'stdout = "null"\nstderr = "null"\n'

CONFIG = f"""
[unit.web]
type = "simple"
exec = ["/bin/sleep", "1000"]
description = "A web server"
{NULL}
[unit.broken]
type = "simple"
exec = ["/bin/sh", "-c", "echo one; echo two; echo three >&2; exit 3"]
restart = "no"
stdout = "file"

[unit.killed]
type = "simple"
exec = ["/bin/sh", "-c", "kill -KILL $$"]
restart = "no"
{NULL}
[unit.slow]
type = "oneshot"
exec = ["/bin/sleep", "1000"]
enabled = false
{NULL}
"""


@pytest.fixture(scope="module")
def running(daemon: StartDaemon) -> Controlled:
    """One daemon for the tests that leave it as it was."""
    found = daemon(CONFIG)
    assert found.ctl("wait", "broken", "killed", "--for", "failed", "--timeout", "20").returncode == 0
    return found


def test_why_tells_everything_about_a_run(running: Controlled) -> None:
    """Kind, code, signal, core, memory, duration, decision with reason, and the last lines that it wrote."""
    (info,) = json.loads(running.ctl("why", "broken", "--json").stdout)
    (run,) = info["incarnations"]
    assert (run["kind"], run["code"], run["signal"], run["cause"]) == ("exited", 3, None, "exited with 3")
    assert (run["core_dumped"], run["oom_killed"], run["stack"]) == (False, False, [])
    assert 0 <= run["duration_s"] < 10
    assert (run["restarted"], run["reason"], run["next_attempt_at"]) == (False, "restart=no and it exited with 3", None)
    assert sorted(line["message"] for line in run["log"]) == ["one", "three", "two"]
    text = running.ctl("why", "broken", "--lines", "1").stdout
    assert len(text.partition("    its last lines:\n")[2].partition("  what happened")[0].splitlines()) == 1
    (killed,) = json.loads(running.ctl("why", "killed", "--json").stdout)
    (run,) = killed["incarnations"]
    assert (run["kind"], run["code"], run["signal"]) == ("signaled", None, "SIGKILL")


def test_a_core_that_was_dumped_is_known() -> None:
    """From what waitid tells, and from a status in the form of wait."""
    dumped = os.waitid_result((1, 0, signal.SIGCHLD, signal.SIGSEGV, os.CLD_DUMPED))
    killed = os.waitid_result((1, 0, signal.SIGCHLD, signal.SIGSEGV, os.CLD_KILLED))
    assert process.exit_cause(dumped) == Killed(signal.SIGSEGV, core_dumped=True)
    assert process.exit_cause(killed) == Killed(signal.SIGSEGV, core_dumped=False)


def test_wait_ends_when_a_unit_has_failed_for_good(running: Controlled) -> None:
    """At once, with status 1 and the reason, also when it fails only later; who waits for `failed` is served."""
    for state in ("active", "inactive"):
        done = running.ctl("wait", "web", "broken", "--for", state)
        assert done.returncode == 1
        assert done.stderr == "parsupctl: broken@1 has failed for good: restart=no and it exited with 3\n"


def test_ctrl_c_ends_the_waiting_only(running: Controlled) -> None:
    """Status 130, and it is said that parsupd goes on: the start is still under way."""
    with running.start_ctl("start", "slow") as waiting:
        wait_until(lambda: running.daemon.ask("status", ["slow"])[0]["sub_state"] == "starting")
        waiting.send_signal(signal.SIGINT)
        _, said = waiting.communicate(timeout=10)
    assert (waiting.returncode, said) == (130, "parsupctl: interrupted; parsupd goes on starting them\n")
    assert running.daemon.ask("status", ["slow"])[0]["sub_state"] == "starting"
    assert running.ctl("stop", "slow").returncode == 0


def test_a_daemon_that_hangs_is_not_waited_for(running: Controlled) -> None:
    """A command with a deadline ends in time with status 1 or 69, although the daemon was stopped."""
    running.daemon.process.send_signal(signal.SIGSTOP)
    try:
        done = running.ctl("--timeout", "0.3", "status", "--timeout", "0.3")
    finally:
        running.daemon.process.send_signal(signal.SIGCONT)
    assert done.returncode in {1, 69}
    assert "parsupctl: " in done.stderr
