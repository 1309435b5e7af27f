"""The door to journald's stream socket, with a listening socket in journald's place. The real one: tests/machine."""

import asyncio
import os
import socket
import tempfile
from collections.abc import Iterator

import pytest
from structlog.testing import CapturingLogger
from support import run_async, wait_until

from parsupd.core.units import InstanceName
from parsupd.shell import journal_stream
from parsupd.shell.journal_stream import JournalStreams
from workerlib.shell.journald import stream_name

PRICING = InstanceName("pricing", 1)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{folder}/stdout")
        listening.listen()
        listening.settimeout(10)
        yield listening


def test_each_stream_says_whose_it_is_and_how_much_it_matters(listener: socket.socket) -> None:
    """stdout is info and stderr warning, under the instance's name; both are kept for the instance's later lives."""

    async def main() -> None:
        streams = JournalStreams(CapturingLogger(), listener.getsockname())
        try:
            for which, priority in ((journal_stream.STDOUT, 6), (journal_stream.STDERR, 4)):
                fd = streams.fd(PRICING, which)
                assert fd is not None
                os.write(fd, b"a line\n")
                peer, _ = listener.accept()
                with peer:
                    assert peer.recv(100) == f"pricing@1\n\n{priority}\n1\n0\n0\n0\na line\n".encode()
                    assert streams.fd(PRICING, which) == fd
                    assert os.get_blocking(fd)
        finally:
            streams.close()

    run_async(main)


@pytest.mark.parametrize("engine", ["asyncio", "uvloop"])
def test_a_stream_that_journald_closes_is_told_of_and_made_anew(listener: socket.socket, engine: str) -> None:
    """A lost stream is one error in the log, and the next start of the unit has a new one. Half-closing is not a loss."""

    async def main() -> None:
        log = CapturingLogger()
        streams = JournalStreams(log, listener.getsockname())
        try:
            first = streams.fd(PRICING, journal_stream.STDERR)
            assert first is not None
            name = stream_name(first)
            peer, _ = listener.accept()
            peer.shutdown(socket.SHUT_WR)  # as journald does at once
            await asyncio.wait({asyncio.ensure_future(asyncio.to_thread(lambda: None))})
            assert log.calls == []
            peer.close()
            async with asyncio.timeout(10):
                while not log.calls:
                    await asyncio.sleep(0)
            assert (log.calls[0].method_name, log.calls[0].args) == ("error", ("unit_output_lost",))
            assert log.calls[0].kwargs["unit"] == "pricing@1"
            assert log.calls[0].kwargs["stream"] == "stderr"
            second = streams.fd(PRICING, journal_stream.STDERR)
            assert second is not None
            assert stream_name(second) != name
            assert (log.calls[1].method_name, log.calls[1].args) == ("warning", ("unit_output_again",))
        finally:
            streams.close()

    run_async(main, engine)


def test_a_journald_that_is_away_or_stuck_stops_nothing(listener: socket.socket) -> None:
    """Without journald, and with one that accepts no more connections, the log says where the output goes instead."""

    async def main() -> None:
        log = CapturingLogger()
        away = JournalStreams(log, f"{listener.getsockname()}.missing")
        stuck = JournalStreams(log, listener.getsockname())
        try:
            assert away.fd(PRICING, journal_stream.STDOUT) is None
            assert "No such file or directory" in log.calls[0].kwargs["reason"]
            numbers = iter(range(10_000))
            wait_until(lambda: stuck.fd(InstanceName("many", next(numbers)), 1) is None, what="a full backlog")
            assert "Resource temporarily unavailable" in log.calls[1].kwargs["reason"]
        finally:
            away.close()
            away.close()  # the end of a hand-over and that of the daemon both do
            stuck.close()

    run_async(main)
