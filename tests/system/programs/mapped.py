"""Functions and classes for the tests of map and reduce, and of the executor."""

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from workerlib import MapWorker, ReduceWorker


@dataclass
class Point:
    x: int
    y: int


class OwnError(Exception):
    """An error of the program's own."""


def square(n: int) -> int:
    return n * n


async def square_later(n: int) -> int:
    await asyncio.sleep(0.1)
    return n * n


def add(a: int, b: int) -> int:
    return a + b


async def add_later(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


def text(n: int) -> str:
    return f"{n},"


def text_slowly(n: int) -> str:
    time.sleep(0.001)
    return f"{n},"


def concatenate(a: str, b: str) -> str:
    return a + b


def raising_concatenate(a: str, b: str) -> str:
    raise ValueError("these do not go together")


def mirror(point: Point) -> Point:
    return Point(point.y, point.x)


def pid_of(_: int) -> int:
    time.sleep(0.002)
    return os.getpid()


def no_sevens(n: int) -> int:
    if n == 7:
        raise ValueError("seven is not liked here")
    return n


def own_error(n: int) -> int:
    raise OwnError(n)


def exit_now(n: int) -> int:
    sys.exit(n)


def killed_by_five(n: int) -> int:
    if n == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def killed_once(path: str) -> str:
    """Kills its worker the first time that it sees the path."""
    if path and not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return path


def wrong_result(n: int) -> int:
    return f"{n}"  # type: ignore[return-value]


def no_result(n: int) -> object:
    return object() if n == 3 else n


def large_after_nine(n: int) -> bytes:
    return bytes(8 << 20) if n > 9 else b""


def sleep_if_negative(n: int) -> int:
    if n < 0:
        time.sleep(600)
    return n


async def wait_if_negative(n: int) -> int:
    if n < 0:
        await asyncio.sleep(600)
    return n


def slow_after_a_hundred(n: int) -> int:
    if n > 100:
        time.sleep(0.02)
    return os.getpid()


def hit_at_5000(n: int) -> str | None:
    return f"found {n}" if n == 5000 else None


def write(text: str) -> None:
    print(text, flush=True)


class Scale(MapWorker[int, int]):
    async def init(self, factor: int, plus: int = 0) -> None:
        self.factor = factor
        self.plus = plus

    def map(self, item: int) -> int:
        return item * self.factor + self.plus


class WhoAmI(MapWorker[int, tuple[int, int]]):
    async def map(self, item: int) -> tuple[int, int]:
        await asyncio.sleep(0.002)
        return item, self.index


class RaisesInInit(MapWorker[int, int]):
    async def init(self) -> None:
        raise ValueError("not today")

    def map(self, item: int) -> int:
        return item


class CountWords(ReduceWorker[str, dict[str, int]]):
    def map(self, item: str) -> dict[str, int]:
        return Counter(item.split())

    def combine(self, first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
        return Counter(first) + Counter(second)


class Joined(ReduceWorker[int, str]):
    async def init(self, separator: str) -> None:
        self.separator = separator

    async def map(self, item: int) -> str:
        return str(item)

    async def combine(self, first: str, second: str) -> str:
        return f"{first}{self.separator}{second}"


SET_UP: list[str] = []


def set_up(name: str) -> None:
    SET_UP.append(name)


def what_was_set_up() -> list[str]:
    return SET_UP


def fail_to_set_up() -> None:
    raise ValueError("no set-up")


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def wait_for(path: str) -> str:
    while not Path(path).exists():
        time.sleep(0.005)
    return path


async def block_the_loop(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def takes_either(item: set[int] | list[int]) -> int:
    """MessagePack has one kind of array: which of them was meant?"""
    return len(item)


def gives_either(n: int) -> set[int] | list[int]:
    return [n]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def untyped(value, *more, **named):  # type: ignore[no-untyped-def]
    return [value, list(more), named]


def here() -> str:
    return os.getcwd()
