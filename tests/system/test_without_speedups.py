"""workerlib where its C part was not built."""

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from workerlib.core import compiled

PROGRAMS = Path(__file__).parent / "programs"

PROGRAM = """
import asyncio, sys

sys.modules["workerlib._speedups"] = None  # the import fails, as if the file were not there

from workerlib.core import frames
from workerlib.shell import eager

assert frames.encode_plain is frames.encode_plain_in_python
assert eager.first_step is eager.first_step_in_python

from workers import Sum
from workerlib import RpcSettings, blocking
from workerlib.connection import open_to
from workerlib.core.uri import UnixLocation, Uri
from workerlib.server import Server
from workerlib.shell.loop import run

async def main(path):
    server = Server(RpcSettings())
    served = Sum()
    await served.init()
    server.add("sum", served)
    uri = Uri("sum", UnixLocation(path))
    await server.listen(uri.location)
    async with await open_to(uri, settings=RpcSettings()) as connection:
        assert await asyncio.gather(*[connection.run(Sum.add, 1) for _ in range(100)]) == list(range(1, 101))
        assert [await connection.run(Sum.add, 1) for _ in range(100)] == list(range(101, 201))
        assert [n async for n in connection.run(Sum.squares, 1000)] == [n * n for n in range(1000)]
    await asyncio.to_thread(call, uri)
    await server.close()

def call(uri):
    with blocking.connect(str(uri)) as connection:
        assert [connection.run(Sum.add, 1) for _ in range(100)] == list(range(201, 301))

run(main(sys.argv[1]))
print("done")
"""


def test_calls_work_without_the_c_part(tmp_path) -> None:
    """One at a time, many at a time, streams, and by the blocking client."""
    argv = [sys.executable, "-c", PROGRAM, str(tmp_path / "s")]
    done = subprocess.run(argv, cwd=PROGRAMS, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")


@pytest.mark.parametrize("built", [None, types.SimpleNamespace(), types.SimpleNamespace(INTERFACE=1, encode_plain=1)])
def test_what_was_built_from_another_checkout_is_not_used(monkeypatch: pytest.MonkeyPatch, built: Any) -> None:
    """Nor what was not built."""
    monkeypatch.setattr(compiled, "built", built)
    assert not compiled.is_there()
    assert compiled.compiled("encode_plain", "otherwise") == "otherwise"
