"""parsupctl restart --rolling with real processes: no gap, the first failure ends it, Ctrl-C too."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import parsupd_process
import pytest
from parsupctl_process import Controlled
from support import wait_until

PROGRAM = "#!/bin/sh\nexec sleep 1000\n"
STUBBORN = "#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1000; done\n"


class Rolled(Controlled):
    """A parsupd with a unit of three instances of a program that a test can change."""

    def __init__(self, daemon: parsupd_process.Daemon, program: Path) -> None:
        super().__init__(daemon)
        self.program = program

    def pids(self) -> dict[str, int]:
        return {one["name"]: one["pid"] for one in self.daemon.ask("status") if one["pid"]}


@pytest.fixture(params=[PROGRAM])
def rolled(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rolled]:
    program = tmp_path / "program"
    program.write_text(request.param)
    program.chmod(0o755)
    (tmp_path / "parsupd.toml").write_text(
        f'[unit.u]\ntype = "simple"\nexec = ["{program}"]\ninstances = 3\ntimeout_stop_sec = {60 if request.param is STUBBORN else 10}\n'
    )
    with parsupd_process.parsupd(tmp_path / "parsupd.toml", "--log", "json") as daemon:
        daemon.wait_active("u")
        yield Rolled(daemon, program)
        if daemon.process.poll() is None:
            if request.param is STUBBORN:
                for pid in parsupd_process.processes_of(daemon.runtime):
                    _kill(pid)
            daemon.stop()
        parsupd_process.assert_nothing_left(daemon.runtime)


def at_least_up(stderr: str, start: int) -> int:
    """The least number of instances that ran at once, after `start` did."""
    running: set[str] = set()
    least = start
    for record in map(json.loads, stderr.splitlines()):
        if record["event"] == "shutting_down":
            break
        if record["event"] == "unit_changed":
            (running.add if record["new"] == "running" else running.discard)(record["unit"])
            full = len(running) >= start or least < start or record["old"] == "running"
            least = min(least, len(running)) if full else least
    return least


@pytest.mark.parametrize(("more", "least"), [((), 2), (("--surge", "1"), 3), (("--surge", "2"), 3)])
def test_instances_are_restarted_in_turn(rolled: Rolled, more: tuple[str, ...], least: int) -> None:
    """Everyone has a new process, as many as promised were up at any time, and the extra ones are gone."""
    before = rolled.pids()
    done = rolled.ctl("restart", "--rolling", *more, "u")
    assert (done.returncode, done.stdout) == (0, "".join(f"u@{n} active (running)\n" for n in (1, 2, 3))), done.stderr
    after = rolled.pids()
    assert before.keys() == after.keys()
    assert set(before.values()).isdisjoint(after.values())
    assert json.loads(rolled.ctl("plan", "--json").stdout)["units"] == []
    _, _, stderr = rolled.daemon.stop()
    assert at_least_up(stderr, 3) == least


def test_the_first_failure_ends_it(rolled: Rolled) -> None:
    """With status 1 and a report; the other instances have not been touched."""
    before = rolled.pids()
    rolled.program.unlink()
    done = rolled.ctl("restart", "--rolling", "u")
    assert done.returncode == 1
    first, second, _ = done.stderr.splitlines()
    assert first.startswith("parsupctl: u@1 did not come up: restart=on-failure and it could not be started: ")
    assert second == "stopped there; not touched: u@2, u@3"
    done = rolled.ctl("restart", "--rolling", "--surge", "1", "u")
    assert done.stderr.startswith("parsupctl: u@4 did not come up: ")
    assert {name: pid for name, pid in rolled.pids().items() if name != "u@1"} == {
        name: pid for name, pid in before.items() if name != "u@1"
    }


@pytest.mark.parametrize("rolled", [STUBBORN], indirect=True)
def test_it_can_be_cancelled(rolled: Rolled) -> None:
    """Ctrl-C: the instance under way comes up, the others are not touched, extra ones are taken away."""
    before = rolled.pids()
    ctl = rolled.start_ctl("restart", "--rolling", "--surge", "1", "u")
    wait_until(lambda: {one["name"]: one["sub_state"] for one in rolled.daemon.ask("status")}["u@1"] == "stopping")
    ctl.send_signal(signal.SIGINT)
    _, stderr = ctl.communicate(timeout=20)
    assert (ctl.returncode, stderr.strip()) == (
        130,
        "parsupctl: interrupted; what was being restarted comes up, what was left is not touched",
    )
    wait_until(lambda: "u@4" not in rolled.pids() or _kill(rolled.pids()["u@4"]))
    _kill(before["u@1"])
    wait_until(lambda: len(rolled.pids()) == 3 and rolled.pids()["u@1"] != before["u@1"])
    after = rolled.pids()
    assert (after["u@2"], after["u@3"]) == (before["u@2"], before["u@3"])


def _kill(pid: int) -> bool:
    """Ends a process group that does not listen; False, for conditions that are asked again."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return False


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (("--rolling", "--no-wait", "u"), 2, "--rolling waits for each instance"),
        (("--surge", "1", "u"), 2, "--surge needs --rolling"),
        (("--rolling", "--surge", "0", "u"), 2, "0 is not in the range"),
        (("--rolling", "u@1"), 1, "u@1 is not a unit of the configuration"),
        (("--rolling", "v"), 4, "no unit or instance 'v'"),
    ],
)
def test_what_is_no_rolling_restart_is_refused(rolled: Rolled, args: tuple[str, ...], status: int, said: str) -> None:
    """With the reason, and nothing is done."""
    before = rolled.pids()
    done = rolled.ctl("restart", *args)
    assert done.returncode == status
    assert said in done.stderr
    assert rolled.pids() == before
