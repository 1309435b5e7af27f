"""parsupctl's commands about a unit's life: why, wait, Ctrl-C, show, kill, top, leaks, and ten shells at once."""

import json
import os
import re
import signal
import subprocess
import tomllib
from contextlib import ExitStack
from pathlib import Path

import pytest
from parsupctl_process import Controlled, StartDaemon
from parsupd_process import PARSUPD
from support import wait_until

from workerlib import blocking
from workerlib.core.daemonizing import Killed
from workerlib.shell import process

PROGRAMS = Path(__file__).parent / "programs"
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
[unit.adder]
type = "worker"
worker = "workers:Sum"
working_directory = {str(PROGRAMS)!r}
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


# show, kill, leaks, top


def test_show_prints_a_unit_file(running: Controlled, tmp_path: Path) -> None:
    """What is set, then what is not as comments, with the file that it comes from; it is a configuration again."""
    text = running.ctl("show", "web").stdout
    lines = text.splitlines()
    assert re.fullmatch(r"# /.*/parsupd\.toml", lines[0])
    assert 'description = "A web server"' in lines
    assert "# restart_sec = 0.1" in lines
    assert tomllib.loads(text)["unit"]["web"]["exec"] == ["/bin/sleep", "1000"]
    (tmp_path / "again.toml").write_text(text.replace("# restart_sec", "restart_sec"))
    checked = [PARSUPD, "--check", "--config", str(tmp_path / "again.toml")]
    assert subprocess.run(checked, capture_output=True, check=True, timeout=30)


def test_show_json_has_keys_defaults_and_instances(running: Controlled) -> None:
    """Stable names; what only other types have is not there."""
    found = json.loads(running.ctl("show", "adder", "--json").stdout)
    assert list(found) == ["unit", "source", "transient", "keys", "defaults", "instances"]
    assert found["keys"]["worker"] == "workers:Sum"
    assert "exec" not in found["keys"]
    assert "restart" in found["defaults"]
    assert [one["name"] for one in found["instances"]] == ["adder@1"]
    assert json.loads(running.ctl("show", "slow", "--json").stdout)["keys"]["timeout_start_sec"] == "inf"
    assert running.ctl("show", "wep").returncode == 4


def test_kill_leaves_the_rest_to_the_policy(running: Controlled) -> None:
    """The process gets the signal, and a successor comes; 3 where there is no process, 2 for what is no signal."""
    (before,) = running.daemon.ask("status", ["web"])
    assert running.ctl("kill", "web", "-s", "kill").returncode == 0
    wait_until(lambda: running.daemon.ask("status", ["web"])[0]["generation"] > before["generation"])
    running.daemon.ask("wait", ["web"], "active", 20)
    (info,) = json.loads(running.ctl("why", "web", "--json", "--lines", "0").stdout)
    assert info["incarnations"][-1]["signal"] == "SIGKILL"
    done = running.ctl("kill", "broken", "web", "-s", "CONT", "--json")
    assert (done.returncode, done.stderr) == (3, "parsupctl: no process: broken@1\n")
    assert [one["signalled"] for one in json.loads(done.stdout)] == [False, True]
    assert running.ctl("kill", "web", "--main", "-s", "SIGCONT").returncode == 0
    assert running.ctl("kill", "web", "-s", "SIGNOTHING").returncode == 2
    assert running.ctl("kill", "wep").returncode == 4


def test_leaks_finds_what_belongs_to_no_run(running: Controlled) -> None:
    """A process with the token of this parsupd and an instance and generation that nobody runs: listed, with status 1."""
    assert (running.ctl("leaks").stdout, running.ctl("leaks", "--json").stdout) == ("", "[]\n")
    token = running.daemon.ask("info")["token"]
    mark = {"PARSUP_TOKEN": token, "PARSUP_UNIT": "web", "PARSUP_INSTANCE": "1", "PARSUP_GENERATION": "999"}
    with subprocess.Popen(["sleep", "998"], env={**os.environ, **mark}) as left:
        try:
            done = running.ctl("leaks", "--json")
            (row,) = json.loads(done.stdout)
            assert done.returncode == 1
            assert (row["pid"], row["instance"], row["generation"]) == (left.pid, "web@1", 999)
            assert row["command"] == ["sleep", "998"]
            assert str(left.pid) in running.ctl("leaks").stdout
        finally:
            left.kill()
    assert running.ctl("leaks").returncode == 0


