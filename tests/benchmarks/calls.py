"""Calls: `add(i) -> i + 1` in another process over a Unix socket, one at a time, and many in flight."""

import asyncio
import multiprocessing
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.managers import BaseManager
from typing import Any

from ends import other_end, socket_path, us_per_await, us_per_call
from harness import OURS, PYTHON, Bench, Budget, Row

RAW = "raw socketpair"
PIPE = "multiprocessing.Pipe"
TO_US = "Pyro5 Proxy to us"
BARE = "bare uvloop"
BLOCKING = "workerlib.blocking"
IN_FLIGHT = 100


def raw_socketpair(seconds: float) -> float:
    """32 bytes there and back with nothing around: what the kernel and Python's socket objects take."""
    here, there = socket.socketpair()

    def serve(ready: Callable[[str], object]) -> None:
        here.close()
        ready("")
        while data := there.recv(64):
            there.send(data)

    with here, other_end(serve):
        there.close()

        def call(_: int) -> None:
            here.send(b"x" * 32)
            here.recv(64)

        return us_per_call(call, seconds)


def multiprocessing_pipe(seconds: float) -> float:
    here, there = multiprocessing.Pipe()

    def serve(ready: Callable[[str], object]) -> None:
        here.close()
        ready("")
        while True:
            _, number = there.recv()
            there.send(number + 1)

    with here, other_end(serve):
        there.close()

        def call(number: int) -> Any:
            here.send(("add", number))
            return here.recv()

        return us_per_call(call, seconds)


class PlainAdder:
    def add(self, number: int) -> int:
        return number + 1


class AdderManager(BaseManager):
    pass


AdderManager.register("adder", PlainAdder)


def multiprocessing_manager(seconds: float) -> float:
    manager = AdderManager(ctx=multiprocessing.get_context("fork"))
    manager.start()
    try:
        return us_per_call(manager.adder().add, seconds)
    finally:
        manager.shutdown()


@contextmanager
def pyro_proxy(serializer: str) -> Iterator[Any]:
    """A stock proxy to a stock daemon, as Pyro5 comes: its threaded server."""
    import Pyro5.api

    Pyro5.api.config.SERIALIZER = serializer
    with socket_path() as path:

        def serve(ready: Callable[[str], object]) -> None:
            class PyroAdder:
                def add(self, number: int) -> int:
                    return number + 1

                def numbers(self, below: int) -> Any:
                    yield from range(below)

                def text(self, size: int) -> str:
                    return "x" * size

            daemon = Pyro5.api.Daemon(unixsocket=path)
            uri = daemon.register(Pyro5.api.expose(PyroAdder)(), "adder")
            ready(str(uri))
            daemon.requestLoop()

        with other_end(serve) as uri, Pyro5.api.Proxy(uri) as proxy:
            yield proxy


def pyro(serializer: str) -> Callable[[float], float]:
    def measure(seconds: float) -> float:
        with pyro_proxy(serializer) as proxy:
            return us_per_call(proxy.add, seconds)

    return measure


def pyro_batch(seconds: float) -> float:
    """Stock Pyro5's way to have many calls under way: a batch."""
    import Pyro5.api

    with pyro_proxy("msgpack") as proxy:

        def call(_: int) -> None:
            batch = Pyro5.api.BatchProxy(proxy)
            for number in range(IN_FLIGHT):
                batch.add(number)
            for _result in batch():
                pass

        return 1e3 * IN_FLIGHT / us_per_call(call, seconds, chunk=1)


def rpyc(seconds: float) -> float:
    import rpyc
    from rpyc.utils.factory import unix_connect
    from rpyc.utils.server import ThreadedServer

    class Service(rpyc.Service):
        def exposed_add(self, number: int) -> int:
            return number + 1

    with socket_path() as path:

        def serve(ready: Callable[[str], object]) -> None:
            server = ThreadedServer(Service, socket_path=path)
            server.listener.listen(8)
            ready("")
            server.start()

        with other_end(serve):
            connection = unix_connect(path)
            try:
                return us_per_call(connection.root.add, seconds)
            finally:
                connection.close()


def execnet(seconds: float) -> float:
    import execnet

    group = execnet.Group()
    channel = group.makegateway(f"popen//python={PYTHON}").remote_exec(
        "for number in channel:\n    channel.send(number + 1)"
    )
    try:

        def call(number: int) -> Any:
            channel.send(number)
            return channel.receive()

        return us_per_call(call, seconds)
    finally:
        group.terminate(timeout=1.0)


