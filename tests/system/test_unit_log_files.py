"""Log files of units, through a real parsupd and its logger: what is written, read, followed, and what goes wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from live_daemon import Daemon, daemon, loggers, simple
from support import alive, process_state, wait_until

PARSUPCTL = str(Path(sys.executable).parent / "parsupctl")


def text_of(running: Daemon, name: str = "a@1") -> str:
    path = running.state / "logs" / f"{name}.log"
    return path.read_text() if path.exists() else ""


def ctl(running: Daemon, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [PARSUPCTL, "--socket", str(running.socket), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=20)


def pipes(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_fifo()}


def the_logger(running: Daemon) -> int:
    return wait_until(lambda: loggers(running.runtime), what="a logger")[0]


def test_output_goes_to_files_where_nobody_would_read_it_else(tmp_path: Path) -> None:
    """Without a journal or a terminal, both streams of each life are in a file of their own, which only the user reads."""
    with daemon(
        tmp_path, f"[unit.a]\n{simple('echo out; echo err >&2; printf rest; exit 3', restart='no')}"
    ) as running:
        running.wait_for("a@1", lambda status: status["sub_state"] == "failed")
        running.call("start", ["a"], wait=False)
        wait_until(lambda: text_of(running).count("rest") == 2, what="the second life's output")
        lines = [line.split(" ", 1)[1] for line in text_of(running).splitlines()]
        expected = {f"{life} {rest}" for life in (1, 2) for rest in ("stdout out", "stderr err", "stdout- rest")}
        assert set(lines) == expected
        assert len(lines) == len(expected)
        files = [path for path in (running.state / "logs").iterdir() if not path.is_symlink()]
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        assert (running.state / "logs").stat().st_mode & 0o777 == 0o700
        shown = [
            json.loads(line) for line in ctl(running, "logs", "a", "--incarnation", "2", "--json").stdout.splitlines()
        ]
        assert {line["message"] for line in shown} == {"out", "err", "rest"}
        assert {line["generation"] for line in shown} == {2}
        assert {line["message"]: line["priority"] for line in shown}["err"] == 4
        assert ctl(running, "logs", "a", "-n", "1").stdout.split()[-1] in {"out", "err", "rest"}
        assert ctl(running, "logs", "a", "--until", "yesterday").stdout == ""
        shown, last = ctl(running, "status", "a", "-n", "1", check=False).stdout.split("\n\n")
        assert "exited with 3" in shown
        assert last == ctl(running, "logs", "a", "-n", "1").stdout


def test_a_logger_that_dies_is_replaced_at_once_and_adopted_later(tmp_path: Path) -> None:
    """kill -9 of the logger gives another one; kill -9 of parsupd keeps it; both end when everything is down."""
    with daemon(tmp_path, f"[unit.a]\n{simple('while :; do echo tick; sleep 0.05; done', stdout='file')}") as running:
        first = the_logger(running)
        os.kill(first, signal.SIGKILL)
        second = wait_until(lambda: [pid for pid in loggers(running.runtime) if pid != first], what="another one")[0]
        length = len(text_of(running))
        wait_until(lambda: len(text_of(running)) > length, what="it writes")
        running.kill()
        running.start()
        assert loggers(running.runtime) == [second]
        assert [record["pid"] for record in running.records("logger_adopted")] == [second]
        length = len(text_of(running))
        wait_until(lambda: len(text_of(running)) > length, what="it still writes")
        assert [record["event"] for record in running.records() if record["event"].startswith("logger_")] == [
            "logger_started", "logger_ended", "logger_started", "logger_adopted",
        ]  # fmt: skip
        assert running.stop() == 0
        assert loggers(running.runtime) == []


def test_a_logger_without_parsupd_ends_with_the_last_unit(tmp_path: Path) -> None:
    """It goes on as long as a unit has its pipe open, writes the last words, and is not left behind."""
    script = f"echo first; while [ ! -e {tmp_path}/gate ]; do sleep 0.02; done; echo last"
    running = Daemon(tmp_path, f"[unit.a]\n{simple(script, stdout='file')}")
    wait_until(lambda: "first" in text_of(running), what="output")
    logger = the_logger(running)
    pid = running.status("a@1")["pid"]
    running.kill()
    assert alive(logger)
    (tmp_path / "gate").touch()
    wait_until(lambda: not alive(pid) and not alive(logger), what="both have ended")
    assert text_of(running).endswith(" 1 stdout last\n")
    assert sorted(path.name for path in (running.runtime / "logs").iterdir()) == ["lock"]


def test_a_pipe_that_a_kill_left_without_its_name_is_removed(tmp_path: Path) -> None:
    """parsupd gives a pipe its name when it has opened it; the next one removes what never got there, and nothing else."""
    with daemon(tmp_path, f"[unit.a]\n{simple('echo $$; exec sleep 1000', stdout='file')}") as running:
        running.wait_for("a@1", lambda status: status["sub_state"] == "running")
        folder = running.runtime / "logs"
        assert pipes(folder) == {"a@1.1.stdout", "a@1.1.stderr"}
        running.kill()
        os.mkfifo(folder / "a@1.2.stdout.new")
        running.start()
        assert pipes(folder) == {"a@1.1.stdout", "a@1.1.stderr"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start units of other users")
def test_a_unit_of_another_user_opens_its_own_stderr(tmp_path: Path) -> None:
    """Unlike a socket of the journal, the pipe can be opened by name, and only by who has it."""
    config = f"[unit.a]\n{simple('echo by name > /dev/stderr; exec sleep 600', stdout='file', user='nobody')}"
    with daemon(tmp_path, config) as running:
        wait_until(lambda: text_of(running).endswith(" 1 stderr by name\n"), what="output")


def test_a_stuck_logger_is_replaced(tmp_path: Path) -> None:
    """A logger that is stopped answers no more, and does not block the unit for longer than it takes to see that."""
    script = "i=0; while [ $i -lt 3000 ]; do echo $i a line that fills the pipe; i=$((i+1)); done; exec sleep 600"
    os.mkfifo(tmp_path / "gate")
    with daemon(
        tmp_path, f"[unit.a]\n{simple(f'echo up; read x < {tmp_path}/gate; {script}', stdout='file')}"
    ) as running:
        wait_until(lambda: "up" in text_of(running), what="output")
        logger = the_logger(running)
        os.kill(logger, signal.SIGSTOP)
        wait_until(lambda: process_state(logger) == "T", what="it is stopped")
        (tmp_path / "gate").write_text("\n")
        wait_until(lambda: "2999 a line" in text_of(running), within_s=30, what="all is written by another one")
        assert running.records("logger_stuck")
        assert [int(line.split(" ")[3]) for line in text_of(running).splitlines() if "a line" in line] == [*range(3000)]


def test_following_goes_over_the_beginning_of_new_files(tmp_path: Path) -> None:
    """logs -f shows every line once, while files are begun, compressed and removed."""
    script = (
        f"read x < {tmp_path}/gate; i=0; while [ $i -lt 4000 ]; do echo number $i; i=$((i+1)); done; exec sleep 600"
    )
    os.mkfifo(tmp_path / "gate")
    keys: dict[str, Any] = {"stdout": "file", "log_rotate_size": "64K", "log_total_size": "1M"}
    with daemon(tmp_path, f"[unit.a]\n{simple(f'echo up; {script}', **keys)}") as running:
        wait_until(lambda: "up" in text_of(running), what="the first line")
        command = [PARSUPCTL, "--socket", str(running.socket), "logs", "a", "-f", "-n", "1", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as following:
            assert following.stdout is not None
            assert json.loads(following.stdout.readline())["message"] == "up"
            (tmp_path / "gate").write_text("\n")
            shown = [json.loads(following.stdout.readline())["message"] for _ in range(4000)]
            following.terminate()
        assert shown == [f"number {number}" for number in range(4000)]
        wait_until(lambda: [*(running.state / "logs").glob("*.gz")], what="a compressed file")
        past = ctl(running, "logs", "a").stdout.splitlines()
        assert [int(line.split()[-1]) for line in past if "number" in line] == [*range(4000)]


def test_keys_of_log_files_change_under_a_running_unit(tmp_path: Path) -> None:
    """A reload brings another format into force without a restart."""
    config = f"[unit.a]\n{simple('while :; do echo tick; sleep 0.05; done', stdout='file')}"
    with daemon(tmp_path, config) as running:
        wait_until(lambda: "tick" in text_of(running), what="output")
        (tmp_path / "parsupd.toml").write_text(f"{config}\nlog_format = 'json'")
        running.call("reload")
        wait_until(lambda: text_of(running).endswith('"message":"tick"}\n'), what="JSON")
        assert running.status("a@1")["generation"] == 1
        assert ctl(running, "logs", "a", "-n", "2").stdout.count("tick") == 2


def test_all_log_files_together_are_bounded(tmp_path: Path) -> None:
    """all_logs_size holds for those of all units, whatever each of them may have."""
    script = f"i=0; while [ $i -lt 3000 ]; do echo number $i {'x' * 100}; i=$((i+1)); done; echo done; exec sleep 600"
    units = "".join(f"[unit.{name}]\n{simple(script, stdout='file', log_rotate_size='64K')}\n" for name in "ab")
    with daemon(tmp_path, f"[parsupd]\nall_logs_size = '256K'\n{units}") as running:
        wait_until(
            lambda: all("done" in text_of(running, f"{name}@1") for name in "ab"), within_s=20, what="all is written"
        )
        logs = [path for path in (running.state / "logs").iterdir() if not path.is_symlink()]
        wait_until(
            lambda: sum(path.stat().st_size for path in logs if path.exists()) <= 256 << 10, what="the bound holds"
        )


POLICIES: list[dict[str, Any]] = [{"log_block_sec": 0.3}, {"log_full_policy": "drop"}]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_full_disk_costs_lines_and_says_how_many(tmp_path: Path, policy: dict[str, Any]) -> None:
    """A unit goes on after its policy's time, and what was dropped is counted once there is room again."""
    logs = tmp_path / "state" / "logs"
    logs.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(logs)], capture_output=True)
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        script = (
            f"i=0; while [ $i -lt 9000 ]; do echo number $i {'x' * 100}; i=$((i+1)); done; echo $i >&2; exec sleep 600"
        )
        keys = {"stdout": "file", "stderr": f"append:{tmp_path}/end", **policy}
        with daemon(tmp_path, f"[unit.a]\n{simple(script, **keys)}") as running:
            wait_until(lambda: (tmp_path / "end").exists() and (tmp_path / "end").read_text(), within_s=20, what="end")
            assert "No space left" in running.records("unit_output_stuck")[0]["reason"]
            subprocess.run(["mount", "-o", "remount,size=8m", str(logs)], check=True)
            wait_until(lambda: "lines dropped" in text_of(running), what="the count")
            wait_until(lambda: running.records("unit_output_again"), what="it is said to be over")
            lines = [line.split(" ", 3)[3] for line in text_of(running).splitlines()]
            numbers = [int(line.split()[1]) for line in lines if line.startswith("number")]
            dropped = [int(line.split()[0]) for line in lines if "dropped" in line]
            assert len(set(numbers)) == len(numbers)
            assert sum(dropped) > 0
            assert abs(len(numbers) + sum(dropped) - 9000) <= 2, (len(numbers), dropped)
    finally:
        subprocess.run(["umount", "-l", str(logs)], check=True)


def test_a_logger_is_small_and_idle(tmp_path: Path) -> None:
    """It loads little, and does not run while nothing is written."""
    with daemon(tmp_path, f"[unit.a]\n{simple('echo up; exec sleep 600', stdout='file')}") as running:
        wait_until(lambda: "up" in text_of(running), what="output")
        logger = the_logger(running)
        status = Path(f"/proc/{logger}/status").read_text()
        assert int(status.split("VmRSS:")[1].split()[0]) < 20 << 10
        stat = Path(f"/proc/{logger}/schedstat")
        before, at = int(stat.read_text().split()[0]), time.monotonic()
        wait_until(lambda: time.monotonic() > at + 1.0)
        assert int(stat.read_text().split()[0]) - before < 5e6
