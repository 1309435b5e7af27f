"""numpy's arrays and large bytes: they arrive as they were sent, and are not copied more than they have to be."""

import asyncio
import gc
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import Pyro5.api
import pytest
from served import serving
from support import ENGINES, run_async

from workerlib import ArgumentError, ResultError, UsageError, Worker, pipe, reverse_pipe, rpc, state
from workerlib.connection import open_to
from workerlib.core.arrays import CODE, ArrayForm
from workerlib.core.frames import RESULT
from workerlib.core.schema import describe
from workerlib.servant import Servant
from workerlib.spec import RpcSettings
from workerlib.testing import Expect, ScriptedPeer, Spawner, joined
from workerlib.testing import spawned as spawned_here
from workerlib.testing.script import call, hello

MIB = 1 << 20


class Algebra(Worker):
    async def init(self, start: npt.NDArray[np.float64] = np.zeros(2)) -> None:  # noqa: B008
        self.last: np.ndarray = start

    @rpc
    async def echo(self, array: np.ndarray) -> np.ndarray:
        self.last = array
        return array

    @rpc
    async def floats(self, array: npt.NDArray[np.float64], *, factor: npt.NDArray[Any]) -> npt.NDArray[np.floating]:
        return array * factor

    @rpc
    def in_thread(self, array: np.ndarray) -> np.ndarray:
        return array

    @rpc
    async def get(self) -> np.ndarray:
        return self.last

    @rpc
    async def flags(self, array: np.ndarray) -> tuple[bool, bool, bool]:
        return array.flags.writeable, array.flags.aligned, array.flags.owndata

    @rpc
    async def bad(self) -> npt.NDArray[np.float64]:
        return np.zeros(3, "i4")  # type: ignore[return-value]

    @pipe
    async def rows(self, count: int, size: int) -> AsyncIterator[npt.NDArray[np.int64]]:
        for n in range(count):
            yield np.full(size, n)

    @reverse_pipe
    async def total(self, arrays: AsyncIterator[np.ndarray]) -> float:
        return sum([float(array.sum()) async for array in arrays])

    @state
    async def watch(self) -> tuple[np.ndarray, AsyncIterator[np.ndarray]]:
        async def changes() -> AsyncIterator[np.ndarray]:
            yield self.last + 1

        return self.last, changes()

    @rpc
    async def length(self, data: bytes) -> int:
        return len(data)

    @rpc
    async def bytes_of(self, size: int) -> bytes:
        return bytes(size)

    @rpc
    async def view(self, data: memoryview) -> bytearray:
        return bytearray(data)

    @rpc
    async def peak(self) -> int:
        """The most memory that was in use since this was called last, beyond what is in use now."""
        gc.collect()
        now, most = tracemalloc.get_traced_memory() if tracemalloc.is_tracing() else (0, 0)
        tracemalloc.start()
        tracemalloc.reset_peak()
        return most - now


BASE = np.arange(60_000, dtype="f8").reshape(200, 300)

ARRAYS = {
    "floats": BASE,
    "small": BASE[:2, :2].copy(),
    "by columns": np.asfortranarray(BASE),
    "small by columns": np.asfortranarray(BASE[:3, :2]),
    "every other": BASE[::2, ::3],
    "backwards": BASE[::-1],
    "three dimensions transposed": BASE.reshape(20, 10, 300).transpose(1, 2, 0),
    "no dimension": np.array(5.5),
    "empty": np.empty(0),
    "empty in one dimension": np.empty((3, 0, 7), "i2"),
    "one element": np.ones((1, 1, 1)),
    "big-endian": BASE.astype(">f4"),
    "small big-endian": np.arange(5, dtype=">i8"),
    "truth": BASE > 100,
    "complex": BASE.astype("c8"),
    "half": BASE.astype("f2"),
    "unsigned bytes": np.arange(256, dtype="u1"),
    "text": np.array(["a", "größer", ""]),
    "bytes": np.array([b"a", b"bcd"]),
    "no text at all": np.array(["", ""]),
    "void": np.zeros(3, "V7"),
    "dates": np.array(["2024-02-29", "NaT"], "M8[D]"),
    "durations": np.arange(10, dtype="m8[ns]"),
    "read-only": np.broadcast_to(np.arange(300.0), (200, 300)),
    "broadcast number": np.broadcast_to(5, (10, 10)),
    "unaligned": np.frombuffer(bytes(80_001), "u1")[1:].view("f8"),
}


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


