"""Where the microseconds of a call go, in one process and without a socket: the two ends are joined by callbacks.

Not part of `make bench`; run it when the budget of calls is missed: `.venv/bin/python tests/benchmarks/call_path.py`.
First the time of a call and of its stages, the fastest of many chunks, so that other processes count little. Then the
share of each function as the profiler sees it: it makes small functions look dearer than they are.
"""

import asyncio
import cProfile
import pstats
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ours import Adder

from workerlib import Connection, RpcSettings
from workerlib.core.uri import UnixLocation, Uri
from workerlib.server import Server
from workerlib.serving import ServerConnection
from workerlib.shell.loop import run
from workerlib.shell.transport import Peer, Wire

CHUNK = 100
CHUNKS = 400
PROFILED = 20_000


async def fastest_us(part: Callable[[int], Awaitable[object]]) -> float:
    best = float("inf")
    for _ in range(CHUNKS):
        began = time.perf_counter()
        for number in range(CHUNK):
            await part(number)
        best = min(best, time.perf_counter() - began)
    return best / CHUNK * 1e6


class Joined:
    """Both ends; `spent` has the seconds that each stage took in the last calls."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.server = Server(RpcSettings(), authorize=lambda _peer: None)
        self.server.add("adder", Adder())

    async def open(self) -> Connection:
        """A connection whose bytes reach the server by a callback, as those of a socket do."""
        serving = ServerConnection(self.server).wire
        serving.peer = Peer("joined")

        async def join(_location: object, factory: Callable[[], Wire], **_: object) -> Wire:
            calling = factory()
            calling.write = lambda data: self.loop.call_soon(serving.data_received, data)
            serving.write = lambda data: self.loop.call_soon(calling.data_received, data)
            self.calling, self.serving = calling, serving
            return calling

        opened = Connection(Uri("adder", UnixLocation("/none")), RpcSettings())
        await opened.open(None, tls=None, within_s=5, connect=join)
        return opened

    def in_callback(self, work: Callable[[], Any]) -> "asyncio.Future[Any]":
        """Runs `work` where no task is running: calls are served there."""
        done = self.loop.create_future()
        self.loop.call_soon(lambda: done.set_result(work()))
        return done

    async def stages(self, opened: Connection) -> dict[str, float]:
        """Microseconds of each stage of a call, one after the other, without the loop in between."""
        best = dict.fromkeys(("client: run, up to the write", "server: data_received", "client: data_received"), 1.0)
        sent: list[bytes] = []
        clock = time.perf_counter

        def once() -> Awaitable[int]:
            sent.clear()
            times = [clock()]
            reply = opened.run(Adder.add, 1000)
            times.append(clock())
            self.serving.data_received(sent[0])
            times.append(clock())
            self.calling.data_received(sent[1])
            times.append(clock())
            for name, began, ended in zip(best, times, times[1:], strict=False):
                best[name] = min(best[name], ended - began)
            return reply

        writes = self.calling.write, self.serving.write
        self.calling.write = self.serving.write = sent.append
        for _ in range(20 * CHUNKS):
            assert await (await self.in_callback(once_in_list(once)))[0] == 1001
        self.calling.write, self.serving.write = writes
        return {name: seconds * 1e6 for name, seconds in best.items()}


def once_in_list(once: Callable[[], Awaitable[int]]) -> Callable[[], list[Awaitable[int]]]:
    """In a list, so that the future that carries it does not wait for it."""
    return lambda: [once()]


async def main() -> None:
    joined = Joined()
    opened = await joined.open()
    whole = await fastest_us(lambda number: opened.run(Adder.add, number))
    print(f"{whole:8.2f} µs  await connection.run(f, n), joined")
    for name, us in (await joined.stages(opened)).items():
        print(f"{us:8.2f} µs  {name}")
    print(f"{await fastest_us(lambda _: asyncio.sleep(0)):8.2f} µs  one turn of the loop; a joined call takes three")

    profile = cProfile.Profile()
    profile.enable()
    for number in range(PROFILED):
        await opened.run(Adder.add, number)
    profile.disable()
    rows = sorted(pstats.Stats(profile).stats.items(), key=lambda item: -item[1][2])  # type: ignore[attr-defined]
    total = sum(row[2] for _, row in rows)
    print(f"\nby function, of {total / PROFILED * 1e6:.1f} µs under the profiler")
    for (file, line, name), (_, calls, own_s, _, _) in rows[:24]:
        where = f"{file.rpartition('/')[2]}:{line} {name}" if line else name
        print(f"{100 * own_s / total:6.1f} %  {calls / PROFILED:4.1f} calls  {where}")


if __name__ == "__main__":
    run(main())
