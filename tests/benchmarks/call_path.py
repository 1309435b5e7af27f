"""Where the microseconds of a call go: each part of the path alone, in one process, without a socket.

Not part of `make bench`; run it when the budget of calls is missed: `.venv/bin/python tests/benchmarks/call_path.py`.
The two ends are joined by callbacks; figures are the fastest of many chunks, so that other processes count little.
"""

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Callable
from typing import Any

from ours import Adder

from workerlib import Connection, RpcSettings
from workerlib.connection import Reply
from workerlib.core import frames
from workerlib.core.payload import Outgoing, encode_result
from workerlib.core.session import ServerSession
from workerlib.core.uri import UnixLocation, Uri
from workerlib.server import Server, ServerConnection
from workerlib.shell.eager import EagerTask
from workerlib.shell.loop import run
from workerlib.shell.transport import Peer, Wire

CHUNK = 200
CHUNKS = 400


def fastest_us(part: Callable[[], object], before: Callable[[], object] | None = None) -> float:
    """Microseconds for one `part`; `before` prepares each and is not counted."""
    best = float("inf")
    clock = time.perf_counter
    empty = min(-clock() + clock() for _ in range(1000))
    for _ in range(CHUNKS):
        if before is None:
            began = clock()
            for _ in range(CHUNK):
                part()
            took = (clock() - began) / CHUNK - 0.02e-6  # an empty turn of the loop
        else:
            took = float("inf")
            for _ in range(CHUNK // 10):
                before()
                began = clock()
                part()
                took = min(took, clock() - began - empty)
        best = min(best, took)
    return best * 1e6


async def main() -> None:
    loop = asyncio.get_running_loop()
    settings = RpcSettings()
    server = Server(settings, authorize=lambda _peer: None)
    server.add("adder", Adder())
    serving = ServerConnection(server)
    calling = Connection(Uri("adder", UnixLocation("/none")), settings)
    wire = calling._wire = Wire(calling._session, calling._on_event, hold_reading=False)
    sent: list[bytes] = []
    # By callbacks, as a socket's bytes come: the server's tasks start where no task is running.
    wire.write = lambda data: loop.call_soon(serving.wire.data_received, data)
    serving.wire.write = lambda data: loop.call_soon(wire.data_received, data)
    serving.wire.peer = Peer("joined")
    wire.write(calling._hello(None))
    await asyncio.wait_for(calling._handshake, 5)
    assert await calling.run(Adder.add, 1) == 2

    figures: list[tuple[str, float]] = []

    def note(name: str, us: float) -> None:
        figures.append((name, us))

    async def whole() -> float:
        best = float("inf")
        for _ in range(CHUNKS):
            began = time.perf_counter()
            for number in range(CHUNK):
                await calling.run(Adder.add, number)
            best = min(best, time.perf_counter() - began)
        return best / CHUNK * 1e6

    note("WHOLE: await connection.run(f, n), joined", await whole())

    def parts() -> None:
        # The client's way out
        function, outgoing, session = Adder.add, Outgoing(Adder.add, "adder"), calling._session
        payload = outgoing.payload((1000,), {})
        wire.write = sent.append

        def one_call() -> None:
            sent.clear()
            session._pending.clear()
            calling._replies.clear()

        note("client: connection.run, up to the write", fastest_us(lambda: calling.run(function, 1000), one_call))
        note("  Outgoing.payload", fastest_us(lambda: outgoing.payload((1000,), {})))
        note("  ClientSession.call", fastest_us(lambda: session.call(payload), session._pending.clear))
        note("  Reply(loop=)", fastest_us(lambda: Reply(loop=loop)))

        # The server
        call = frames.encode_plain(frames.head(frames.INVOKE, 4), 7, payload)
        serving.wire.write = lambda _data: None
        note("server: Wire.data_received, all of it", fastest_us(lambda: serving.wire.data_received(call)))
        now = loop.time()
        note("  loop.time", fastest_us(loop.time))
        note("  ServerSession.receive", fastest_us(lambda: serving.session.receive(call, now)))
        note("    FrameParser.feed", fastest_us(lambda: serving.session._parser.feed(call)))
        (frame,) = serving.session.receive(call, now)
        note("    ServerSession._admit", fastest_us(lambda: serving.session._admit(frame)))
        note("  ServerConnection._on_event", fastest_us(lambda: serving._on_event(frame)))
        callee = serving._hot_callee
        assert callee is not None
        prefix = serving._hot_prefix
        note(
            "    Signature.bind_exact of the slice",
            fastest_us(lambda: callee.signature.bind_exact(payload[len(prefix) : -1])),
        )
        note("    ServerConnection._run", fastest_us(lambda: serving._run(frame, callee, (1000,), {})))
        context = contextvars.copy_context()
        note("      context.copy", fastest_us(context.copy))
        note("      context.run of nothing", fastest_us(lambda: context.run(int)))
        method = callee.method

        def bare() -> None:
            with contextlib.suppress(StopIteration):
                method(1000).send(None)

        note("      the coroutine itself, stepped", fastest_us(bare))
        note("      asyncio.Future()", fastest_us(lambda: asyncio.Future(loop=loop)))
        task_us = fastest_us(lambda: EagerTask(method(1000), loop, context, lambda _value, _error: None).start())
        note("      EagerTask made, started, finished (with the coroutine)", task_us)
        note("    encode_result", fastest_us(lambda: encode_result("x", 1001)))
        note("    ServerSession.result", fastest_us(lambda: ServerSession.result(7, b"\xcd\x03\xe9")))
        note("  Wire._after", fastest_us(serving.wire._after))

        # The client's way in
        answer = ServerSession.result(7, encode_result("x", 1001))
        reply: Reply[Any] = Reply(loop=loop)

        def expect() -> None:
            nonlocal reply
            session._pending.clear()
            session._pending.add(7)
            reply = Reply(loop=loop)
            reply.connection, reply.outgoing, reply.seq = calling, outgoing, 7
            calling._replies = {7: reply}

        note("client: Wire.data_received, all of it", fastest_us(lambda: wire.data_received(answer), expect))
        note("  ClientSession.receive", fastest_us(lambda: session.receive(answer, now), expect))
        expect()
        (result,) = session.receive(answer, now)
        note("  Connection._on_event", fastest_us(lambda: calling._on_event(result), expect))
        note("    Reply.take", fastest_us(lambda: reply.take(result), expect))
        note("    Results.one", fastest_us(lambda: outgoing.results.one(result.payload)))

    done = loop.create_future()
    loop.call_soon(lambda: done.set_result(parts()))
    await done

    async def wake(make: Callable[[], "asyncio.Future[Any]"]) -> float:
        best = float("inf")
        for _ in range(CHUNKS):
            began = time.perf_counter()
            for _ in range(CHUNK):
                future = make()
                loop.call_soon(future.set_result, None)
                await future
            best = min(best, time.perf_counter() - began)
        return best / CHUNK * 1e6

    note("loop: a future made, set by a callback, awaited", await wake(loop.create_future))
    note("loop: the same with a Reply", await wake(lambda: Reply(loop=loop)))

    async def turn() -> float:
        best = float("inf")
        for _ in range(CHUNKS):
            began = time.perf_counter()
            for _ in range(CHUNK):
                await asyncio.sleep(0)
            best = min(best, time.perf_counter() - began)
        return best / CHUNK * 1e6

    note("loop: one turn (asyncio.sleep(0))", await turn())
    for name, us in figures:
        print(f"{us:8.2f} µs  {name}")


if __name__ == "__main__":
    run(main())