@pytest.mark.parametrize("engine", ENGINES)
def test_arrays_arrive_as_they_were_sent(engine: str, tmp_path: Path) -> None:
    """Type, shape, order and every element, as argument and result; what arrives can be written to and is aligned."""

    async def main() -> None:
        async with serving(Algebra(), tmp_path / "s") as uri, await open_to(uri, settings=RpcSettings()) as c:
            for name, array in ARRAYS.items():
                back = await c.run(Algebra.echo, array)
                assert type(back) is np.ndarray, name
                assert same(back, array), name
                assert back.flags.writeable, name
                assert back.flags.aligned, name
                if array.flags.f_contiguous or array.flags.c_contiguous:
                    assert back.flags.f_contiguous == array.flags.f_contiguous, name
                writable, aligned, _ = await c.run(Algebra.flags, array)
                assert (writable, aligned) == (True, True), name
                assert same(await c.run(Algebra.in_thread, array), array), name

    run_async(main, engine)


def test_every_place_takes_and_gives_arrays(spawned: Spawner) -> None:
    """Init arguments, arguments by name, items of streams in both directions, snapshots and their changes."""
    c = spawned(Algebra, np.array([1.0, 2.0]))
    assert same(c.run(Algebra.get), np.array([1.0, 2.0]))
    assert same(c.run(Algebra.floats, BASE, factor=BASE), BASE * BASE)
    assert same(c.run(Algebra.floats, BASE, factor=np.array(2)), BASE * 2)
    for size in (10, 100_000):
        rows = list(c.run(Algebra.rows, 30, size))
        assert [row.shape for row in rows] == [(size,)] * 30
        assert [int(row[-1]) for row in rows] == list(range(30))
        assert c.run(Algebra.total, rows) == sum(range(30)) * size
    c.run(Algebra.echo, BASE)
    snapshot, changes = c.run(Algebra.watch)
    assert same(snapshot, BASE)
    assert [same(change, BASE + 1) for change in changes] == [True]


