"""Where the lines of `parsupctl logs` come from: the journal, read by journalctl, log files, and files of units."""

import heapq
import os
import re
import select
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, BinaryIO, NamedTuple

import click

from parsupd.ctl import log_lines, log_store
from parsupd.ctl.client import ANSWER_S, NO_SUCH_UNIT, UNREACHABLE, Failure, daemon
from parsupd.ctl.log_lines import Line

MAX_LINE = 1 << 20
"""Bytes of one line of a file that are shown."""

LOOK_EVERY_S = 0.1
"""How often log files are looked at while they are followed: to be told of changes would need a library for inotify."""

FOLLOW_FROM = 10
"""So many lines are shown first when following, as journalctl and tail do."""


class Wanted(NamedTuple):
    """What the options ask for."""

    follow: bool
    last: int | None
    since: float | None
    until: float | None
    generation: int | None
    priority: int | None


# Where


class Places(NamedTuple):
    """Where to look."""

    journal: list[str]
    """Terms for journalctl; empty for not at all."""
    logs: list[tuple[str, str]] = []  # noqa: RUF012 - never changed
    """Directories of log files, and whose."""
    files: list[tuple[str, str]] = []  # noqa: RUF012 - never changed
    """Other files, and whose."""


def places(context: click.Context, names: tuple[str, ...], timeout_s: float = ANSWER_S) -> Places:
    """Where what these say is kept; the daemon is asked, who may take so long to answer."""
    try:
        with daemon(context, timeout_s) as connection:
            found: list[dict[str, Any]] = connection.call("outputs", list(names))
    except Failure as failure:
        if failure.status != UNREACHABLE:
            raise
        click.echo("parsupctl: parsupd is not there; only the journal is read", err=True)
        found = []
    found = list({entry["name"]: entry for entry in found}.values())
    files = [(path, entry["name"]) for entry in found for path in entry["files"]]
    logs = [(entry["logs"], entry["name"]) for entry in found if entry["logs"]]
    if found and not any(entry["journal"] for entry in found):
        if not files and not logs:
            where = 'its own stderr, as parsupd does not log to a journal: see where that goes, or use stdout = "file"'
            raise Failure(f"what {' '.join(names)} says is kept nowhere by parsupd; it goes to {where}")
        return Places([], logs, files)
    return Places(_matches(names, known=bool(found)), logs, files)


def _matches(names: tuple[str, ...], *, known: bool) -> list[str]:
    """Terms for journalctl: structured records by their fields, raw lines by the identifier of their stream."""
    identifiers = _run_journalctl("--field=SYSLOG_IDENTIFIER").splitlines()
    terms: list[str] = []
    for name in names:
        whole = "@" not in name
        raw = [
            word for word in identifiers if word == name or (whole and re.fullmatch(f"{re.escape(name)}@[0-9]+", word))
        ]
        by_field = f"PARSUP_UNIT={name}" if whole else f"PARSUP_INSTANCE={name}"
        if not raw and not known and not _run_journalctl("--lines=1", "--output=cat", by_field):
            raise Failure(f"the journal knows of no unit {name!r}", NO_SUCH_UNIT)
        terms += [by_field, "+", *(f"SYSLOG_IDENTIFIER={word}" for word in raw), "+"]
        if not raw:
            terms.pop()
    return terms[:-1]


def _journalctl(*arguments: str) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            ["journalctl", "--no-pager", "--quiet", *arguments],  # noqa: S607 - as PATH says
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
    except FileNotFoundError:
        raise Failure("journalctl is not installed, and the journal is read with it") from None
    except OSError as error:
        raise Failure(f"journalctl: {error.strerror}") from None


def _run_journalctl(*arguments: str) -> str:
    with _journalctl(*arguments) as program:
        text, _ = program.communicate()
    _check(program)
    return text.decode(errors="backslashreplace")


def _check(program: "subprocess.Popen[bytes]") -> None:
    if status := program.wait():
        raise Failure(
            f"journalctl failed with status {status}; the journal of the system may be read by root and by the group "
            "systemd-journal"
        )


# What has been


def past(places: Places, wanted: Wanted) -> Iterable[Line]:
    sources = [_file_lines(path, name, wanted) for path, name in places.files]
    sources += [_log_lines(folder, name, wanted) for folder, name in places.logs]
    if places.journal:
        sources.append(_journal_lines(places.journal, wanted))
    lines: Iterable[Line] = heapq.merge(*sources, key=lambda line: line.time or 0.0)
    if wanted.generation is not None:
        lines = log_lines.of_generation(lines, wanted.generation)
        # The daemon's own records say which life is meant, so these are sorted out only now.
        lines = (line for line in lines if log_lines.in_range(line, wanted.since, wanted.until, wanted.priority))
    return lines if wanted.last is None else deque(lines, maxlen=wanted.last)


