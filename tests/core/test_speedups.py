"""What has a twin in C does the same in both languages, whatever it is given."""

import gc
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twins import TWINS, C, needs_c
from wire import parse

from workerlib import spec
from workerlib.core import compiled, frames
from workerlib.core.parts import LARGE, Parts
from workerlib.testing.sessions import whole

START = frames.head(frames.RESULT, 4)
OTHER = frames.head(frames.INVOKE, 4)


@pytest.fixture(params=TWINS)
def twin(request: pytest.FixtureRequest) -> Callable[[str], Callable[..., Any]]:
    if request.param == "Python":
        return lambda name: getattr(frames, f"{name}_in_python")
    return lambda name: getattr(C, name)


@pytest.mark.parametrize("payload", [b"", b"abc", bytes(70_000)], ids=len)
@pytest.mark.parametrize("seq", [0, 1, 255, 256, 65535])
@pytest.mark.parametrize("flags", [0, frames.ONE_WAY])
def test_a_plain_message_is_as_the_general_encoder_makes_it(twin: Any, flags: int, seq: int, payload: bytes) -> None:
    """Header and payload, byte for byte."""
    start = frames.head(frames.RESULT, 4, flags)
    assert twin("encode_plain")(start, seq, payload) == frames.encode(frames.RESULT, 4, flags, seq, payload)


def test_a_payload_in_parts_is_joined(twin: Any) -> None:
    """Parts pass for the bytes that they stand for."""
    parts = Parts()
    parts.add_value(bytes(LARGE))
    payload = bytes(parts)
    assert twin("encode_plain")(START, 7, parts.as_payload()) == frames.encode(frames.RESULT, 4, 0, 7, payload)


@pytest.mark.parametrize(
    "arguments",
    {
        "negative number": (START, -1, b""),
        "number too large": (START, 1 << 16, b""),
        "number of another type": (START, "1", b""),
        "payload of another type": (START, 1, None),
        "payload without bytes": (START, 1, [1, 2]),
        "an argument is missing": (START, 1),
        "one too many": (START, 1, b"", b""),
    }.values(),
    ids=str,
)
def test_what_cannot_be_encoded_is_refused(twin: Any, arguments: tuple[Any, ...]) -> None:
    """With an exception, not with a message that says something else."""
    with pytest.raises((TypeError, OverflowError)):
        twin("encode_plain")(*arguments)


def test_memory_to_be_filled_has_the_size_that_was_asked_for(twin: Any) -> None:
    """Whatever is in it; a size that cannot be is refused."""
    assert [len(twin("unfilled")(size)) for size in (0, 1, 1 << 20)] == [0, 1, 1 << 20]
    for wrong in (-1, None):
        with pytest.raises((ValueError, TypeError)):
            twin("unfilled")(wrong)


MESSAGE = frames.encode(frames.RESULT, 4, 0, 0x1234, b"payload")
NOT_THE_SOLE_ONE = {
    "nothing": b"",
    "bytes of another type": bytearray(MESSAGE),
    "less than a header": MESSAGE[:39],
    "cut off": MESSAGE[:-1],
    "more behind it": MESSAGE + b"P",
    "two": MESSAGE + MESSAGE,
    "another head": OTHER + MESSAGE[10:],
    "another payload": frames.encode(frames.RESULT, 4, 0, 0x1234, b"pazload"),
    "a payload that is shorter than the prefix": frames.encode(frames.RESULT, 4, 0, 0x1234, b"pa"),
    "annotations": frames.encode(frames.RESULT, 4, 0, 0x1234, b"payload", {"ABCD": b"1"}),
    "a correlation id": MESSAGE[:20] + bytes(range(16)) + MESSAGE[36:],
    "reserved bits": MESSAGE[:36] + b"\x00\x01" + MESSAGE[38:],
    "another magic number": MESSAGE[:39] + b"\xc4" + MESSAGE[40:],
    "a length beyond the memory": MESSAGE[:12] + b"\xff\xff\xff\xff" + MESSAGE[16:],
    "a length whose low bits would do": MESSAGE[:12] + b"\x01\x00\x00\x07" + MESSAGE[16:],
}


@pytest.mark.parametrize("prefix", [b"", b"pay", b"payload"])
def test_the_sole_message_is_known_by_its_number(twin: Any, prefix: bytes) -> None:
    """If its payload begins as is asked for."""
    assert twin("sole_plain")(MESSAGE, START, prefix) == 0x1234


