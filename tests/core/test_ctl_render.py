"""What parsupctl shows, as text from values."""

import pytest

from parsupd.core.attributes import Holder
from parsupd.core.units import ActiveState
from parsupd.ctl import render
from parsupd.ctl.client import Options, candidates
from parsupd.shell.usage import Usage

NOW = 1_700_000_000.0

INFO = {
    "name": "pricing@1",
    "unit": "pricing",
    "type": "worker",
    "description": "Prices things",
    "target": "up",
    "state": "active",
    "sub_state": "running",
    "pid": 4711,
    "generation": 3,
    "restarts": 1,
    "since": NOW - 65,
    "uri": "PYRO:x@./u:/run/x",
    "reason": "it is ready",
    "status_text": "",
    "limits": {},
}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0ms"),
        (0, "0ms"),
        (0.12, "120ms"),
        (1, "1s"),
        (59.6, "1min"),
        (61, "1min 1s"),
        (3600, "1h"),
        (3605, "1h"),
        (3660, "1h 1min"),
        (7261, "2h 1min"),
        (86400, "1 day"),
        (2 * 86400 + 59, "2 days"),
        (2 * 86400 + 4 * 3600 + 5, "2 days 4h"),
    ],
)
def test_durations_have_two_neighbouring_units_at_most(seconds: float, text: str) -> None:
    """As a person says them; a clock that was set back is no error."""
    assert render.duration(seconds) == text


def test_instants_are_told_from_now() -> None:
    """Before, after, and not at all."""
    assert render.ago(NOW - 65, NOW) == "1min 5s ago"
    assert render.ago(NOW + 2, NOW) == "in 2s"
    assert render.ago(None, NOW) == "-"


def test_columns_are_aligned_without_trailing_blanks() -> None:
    """Two blanks between columns; a table without rows is its header."""
    assert render.align(("A", "BB"), [("long", ""), ("x", "y")]) == "A     BB\nlong\nx     y"
    assert render.align(("A", "BB"), []) == "A  BB"


def test_the_keys_of_list_json_are_these() -> None:
    """Promised to scripts: changing them breaks somebody."""
    assert list(render.only_listed(INFO)) == [
        "name", "unit", "type", "state", "sub_state", "pid", "generation", "restarts", "since", "uri",
        "status_text",
    ]  # fmt: skip


def test_a_row_of_list() -> None:
    """In the order of its headers; what is not there is a dash."""
    assert render.list_row(INFO, NOW) == ("pricing@1", "worker", "active (running)", "4711", "3", "1", "1min 5s ago")
    assert render.list_row({**INFO, "pid": None}, NOW)[3] == "-"
    assert len(render.list_row(INFO, NOW)) == len(render.LIST_HEADERS)
    assert len(render.status_row(INFO, NOW)) == len(render.STATUS_HEADERS)


def test_status_shows_only_what_is_there() -> None:
    """No empty labels for an instance that never ran; the state is painted with its colour."""
    never = {
        **INFO,
        "state": "inactive",
        "sub_state": "dead",
        "pid": None,
        "generation": 0,
        "uri": "",
        "description": "",
    }
    lines = render.status(never, NOW, lambda text, colour: f"<{colour}:{text}>").splitlines()
    assert lines[0] == "<inactive:○> pricing@1"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["Type", "Active", "Reason", "Target"]
    assert "<inactive:inactive (dead)> since " in lines[2]


def test_status_says_where_a_unit_is_described_and_what_it_takes() -> None:
    """As systemctl does; a unit without a process takes nothing."""
    unit = {"source": "/etc/p.toml", "transient": False, "keys": {"enabled": False}}
    lines = render.status(INFO, NOW, unit=unit, usage=Usage(2, 61.0, 3 << 20, 100.0, 5)).splitlines()
    assert lines[1] == "    Loaded: /etc/p.toml (disabled)"
    assert {"     Tasks: 5", "    Memory: 3.0M", "       CPU: 1min 1s"} <= set(lines)
    (loaded,) = [
        line for line in render.status(INFO, NOW, unit={**unit, "transient": True}).splitlines() if "Loaded" in line
    ]
    assert loaded.endswith("(transient)")
    assert "Tasks" not in render.status(INFO, NOW, unit=unit)


