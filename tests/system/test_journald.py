"""The door to journald's native socket, with a datagram socket in journald's place. The real one: tests/machine."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import wait_until

from workerlib.core.journal_entry import encode, lost
from workerlib.shell.journald import Journald, stream_name


@contextmanager
def listening(path: str) -> Iterator[socket.socket]:
    """journald's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        receiver.settimeout(10)
        yield receiver
    os.unlink(path)


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield f"{folder}/socket"


@contextmanager
def sender(path: str, backlog_size: int = 1 << 20) -> Iterator[Journald]:
    made = Journald([], path, backlog_size)
    yield made
    made.close()


def received(receiver: socket.socket) -> bytes:
    """One entry, from the datagram or from the file that came in its place."""
    data, fds, _, _ = socket.recv_fds(receiver, 1 << 20, 1)
    for fd in fds:
        assert data == b""
        with open(fd, "rb") as file:
            with pytest.raises(PermissionError):
                os.pwrite(fd, b"x", 0)
            file.seek(0)
            data = file.read()
    return data


def test_an_entry_is_a_datagram_or_a_sealed_file(path: str) -> None:
    """What a datagram cannot hold comes as a memory file that nobody can change any more."""
    large = encode([("MESSAGE", b"line\n" * 2_000_000)])
    with listening(path) as receiver, sender(path) as journald:
        for entry in (b"MESSAGE=small\n", large, b"MESSAGE=last\n"):
            journald.send(entry)
            assert received(receiver) == entry


def test_a_journald_that_does_not_read_stops_nothing(path: str) -> None:
    """Records wait in the backlog, and are sent in order by a thread that ends; what had no room is counted there."""
    with listening(path) as receiver, sender(path, backlog_size=1000) as journald:
        entries = [b"SEQ=%05d\n" % number for number in range(1000)]
        for entry in entries:
            journald.send(entry)
        assert [thread.name for thread in threading.enumerate()].count("journald") == 1
        got: list[bytes] = []
        while sum(1 if item.startswith(b"SEQ") else count_of(item) for item in got) < len(entries):
            got.append(received(receiver))
        wait_until(lambda: "journald" not in [thread.name for thread in threading.enumerate()])
        journald.send(b"SEQ=after\n")
        assert received(receiver) == b"SEQ=after\n"
    *sent, gap = got
    assert sent == entries[: len(sent)]
    assert gap == lost(len(entries) - len(sent))
    assert len(sent) >= 1000 // len(entries[0])


def count_of(gap: bytes) -> int:
    found = re.search(rb"PARSUP_COUNT=(\d+)", gap)
    assert found
    return int(found[1])


def test_records_while_journald_is_away_are_counted(path: str) -> None:
    """Neither a missing socket, nor one that nobody has any more, raises; the number comes before the next record."""
    with sender(path) as journald:
        for _ in range(3):
            journald.send(b"MESSAGE=nobody there\n")
        with listening(path) as receiver:
            journald.send(b"MESSAGE=first\n")
            assert [received(receiver), received(receiver)] == [lost(3), b"MESSAGE=first\n"]
        journald.send(b"MESSAGE=nobody there any more\n")
        with listening(path) as receiver:
            journald.send(b"MESSAGE=second\n")
            assert [received(receiver), received(receiver)] == [lost(1), b"MESSAGE=second\n"]


def test_a_journald_with_a_new_socket_is_found(path: str) -> None:
    """The record that notices that the old socket is dead is sent to the new one."""
    with sender(path) as journald:
        for text in (b"MESSAGE=old\n", b"MESSAGE=new\n"):
            with listening(path) as receiver:
                journald.send(text)
                assert received(receiver) == text


def test_a_forked_child_sends_only_its_own(path: str) -> None:
    """What waits in the parent is sent by the parent, once; the child's records carry the child's pid."""
    with listening(path) as receiver, sender(path) as journald:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        count = 0
        while "journald" not in [thread.name for thread in threading.enumerate()]:
            journald.send(b"SEQ=%d\n" % count)
            count += 1
        pid = subprocess.Popen([sys.executable, "-c", FORKS, path], stdout=subprocess.PIPE, text=True)
        got = [received(receiver) for _ in range(count + 2)]
        assert pid.wait(20) == 0
        assert pid.stdout is not None
        pid.stdout.close()
        assert sorted(got[count:]) == [b"FROM=child\n", b"FROM=parent\n"]
        assert got[:count] == [b"SEQ=%d\n" % number for number in range(count)]


FORKS = """
import os, sys
from workerlib.shell.journald import Journald
journald = Journald([], sys.argv[1])
journald.send(b"FROM=parent\\n")
if pid := os.fork():
    os.waitpid(pid, 0)
else:
    journald.send(b"FROM=child\\n")
    journald.close()
    os._exit(0)
"""


def test_a_signal_handler_may_log_while_its_thread_logs(path: str) -> None:
    """A handler that interrupts a send neither waits for ever nor makes an entry double or lost."""
    with listening(path) as receiver, sender(path) as journald:
        numbers = iter(range(1_000_000))
        before = signal.signal(signal.SIGALRM, lambda *_: journald.send(b"SIGNAL=%d\n" % next(numbers)))
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        got: list[bytes] = []
        try:
            for number in range(3000):
                journald.send(b"SEQ=%d\n" % number)
                got.append(received(receiver))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        journald.send(b"LAST=1\n")
        while got[-1] != b"LAST=1\n":
            got.append(received(receiver))
        assert [item for item in got if item.startswith(b"SEQ")] == [b"SEQ=%d\n" % number for number in range(3000)]
        signals = [item for item in got if item.startswith(b"SIGNAL")]
        assert sorted(signals, key=lambda item: int(item[7:])) == [b"SIGNAL=%d\n" % n for n in range(next(numbers))]


def test_what_waits_is_sent_at_the_end_of_the_process(path: str) -> None:
    """A process that ends while journald is slow gives it a moment, and no more."""
    with listening(path) as receiver:
        program = subprocess.Popen([sys.executable, "-c", LOGS_AND_ENDS, path])
        got = [received(receiver) for _ in range(2000)]
        assert program.wait(20) == 0
        assert got == [b"SEQ=%d\n" % number for number in range(2000)]
        subprocess.run([sys.executable, "-c", LOGS_AND_ENDS, path], check=True, timeout=20)  # nobody reads


LOGS_AND_ENDS = """
import sys
from workerlib.shell.journald import Journald
journald = Journald([], sys.argv[1])
for number in range(2000):
    journald.send(b"SEQ=%d\\n" % number)
"""


def test_journal_stream_is_compared_with_the_descriptor() -> None:
    """The name of a descriptor is device and inode, as in systemd's JOURNAL_STREAM; a closed one has none."""
    with Path("/dev/null").open() as file:
        status = os.fstat(file.fileno())
        assert stream_name(file.fileno()) == f"{status.st_dev}:{status.st_ino}"
    assert stream_name(1_000_000) == ""