@pytest.mark.parametrize("data", NOT_THE_SOLE_ONE.values(), ids=list(NOT_THE_SOLE_ONE))
def test_anything_else_is_not_the_sole_message(twin: Any, data: bytes) -> None:
    """It goes the long way, where errors are told."""
    assert twin("sole_plain")(data, START, b"pay") == -1


def test_an_empty_payload_is_one() -> None:
    """A prefix of nothing is the start of it."""
    data = frames.encode(frames.RESULT, 4, 0, 5, b"")
    assert frames.sole_plain_in_python(data, START, b"") == frames.sole_plain(data, START, b"") == 5


@given(
    st.binary(max_size=60) | st.just(MESSAGE),
    st.lists(st.tuples(st.integers(0, 45), st.integers(0, 255)), max_size=3),
    st.binary(max_size=8),
)
def test_the_twins_and_the_parser_agree(data: bytes, changes: list[tuple[int, int]], prefix: bytes) -> None:
    """Whatever is a sole plain message to one of them is to the others."""
    changed = bytearray(data)
    for at, value in changes:
        changed[at : at + 1] = bytes([value]) if at < len(changed) else b""
    data = bytes(changed)
    seq = frames.sole_plain_in_python(data, START, prefix)
    assert frames.sole_plain(data, START, prefix) == seq
    found, error = parse(whole(data))
    if seq >= 0:
        assert error is None
        (frame,) = found
        assert frame == frames.Frame(frames.RESULT, 4, 0, seq, data[frames.HEADER_SIZE :])
        assert bytes(frame.payload).startswith(prefix)


@pytest.mark.parametrize("language", TWINS)
def test_a_function_is_itself_in_its_class_and_a_method_in_an_object(language: str) -> None:
    """As functions are, so that a worker can call its own."""

    class OwnKind(spec.Rpc):
        pass

    get = OwnKind.__get__ = C.binder(OwnKind) if language == "C" else spec.get_in_python

    async def call(self, n: int) -> int:
        return n

    class Worker:
        add = OwnKind(call)

    worker = Worker()
    assert isinstance(Worker.add, OwnKind)
    assert (Worker.add, worker.add.__self__, worker.add.__func__) == (Worker.add, worker, Worker.add.call)
    function = vars(Worker)["add"]
    assert function.__get__(worker, Worker).__self__ is worker
    assert function.__get__(None, Worker) is function
    with pytest.raises((TypeError, AttributeError)):
        get(object(), worker, Worker)
    with pytest.raises(TypeError):
        function.__get__()


@needs_c
def test_the_c_part_is_that_of_this_checkout() -> None:
    """Otherwise everything would work without it, and nobody would notice."""
    assert compiled.is_there()
    assert compiled.compiled("encode_plain", None) is C.encode_plain


@needs_c
def test_a_shortcut_is_not_made_from_something_else() -> None:
    """What it is given once it relies on: it looks at none of it again."""
    assert C is not None
    for make in (C.answerer, C.runner, C.result_taker, C.data_receiver):
        with pytest.raises((TypeError, ValueError)):
            make()
        with pytest.raises((TypeError, ValueError)):
            make(*[None] * 100)


@needs_c
def test_the_c_part_keeps_no_references() -> None:
    """What it was given, and what it gave, is freed with the caller's own references, also after errors."""
    assert C is not None
    payload, value, task, loop = b"payload" * 100, object(), object(), object()

    async def give() -> object:
        return value

    async def fail() -> None:
        raise ValueError(value)

    def enter(*_: object) -> None: ...

    def refuse(*_: object) -> None:
        raise RuntimeError

    def everything() -> None:
        message = C.encode_plain(START, 300, payload)
        assert C.sole_plain(message, START, payload) == 300
        assert C.first_step(enter, enter, loop, task, give()) == (True, value)
        for into, out_of, made in ((enter, enter, fail), (enter, refuse, give), (enter, refuse, fail)):
            with pytest.raises((ValueError, RuntimeError)):
                C.first_step(into, out_of, loop, task, made())
        never_run = give()
        with pytest.raises(RuntimeError):
            C.first_step(refuse, enter, loop, task, never_run)
        never_run.close()

    held = (payload, value, task, loop, START)
    everything()
    gc.collect()
    before = [sys.getrefcount(thing) for thing in held]
    for _ in range(100):
        everything()
    gc.collect()
    assert [sys.getrefcount(thing) for thing in held] == before
