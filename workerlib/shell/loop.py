"""The door to uvloop: how workerlib's own programs run an event loop."""

from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on uvloop, which takes a third of the time for a call over a Unix socket."""
    return uvloop.run(main)
