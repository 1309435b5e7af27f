"""workerlib where its C part was not built."""

import subprocess
import sys

PROGRAM = """
import asyncio, sys

sys.modules["workerlib._speedups"] = None  # the import fails, as if the file were not there

from workerlib.core import frames
from workerlib.shell import eager

assert frames.encode_plain is frames.encode_plain_in_python
assert eager.first_step is eager.first_step_in_python

from collections.abc import AsyncIterator
from workerlib import RpcSettings, blocking, pipe, rpc
from workerlib.connection import open_to
from workerlib.core.uri import UnixLocation, Uri
from workerlib.server import Server
from workerlib.shell.loop import run

class Adder:
    @rpc
    async def add(self, n: int) -> int:
        return n + 1

    @pipe
    async def numbers(self, below: int) -> AsyncIterator[int]:
        for number in range(below):
            yield number

async def main(path):
    server = Server(RpcSettings())
    server.add("adder", Adder())
    uri = Uri("adder", UnixLocation(path))
    await server.listen(uri.location)
    async with await open_to(uri, settings=RpcSettings()) as connection:
        assert await asyncio.gather(*[connection.run(Adder.add, n) for n in range(100)]) == list(range(1, 101))
        assert [await connection.run(Adder.add, n) for n in range(100)] == list(range(1, 101))
        assert [n async for n in connection.run(Adder.numbers, 1000)] == list(range(1000))
    await asyncio.to_thread(call, uri)
    await server.close()

def call(uri):
    with blocking.connect(str(uri)) as connection:
        assert [connection.run(Adder.add, n) for n in range(100)] == list(range(1, 101))

run(main(sys.argv[1]))
print("done")
"""


def test_calls_work_without_the_c_part(tmp_path) -> None:
    """One at a time, many at a time, streams, and by the blocking client."""
    argv = [sys.executable, "-c", PROGRAM, str(tmp_path / "s")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("done\n", "")