def test_status_says_who_holds_limits() -> None:
    """In words, for each limit of an instance that runs."""
    last = render.status({**INFO, "limits": {"memory_max": "watched", "tasks_max": "cgroup"}}, NOW).splitlines()[-1]
    assert last == "    Limits: memory_max watched by parsupd, tasks_max held by the kernel"
    assert set(render.HELD_BY) == {holder.value for holder in Holder}


def test_why_shows_the_newest_run_first() -> None:
    """Cause, how long it lasted, whether it was ready, what was decided, and the last lines that it wrote."""
    run = {
        "generation": 1, "pid": 12, "started_at": NOW - 10, "ready_at": None, "ended_at": NOW - 9, "cause": "exited with 1",
        "restarted": True, "reason": "restart=always", "next_attempt_at": NOW, "lines": ["Traceback", "Oops"],
        "oom_killed": False, "stack": [], "log": [{"message": "one\ntwo"}],
    }  # fmt: skip
    later = {
        **run, "generation": 2, "pid": None, "ready_at": NOW - 9.5, "restarted": False, "lines": [],
        "next_attempt_at": None, "oom_killed": True, "stack": ["File x, line 1"], "log": [],
    }  # fmt: skip
    story = [{"at": NOW - 9, "event": "Exited(generation=1)", "reason": "it exited with 1"}]
    info = {**INFO, "next_attempt_at": NOW + 1, "incarnations": [run, later], "story": story}
    assert render.why(info, NOW).splitlines() == [
        "pricing@1 is active (running): it is ready",
        "  next attempt in 1s",
        "  run 2 (no process) exited with 1, 9s ago, after 1s; ready after 500ms",
        "    not restarted: restart=always",
        "    the kernel has killed processes of it for want of memory",
        "    its stack when it was asked by the watchdog:",
        "      File x, line 1",
        "  run 1 (pid 12) exited with 1, 9s ago, after 1s; never ready",
        "    restarted: restart=always",
        f"    next attempt: {render.instant(NOW)}",
        "    its last lines on stderr:",
        "      Traceback",
        "      Oops",
        "    its last lines:",
        "      one",
        "      two",
        "  what happened:",
        "              9s ago  Exited: it exited with 1",
    ]


def test_every_state_has_a_colour_and_a_dot() -> None:
    """Keyed by name: a new state of the daemon is noticed here."""
    states = {state.value for state in ActiveState}
    assert set(render.COLOURS) == states
    assert set(render.DOTS) == states


ALL = {"XDG_RUNTIME_DIR": "/run/user/1", "RUNTIME_DIRECTORY": "/run/svc"}


@pytest.mark.parametrize(
    ("options", "env", "root", "expected"),
    [
        (Options(), {}, False, [".parsupd/parsupd.sock"]),
        (Options(), {}, True, ["/run/parsupd/parsupd.sock", ".parsupd/parsupd.sock"]),
        (Options(), ALL, True, [f"{d}/parsupd.sock" for d in ("/run/svc", "/run/parsupd", "/run/user/1/parsupd", ".parsupd")]),
        (Options(socket="/s"), {**ALL, "PARSUP_SOCKET": "/other"}, True, ["/s"]),
        (Options(runtime_dir="/d/"), {**ALL, "PARSUP_SOCKET": "/other"}, True, ["/d/parsupd.sock"]),
        (Options(), {**ALL, "PARSUP_SOCKET": "/s", "PARSUP_RUNTIME_DIR": "/d"}, True, ["/s"]),
        (Options(), {**ALL, "PARSUP_RUNTIME_DIR": "/d"}, True, ["/d/parsupd.sock"]),
    ],
)  # fmt: skip
def test_where_the_daemon_is_looked_for(options: Options, env: dict[str, str], root: bool, expected: list[str]) -> None:
    """Option before variable, socket before directory, and only then the places where parsupd puts it by itself."""
    assert candidates(options, env, root=root) == expected
