"""What counts as the same function at both ends, and what does not."""

import dataclasses
import enum
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional, TypedDict

import msgspec
import pytest

from workerlib.core.schema import describe, describe_type, differences, fingerprint
from workerlib.kinds import DirectWriter, direct_pipe, reverse_pipe, state
from workerlib.spec import one_way, pipe, rpc


class Colour(enum.Enum):
    RED = 1
    BLUE = "b"


@dataclasses.dataclass
class Order:
    item: str
    count: int = 1


class Node(msgspec.Struct, rename="camel"):
    first_value: int
    next_node: Optional["Node"] = None


class Pair(NamedTuple):
    x: int
    y: float


class Options(TypedDict):
    deep: bool


Euros = NewType("Euros", int)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (int, "int"),
        (None, "None"),
        (Any, "Any"),
        (list[dict[str, int]], "list[dict[str, int]]"),
        (tuple[int, ...], "tuple[int, ...]"),
        (int | None, "None | int"),
        (Optional[int], "None | int"),  # noqa: UP045 - the old spelling is the same
        (Literal["b", "a", 1], "Literal['a', 'b', 1]"),
        (Annotated[int, msgspec.Meta(gt=0)], "int with msgspec.Meta(gt=0)"),
        (Colour, "Colour{RED=1, BLUE='b'}"),
        (Order, "Order{item: str, count: int}"),
        (Node, "Node{firstValue: int, nextNode: Node | None}"),
        (list[Pair], "list[Pair{x: int, y: float}]"),
        (Options, "Options{deep: bool}"),
        (Euros, "int"),
        ("Later", "Later"),
    ],
)
def test_a_type_is_its_name_and_its_fields(kind: Any, text: str) -> None:
    """Unions and literals in any order, names as they travel, recursion cut at the class."""
    assert describe_type(kind) == text


class Old:
    @rpc
    async def add(self, n: int, times: int = 1, *, fast: bool, sure: bool = True) -> Order: ...
    @one_way
    async def forget(self) -> None: ...
    @pipe
    async def items(self) -> AsyncIterator[int]: ...  # type: ignore[misc]
    @direct_pipe
    async def ticks(self, out: DirectWriter[float], every: float) -> None: ...
    @reverse_pipe
    async def total(self, updates: AsyncIterator[int], start: int = 0) -> int: ...
    @state
    async def watch(self) -> tuple[str, AsyncIterator[int]]: ...


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (
            Old.add,
            "rpc (n: int, times: int = ..., *, fast: bool, sure: bool = ...) -> Order{item: str, count: int}",
        ),
        (Old.forget, "one_way () -> None"),
        (Old.items, "pipe () -> items of int"),
        (Old.ticks, "direct_pipe (every: float) -> items of float"),
        (Old.total, "reverse_pipe (items of int, start: int = ...) -> int"),
        (Old.watch, "state () -> str, then items of int"),
    ],
)
def test_a_function_reads_as_its_callers_see_it(function: Any, text: str) -> None:
    """Kind, parameters with what is optional, and what comes back."""
    assert describe(function) == text


def test_the_same_function_elsewhere_has_the_same_fingerprint() -> None:
    """Neither the class around it, nor the value of a default, nor its body counts; the kind and every type do."""

    class Same:
        @rpc
        async def add(self, n: int, times: int = 5, *, fast: bool, sure: bool = False) -> Order:
            """Has a text, and does something."""
            return Order("", n)

    class Others:
        @rpc
        async def kind(self, updates: AsyncIterator[int]) -> int: ...
        @pipe
        async def items(self) -> AsyncIterator[float]: ...  # type: ignore[misc]
        @rpc(name="add")
        async def no_default(self, n: int, times: int, *, fast: bool, sure: bool = True) -> Order: ...
        @rpc(name="add")
        async def other_name(self, m: int, times: int = 1, *, fast: bool, sure: bool = True) -> Order: ...

    assert fingerprint(Same.add) == fingerprint(Old.add)
    prints = [fingerprint(f) for f in (Old.add, Old.items, Others.items, Others.no_default, Others.other_name)]
    assert len(set(prints)) == len(prints)


def test_differences_name_what_is_missing_or_other() -> None:
    """In the order of names; what only the worker has is no difference."""

    class Worker:
        @rpc
        async def add(self, n: str) -> str: ...
        @rpc
        async def same(self) -> None: ...

    theirs = {"same": fingerprint(Worker.same), "add": fingerprint(Old.add), "more": "x"}
    ours = {"add": Worker.add, "gone": Old.forget, "same": Worker.same}
    assert differences(ours, theirs) == ["add (here: rpc (n: str) -> str)", "gone (the worker has none)"]
    assert differences({"same": Worker.same}, theirs) == []
