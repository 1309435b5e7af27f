"""A logger that ends in the middle of any system call: the next one goes on so that no byte is lost or doubled.

The calls are real; only the end is played, before the nth of them, after it, or after half of what it should write.
"""

import contextlib
import errno
import gzip
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import open_fds

from parsupd.core import log_files
from parsupd.core.log_records import Source, parse_plain
from parsupd.core.log_settings import LogSettings
from parsupd.logger import Logger, compress
from parsupd.shell import log_spool
from parsupd.shell.instance_log import InstanceLog
from parsupd.shell.log_folder import LogFolder

OUT, ERR = Source("a@1", 1, "stdout"), Source("a@1", 1, "stderr")
SETTINGS = LogSettings(rotate_size=400, total_size=1 << 20, compress=False)
CALLS = ("splice", "write", "pwrite", "ftruncate", "truncate", "unlink", "rename")


class EndedError(BaseException):
    """The logger has been killed."""


class Faults:
    """Counts the calls that change something, and ends the process in one of them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.at, self.when, self.count = -1, "", 0
        for name in CALLS:
            patch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count != self.at:
                return real(*args, **kwargs)
            if self.when == "half" and name == "write":
                real(args[0], args[1][: len(args[1]) // 2])
            elif self.when == "half" and name == "splice":
                real(args[0], args[1], 7, **kwargs)
            elif self.when == "after":
                real(*args, **kwargs)
            raise EndedError

        return call


class Setup:
    """One instance's pipes, and one logger after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runtime, self.logs = folder, folder / "logs", folder / "kept"
        self.runtime.mkdir()
        self.ends: dict[Source, int] = {}
        self.held: list[int] = []
        for source in (OUT, ERR):
            os.mkfifo(self.runtime / log_spool.fifo_name(source))
            self.ends[source] = os.open(self.runtime / log_spool.fifo_name(source), os.O_RDWR)
            # What parsupd holds, so that what is in a pipe outlives unit and logger.
            self.held.append(os.open(self.runtime / log_spool.fifo_name(source), os.O_RDONLY | os.O_NONBLOCK))
        self.finished: list[Source] = []

    def logger(self, settings: LogSettings = SETTINGS) -> tuple[InstanceLog, LogFolder]:
        folder = LogFolder(str(self.logs))
        return InstanceLog(
            "a@1", str(self.runtime), folder, settings, b"b" * 36, lambda pipe: self.finished.append(pipe.source)
        ), folder

    def drain(self, log: InstanceLog, *sources: Source) -> None:
        for source in sources:
            if source not in log.pipes:
                log.open(source)
            while (pipe := log.pipes.get(source)) is not None and log.take(pipe, 0.0):
                pass
        assert log.trouble is None

    @property
    def fds(self) -> set[int]:
        return {*self.ends.values(), *self.held}

    def close_ends(self) -> None:
        for fd in self.ends.values():
            os.close(fd)
        self.ends.clear()

    def close(self) -> None:
        self.close_ends()
        for fd in self.held:
            os.close(fd)

    def records(self) -> list[tuple[str, str, bytes]]:
        """(stream, part, text) of all files."""
        found = []
        names = sorted(path.name for path in self.logs.iterdir() if log_files.parse_name(path.name))
        for name in names:
            data = (self.logs / name).read_bytes()
            for line in (gzip.decompress(data) if name.endswith(".gz") else data).split(b"\n")[:-1]:
                record = parse_plain(line)
                assert record is not None, line
                found.append((record.stream, record.part, record.text))
        return found

    def text(self, source: Source) -> bytes:
        return b"".join(
            text + {"": b"\n", "+": b"", "-": b""}[part]
            for stream, part, text in self.records()
            if stream == source.stream
        )


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    made = Setup(tmp_path)
    yield made
    made.close()


def close_others(keep: set[int]) -> None:
    """What the kernel does when a process ends."""
    for fd in set(open_fds()) - keep:
        with contextlib.suppress(OSError):
            os.close(fd)


ROUNDS = [
    ({OUT: b"one\ntwo\nthr", ERR: b"bad\n"}),
    ({OUT: b"ee\n", ERR: b"wor"}),
    ({OUT: b"four\n" * 20, ERR: b"se\n"}),
    ({OUT: b"a" * 300 + b"\n" + b"last", ERR: b""}),
]