def test_top_once_for_scripts(running: Controlled) -> None:
    """One array; memory and time of what runs, calls of workers, nothing of what is down."""
    running.daemon.ask("wait", ["adder"], "active", 20)
    uri = running.daemon.ask("status", ["adder"])[0]["uri"]
    with blocking.connect(uri) as worker:
        worker.call("add", 1)
        worker.call("add", 1)
    rows = {row["name"]: row for row in json.loads(running.ctl("top", "-n", "1", "--json").stdout)}
    assert list(rows["adder@1"]) == [
        "name", "state", "pid", "processes", "cpu_percent", "cpu_s", "rss", "restarts", "calls",
    ]  # fmt: skip
    assert rows["adder@1"]["calls"] == 2
    assert rows["adder@1"]["cpu_s"] > 0
    assert rows["adder@1"]["rss"] > 1 << 20
    assert rows["web@1"]["processes"] == 1
    assert (rows["slow@1"]["processes"], rows["slow@1"]["rss"], rows["slow@1"]["calls"]) == (0, 0, None)
    lines = running.ctl("top", "adder").stdout.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "PID", "CPU%", "RSS", "RESTARTS", "CALLS"]
    assert lines[1].startswith("adder@1")
    assert len(running.ctl("top", "-n", "2", "--delay", "0.1", "--json").stdout.splitlines()) == 2


def test_a_daemon_that_hangs_is_not_waited_for(running: Controlled) -> None:
    """A command with a deadline ends in time with status 1 or 69, although the daemon was stopped."""
    running.daemon.process.send_signal(signal.SIGSTOP)
    try:
        done = running.ctl("--timeout", "0.3", "status", "--timeout", "0.3")
    finally:
        running.daemon.process.send_signal(signal.SIGCONT)
    assert done.returncode in {1, 69}
    assert "parsupctl: " in done.stderr


# Ten shells at once


def test_ten_shells_at_once_do_not_disturb_each_other(running: Controlled) -> None:
    """Commands on the same and on other units, all at the same time: none is refused, hangs, or sees half of a thing."""
    commands = [
        ["restart", "web"], ["restart", "web@1"], ["start", "web"], ["kill", "web", "-s", "CONT"], ["status", "--json"],
        ["why", "web", "--json", "--lines", "0"], ["events", "-n", "5", "--json"], ["scale", "slow=2"],
        ["run", "--wait", "-p", "stdout=null", "--", "true"], ["restart", "adder"],
    ]  # fmt: skip
    with ExitStack() as stack:
        shells = [stack.enter_context(running.start_ctl(*command)) for command in commands]
        ended = [(shell.communicate(timeout=60), shell.returncode) for shell in shells]
    for command, ((_, said), status) in zip(commands, ended, strict=True):
        # A signal may find the process of `web` between two runs: then it says so.
        assert status in ({0, 3} if command[0] == "kill" else {0}), (command, said)
    assert running.ctl("scale", "slow=1").returncode == 0
    assert {info["state"] for info in running.daemon.ask("status", ["web", "adder"])[:2]} == {"active"}
    assert len([info for info in running.daemon.ask("status") if info["unit"] == "web"]) == 1


def test_a_unit_that_does_not_end_holds_up_nobody(daemon: StartDaemon) -> None:
    """While one waits for a unit that ignores its stop, others are served, and its own waiting has a limit."""
    config = (
        '[unit.deaf]\ntype = "simple"\ntimeout_stop_sec = 60\nstdout = "null"\n'
        'exec = ["/bin/sh", "-c", "trap : TERM; echo > ready; while :; do sleep 0.05; done"]\nworking_directory = "."\n'
        f'[unit.web]\ntype = "simple"\nexec = ["/bin/sleep", "1000"]\n{NULL}'
    )
    running = daemon(config)
    folder = Path(running.ctl("show", "deaf", "--json").stdout.partition('"source":"')[2].partition('"')[0]).parent
    wait_until((folder / "ready").exists)
    with running.start_ctl("stop", "deaf") as waiting:
        wait_until(lambda: running.daemon.ask("status", ["deaf"])[0]["sub_state"] == "stopping")
        done = running.ctl("stop", "deaf", "--timeout", "0.2")
        assert (done.returncode, done.stderr) == (1, "parsupctl: not within 0.2 s: deaf@1 (stopping)\n")
        assert running.ctl("restart", "web").returncode == 0
        assert running.ctl("kill", "deaf", "-s", "KILL").returncode == 0
        waiting.communicate(timeout=20)
    assert waiting.returncode == 0
    running.stop()