def bare_uvloop(seconds: float, *, many: bool = False) -> float:
    """The least that an engine on uvloop can do: a header, msgspec on both ends, a coroutine step; no checks at all.

    With `many`, thousand calls a second with 100 under way.
    """
    import struct

    import msgspec

    from workerlib.shell.loop import run

    header = struct.Struct("!16sHI18s")
    encode = msgspec.msgpack.Encoder().encode
    decode_number = msgspec.msgpack.Decoder(int).decode
    decode_arguments = msgspec.msgpack.Decoder(tuple[int]).decode

    async def add(number: int) -> int:
        return number + 1

    class Server(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.write = transport.write

        def data_received(self, data: bytes) -> None:
            at = 0
            while at < len(data):
                start, seq, length, end = header.unpack_from(data, at)
                try:
                    add(*decode_arguments(data[at + 40 : at + 40 + length])).send(None)
                except StopIteration as stop:
                    body = encode(stop.value)
                    self.write(header.pack(start, seq, len(body), end) + body)
                at += 40 + length

    class Client(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.write = transport.write
            self.replies: dict[int, Any] = {}
            self.seq = 0

        def data_received(self, data: bytes) -> None:
            at = 0
            while at < len(data):
                _start, seq, length, _end = header.unpack_from(data, at)
                self.replies.pop(seq).set_result(decode_number(data[at + 40 : at + 40 + length]))
                at += 40 + length

    async def serve(path: str, ready: Callable[[str], object]) -> None:
        await asyncio.get_running_loop().create_unix_server(Server, path)
        ready(path)
        await asyncio.Event().wait()

    async def call(path: str) -> float:
        loop = asyncio.get_running_loop()
        transport, client = await loop.create_unix_connection(Client, path)

        def one(number: int) -> Any:
            client.seq = seq = client.seq + 1 & 0xFFFF
            reply = client.replies[seq] = loop.create_future()
            body = encode((number,))
            client.write(header.pack(b"start", seq, len(body), b"end") + body)
            return reply

        async def wave(_: int) -> None:
            await asyncio.gather(*[one(number) for number in range(IN_FLIGHT)])

        try:
            if many:
                return 1e3 * IN_FLIGHT / await us_per_await(wave, seconds, chunk=1)
            return await us_per_await(one, seconds)
        finally:
            transport.close()

    with socket_path() as path, other_end(lambda ready: run(serve(path, ready))):
        return run(call(path))


def ours(seconds: float) -> float:
    from ours import Adder, with_connection

    return with_connection(lambda connection: us_per_await(lambda n: connection.run(Adder.add, n), seconds))


def ours_blocking(seconds: float) -> float:
    """`workerlib.blocking`, which most of the peers are to be compared with: they block, too."""
    from ours import Adder, served

    from workerlib import blocking

    with served() as uri, blocking.connect(str(uri)) as connection:
        return us_per_call(lambda number: connection.run(Adder.add, number), seconds)


def ours_in_flight(seconds: float) -> float:
    """Thousand calls a second, with 100 under way."""
    from ours import Adder, with_connection

    async def body(connection: Any) -> float:
        async def wave(_: int) -> None:
            await asyncio.gather(*[connection.run(Adder.add, n) for n in range(IN_FLIGHT)])

        return 1e3 * IN_FLIGHT / await us_per_await(wave, seconds, chunk=1)

    return with_connection(body)


def stock_proxy_to_us(seconds: float) -> float:
    """A stock Pyro5 client that calls our server."""
    import Pyro5.api
    from ours import served

    Pyro5.api.config.SERIALIZER = "msgpack"
    with served() as uri, Pyro5.api.Proxy(str(uri)) as proxy:
        return us_per_call(proxy.add, seconds)


SEQUENTIAL = {
    RAW: raw_socketpair,
    OURS: ours,
    BLOCKING: ours_blocking,
    PIPE: multiprocessing_pipe,
    "multiprocessing.managers": multiprocessing_manager,
    "Pyro5 msgpack": pyro("msgpack"),
    "Pyro5 serpent": pyro("serpent"),
    "rpyc": rpyc,
    "execnet": execnet,
    TO_US: stock_proxy_to_us,
    BARE: bare_uvloop,
}
MANY = {
    "many: workerlib": ours_in_flight,
    "many: bare uvloop": lambda seconds: bare_uvloop(seconds, many=True),
    "many: Pyro5 batch": pyro_batch,
}
CASES: dict[str, Callable[[float], float]] = {**SEQUENTIAL, **MANY}


def rows(bench: Bench) -> Iterator[Row]:
    for pinned in (True, False):
        series, trouble = bench.programs_in_turns("calls", "calls", list(SEQUENTIAL), pinned=pinned)
        to_us = series.pop(TO_US, None)
        bare = series.pop(BARE, None)
        limit, own, blocking = series.pop(RAW, None), series.pop(OURS, None), series.pop(BLOCKING, None)
        where = "pinned" if pinned else "unpinned"
        yield Row(
            name=f"call, one at a time, {where}",
            what="add(i) over a Unix socket",
            unit="µs",
            ours=own,
            limit=limit,
            others=tuple(series.values()),
            budget=Budget(times_limit=1.8, ahead=True) if pinned else None,
            skipped="; ".join(trouble),
        )
        yield Row(
            name=f"blocking call, one at a time, {where}",
            what="the same by workerlib.blocking, without a loop",
            unit="µs",
            ours=blocking,
            limit=limit,
            others=tuple(series.values()),
            budget=Budget(times_limit=2.0, ahead=True) if pinned else None,
        )
        yield Row(
            name=f"the same over bare uvloop, {where}",
            what="limit: no frames, no checks, no session",
            unit="µs",
            ours=own,
            limit=bare,
        )
        if to_us is not None and "Pyro5 msgpack" in series:
            yield Row(
                name=f"stock Proxy to our server, {where}",
                what="the same by Pyro5.api.Proxy",
                unit="µs",
                ours=to_us,
                others=(series["Pyro5 msgpack"],),
            )
    for pinned in (True, False):
        series, trouble = bench.programs_in_turns("calls in flight", "calls", list(MANY), pinned=pinned)
        batch = series.get("many: Pyro5 batch")
        yield Row(
            name=f"calls, {IN_FLIGHT} in flight, {'pinned' if pinned else 'unpinned'}",
            what="add(i), gathered; limit: bare uvloop",
            unit="k/s",
            ours=series.get("many: workerlib"),
            limit=series.get("many: bare uvloop"),
            others=() if batch is None else (batch.named("Pyro5 batch (one message)"),),
            budget=None if pinned else Budget(at_least=100),
            more_is_better=True,
            skipped="; ".join(trouble),
        )
