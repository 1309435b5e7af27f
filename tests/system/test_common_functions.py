"""What every worker offers besides its own functions, spawned or served, to any number of clients."""

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from logging_worker import Chatty
from support import process_state, run_async, wait_until
from workers import Sum

from workerlib import Handle, LogRecord, Redirect, ShutdownOn, StreamOverflow, Worker, blocking, one_way, rpc
from workerlib.core.uri import UnixLocation
from workerlib.shell.recent_log import KEPT, LONGEST, RecentLog
from workerlib.spec import RpcSettings

NULL = Redirect.dev_null()


class Logger(Worker):
    @one_way
    async def log(self, count: int) -> None:
        for n in range(count):
            logging.getLogger("served").warning("record %d", n)

    @rpc
    def log_in_thread(self) -> None:
        logging.getLogger("served").warning("from %s", threading.current_thread().name)


@contextlib.asynccontextmanager
async def chatty(engine: str) -> AsyncIterator[Handle[Chatty]]:
    handle = await Chatty.spawn(
        shutdown_on=ShutdownOn.HEARTBEATER_CONNECTION_TIMEOUT, redirect_stdout=NULL, redirect_stderr=NULL
    )
    try:
        yield handle
    finally:
        await handle.shutdown()


async def take(records: AsyncIterator[LogRecord], count: int) -> list[LogRecord]:
    return [await anext(records) for _ in range(count)]


def test_info_tells_who_the_worker_is(engine: str) -> None:
    """Over an open connection, by its handle, and to a blocking client."""

    async def main() -> None:
        before = time.time()
        async with await Sum.spawn(
            shutdown_on=ShutdownOn.CONNECTION_CLOSED, redirect_stdout=NULL, redirect_stderr=NULL
        ) as conn:
            info = await conn.info()
            assert info.pid == (await conn.run(Sum.pid))
            assert before - 1 <= info.started_at <= time.time()
            assert 0 <= info.uptime_s < 60
            assert 1 << 20 < info.rss < 1 << 30
            assert info.connections >= 1
            assert info.functions["add"] == "rpc (n: int) -> int"
            assert info.functions["add_all"] == "reverse_pipe (items of int) -> int"
            handle: Handle[Sum] = Handle(conn.uri.target, str(conn.uri), "Sum")
            other = await handle.info()
            assert (other.pid, other.connections) == (info.pid, info.connections + 1)
            assert await conn.worker_settings() == RpcSettings()

            def ask() -> Any:
                with blocking.connect(str(conn.uri), within_s=10, timeout_s=10) as found:
                    assert found.worker_settings() == RpcSettings()
                    return found.info()

            assert (await asyncio.get_running_loop().run_in_executor(None, ask)).pid == info.pid

    run_async(main, engine)


def test_a_worker_that_accepts_no_more_keeps_its_connections(engine: str) -> None:
    """Its socket is gone, who is connected goes on; asking again is fine."""

    async def main() -> None:
        async with await Sum.spawn(
            5, shutdown_on=ShutdownOn.CONNECTION_CLOSED, redirect_stdout=NULL, redirect_stderr=NULL
        ) as conn:
            handle: Handle[Sum] = Handle(conn.uri.target, str(conn.uri), "Sum")
            async with await handle.connect() as second:
                await handle.close_server()
                await conn.close_server()
                assert isinstance(conn.uri.location, UnixLocation)
                assert not Path(conn.uri.location.path).exists()
                with pytest.raises(OSError, match=r"No such file|refused"):
                    await handle.connect()
                assert await conn.run(Sum.add, 1) == 6
                assert await second.run(Sum.add, 1) == 7
            pid = await conn.run(Sum.pid)
        wait_until(lambda: process_state(pid) in {None, "Z"}, what="the worker ended with its connection")

    run_async(main, engine)


def test_the_log_begins_with_what_init_logged(engine: str) -> None:
    """`last` gives what was kept, from the import of the module on; then what comes; fields and errors included."""

    async def main() -> None:
        async with chatty(engine) as handle, await handle.connect() as conn:
            records = aiter(conn.log(last=100))
            first = await take(records, 3)
            assert [record.event for record in first] == ["while importing", "in init", "with fields"]
            assert (first[2].fields["order"], first[2].level, first[2].logger) == ("5", "warning", "logging_worker")
            await conn.run(Chatty.say, "hello", 1)
            await conn.run(Chatty.fail_in_log)
            said, failed = await take(records, 2)
            assert (said.event, said.number) == ("hello 0", first[-1].number + 1)
            assert abs(said.at - time.time()) < 60
            assert "ZeroDivisionError" in failed.traceback

    run_async(main, engine)