@pytest.mark.parametrize("when", ["before", "half", "after"])
def test_an_end_in_any_call(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever call the logger dies in, both streams arrive whole, once, in order, over rotation and spool changes."""
    monkeypatch.setattr("parsupd.shell.instance_log.SPOOL_LIMIT", 8)
    faults = Faults(monkeypatch)
    ends = 0
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        folder.mkdir()
        before = set(open_fds())
        setup = Setup(folder)
        ended = False
        log, _ = setup.logger()
        faults.count, faults.at, faults.when = 0, at, when
        for texts in ROUNDS:
            for source, text in texts.items():
                _real_write(setup.ends[source], text)
            if texts is ROUNDS[-1]:
                setup.close_ends()
            try:
                setup.drain(log, OUT, ERR)
            except EndedError:
                ended = True
                faults.at = -1
                close_others(before | setup.fds)
                log, _ = setup.logger()
                setup.drain(log, OUT, ERR)
        reached = faults.count
        faults.at = -1
        assert log.is_done
        log.close()
        close_others(before)
        for source in (OUT, ERR):
            assert setup.text(source) == b"".join(texts[source] for texts in ROUNDS), (at, when, source)
        assert list(setup.runtime.iterdir()) == []
        ends += ended
        if reached < at:
            break  # there is no such call
    assert ends >= 40


_real_write = os.write


def test_all_pipes_are_known_before_the_first_one_ends(setup: Setup) -> None:
    """A logger that finds two streams at their end does not take the second one's spool for new."""
    log, folder = setup.logger()
    for source in (OUT, ERR):
        _real_write(setup.ends[source], b"one\n")
    setup.drain(log, OUT, ERR)
    setup.close_ends()
    for pipe in log.pipes.values():
        pipe.close()
    os.close(log._fd)
    os.close(folder._lock)
    log._state.close()
    logger = Logger(str(setup.folder), str(setup.logs), "1")
    logger._boot = b"b" * 36
    logger._heard = True
    logger._scan()
    logger.run()
    for fd in (logger._lock, logger._folder._lock):
        os.close(fd)
    assert [(stream, text) for stream, _, text in setup.records()] == [("stdout", b"one"), ("stderr", b"one")]


def test_what_a_killed_logger_knew_at_its_end_keeps_nobody(setup: Setup) -> None:
    """One that was killed between the end of the last pipe and its own leaves nothing that the next one waits for."""
    log, folder = setup.logger()
    _real_write(setup.ends[OUT], b"one\n")
    setup.drain(log, OUT)
    for pipe in log.pipes.values():
        pipe.remove()
    os.close(log._fd)
    os.close(folder._lock)
    log._state.close()
    (setup.runtime / log_spool.fifo_name(ERR)).unlink()
    logger = Logger(str(setup.folder), str(setup.logs), "1")
    logger._heard = True
    logger._scan()
    assert logger._may_end()
    logger.run()
    for fd in (logger._lock, logger._folder._lock):
        os.close(fd)
    assert [path.name for path in setup.runtime.iterdir()] == ["lock"]


def test_a_full_disk_blocks_then_drops_and_counts(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was taken before is written later, what was dropped is counted where it is missing, half lines are marked."""
    settings = SETTINGS._replace(block_s=2.0)
    log, folder = setup.logger(settings)
    _real_write(setup.ends[OUT], b"one\ntw")
    setup.drain(log, OUT)
    full = True

    def write(fd: int, data: bytes) -> int:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return _real_write(fd, data)

    monkeypatch.setattr(os, "write", write)
    pipe = log.pipes[OUT]
    _real_write(setup.ends[OUT], b"o\nthree\nfo")
    assert log.take(pipe, 1.0) is False
    assert log.trouble is not None
    assert "No space left" in log.trouble.reason
    assert not log.wants(pipe, 2.9)
    log.judge(2.9)
    _real_write(setup.ends[OUT], b"ur\nfive\nsi")
    assert log.wants(pipe, 3.0)
    assert log.take(pipe, 3.0)
    assert log.dropped == 3  # the rest of four, five, the beginning of six
    log.close()
    os.close(folder._lock)
    full = False
    log, folder = setup.logger(settings)  # the next logger knows it all
    assert log.dropped == 3
    _real_write(setup.ends[OUT], b"x\nseven\n")
    setup.drain(log, OUT)
    assert log.dropped == 0
    log.close()
    os.close(folder._lock)
    assert setup.records() == [
        ("stdout", "", b"one"),
        ("stdout", "", b"two"),
        ("stdout", "", b"three"),
        ("stdout", "-", b"fo"),
        ("parsupd", "", b"3 lines dropped: its output could not be written"),
        ("stdout", "", b"seven"),
    ]


def test_files_that_somebody_empties_or_removes(setup: Setup) -> None:
    """Nothing is written into the void, and there are no holes."""
    log, folder = setup.logger(SETTINGS._replace(rotate_size=1 << 20))
    _real_write(setup.ends[OUT], b"one\n")
    setup.drain(log, OUT)
    first = setup.logs / "a@1.00000001.log"
    os.truncate(first, 0)
    _real_write(setup.ends[OUT], b"two\n")
    setup.drain(log, OUT)
    assert [text for _, _, text in setup.records()] == [b"two"]
    first.unlink()
    _real_write(setup.ends[OUT], b"three\n")
    setup.drain(log, OUT)
    assert [text for _, _, text in setup.records()] == [b"three"]
    assert os.readlink(setup.logs / "a@1.log") == "a@1.00000002.log"
    log.close()
    os.close(folder._lock)


def test_a_pipe_that_is_renamed_while_they_are_listed_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """parsupd names its pipes at any time: one that was listed, and has another name when it is looked at, is passed over."""
    for number in (1, 2, 3):
        os.mkfifo(tmp_path / log_spool.fifo_name(Source("a@1", number, "stdout")))
    real = os.scandir

    @contextlib.contextmanager
    def renaming(folder: str) -> Iterator[list[os.DirEntry[str]]]:
        with real(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        os.rename(listed[1].path, f"{listed[1].path}.new")
        yield listed

    monkeypatch.setattr(os, "scandir", renaming)
    assert [source.generation for source in log_spool.find_fifos(str(tmp_path))] == [1, 3]


def test_a_log_of_another_boot_is_not_cut(setup: Setup) -> None:
    """After a crash of the machine, what is in the file is kept, and half a line is ended."""
    setup.logs.mkdir()
    (setup.logs / "a@1.00000003.log").write_bytes(b"2026-01-31T14:00:00.123456Z 5 stdout hal")
    log, folder = setup.logger()
    _real_write(setup.ends[OUT], b"new\n")
    setup.drain(log, OUT)
    log.close()
    os.close(folder._lock)
    assert [text for _, _, text in setup.records()] == [b"hal", b"new"]


def test_a_compressed_file_is_the_same(tmp_path: Path) -> None:
    """It takes the place of the other one, keeps its time, and can be read by its owner only."""
    path = tmp_path / "a@1.00000001.log"
    path.write_bytes(b"line\n" * 1000)
    os.utime(path, (1e9, 1e9))
    compress(str(path))
    (packed,) = tmp_path.iterdir()
    assert gzip.decompress(packed.read_bytes()) == b"line\n" * 1000
    assert (packed.stat().st_mtime, packed.stat().st_mode & 0o777) == (1e9, 0o600)


def test_all_files_stay_within_their_bounds(setup: Setup) -> None:
    """Those of one instance within its total, and the oldest of all go when all together are too large."""
    log, folder = setup.logger(SETTINGS._replace(rotate_size=200, total_size=1000))
    for number in range(100):
        _real_write(setup.ends[OUT], b"line %d\n" % number)
        setup.drain(log, OUT)
    sizes = [path.stat().st_size for path in setup.logs.glob("a@1.0*")]
    assert 600 <= sum(sizes) <= 1100
    folder.limit = 500
    assert folder.make_room() is None
    assert 300 <= sum(path.stat().st_size for path in setup.logs.glob("a@1.0*")) <= 500
    assert setup.records()[-1] == ("stdout", "", b"line 99")
    log.close()
    os.close(folder._lock)