def _journal_lines(terms: list[str], wanted: Wanted) -> Iterator[Line]:
    options = [] if wanted.generation is not None else _options(wanted)
    # Elsewhere all that is found is counted here: with --since, systemd 252 shows the first lines, not the last ones.
    if wanted.last is not None and wanted.generation is wanted.since is wanted.until is None:
        options.append(f"--lines={wanted.last}")
    program = _journalctl("--output=json", "--all", *options, *terms)
    try:
        assert program.stdout is not None
        yield from map(log_lines.from_journal, (text.decode(errors="backslashreplace") for text in program.stdout))
    except BaseException:
        program.terminate()
        program.wait()
        raise
    finally:
        assert program.stdout is not None
        program.stdout.close()
    _check(program)


def _options(wanted: Wanted) -> list[str]:
    given = {"--since=@": wanted.since, "--until=@": wanted.until}
    options = [f"{option}{moment:.6f}" for option, moment in given.items() if moment is not None]
    return options if wanted.priority is None else [*options, f"--priority={wanted.priority}"]


def _file_lines(path: str, name: str, wanted: Wanted) -> Iterator[Line]:
    before: Line | None = None
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib alone costs 10 ms to import
            while text := file.readline(MAX_LINE):
                before = _line_of(text, name, before)
                if wanted.generation is not None or log_lines.in_range(
                    before, wanted.since, wanted.until, wanted.priority
                ):
                    yield before
    except FileNotFoundError:
        return  # nothing was said yet
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from None


def _log_lines(folder: str, name: str, wanted: Wanted) -> Iterator[Line]:
    filters = (wanted.since, wanted.until, wanted.generation, wanted.priority)
    try:
        if wanted.last is not None and filters == (None, None, None, None):
            yield from log_store.last(folder, name, wanted.last)
            return
        for line in log_store.past(folder, name, wanted.since):
            if wanted.generation is not None or log_lines.in_range(line, wanted.since, wanted.until, wanted.priority):
                yield line
    except OSError as error:
        raise Failure(f"{error.filename or folder}: {error.strerror or error}") from None


def _line_of(text: bytes, name: str, before: Line | None) -> Line:
    return log_lines.from_file(text.decode(errors="backslashreplace").rstrip("\r\n"), name, before)


# What comes


class _Source:
    """The output of a program that follows the journal or a file, cut into lines."""

    def __init__(self, program: "subprocess.Popen[bytes]", read: Callable[[bytes, Line | None], Line]) -> None:
        assert program.stdout is not None
        self.program = program
        self.pipe: BinaryIO = program.stdout  # type: ignore[assignment]  # Popen's IO[bytes] is one
        self._read = read
        self._rest = b""
        self._before: Line | None = None

    def take(self) -> Iterator[Line]:
        """The lines that have come. Raises EOFError at the end."""
        data = os.read(self.pipe.fileno(), 1 << 16)
        if not data:
            raise EOFError
        *texts, self._rest = (self._rest + data).split(b"\n")
        for text in texts:
            self._before = self._read(text, self._before)
            yield self._before


def follow(places: Places, wanted: Wanted, show: Callable[[Line], None]) -> None:
    """Shows lines as they come; ends when nobody reads what it shows, also while nothing comes."""
    first = str(FOLLOW_FROM if wanted.last is None else wanted.last)

    def is_wanted(line: Line) -> bool:
        return log_lines.in_range(line, wanted.since, None, wanted.priority)

    with ExitStack() as running:
        sources: dict[int, _Source] = {}

        def add(program: "subprocess.Popen[bytes]", read: Callable[[bytes, Line | None], Line]) -> None:
            running.enter_context(program)
            running.callback(program.terminate)
            source = _Source(program, read)
            sources[source.pipe.fileno()] = source

        if places.journal:
            add(
                _journalctl(
                    "--output=json", "--all", "--follow", f"--lines={first}", *_options(wanted), *places.journal
                ),
                lambda text, _: log_lines.from_journal(text.decode(errors="backslashreplace")),
            )
        for path, name in places.files:
            tail = ["tail", "--follow=name", "--retry", f"--lines={first}", "--", path]
            add(
                subprocess.Popen(tail, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL),
                lambda text, before, name=name: _line_of(text, name, before),  # type: ignore[misc]
            )
        followers = [running.enter_context(log_store.Follower(*where)) for where in places.logs]
        for line in _firsts(followers, int(first), is_wanted):
            show(line)
        poller = select.poll()
        for fd in sources:
            poller.register(fd, select.POLLIN)
        poller.register(1, 0)  # an error or hang-up is always told
        while True:
            for fd, _ in poller.poll(LOOK_EVERY_S * 1000 if followers else None):
                if fd == 1:
                    return
                try:
                    for line in filter(is_wanted, sources[fd].take()):
                        show(line)
                except EOFError:
                    _check(sources[fd].program)
                    return
            for line in filter(is_wanted, _taken(followers)):
                show(line)


def _firsts(followers: list[log_store.Follower], count: int, is_wanted: Callable[[Line], bool]) -> Iterable[Line]:
    """What was said last, by all together."""
    found = heapq.merge(
        *(follower.first(count, is_wanted) for follower in followers), key=lambda line: line.time or 0.0
    )
    return deque(found, maxlen=count)


def _taken(followers: list[log_store.Follower]) -> Iterator[Line]:
    for follower in followers:
        yield from follower.take()
