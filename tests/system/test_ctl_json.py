"""The keys of what parsupctl prints with --json: scripts rely on them, so that each is listed here, in its order."""

import json
from typing import Any

import pytest
from parsupctl_process import Controlled, StartDaemon
from support import wait_until

CONFIG = """
[unit.web]
type = "simple"
exec = ["sleep", "1000"]
stdout = "file"

[unit.broken]
type = "simple"
exec = ["sh", "-c", "echo sorry; exit 3"]
restart = "no"
stdout = "file"
"""

LISTED = ["name", "unit", "type", "state", "sub_state", "pid", "generation", "restarts", "since", "uri", "status_text"]
STATUS = {
    "name", "unit", "type", "description", "target", "state", "sub_state", "pid", "generation", "restarts", "since", "uri",
    "reason", "status_text", "limits", "next_run_at",
}  # fmt: skip
PLAN = ["id", "units", "untouched", "groups", "daemon"]
DONE = [*PLAN, "instances"]
RUN = [
    "generation", "pid", "started_at", "ready_at", "ended_at", "duration_s", "cause", "kind", "code", "signal",
    "core_dumped", "oom_killed", "restarted", "reason", "next_attempt_at", "lines", "stack", "log",
]  # fmt: skip


@pytest.fixture(scope="module")
def running(daemon: StartDaemon) -> Controlled:
    found = daemon(CONFIG)
    found.daemon.ask("wait", ["broken"], "failed", 20)
    return found


def of(running: Controlled, command: str, *words: str) -> Any:
    """What a command prints: one value, or the first of its lines."""
    return json.loads(running.ctl(command, "--json", *words).stdout.splitlines()[0])


@pytest.mark.parametrize("words", ["status", "start web", "restart web", "wait web", "kill web -s CONT", "stop broken"])
def test_an_instance_has_the_same_keys_everywhere(running: Controlled, words: str) -> None:
    """In each command that names instances."""
    more = {"signalled"} if words.startswith("kill") else set()
    assert set(of(running, *words.split())[0]) == STATUS | more


def test_commands_that_show_instances_among_others(running: Controlled) -> None:
    """show, why and restart --rolling have the same keys of each instance, and their own."""
    assert set(of(running, "show", "web")["instances"][0]) == STATUS
    found = of(running, "restart", "--rolling", "web")
    assert list(found) == ["restarted", "left", "failed", "instances"]
    assert set(found["instances"][0]) == STATUS
    (info,) = of(running, "why", "broken")
    assert set(info) == STATUS | {"next_attempt_at", "incarnations", "story"}
    assert list(info["incarnations"][0]) == RUN
    assert list(info["story"][0]) == ["at", "event", "reason"]


def test_the_keys_of_what_is_read(running: Controlled) -> None:
    """One object a thing."""
    assert list(of(running, "list")[0]) == LISTED
    assert list(of(running, "names")[0]) == ["name", "uri", "metadata"]
    assert list(of(running, "info")) == [
        "version", "pid", "runtime_dir", "token", "control_groups", "started", "restart_storm", "last_event", "socket",
    ]  # fmt: skip
    assert list(of(running, "events", "-n", "1"))[:5] == ["number", "at", "event", "unit", "instance"]
    wait_until(lambda: running.ctl("logs", "broken").stdout, what="its line is written")
    assert list(of(running, "logs", "broken")) == [
        "time", "name", "unit", "generation", "pid", "priority", "by", "message", "fields",
    ]  # fmt: skip


def test_the_keys_of_changes(running: Controlled) -> None:
    """What is to be done, and what was; doing one twice is as doing it once."""
    assert list(of(running, "plan")) == PLAN
    for _ in range(2):
        found = of(running, "scale", "web=2")
        assert (list(found), running.ctl("scale", "web=2").returncode) == (DONE, 0)
    planned = of(running, "plan")
    assert list(planned["units"][0]) == ["unit", "action", "reason", "keys", "starts", "stops", "restarts"]
    assert list(planned["units"][0]["keys"][0]) == ["key", "old", "new", "live"]
    assert list(of(running, "apply", planned["id"])) == DONE
    assert (list(of(running, "reload")), of(running, "plan")["units"]) == (DONE, [])
    found = of(running, "run", "--wait", "-p", "stdout=null", "--", "true")
    assert list(found) == ["unit", "instances", "ended", "exit_status"]
