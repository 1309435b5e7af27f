# ruff: noqa: DTZ001 - local times, as people write them
"""What `parsupctl logs` makes of entries and lines, as values."""

import json
from datetime import datetime as at

import pytest

from parsupd.ctl import log_lines, render
from parsupd.ctl.log_lines import Line, parse_time

NOW = at(2026, 3, 4, 15, 30, 20).timestamp()
DAY = 86400


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("now", NOW),
        ("today", at(2026, 3, 4).timestamp()),
        ("Yesterday", at(2026, 3, 3).timestamp()),
        ("2026-01-31", at(2026, 1, 31).timestamp()),
        ("2026-01-31 14:05", at(2026, 1, 31, 14, 5).timestamp()),
        ("2026-01-31T14:05:06", at(2026, 1, 31, 14, 5, 6).timestamp()),
        ("2026-01-31T14:05:06+00:00", 1769868306.0),
        ("14:05", at(2026, 3, 4, 14, 5).timestamp()),
        ("9:05:30", at(2026, 3, 4, 9, 5, 30).timestamp()),
        ("@1769868306.5", 1769868306.5),
        ("-1h", NOW - 3600),
        ("-1h 30min", NOW - 5400),
        ("+2 days", NOW + 2 * DAY),
        ("5min ago", NOW - 300),
        ("2 weeks 1 day ago", NOW - 15 * DAY),
    ],
)
def test_times_are_what_people_write(text: str, time: float) -> None:
    """Local dates and times, times of today, spans before now, and Unix time."""
    assert parse_time(text, NOW) == time


@pytest.mark.parametrize("text", ["", "soon", "-", "-1", "-1x", "5 parsecs ago", "25:00", "2026-13-01", "@", "1h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """No guess is made."""
    with pytest.raises(ValueError, match=r"\w"):
        parse_time(text, NOW)


def entry(**fields: object) -> Line:
    return log_lines.from_journal(json.dumps({"__REALTIME_TIMESTAMP": "1769868306500000", **fields}))


def test_an_entry_keeps_whose_and_when() -> None:
    """A structured record names its instance, its life and its fields; journald's own are left out."""
    line = entry(MESSAGE="filled", PARSUP_INSTANCE="a@1", PARSUP_GENERATION="3", PRIORITY="4", _PID="7", ORDER="5", _X="y",
                 SYSLOG_IDENTIFIER="a@1")  # fmt: skip
    assert line == Line(1769868306.5, "a@1", "filled", 4, 7, 3, "a@1", {"ORDER": "5"})


def test_a_raw_line_is_its_streams() -> None:
    """A line that a unit has printed is named by the identifier of its stream."""
    assert entry(MESSAGE="beep", SYSLOG_IDENTIFIER="b@2").name == "b@2"


def test_values_that_are_no_text_are_shown() -> None:
    """journalctl gives bytes as numbers, repeated fields as arrays, and null for what is too long."""
    line = entry(MESSAGE=[104, 105, 255], TWICE=["a", "b"], LONG=None, SYSLOG_IDENTIFIER="b@2")
    assert (line.message, line.fields) == ("hi\\xff", {"TWICE": "a, b", "LONG": ""})


def test_lines_of_files_have_the_times_that_are_in_them() -> None:
    """workerlib's records have a time and a level; a raw line counts as of the one before it."""
    record = '{"worker": "a@1", "event": "oops", "x": 1, "level": "error", "timestamp": "2026-01-31T14:05:06.500000Z"}'
    raw = log_lines.from_file("raw", "a@1", None)
    logged = log_lines.from_file(record, "a@1", raw)
    later = log_lines.from_file('{"no": "record"}', "a@1", logged)
    assert [raw.time, logged.time, later.time] == [None, 1769868306.5, 1769868306.5]
    assert (logged.message, logged.priority, logged.fields) == ("oops  x=1", 3, {"X": "1"})
    assert later.message == '{"no": "record"}'


def test_one_life_is_told_from_the_others() -> None:
    """A raw line belongs to the life that the daemon had begun; a worker's records say it themselves."""
    lines = [
        Line(1, "a@1", "early"),
        Line(2, "a@1", "starting", generation=1, by="parsupd"),
        Line(3, "a@1", "raw of 1"),
        Line(4, "b@1", "starting", generation=2, by="parsupd"),
        Line(5, "a@1", "starting", generation=2, by="parsupd"),
        Line(6, "a@1", "late record of 1", generation=1, by="a@1"),
        Line(7, "a@1", "raw of 2"),
        Line(8, "b@1", "raw of b"),
    ]
    assert [line.time for line in log_lines.of_generation(lines, 1)] == [2, 3, 6]
    assert [line.time for line in log_lines.of_generation(lines, 2)] == [4, 5, 7, 8]


@pytest.mark.parametrize(
    ("line", "since", "until", "priority", "shown"),
    [
        (Line(5, "a", ""), 4, 6, 6, True),
        (Line(3, "a", ""), 4, None, None, False),
        (Line(7, "a", ""), None, 6, None, False),
        (Line(5, "a", "", 7), None, None, 6, False),
        (Line(None, "a", ""), 4, None, None, False),
        (Line(None, "a", ""), None, 4, None, True),
    ],
)
def test_a_line_is_in_range_or_not(
    line: Line, since: float | None, until: float | None, priority: int | None, shown: bool
) -> None:
    """What has no time was before everything."""
    assert log_lines.in_range(line, since, until, priority) is shown


def test_messages_of_several_lines_stay_together() -> None:
    """Below the first line, the others begin in the same column; what the daemon says is told apart."""
    line = Line(NOW, "a@1", "a@1: failed: x\ny", 3, by="parsupd")
    first, second = log_lines.as_text(line, render.plain).split("\n")
    assert first == "Mar 04 15:30:20 a@1          parsupd: failed: x"
    assert second == " " * 29 + "y"


def test_the_keys_of_json_are_stable() -> None:
    """Scripts rely on them."""
    line = json.loads(log_lines.as_json(Line(1.5, "a@1", "x", 4, 7, 3, "a@1", {"ORDER": "5"})))
    assert line == {"time": 1.5, "name": "a@1", "unit": "a", "generation": 3, "pid": 7, "priority": 4, "by": "a@1",
                    "message": "x", "fields": {"ORDER": "5"}}  # fmt: skip
