"""parsupd's log: lines for people or JSON lines, and no record that is lost in silence."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from parsupd.core.units import LogFormat
from parsupd.shell import journal


def written(form: LogFormat, *records: dict[str, object]) -> str:
    """What is in a file after these records."""
    with tempfile.TemporaryFile() as file:
        log = journal.configure(journal.resolve(form, file.fileno()), file.fileno())
        for record in records:
            getattr(log, str(record.get("level", "info")))(**{key: record[key] for key in record if key != "level"})
        file.seek(0)
        return file.read().decode()


def console(**record: object) -> str:
    text = re.sub(r"^\d\d:\d\d:\d\d ", "", written(LogFormat.CONSOLE, record))
    return "\n".join(line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            {"event": "unit_changed", "unit": "a@1", "generation": 1, "old": "dead", "new": "running", "reason": "it is so"},
            "a@1          running    it is so",
        ),
        (
            {"event": "unit_changed", "unit": "a@1", "generation": 7, "old": "dead", "new": "running", "reason": "it is so"},
            "a@1          running    it is so  generation=7",
        ),
        (
            {"event": "unit_ended", "unit": "a@1", "cause": "exited", "restart": True, "reason": "restart=always"},
            "a@1          ended, to be started again restart=always",
        ),
        (
            {"event": "unit_ended", "unit": "a@1", "cause": "exited", "restart": False, "reason": "restart=no"},
            "a@1          ended      restart=no",
        ),
        ({"event": "started", "pid": 5}, "parsupd      started    pid=5"),
        ({"event": "[WORKER a@1 STDERR]: oh_no", "unit": "a@1"}, "a@1          [WORKER a@1 STDERR]: oh_no"),
    ],
)  # fmt: skip
def test_a_record_reads_as_a_line(record: dict[str, object], line: str) -> None:
    """On the console a record says whom it concerns, what happened and why; the generation only from the second on."""
    assert console(**record) == line


def test_an_error_is_shown_with_its_traceback() -> None:
    """A record with an exception has its traceback on the lines below."""
    try:
        raise KeyError("gone")
    except KeyError as error:
        text = console(event="worker_failed", level="error", exc_info=error)
    assert text.startswith("parsupd      worker failed\nTraceback ")
    assert text.endswith("KeyError: 'gone'")


def test_auto_means_colours_on_a_terminal_and_json_elsewhere() -> None:
    """AUTO looks at where the log goes."""
    record = json.loads(written(LogFormat.AUTO, {"event": "started", "pid": 5}))
    assert record.items() >= {"event": "started", "pid": 5, "level": "info"}.items()
    ours, terminal = os.openpty()
    try:
        journal.configure(journal.resolve(LogFormat.AUTO, terminal), terminal).info("started", pid=5)
        assert re.match(rb"\x1b\[2m[\d:]+\x1b\[0m \x1b\[1mparsupd ", os.read(ours, 1000))
    finally:
        os.close(ours)
        os.close(terminal)


def test_records_that_cannot_be_written_are_counted() -> None:
    """A full disk costs records but stops nothing; the next record that can be written says how many are missing."""
    full = os.open("/dev/full", os.O_WRONLY)
    reading, writing = os.pipe()
    try:
        log = journal.configure(LogFormat.JSON, full)
        log.info("first")
        log.info("second")
        os.dup2(writing, full)
        log.info("third")
        log.info("fourth")
        lost, third, fourth = map(json.loads, os.read(reading, 10_000).splitlines())
    finally:
        for fd in (full, reading, writing):
            os.close(fd)
    assert (lost["event"], lost["count"]) == ("log_records_lost", 2)
    assert [third["event"], fourth["event"]] == ["third", "fourth"]


def test_a_record_that_was_torn_does_not_spoil_the_next() -> None:
    """When a disk is full in the middle of a record, the next one begins on a line of its own."""
    program = Path(__file__).parent / "programs" / "log_to_small_file.py"
    with tempfile.NamedTemporaryFile() as file:
        subprocess.run([sys.executable, str(program), file.name], check=True, timeout=30)
        torn, lost, last = Path(file.name).read_text().splitlines()
    with pytest.raises(json.JSONDecodeError):
        json.loads(torn)
    assert json.loads(lost)["count"] == 1
    assert json.loads(last)["event"] == "last"
