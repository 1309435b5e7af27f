"""kill -9 of parsupd and of its logger, again and again, while a unit writes: each line is in its files, once."""

import gzip
import itertools
import os
import signal
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_daemon import Daemon, assert_nothing_left, loggers, simple
from support import alive, wait_until

from parsupd.core import log_files

LINES = 1_000_000 if os.environ.get("PARSUP_SOAK") else 200_000
"""A fifth of the full number in `make test`."""

WRITER = f"""
import os, sys, time
lines, began = {LINES}, time.monotonic()
for first in range(0, lines, 500):
    os.write(1, b"".join(b"number %d\\n" % number for number in range(first, first + 500)))
    if first % 5000 == 0:
        os.write(2, b"at %d" % first)
        os.write(2, b" lines\\n")
        time.sleep(max(0.0, began + first / 50_000 - time.monotonic()))
"""


def kept(folder: Path, name: str) -> Iterator[bytes]:
    """All records of an instance, in the order of its files."""
    found = sorted(
        {
            parsed[1].number
            for path in folder.iterdir()
            if (parsed := log_files.parse_name(path.name)) and parsed[0] == name
        }
    )
    for number in found:
        plain, packed = (folder / log_files.LogFile(number, compressed).name(name) for compressed in (False, True))
        data = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
        assert data.endswith(b"\n")
        yield from data.split(b"\n")[:-1]


def lines_seen(running: Daemon) -> int:
    """Grows when something was written."""
    return sum(path.stat().st_mtime_ns for path in (running.runtime / "logs").glob("*.state"))


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.mark.timeout(120)
def test_each_line_is_written_once_over_kills_of_parsupd_and_the_logger(tmp_path: Path) -> None:
    """Neither, the one, the other, and both at once: no line is lost, doubled, torn or out of order."""
    (tmp_path / "writer.py").write_text(WRITER)
    command = f"exec {sys.executable} {tmp_path}/writer.py"
    keys = {"stdout": "file", "restart": "no", "log_rotate_size": "4M", "log_total_size": "1G"}
    running = Daemon(tmp_path, f"[unit.writer]\n{simple(command, **keys)}")
    try:
        writer = running.status("writer@1")["pid"]
        killed = {"logger": 0, "parsupd": 0}
        for turn in itertools.cycle(range(10)):
            if not alive(writer):
                break
            seen = lines_seen(running)
            wait_until(lambda seen=seen: lines_seen(running) > seen or not alive(writer), what="lines")  # type: ignore[misc]
            for pid in loggers(running.runtime) if turn != 5 else []:
                kill(pid)
                killed["logger"] += 1
            if turn in {5, 9}:
                running.kill()
                killed["parsupd"] += 1
                running.start()
        wait_until(lambda: running.status("writer@1")["sub_state"] == "dead", within_s=60, what="the writer's end")
        assert min(killed.values()) >= 1, killed
    finally:
        assert running.stop() == 0
    assert_nothing_left(running)
    numbers, told = array("q"), []
    for record in kept(running.state / "logs", "writer@1"):
        _, generation, stream, rest = record.split(b" ", 3)
        assert generation == b"1"
        if stream == b"stdout":
            numbers.append(int(rest.removeprefix(b"number ")))
        else:
            told.append((stream, rest))
    assert numbers == array("q", range(LINES))
    assert told == [(b"stderr", b"at %d lines" % number) for number in range(0, LINES, 5000)]
