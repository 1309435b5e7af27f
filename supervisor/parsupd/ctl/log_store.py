"""Reads the log files of units, which parsupd's logger writes: what is there, and what comes."""

import gzip
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import IO, Self, cast

from parsupd.core import log_files
from parsupd.core.log_files import LogFile
from parsupd.core.log_records import DAEMON, MORE, Record, parse_plain
from parsupd.ctl import log_lines
from parsupd.ctl.log_lines import Line

MAX_LINE = 1 << 20
"""Bytes of one line that are put together again."""

WARNING = 4


class Parser:
    """Makes lines of the records of one instance; the parts of a long line are one again."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._parts: dict[tuple[int, str], bytes] = {}

    def lines(self, texts: Iterable[bytes]) -> Iterator[Line]:
        """Records without their newlines; what is none is left out: half of one, that the logger will write again."""
        for text in texts:
            record = _from_json(text) if text.startswith(b"{") else parse_plain(text)
            if record is None:
                continue
            key = record.generation, record.stream
            message = self._parts.pop(key, b"") + record.text
            if record.part == MORE and len(message) < MAX_LINE:
                self._parts[key] = message
            else:
                yield self._line(record, message.decode(errors="backslashreplace").rstrip("\r"))

    def _line(self, record: Record, message: str) -> Line:
        time = datetime.fromisoformat(record.time).timestamp()
        if record.stream == DAEMON:
            return Line(time, self._name, message, WARNING, generation=record.generation, by=DAEMON)
        line = log_lines.from_file(message, self._name, None)  # workerlib's records have a time and more of their own
        if line.time is None:
            line = line._replace(time=time, priority=WARNING if record.stream == "stderr" else line.priority)
        return line._replace(generation=record.generation)


def _from_json(text: bytes) -> Record | None:
    try:
        found = json.loads(text)
        message = str(found["message"]).encode(errors="surrogatepass")
        return Record(found["time"], found["generation"], found["stream"], found.get("part", ""), message)
    except (ValueError, KeyError, TypeError):
        return None


LATE_S = 1.0
"""The kernel's clock for files goes in ticks: a file may have a line that is a moment later than its time."""


def _open(folder: str, name: str, number: int) -> IO[bytes] | None:
    """A file of an instance, whether it has been compressed meanwhile or not; None when it has been removed."""
    path = f"{folder}/{LogFile(number).name(name)}"
    try:
        return open(path, "rb")  # noqa: PTH123 - pathlib alone costs 10 ms to import
    except FileNotFoundError:
        try:
            return cast("IO[bytes]", gzip.open(path + ".gz", "rb"))
        except FileNotFoundError:
            return None


def _numbers(folder: str, name: str, since: float | None) -> list[int]:
    """Those of the files that may have something from `since` on, in order."""
    found = set()
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        return []
    with entries:
        for entry in entries:
            if (parsed := log_files.parse_name(entry.name)) is not None and parsed[0] == name:
                try:
                    if since is None or entry.stat().st_mtime + LATE_S >= since:
                        found.add(parsed[1].number)
                except FileNotFoundError:
                    found.add(parsed[1].number)  # it has just been compressed, or removed
    return sorted(found)


def past(folder: str, name: str, since: float | None) -> Iterator[Line]:
    """All lines from about `since` on, oldest first. Raises OSError."""
    parser = Parser(name)
    for number in _numbers(folder, name, since):
        if (file := _open(folder, name, number)) is not None:
            with file:
                yield from parser.lines(text.rstrip(b"\n") for text in file)


def last(
    folder: str, name: str, count: int, wanted: Callable[[Line], bool] = bool, below: float = float("inf")
) -> list[Line]:
    """The last lines that are wanted, of files with numbers below. Reads no more files than it must."""
    found: list[Line] = []
    for number in reversed(_numbers(folder, name, None)):
        if len(found) >= count:
            break
        if number < below and (file := _open(folder, name, number)) is not None:
            with file:
                lines = filter(wanted, Parser(name).lines(text.rstrip(b"\n") for text in file))
                found = [*deque(lines, maxlen=count - len(found)), *found]
    return found


class Follower:
    """The lines of one instance that come, over the beginnings of new files."""

    def __init__(self, folder: str, name: str) -> None:
        """Begins with the last file; `first` is to be called first."""
        self._folder = folder
        self._name = name
        self._parser = Parser(name)
        self._rest = b""
        self._file: IO[bytes] | None = None
        self._number = self._last() or 0
        if self._number:
            self._file = _open(folder, name, self._number)

    def first(self, count: int, wanted: Callable[[Line], bool]) -> list[Line]:
        """The last lines that are there already; `take` goes on after them."""
        number = self._number
        found = [*deque(filter(wanted, self.take()), maxlen=count)]
        return [*last(self._folder, self._name, count - len(found), wanted, number), *found]

    def _last(self) -> int | None:
        try:
            found = log_files.parse_name(os.readlink(f"{self._folder}/{log_files.link_name(self._name)}"))  # noqa: PTH115 - as above
        except OSError:
            return None
        return None if found is None else found[1].number

    def take(self) -> Iterator[Line]:
        """What has come."""
        yield from self._read()
        while (last := self._last()) is not None and last > self._number:
            yield from self._read()  # nothing is added to it any more
            self.close()
            self._rest = b""
            self._number += 1
            self._file = _open(self._folder, self._name, self._number)
            yield from self._read()

    def _read(self) -> Iterator[Line]:
        if self._file is None:
            return
        if not self._file.name.endswith(".gz"):
            size = os.fstat(self._file.fileno()).st_size
            if size < self._file.tell():  # a logger that was killed: the next one writes the same again
                self._file.seek(size)
                self._rest = b""
        while data := self._file.read(1 << 16):
            *texts, self._rest = (self._rest + data).split(b"\n")
            yield from self._parser.lines(texts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
