"""What keys of unit files do to real processes: ends that count, start limits, commands' timeouts, oneshots, log files.

Keys with files of their own: see "Which test shows what parsupd promises" in tests/README.md.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_daemon import Daemon, Info, daemon, simple
from support import wait_until

PARSUPCTL = str(Path(sys.executable).parent / "parsupctl")
NULL: Info = {"stdout": "null"}
SLOW: Info = {**NULL, "restart_sec": 1000, "restart_max_delay_sec": 1000}

STEEP: Info = {**NULL, "restart_sec": 0.05, "restart_steps": 1, "restart_max_delay_sec": 1000}


def once(code: str, folder: Path, name: str) -> str:
    """A script that ends so in its first life, and goes on in the second."""
    return f"[ -e {folder}/{name} ] && exec sleep 600; touch {folder}/{name}; {code}"


def hanging(stage: str, **keys: Any) -> str:
    """A unit with a command that takes too long."""
    command = f'{stage} = [{{ exec = ["sleep", "600"], timeout_sec = 0.2 }}]'
    return f"[unit.{stage}]\n{simple('exec sleep 600', **NULL, **keys)}\n{command}\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("keys")
    units = {
        "listed": simple("exit 3", success_exit_status=[3], **NULL),
        "signalled": simple("kill -USR1 $$", success_exit_status=["SIGUSR1"], **NULL),
        "prevented": simple("exit 4", restart="always", restart_prevent_exit_status=[4], **NULL),
        "forced": simple(once("exit 5", folder, "forced"), restart="no", restart_force_exit_status=[5], **NULL),
        "on-success": simple(once("exit 0", folder, "on-success"), restart="on-success", **NULL),
        "on-abnormal": simple(once("kill -SEGV $$", folder, "on-abnormal"), restart="on-abnormal", **NULL),
        "normal": simple("exit 1", restart="on-abnormal", **NULL),
        "always": simple(once("exit 0", folder, "always"), restart="always", **NULL),
        "waiting": simple(
            "i=0; while [ $i -lt 30 ]; do i=$((i+1)); echo $i; done; exit 1", **{**SLOW, "stdout": "file"}
        ),
        "slow": simple(
            f"[ -e {folder}/go ] && exec sleep 600; exit 1",
            **{**NULL, "restart_sec": 0, "restart_steps": 0, "restart_max_delay_sec": 0.2},
            start_limit_burst=2,
            start_limit_interval_sec=1,
            start_limit_action="slow-retry",
        ),
        "growing": simple("exit 1", restart_reset_after_sec=60, **STEEP),
        "forgetting": simple("exit 1", restart_reset_after_sec=0, **STEEP),
        "first": simple(f"sleep 0.2; echo first >> {folder}/order", type="oneshot", **NULL),
        "second": simple(f"echo second >> {folder}/order", type="oneshot", requires=["first:completed"], **NULL),
        "passing": simple("true", type="oneshot", remain_after_exit=False, **NULL),
        "failing": simple("exit 6", type="oneshot", remain_after_exit=False, enabled=False, **NULL),
        "wanted": simple("exec sleep 600", enabled=False, **NULL),
        "unasked": simple("exec sleep 600", enabled=False, **NULL),
        "wanting": simple("exec sleep 600", wants=["wanted", "prevented"], after=["unasked"], **NULL),
        "aged": simple(
            "while :; do echo tick; sleep 0.05; done",
            stdout="file",
            log_rotate_sec=0.3,
            log_compress=False,
        ),
    }
    commands = [hanging(stage) for stage in ("exec_reload", "exec_stop", "exec_stop_post")]
    text = "".join(f"[unit.{name}]\n{lines}\n" for name, lines in units.items())
    with daemon(folder, text + "".join(commands) + hanging("exec_start_pre", restart="no")) as found:
        yield found


def ctl(running: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [PARSUPCTL, "--socket", str(running.socket), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)


@pytest.mark.parametrize(
    ("unit", "reason"),
    [
        ("listed", "restart=on-failure and it exited with 3"),
        ("signalled", "restart=on-failure and it was killed by SIGUSR1"),
    ],
)
def test_an_end_that_counts_as_clean(running: Daemon, unit: str, reason: str) -> None:
    """success_exit_status: it is down, has not failed, and is not started again."""
    status = running.wait_for(f"{unit}@1", lambda status: status["state"] in {"inactive", "failed"})
    assert (status["state"], status["reason"], status["generation"]) == ("inactive", reason, 1)


@pytest.mark.parametrize(
    ("unit", "reason"),
    [
        ("prevented", "restart_prevent_exit_status has it and it exited with 4"),
        ("normal", "restart=on-abnormal and it exited with 1"),
    ],
)
def test_an_end_that_is_not_followed_by_a_start(running: Daemon, unit: str, reason: str) -> None:
    """It has failed, and the reason names the key."""
    status = running.wait_for(f"{unit}@1", lambda status: status["state"] == "failed")
    assert (status["reason"], status["generation"]) == (reason, 1)


@pytest.mark.parametrize(
    ("unit", "reason"),
    [
        ("forced", "restart_force_exit_status has it and it exited with 5"),
        ("on-success", "restart=on-success and it exited with 0"),
        ("on-abnormal", "restart=on-abnormal and it was killed by SIGSEGV"),
        ("always", "restart=always and it exited with 0"),
    ],
)
def test_an_end_that_is_followed_by_a_start(running: Daemon, unit: str, reason: str) -> None:
    """It runs again, and `why` tells for which reason."""
    running.wait_for(f"{unit}@1", lambda status: status["generation"] == 2 and status["state"] == "active")
    (run,) = running.call("why", unit)[0]["incarnations"]
    assert (run["restarted"], run["reason"].split(" (core")[0]) == (True, reason)


def test_why_tells_the_next_attempt_and_the_last_lines(running: Daemon) -> None:
    """When it is tried again, and twenty lines of the last run, as text and as JSON."""
    running.wait_for("waiting@1", lambda status: status["sub_state"] == "backoff")
    wait_until(lambda: "\n30\n" in ctl(running, "why", "waiting").stdout.replace(" ", ""), what="all lines are written")
    (info,) = json.loads(ctl(running, "why", "waiting", "--json").stdout)
    (run,) = info["incarnations"]
    assert [line["message"] for line in run["log"]] == [str(number) for number in range(11, 31)]
    assert info["next_attempt_at"] == run["next_attempt_at"]
    assert 900 < run["next_attempt_at"] - time.time() < 1001
    assert "next attempt in 16min" in ctl(running, "why", "waiting").stdout


def test_delays_grow_and_are_forgotten(running: Daemon) -> None:
    """From restart_sec to restart_max_delay_sec in restart_steps, and from the beginning after a run that was long enough."""
    status = running.wait_for(
        "growing@1", lambda status: status["generation"] == 2 and status["sub_state"] == "backoff"
    )
    assert status["reason"].endswith("next start in 1e+03 s")
    running.wait_for("forgetting@1", lambda status: status["generation"] > 3)
    reasons = [record["reason"] for record in running.records("unit_changed") if record["unit"] == "forgetting@1"]
    assert {reason.partition("; ")[2] for reason in reasons} == {"", "next start in 0.05 s"}


def test_a_start_limit_with_slow_retry(running: Daemon) -> None:
    """It does not fail: it is tried again when the window is over, until it comes up."""
    running.wait_for("slow@1", lambda status: status["generation"] > 3 and status["sub_state"] == "backoff")
    (running.folder / "go").touch()
    running.wait_for("slow@1", lambda status: status["generation"] > 4 and status["state"] == "active")
    assert "failed" not in running.changes("slow@1")
    reasons = {record["reason"] for record in running.records("unit_changed") if record["unit"] == "slow@1"}
    assert any(reason.startswith("start limit hit: 2 starts within 1 s; next start in") for reason in reasons), reasons


def test_a_start_limit_with_exit(tmp_path: Path) -> None:
    """Everything stops, and parsupd exits with 1."""
    keys = {**NULL, "restart_sec": 0, "restart_steps": 0, "start_limit_burst": 2, "start_limit_action": "exit"}
    config = f"[unit.a]\n{simple('exit 1', **keys)}\n[unit.b]\n{simple('exec sleep 600', **NULL)}"
    with daemon(tmp_path, config) as running:
        assert running.process.wait(20) == 1


def test_completed_is_waited_for(running: Daemon) -> None:
    """A unit that requires `first:completed` begins when that has done its work."""
    running.wait_for("second@1", lambda status: status["sub_state"] == "exited")
    assert (running.folder / "order").read_text() == "first\nsecond\n"


def test_what_is_wanted_comes_too_and_what_is_only_before_does_not(running: Daemon) -> None:
    """`wants` starts another, and does not mind that it fails; `after` starts nothing."""
    running.wait_for("wanting@1", lambda status: status["state"] == "active")
    assert running.status("wanted@1")["state"] == "active"
    assert running.status("prevented@1")["state"] == "failed"
    assert (running.status("unasked@1")["state"], running.status("unasked@1")["generation"]) == ("inactive", 0)


def test_a_oneshot_that_does_not_remain(running: Daemon) -> None:
    """It is down when it has done its work, which is what a start is for: exit status 0; one that fails has failed."""
    running.wait_for("passing@1", lambda status: status["state"] == "inactive")
    done = ctl(running, "start", "passing")
    assert (done.returncode, done.stdout, done.stderr) == (0, "passing@1 inactive (dead)\n", "")
    done = ctl(running, "start", "failing")
    assert done.returncode == 1
    assert done.stderr.startswith("parsupctl: failing@1 is failed: restart=no and it exited with 6\n")


# Commands that take too long: one at the start is in test_types_of_units.py


def test_a_command_before_the_start_that_takes_too_long(running: Daemon) -> None:
    """The start has failed, and says which command it was."""
    status = running.wait_for("exec_start_pre@1", lambda status: status["state"] == "failed")
    assert "timed out: exec_start_pre[0] (sleep) took more than 0.2 s" in status["reason"]


def test_a_reload_that_takes_too_long(running: Daemon) -> None:
    """It is ended, and the unit goes on as it was."""
    before = running.wait_for("exec_reload@1", lambda status: status["state"] == "active")
    (after,) = running.call("reload_units", ["exec_reload"])
    assert (after["sub_state"], after["pid"], after["generation"]) == ("running", before["pid"], 1)
    assert "exec_reload[0] (sleep)" in after["reason"]


@pytest.mark.parametrize("stage", ["exec_stop", "exec_stop_post"])
def test_a_command_of_a_stop_that_takes_too_long(running: Daemon, stage: str) -> None:
    """It is ended, and the stop goes on: nothing of the unit is left."""
    running.wait_for(f"{stage}@1", lambda status: status["state"] == "active")
    (status,) = running.call("stop", [stage], True, 20)
    assert (status["state"], status["pid"]) == ("inactive", None)


# Log files


def test_log_files_are_begun_by_age_and_read_by_time(running: Daemon) -> None:
    """log_rotate_sec begins new ones, without log_compress they stay as they are; --since cuts at its time."""
    logs = running.state / "logs"
    wait_until(lambda: len([*logs.glob("aged@1.0*.log")]) > 2, what="three files")
    assert not [*logs.glob("aged@1.*.gz")]
    lines = [json.loads(line) for line in ctl(running, "logs", "aged", "--json").stdout.splitlines()]
    middle = lines[len(lines) // 2]["time"]
    since = [
        json.loads(line) for line in ctl(running, "logs", "aged", "--since", f"@{middle}", "--json").stdout.splitlines()
    ]
    assert lines[0]["time"] < middle
    assert 0 <= since[0]["time"] - middle < 1e-3
    assert len(since) >= len(lines) // 2 - 1
