import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

def encode_plain(start: bytes, seq: int, payload: bytes, /) -> bytes: ...
def sole_plain(data: bytes, start: bytes, prefix: bytes, /) -> int: ...
def unfilled(size: int, /) -> bytearray: ...
def first_step(
    enter: Callable[[asyncio.AbstractEventLoop, Any], object],
    leave: Callable[[asyncio.AbstractEventLoop, Any], object],
    loop: asyncio.AbstractEventLoop,
    task: Any,
    coroutine: Coroutine[Any, Any, Any],
    /,
) -> tuple[bool, Any]: ...
