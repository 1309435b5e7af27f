"""Real processes in groups, started for failures, and in a restart storm."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import parsupd_process
import pytest
from support import alive, wait_until

SLEEP = 'type = "simple"\nexec = ["sleep", "1000"]\n'
Run = Callable[[str], parsupd_process.Daemon]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Starts a parsupd with these units, and stops it at the end."""

    def end(daemon: parsupd_process.Daemon) -> None:
        if daemon.process.poll() is None:
            daemon.stop()
        parsupd_process.assert_nothing_left(daemon.runtime)

    with ExitStack() as running:

        def start(text: str) -> parsupd_process.Daemon:
            (tmp_path / "parsupd.toml").write_text(text)
            daemon = running.enter_context(parsupd_process.parsupd(tmp_path / "parsupd.toml", "--log", "json"))
            running.callback(end, daemon)
            return daemon

        yield start


def pids(daemon: parsupd_process.Daemon) -> dict[str, int]:
    return {one["unit"]: one["pid"] for one in daemon.ask("status")}


def three(strategy: str, more: str = "") -> str:
    units = "".join(f"[unit.{name}]\n{SLEEP}" for name in "abc")
    return f'{units}[group.web]\nunits = ["a", "b", "c"]\nstrategy = "{strategy}"\n{more}'


@pytest.mark.parametrize(
    ("strategy", "changed"), [("one_for_all", "abc"), ("rest_for_one", "bc"), ("one_for_one", "b")]
)
def test_a_group_restarts_as_its_strategy_says(run: Run, strategy: str, changed: str) -> None:
    """kill -9 of the second of three: exactly these have new processes afterwards, and all are up."""
    daemon = run(three(strategy))
    daemon.wait_active("a", "b", "c")
    before = pids(daemon)
    os.kill(before["b"], signal.SIGKILL)
    wait_until(lambda: all(not alive(before[name]) for name in changed))
    daemon.wait_active("a", "b", "c")
    after = pids(daemon)
    assert {name for name in "abc" if after[name] != before[name]} == set(changed)


def test_a_group_that_is_given_up_can_end_parsupd(run: Run) -> None:
    """With status 1, and nothing left."""
    daemon = run(three("one_for_all", 'intensity = 0\nescalation = "exit"\n'))
    daemon.wait_active("a", "b", "c")
    os.kill(pids(daemon)["c"], signal.SIGKILL)
    status, _, stderr = daemon.finish()
    assert status == 1
    assert "group web had more than 0 restarts within 10 s, the last of c@1: was killed by SIGKILL" in stderr


def test_a_failure_starts_a_unit_that_is_told_of_it(run: Run, tmp_path: Path) -> None:
    """The environment of the started one names the failed instance, the reason and how it ended."""
    told = tmp_path / "told"
    show = f"env | grep ^PARSUP_FAILED_ | sort > {told}.new && mv {told}.new {told}"
    run(
        f"""
        [unit.bad]
        type = "simple"
        exec = ["sh", "-c", "exit 3"]
        restart = "no"
        on_failure = ["alert"]
        [unit.alert]
        type = "oneshot"
        exec = ["sh", "-c", "{show}"]
        enabled = false
        """
    )
    wait_until(told.exists)
    assert told.read_text().splitlines() == [
        "PARSUP_FAILED_CAUSE=exited with 3",
        "PARSUP_FAILED_EXIT_STATUS=3",
        "PARSUP_FAILED_REASON=restart=no and it exited with 3",
        "PARSUP_FAILED_UNIT=bad@1",
    ]


def test_a_storm_is_braked_and_said(run: Run) -> None:
    """Ten units that crash at once, five restarts allowed: the log is loud, status and info say it, a start goes on."""
    units = f"[unit.many]\n{SLEEP}instances = 10\n"
    daemon = run(f"[parsupd]\nrestart_storm_burst = 5\nrestart_storm_interval_sec = 1000\n{units}")
    for status in daemon.wait_active("many"):
        os.kill(status["pid"], signal.SIGKILL)

    def waiting() -> list[str]:
        return [
            one["name"] for one in daemon.ask("status") if one["reason"].endswith("waits for the brake on restarts")
        ]

    wait_until(lambda: len(waiting()) == 5)
    assert daemon.ask("info")["restart_storm"].endswith("and 5 wait for their turn")
    daemon.ask("start", waiting()[:1])
    assert len(waiting()) == 4
    _, _, stderr = daemon.stop()
    assert "Traceback" not in stderr, stderr
    (record,) = [line for line in map(json.loads, stderr.splitlines()) if line["event"] == "restart_storm"]
    assert record["level"] == "error"


def test_a_template_makes_units_for_a_start(run: Run, tmp_path: Path) -> None:
    """With what it requires; a second start is the same; it goes on over a reload, and is gone after its stop."""
    daemon = run(
        f"""
        [unit."web@"]
        type = "simple"
        exec = ["sh", "-c", "echo %n > {tmp_path}/%i; exec sleep 1000"]
        requires = ["db@%i"]
        instances = 2
        [unit."db@"]
        type = "simple"
        exec = ["sleep", "1000"]
        instantiate = ["0"]
        """
    )
    daemon.wait_active("db@0")
    daemon.ask("start", ["web@7"])
    before = {one["name"]: one["pid"] for one in daemon.ask("status")}
    assert sorted(before) == ["db@0@1", "db@7@1", "web@7@1", "web@7@2"]
    wait_until(lambda: (tmp_path / "7").exists() and (tmp_path / "7").read_text() == "web@7\n")
    daemon.ask("start", ["web@7"])
    daemon.ask("reload")
    assert {one["name"]: one["pid"] for one in daemon.ask("status")} == before
    daemon.ask("stop", ["db@7"])
    wait_until(lambda: [one["name"] for one in daemon.ask("status")] == ["db@0@1"])
    with pytest.raises(LookupError, match="no unit or instance 'mail@7'"):
        daemon.ask("start", ["mail@7"])