def test_a_caller_may_change_an_array_as_soon_as_run_has_returned(tmp_path: Path) -> None:
    """What is sent is what it was then, also while it is still on its way; and so is a result that the worker keeps."""

    async def main() -> None:
        async with serving(Algebra(), tmp_path / "s") as uri, await open_to(uri, settings=RpcSettings()) as c:
            array = np.ones(4 * MIB // 8)
            answer = c.run(Algebra.echo, array)
            array[:] = 7
            assert ((await answer) == 1).all()
            answer = c.run(Algebra.get)
            await c.ping()
            assert ((await answer) == 1).all()

    run_async(main, "uvloop")


class Subclass(np.ndarray):
    pass


BAD = {
    "a list": [1.0],
    "a number of numpy's": np.float64(1),
    "objects": np.array([1, "x"], dtype=object),
    "fields": np.zeros(3, [("x", "i4"), ("y", "f8")]),
    "objects in fields": np.zeros(3, [("x", "O")]),
    "a mask": np.ma.array([1, 2], mask=[True, False]),
    "a subclass": np.zeros(3).view(Subclass),
    "nothing": None,
}


def test_what_is_no_plain_array_is_refused_before_it_is_sent() -> None:
    """Objects, fields, masks and the like would lose what makes them; and a wrong type of elements."""

    async def main() -> None:
        async with joined(Algebra) as c:
            for name, value in BAD.items():
                with pytest.raises(ArgumentError, match="argument array: it cannot travel as ndarray"):
                    await c.run(Algebra.echo, value)  # type: ignore[arg-type]
                assert name
            with pytest.raises(
                ArgumentError, match=r"argument array: .*Expected `NDArray\[float64\]`, got an array of int64"
            ):
                await c.run(Algebra.floats, np.arange(3), factor=BASE)  # type: ignore[arg-type]
            with pytest.raises(
                ResultError, match=r"result of Algebra.bad .*Expected `NDArray\[float64\]`, got an array of int32"
            ):
                await c.run(Algebra.bad)
            with pytest.raises(ArgumentError, match="a message may have 67108864"):
                await c.run(Algebra.echo, np.zeros(64 * MIB, "u1"))
            with pytest.raises(ArgumentError, match="a message may have 67108864"):
                await c.run(Algebra.length, bytes(64 * MIB))
            memmap = np.memmap(Path("/proc/self/exe"), mode="r", shape=100)
            assert same(await c.run(Algebra.echo, memmap), np.asarray(memmap))
            del memmap

    run_async(main)


def extension(dtype: str, shape: Any, data: bytes, *, by_columns: Any = False, padding: int = 0) -> msgspec.msgpack.Ext:
    head = msgspec.msgpack.encode([dtype, shape, by_columns])
    return msgspec.msgpack.Ext(CODE, len(head).to_bytes(2, "big") + bytes([padding]) + head + bytes(padding) + data)


HOSTILE = {
    "objects": extension("|O", [1], bytes(8)),
    "objects of a size": extension("|O8", [1], bytes(8)),
    "fields": extension("i4,O", [1], bytes(12)),
    "a type by name": extension("object", [1], bytes(8)),
    "a huge element": extension("<U99999999", [0], b""),
    "no type": extension("", [1], b""),
    "more than there is": extension("<f8", [3], bytes(16)),
    "less than there is": extension("<f8", [1], bytes(16)),
    "a negative size": extension("<f8", [-1, -2], bytes(16)),
    "a size beyond all": extension("<f8", [1 << 62, 4], b""),
    "so large that it would wrap around": extension("<f8", [1 << 32, 1 << 32], b""),
    "too many dimensions": extension("<f8", [1] * 100, bytes(8)),
    "a shape that is none": extension("<f8", "x", bytes(8)),
    "an order that is none": extension("<f8", [1], bytes(8), by_columns=5),
    "an unknown unit of time": extension("<M8[parsec]", [1], bytes(8)),
    "cut off": msgspec.msgpack.Ext(CODE, b"\xff"),
    "no head": msgspec.msgpack.Ext(CODE, b"\0\0\0"),
    "another extension": msgspec.msgpack.Ext(CODE + 1, b""),
    "no extension": [1.0, 2.0],
}


def test_hostile_arrays_are_refused_and_the_connection_goes_on(tmp_path: Path) -> None:
    """Whatever is told about memory must fit what has come, and no other elements than plain ones are made of it."""

    async def main() -> None:
        async with serving(Algebra(), tmp_path / "s") as uri:
            await asyncio.to_thread(play, str(uri))

    def play(uri: str) -> None:
        with ScriptedPeer.connect(uri) as peer:
            peer.play([hello("w"), Expect(2)])
            for seq, (name, value) in enumerate(HOSTILE.items(), 1):
                peer.send(call("w", "echo", value, seq=seq))
                error = msgspec.msgpack.decode(peer.expect(Expect(RESULT, seq=seq)).payload)
                assert error["__class__"] == "workerlib.errors.ArgumentError", (name, error)
                assert error["args"][0].startswith("Algebra.echo: argument array: "), (name, error)
            good = extension("<f8", [1, 2], bytes(16), padding=3)
            peer.play([call("w", "flags", good), Expect(RESULT, value=[True, True, True])])

    run_async(main)


def test_the_schema_is_the_same_for_all_versions_of_numpy() -> None:
    """How numpy spells its own annotation is not compared."""
    assert describe(Algebra.floats) == ("rpc (array: NDArray[float64], *, factor: ndarray) -> NDArray[floating]")
    older = np.ndarray[Any, np.dtype[np.float64]]
    assert ArrayForm(older).name == ArrayForm(npt.NDArray[np.float64]).name == "NDArray[float64]"


def test_arrays_inside_of_other_types_are_refused() -> None:
    """When the function is looked at, with the place."""

    class Lists:
        @rpc
        async def f(self, arrays: list[np.ndarray]) -> None: ...

    class Unions:
        @rpc
        async def f(self) -> npt.NDArray[np.float64] | None: ...

    for worker in (Lists, Unions):
        with pytest.raises(UsageError, match="is for a whole argument, result or stream item"):
            Servant(worker())


def test_stock_clients_are_told_that_they_have_no_arrays(tmp_path: Path) -> None:
    """The function is not run."""

    async def main() -> None:
        async with serving(Algebra(), tmp_path / "s") as uri:
            await asyncio.to_thread(ask, str(uri))

    def ask(uri: str) -> None:
        with Pyro5.api.Proxy(uri) as proxy:
            with pytest.raises(Exception, match="takes or gives ndarray values: a stock Pyro5 client has none"):
                proxy.get()
            assert proxy.bytes_of(3)

    run_async(main)


@pytest.mark.parametrize("engine", ENGINES)
def test_large_bytes_travel_in_all_their_kinds(engine: str, tmp_path: Path) -> None:
    """As bytes, bytearray and memoryview, of sizes around those where something else is done, many in one message."""

    async def main() -> None:
        async with serving(Algebra(), tmp_path / "s") as uri, await open_to(uri, settings=RpcSettings()) as c:
            for size in (0, 1, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, 300_000, 5 * MIB):
                data = bytes(range(256)) * (size // 256) + bytes(size % 256)
                assert await c.run(Algebra.length, data) == size
                assert await c.run(Algebra.bytes_of, size) == bytes(size)
                for kind in (bytes, bytearray, memoryview):
                    assert await c.run(Algebra.view, kind(data)) == data
            answers = [c.run(Algebra.view, memoryview(bytes([n]) * 100_000)) for n in range(50)]
            assert [set(answer) for answer in await asyncio.gather(*answers)] == [{n} for n in range(50)]

    run_async(main, engine)


def test_how_often_a_large_value_is_copied() -> None:
    """Once at its sender, into its message, and once at its receiver, from what was read off the socket; bytes twice.

    Measured as the peak of memory in units of the array's own 48 MiB, at both ends: at the receiver, what was read and
    what it was joined to are there at a time, but never a third copy.
    """
    size = 48 * MIB
    most: dict[str, float] = {}

    async def measure(c: Any, name: str, run: Any) -> None:
        gc.collect()
        await c.run(Algebra.peak)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        result = await run()
        most[f"{name}, client"] = (tracemalloc.get_traced_memory()[1] - before) / size
        most[f"{name}, worker"] = await c.run(Algebra.peak) / size
        del result

    async def main() -> None:
        array = np.ones(size // 8)
        data = bytes(size)
        async with spawned_here(Algebra) as c:
            await measure(c, "array out", lambda: c.run(Algebra.flags, array))
            await c.run(Algebra.echo, array)
            await measure(c, "array back", lambda: c.run(Algebra.get))
            await measure(c, "bytes out", lambda: c.run(Algebra.length, data))
            await measure(c, "bytes back", lambda: c.run(Algebra.bytes_of, size))

    tracemalloc.start()
    try:
        run_async(main, "uvloop")
    finally:
        tracemalloc.stop()
    print(most)
    for name, copies in most.items():
        receives = name in {"array out, worker", "bytes out, worker", "array back, client", "bytes back, client"}
        makes = name == "bytes back, worker"
        assert copies < (2.4 if receives or makes else 1.4), (name, most)


def test_numpy_is_never_imported_by_workerlib() -> None:
    """Neither by a worker nor by a client that have none."""
    code = "import sys, workerlib.worker, workerlib.blocking, workerlib.hosting; print('numpy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "False\n"
