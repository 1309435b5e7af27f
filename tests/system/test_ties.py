"""Real processes of units that are bound to others, part of others, or in conflict with them."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import parsupd_process
import pytest
from support import alive, wait_until

SLEEP = 'type = "simple"\nexec = ["sleep", "1000"]\n'
UNITS = f"""
[unit.db]
{SLEEP}
[unit.app]
{SLEEP}binds_to = ["db"]
[unit.part]
{SLEEP}part_of = ["db"]
[unit.maintenance]
{SLEEP}enabled = false
conflicts = ["db"]
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[parsupd_process.Daemon]:
    (tmp_path / "parsupd.toml").write_text(UNITS)
    with parsupd_process.parsupd(tmp_path / "parsupd.toml", "--log", "json") as daemon:
        daemon.wait_active("db", "app", "part")
        yield daemon
        if daemon.process.poll() is None:
            daemon.stop()
        parsupd_process.assert_nothing_left(daemon.runtime)


def pids(daemon: parsupd_process.Daemon) -> dict[str, int]:
    return {one["unit"]: one["pid"] for one in daemon.ask("status")}


def states(daemon: parsupd_process.Daemon) -> dict[str, str]:
    return {one["unit"]: one["sub_state"] for one in daemon.ask("status")}


def test_a_crash_takes_what_is_bound_along_and_brings_it_back(daemon: parsupd_process.Daemon) -> None:
    """kill -9 of one gives both a new process; what is only part of it goes on."""
    before = pids(daemon)
    os.kill(before["db"], signal.SIGKILL)
    wait_until(lambda: not alive(before["app"]))
    daemon.wait_active("db", "app")
    after = pids(daemon)
    assert after["app"] != before["app"]
    assert after["part"] == before["part"]


def test_a_conflict_stops_the_other_and_what_is_bound_comes_back(daemon: parsupd_process.Daemon) -> None:
    """Two that conflict never run at once; the last one started stays."""
    before = pids(daemon)
    daemon.ask("start", ["maintenance"])
    assert not any(alive(before[name]) for name in ("db", "app", "part"))
    assert states(daemon) == {"db": "dead", "app": "waiting", "part": "dead", "maintenance": "running"}
    daemon.ask("start", ["db", "part"])
    wait_until(lambda: states(daemon)["app"] == "running")
    assert states(daemon) == {"db": "running", "app": "running", "part": "running", "maintenance": "dead"}


def test_what_is_part_of_another_is_restarted_with_it(daemon: parsupd_process.Daemon) -> None:
    """A restart of one gives all that is part of it, or bound to it, a new process."""
    before = pids(daemon)
    daemon.ask("restart", ["db"])
    daemon.wait_active("db", "app", "part")
    after = pids(daemon)
    assert all(after[name] != before[name] for name in ("db", "app", "part"))