def test_any_number_may_follow_a_log_from_anywhere(engine: str) -> None:
    """Two connections, one of them twice, a handle and a blocking client; leaving one leaves the others alone."""

    async def main() -> None:
        async with chatty(engine) as handle, await handle.connect() as conn, await handle.connect() as other:
            by_handle = handle.log(last=1)
            assert (await anext(by_handle)).event == "with fields"
            streams = [aiter(c.log()) for c in (conn, conn, other)]
            await conn.ping()
            await other.ping()
            await conn.run(Chatty.say, "a", 2)
            for records in (*streams, by_handle):
                assert [record.event for record in await take(records, 2)] == ["a 0", "a 1"]
            await other.close()
            await by_handle.aclose()
            await streams[0].aclose()
            await conn.run(Chatty.say, "b", 1)
            assert [record.event for record in await take(streams[1], 1)] == ["b 0"]

            def read() -> list[str]:
                with blocking.connect(handle.uri, within_s=10, timeout_s=10) as found, found.log(last=2) as records:
                    return [next(records).event for _ in range(2)]

            assert await asyncio.get_running_loop().run_in_executor(None, read) == ["a 1", "b 0"]

    run_async(main, engine)


def test_a_subscriber_that_does_not_read_holds_nobody_up(engine: str) -> None:
    """It is told what it missed; the worker goes on, and so do others."""

    async def main() -> None:
        settings = RpcSettings(stream_window=8, stream_buffer=50)
        async with (
            await Logger.serve(settings=settings) as served,
            await served.handle.connect(settings=settings) as conn,
        ):
            slow = conn.log()
            await conn.ping()
            await conn.run(Logger.log, 1000)
            assert await conn.worker_settings() == settings
            with pytest.raises(StreamOverflow, match="the reader did not keep up"):
                async for _ in slow:
                    pass
            assert len(served._recent.listeners) == 0

    run_async(main, engine)


def test_a_served_worker_tells_the_log_of_its_program(engine: str, capfd: pytest.CaptureFixture[str]) -> None:
    """From the moment it serves, from threads as well; nothing stays of it in the program's logging."""

    async def main() -> None:
        handlers = logging.getLogger().handlers[:]
        async with await Logger.serve() as served, await served.handle.connect() as conn:
            logging.getLogger("program").warning("before anybody asked")
            records = aiter(conn.log(last=5))
            assert (await anext(records)).event == "before anybody asked"
            await conn.run(Logger.log_in_thread)
            assert (await anext(records)).event.startswith("from workerlib-call")
            info = await conn.info()
            assert info.pid == os.getpid()
            assert info.functions["log_in_thread"] == "rpc () -> None"
        assert logging.getLogger().handlers == handlers

    run_async(main, engine)


def test_a_program_without_logging_still_sees_its_warnings(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The standard library writes them to stderr only while the root logger has no handler."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    recent = RecentLog()
    recent.attach()
    logging.getLogger("x").warning("look out")
    logging.getLogger("x").info("by the way")
    recent.detach()
    assert capfd.readouterr().err == "look out\n"


def test_what_is_kept_is_bounded() -> None:
    """In number and in size, whatever is logged; values and arguments that fail to become text do no harm."""

    class Nasty:
        def __str__(self) -> str:
            raise ZeroDivisionError

    def record(given: dict[str, Any]) -> logging.LogRecord:
        return logging.makeLogRecord({"levelno": logging.INFO, "levelname": "INFO", **given})

    recent = RecentLog()
    for n in range(KEPT + 10):
        recent.emit(record({"msg": "%d", "args": (n,)}))
    assert (len(recent.kept), recent.kept[0].number, recent.kept[-1].number) == (KEPT, 11, KEPT + 10)
    recent.emit(record({"msg": "x" * 10 * LONGEST, "nasty": Nasty(), "odd": "\udcff"}))
    last = recent.kept[-1]
    assert len(last.event) < LONGEST + 100
    assert last.fields["nasty"].endswith("Nasty: its text raises ZeroDivisionError>")
    assert last.fields["odd"] == "\\udcff"
    recent.emit(record({"msg": "%d", "args": ("text",)}))
    assert recent.kept[-1].event == "%d"
