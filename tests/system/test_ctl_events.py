"""parsupctl events: numbers without holes, over slow readers, restarts of parsupd and its end."""

import json
import subprocess
from pathlib import Path
from typing import Any

import live_daemon
import pytest
from parsupctl_process import PARSUPCTL, Controlled, StartDaemon
from support import wait_until

UNIT = '[unit.{}]\ntype = "simple"\nexec = ["/bin/sleep", "1000"]\nenabled = false\nstdout = "null"\n'


@pytest.fixture(scope="module")
def running(daemon: StartDaemon) -> Controlled:
    return daemon(UNIT.format("web") + UNIT.format("other"))


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_events_are_numbered_and_have_their_reasons(running: Controlled) -> None:
    """From 1 on, one after the other; each with time, unit, instance and what belongs to it."""
    assert running.ctl("start", "web").returncode == 0
    assert running.ctl("kill", "web", "-s", "KILL").returncode == 0
    running.daemon.ask("wait", ["web"], "active", 20)
    assert running.ctl("stop", "web").returncode == 0
    found = objects(running.ctl("events", "--json").stdout)
    assert [event["number"] for event in found] == list(range(1, len(found) + 1))
    assert (found[0]["event"], found[0]["unit"], found[0]["pid"]) == ("started", "", running.pid)
    ended = [event for event in found if event["event"] == "unit_ended"]
    assert [(event["instance"], event["cause"], event["restart"]) for event in ended] == [
        ("web@1", "was killed by SIGKILL", True),
        ("web@1", "was killed by SIGTERM", False),
    ]
    text = running.ctl("events").stdout.splitlines()
    assert len(text) == len(found)
    assert text[0].split()[0] == "1"


def test_events_of_a_unit_since_a_number(running: Controlled) -> None:
    """Only that unit's; only what came after; only the last ones."""
    assert running.ctl("restart", "web", "other").returncode == 0
    found = objects(running.ctl("events", "--unit", "other", "--json").stdout)
    assert {event["unit"] for event in found} == {"other"}
    middle = found[len(found) // 2]["number"]
    later = objects(running.ctl("events", "-u", "other@1", "--since", str(middle), "--json").stdout)
    assert later == [event for event in found if event["number"] > middle]
    assert objects(running.ctl("events", "-u", "other", "-n", "2", "--json").stdout) == found[-2:]


def test_events_of_a_unit_that_there_is_not(running: Controlled) -> None:
    """Status 4 with the nearest name; one that has gone has had events."""
    done = running.ctl("events", "-u", "othre")
    assert (done.returncode, done.stderr) == (4, "parsupctl: no unit or instance 'othre'; did you mean 'other'?\n")
    assert running.ctl("run", "--wait", "--name", "past", "-p", "stdout=null", "--", "true").returncode == 0
    wait_until(lambda: running.ctl("status", "past").returncode == 4)
    assert {event["unit"] for event in objects(running.ctl("events", "-u", "past", "--json").stdout)} == {"past"}


def test_who_follows_sees_every_event_over_a_crash_of_parsupd(tmp_path: Path) -> None:
    """kill -9 and a new parsupd: the follower goes on with the next number, and ends when everything is stopped."""
    with live_daemon.daemon(tmp_path, UNIT.format("web").replace("false", "true")) as daemon:
        out = tmp_path / "events"
        with out.open("w") as file:
            command = [PARSUPCTL, "--socket", str(daemon.socket), "events", "--follow", "--since", "0", "--json"]
            follower = subprocess.Popen(command, stdout=file)

        def seen(event: str) -> int:
            return len([one for one in objects(out.read_text()) if one["event"] == event])

        wait_until(lambda: seen("started") == 1)
        daemon.kill()
        daemon.start()
        wait_until(lambda: seen("started") == 2)
        gap, *rest = objects(
            subprocess.run([*command[:4], "--since", "0", "--json"], capture_output=True, text=True, check=True).stdout
        )
        assert (gap["event"], gap["lost"]) == ("gap", rest[0]["number"] - 1), "what the killed one knew is told as lost"
        daemon.call("restart", ["web"])
        assert daemon.stop() == 0
        assert follower.wait(20) == 0
        found = objects(out.read_text())
        assert [event["number"] for event in found] == list(range(1, len(found) + 1))
        assert "shutting_down" in {event["event"] for event in found}
        assert (found[-1]["event"], found[-1]["new"]) == ("unit_changed", "dead")
