"""Typed arguments, results and errors: what travels, what is refused, and what the refusal says."""

import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from typing import Any, Literal

import msgspec
import pytest

from workerlib import errors
from workerlib.core import payload
from workerlib.core.payload import (
    NO_KEYWORDS,
    Outgoing,
    Results,
    Signature,
    decode,
    decode_call_head,
    encode,
    encode_result,
    encode_stock_result,
    error_from_wire,
    error_to_wire,
)
from workerlib.errors import ArgumentError, ProtocolError, RemoteError, ResultError, UsageError
from workerlib.spec import Parameters, pipe, read_parameters, rpc


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Address:
    zip: int
    street: str = ""


class Person(msgspec.Struct):
    name: str
    addresses: list[Address] = []


class Picky(msgspec.Struct):
    n: int

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ValueError("n must not be negative")


def signature(call: Any) -> Signature:
    parameters, _ = read_parameters(call, skip=0)
    return Signature(call.__name__, parameters)


def bind(call: Any, *args: Any, **kwargs: Any) -> tuple[tuple, dict]:
    """The arguments as they arrive by MessagePack; the same by plain data must give the same."""
    made = signature(call)
    raw = decode_call_head(encode(["w", "f", args, kwargs]))
    packed = made.bind(raw.args, raw.kwargs)
    plain = made.bind_plain(
        msgspec.to_builtins(args, builtin_types=(bytes,)), msgspec.to_builtins(kwargs, builtin_types=(bytes,))
    )
    assert packed == plain
    return packed


def refusal(call: Any, *args: Any, **kwargs: Any) -> str:
    """The text that refuses the arguments, in both forms alike."""
    made = signature(call)
    raw = decode_call_head(encode(["w", "f", args, kwargs]))
    with pytest.raises(ArgumentError) as packed:
        made.bind(raw.args, raw.kwargs)
    with pytest.raises(ArgumentError):
        made.bind_plain(args, kwargs)
    return str(packed.value)


UTC = dt.UTC
VALUES: list[tuple[Any, Any]] = [
    (int, 5),
    (int, -(2**63)),
    (int, 2**64 - 1),
    (float, 1.5),
    (float, float("inf")),
    (bool, True),
    (str, "Grüße \U0001f600"),
    (bytes, b"\0\xff"),
    (None, None),
    (list[int], [1, 2]),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (set[str], {"a", "b"}),
    (frozenset[int], frozenset({1})),
    (dict[str, int], {"a": 1}),
    (dict[str, list[Address]], {"a": [Address(1), Address(2, "x")]}),
    (int | None, None),
    (int | None, 5),
    (int | str, "five"),
    (Literal["a", "b"], "a"),
    (Colour, Colour.RED),
    (dt.datetime, dt.datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC)),
    (dt.datetime, dt.datetime(2024, 2, 29, 12, 30)),  # noqa: DTZ001 - naive ones travel as well
    (dt.date, dt.date(2024, 2, 29)),
    (dt.time, dt.time(1, 2, 3)),
    (dt.timedelta, dt.timedelta(days=1, seconds=2)),
    (uuid.UUID, uuid.UUID(int=5)),
    (decimal.Decimal, decimal.Decimal("1.20")),
    (Address, Address(5, "High")),
    (Person, Person("Ann", [Address(1)])),
    (list[Person], [Person("Ann"), Person("Bob", [Address(2)])]),
]


@pytest.mark.parametrize(("kind", "value"), VALUES, ids=str)
def test_values_of_every_supported_type_travel(kind: Any, value: Any) -> None:
    """As argument, by position and by name, and as result."""

    def f(x: Any) -> Any: ...

    f.__annotations__ = {"x": kind, "return": kind}
    assert bind(f, value) == ((value,), {})
    assert bind(f, x=value) == ((), {"x": value})
    assert msgspec.msgpack.Decoder(kind).decode(encode_result("f", value)) == value


def test_any_passes_plain_data() -> None:
    """An argument without annotation is whatever plain data came."""

    def f(x, y: Any): ...

    assert bind(f, {"a": [1, None, b"x"]}, 5) == (({"a": [1, None, b"x"]}, 5), {})


def mixed(a: int, b: str = "x", *, c: float = 1.0, d: int) -> None: ...


def plain(a: int, b: str) -> None: ...


def who(who: Person, count: int = 1) -> None: ...


def nothing() -> None: ...


def test_defaults_and_keyword_only() -> None:
    """Defaults are left to the function; names go by name."""
    assert bind(mixed, 1, d=2) == ((1,), {"d": 2})
    assert bind(mixed, 1, "y", c=2, d=2) == ((1, "y"), {"c": 2.0, "d": 2})
    assert bind(mixed, a=1, b="y", d=2) == ((), {"a": 1, "b": "y", "d": 2})
    assert bind(nothing) == ((), {})


REFUSALS = {
    "wrong type": (plain, (1, 2), {}, "plain: argument b: Expected `str`, got `int`"),
    "wrong type, first": (plain, ("1", "x"), {}, "plain: argument a: Expected `int`, got `str`"),
    "wrong type by name": (plain, (1,), {"b": 2}, "plain: argument b: Expected `str`, got `int`"),
    "deep": (
        who,
        ({"name": "Ann", "addresses": [{"zip": 1}, {"zip": 2}, {"zip": "3"}]},),
        {},
        "who: argument who.addresses[2].zip: Expected `int`, got `str`",
    ),
    "deep by name": (
        who,
        (),
        {"who": {"name": "Ann", "addresses": [{"zip": "3"}]}},
        "who: argument who.addresses[0].zip: Expected `int`, got `str`",
    ),
    "missing field": (who, ({},), {}, "who: argument who: Object missing required field `name`"),
    "too few": (plain, (1,), {}, "plain: argument b is missing"),
    "none": (plain, (), {}, "plain: argument a is missing"),
    "too many": (plain, (1, "x", 3), {}, "plain takes at most 2 arguments, 3 were given"),
    "too many for none": (nothing, (1,), {}, "nothing takes at most 0 arguments, 1 were given"),
    "unknown": (plain, (1, "x"), {"zzz": 1}, "plain has no argument 'zzz'"),
    "nearly known": (who, (), {"whom": 1}, "who has no argument 'whom'; did you mean 'who'?"),
    "twice": (plain, (1, "x"), {"a": 1}, "plain: argument a was given twice"),
    "keyword-only by position": (mixed, (1, "x", 1.0), {"d": 1}, "mixed takes at most 2 arguments, 3 were given"),
    "keyword-only missing": (mixed, (1,), {}, "mixed: argument d is missing; it is given by name"),
    "keyword-only wrong type": (mixed, (1,), {"d": "x"}, "mixed: argument d: Expected `int`, got `str`"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_does_not_fit_is_refused_with_its_place(case: str) -> None:
    """Function, argument and path are named, the same for MessagePack and for plain data where they can be."""
    call, args, kwargs, text = REFUSALS[case]
    assert refusal(call, *args, **kwargs).replace("plain takes 2 arguments", "plain takes at most 2 arguments").replace(
        "nothing takes 0 arguments", "nothing takes at most 0 arguments"
    ) in {
        text,
        text.replace("plain: argument b is missing", "plain takes at most 2 arguments, 1 were given").replace(
            "plain: argument a is missing", "plain takes at most 2 arguments, 0 were given"
        ),
    }


def test_a_check_of_the_type_itself_refuses_with_its_text() -> None:
    """What `__post_init__` raises is the reason."""

    def f(x: Picky) -> None: ...

    assert refusal(f, {"n": -1}) == "f: argument x: n must not be negative"


DEEP = b"\x91" * 100_000
HOSTILE = {
    "empty": b"",
    "cut off": b"\x94\xa1w",
    "not an array": b"\xc0",
    "too short": encode(["w", "f", []]),
    "too long": encode(["w", "f", [], {}, 1]),
    "object is no text": encode([1, "f", [], {}]),
    "trailing bytes": encode(["w", "f", [], {}]) + b"\xc0",
    "an array that claims four thousand million items": b"\xdd\xff\xff\xff\xff",
    "text that is not UTF-8": b"\x94\xa1\xff\xa1f\x90\x80",
    "deep": DEEP,
    "the byte that MessagePack never uses": b"\xc1",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_call_is_refused(case: str) -> None:
    """Whatever the bytes are, reading them raises what callers expect from hostile bytes, and nothing else."""
    with pytest.raises(payload.REFUSED):
        decode_call_head(HOSTILE[case])


@pytest.mark.parametrize(
    "args",
    [b"\xc0", encode({}), encode(5), b"\x92\x01\xa1\xff", b"\x92\x01" + DEEP, b"\x92\x01", b""],
    ids=lambda b: repr(b[:6]),
)
def test_hostile_arguments_are_refused(args: bytes) -> None:
    """Arguments that are no array, or not decodable, are ArgumentError."""
    with pytest.raises(ArgumentError):
        signature(plain).bind(msgspec.Raw(args), msgspec.Raw(NO_KEYWORDS))
    with pytest.raises(ArgumentError):
        signature(mixed).bind(msgspec.Raw(args), msgspec.Raw(encode({"d": 1})))


@pytest.mark.parametrize("kwargs", [b"\xc0", encode([1]), encode({1: 2}), b"\x81\xa1\xff\xc0", b""], ids=repr)
def test_hostile_keyword_arguments_are_refused(kwargs: bytes) -> None:
    """Keyword arguments that are no object with text as keys are ArgumentError."""
    with pytest.raises(ArgumentError):
        signature(plain).bind(msgspec.Raw(encode([1, "x"])), msgspec.Raw(kwargs))


def test_types_that_cannot_travel_are_refused_when_the_function_is_offered() -> None:
    """Not when the first call comes."""

    def f(x: Address | Person) -> None: ...  # nothing in the data would tell which

    with pytest.raises(UsageError, match="f, argument x: this type cannot travel between processes"):
        signature(f)


def test_star_arguments_are_refused_when_the_function_is_offered() -> None:
    """A typed call needs each parameter by name."""

    def f(*args: int) -> None: ...

    with pytest.raises(UsageError, match=r"cannot take \*args"):
        signature(f)


# The calling end


class Service:
    @rpc
    async def add(self, a: int, b: int = 1) -> int:
        return a + b

    @pipe
    async def numbers(self, below: int):
        yield below


def test_a_call_is_encoded_with_object_and_name() -> None:
    """What arrives is object, function, arguments and keyword arguments."""
    outgoing = Outgoing(Service.add, "w-1")
    assert decode(outgoing.payload((1,), {})) == ["w-1", "add", [1], {}]
    assert decode(outgoing.payload((1,), {"b": 2})) == ["w-1", "add", [1], {"b": 2}]


@pytest.mark.parametrize("value", [object(), 2**70, "\udce4", print, {object(): 1}], ids=repr)
def test_an_argument_without_encoding_is_refused_before_it_is_sent(value: Any) -> None:
    """With the name of the function."""
    with pytest.raises(ArgumentError, match=r"Service.add: an argument cannot travel between processes"):
        Outgoing(Service.add, "w").payload((value,), {})


def test_a_result_is_checked_against_the_declared_type() -> None:
    """A worker of another version may answer with something else."""
    results = Results(Service.add)
    assert results.one(encode(5)) == 5
    with pytest.raises(msgspec.ValidationError) as refused:
        results.one(encode("5"))
    assert "Service.add returned something else than it declares" in str(results.error(refused.value))


@pytest.mark.parametrize("value", [object(), 2**70, "\udce4", [lambda: 1], {1: {2: object()}}], ids=repr)
@pytest.mark.parametrize("encoder", [encode_result, encode_stock_result])
def test_a_result_without_encoding_is_refused(encoder: Any, value: Any) -> None:
    """With the name of the function."""
    with pytest.raises(ResultError, match="the result of f cannot be encoded"):
        encoder("f", value)


def test_a_result_that_contains_itself_is_refused() -> None:
    """And not by the end of the process."""
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ResultError):
        encode_result("f", loop)


def test_dates_are_text_for_stock_clients() -> None:
    """The msgpack package would make its own Timestamp of MessagePack's."""
    moment = dt.datetime(2024, 2, 29, tzinfo=UTC)
    assert decode(encode_stock_result("f", {"at": moment, "x": b"\0"})) == {"at": "2024-02-29T00:00:00Z", "x": b"\0"}


# Errors


class OwnError(Exception):
    pass


class DeclaredError(ValueError):
    pass


class OddConstructor(Exception):  # noqa: N818
    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code} {reason}")


class OddKeyError(KeyError):
    def __init__(self) -> None:
        super().__init__("a", "b")


class TextRaises(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Opaque:
    def __repr__(self) -> str:
        return "<opaque>"


def travel(error: BaseException, *, declared: tuple[type[Exception], ...] = (), stock: bool = False) -> Exception:
    """The error as the other end gets it, through bytes."""
    return error_from_wire(decode(encode(error_to_wire(error, "Traceback text\nlast line", stock=stock))), declared)


BUILTIN = [
    ValueError("wrong", 5),
    KeyError("key"),
    ZeroDivisionError("division by zero"),
    FileNotFoundError(2, "No such file or directory", "/tmp/x"),
    OSError("plain"),
    OSError(5, "Input/output error"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    NotImplementedError(),
    TimeoutError("late"),
    RecursionError("deep"),
    Exception("plain"),
]


@pytest.mark.parametrize("error", BUILTIN, ids=repr)
def test_builtin_errors_arrive_as_themselves(error: Exception) -> None:
    """Class and arguments, with the remote traceback as a note and as an attribute."""
    arrived = travel(error)
    assert type(arrived) is type(error)
    assert arrived.args == error.args
    assert arrived.remote_traceback == "Traceback text\nlast line\n"
    assert arrived.__notes__ == ["Traceback of the worker:\nTraceback text\nlast line"]


def test_the_file_of_an_oserror_arrives() -> None:
    """Also when its name is in bytes that are no UTF-8."""
    assert travel(FileNotFoundError(2, "No such file", "/tmp/x")).filename == "/tmp/x"
    assert travel(FileNotFoundError(2, "No such file", b"/tmp/\xff")).filename == "/tmp/\\xff"
    assert travel(FileNotFoundError(2, "No such file", "/tmp/\udcff")).filename == "/tmp/\\udcff"


@pytest.mark.parametrize(
    "error",
    [
        errors.ArgumentError("a"),
        errors.ResultError("r"),
        errors.UnknownFunction("u"),
        errors.ConnectionLost("why"),
        errors.UsageError("x"),
    ],
    ids=repr,
)
def test_our_own_errors_arrive_as_themselves(error: Exception) -> None:
    """They are known at both ends."""
    arrived = travel(error)
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)


def test_declared_errors_arrive_as_themselves_others_as_remote_error() -> None:
    """No class is looked up by name outside the three known sets."""
    assert type(travel(DeclaredError("x", 1), declared=(DeclaredError,))) is DeclaredError
    other = travel(OwnError("x", 1))
    assert type(other) is RemoteError
    assert other.remote_type.endswith("test_payload.OwnError")
    assert str(other).endswith("test_payload.OwnError: x, 1")
    assert other.remote_traceback.startswith("Traceback text")


def test_a_declared_error_that_cannot_be_made_again_is_a_remote_error() -> None:
    """Its constructor takes other arguments than it passes on."""
    arrived = travel(OddConstructor(5, reason="why"), declared=(OddConstructor,))
    assert type(arrived) is RemoteError
    assert "5 why" in str(arrived)


def test_arguments_that_are_not_plain_arrive_as_their_text() -> None:
    """Also numbers too long for MessagePack, values whose repr raises, and text that is no Unicode."""
    arrived = travel(ValueError(Opaque(), 2**70, [1], "\udce4", None, b"x", Colour.RED))
    assert arrived.args == ("<opaque>", str(2**70), "[1]", "\\udce4", None, b"x", "<Colour.RED: 'red'>")
    assert travel(ValueError(TextRaises())).args == ("<TextRaises: its text raises RuntimeError>",)


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration])
def test_errors_that_steer_iteration_arrive_as_remote_error(kind: type[Exception]) -> None:
    """A future refuses the one, an async generator misreads the other."""
    assert type(travel(kind("x"))) is RemoteError


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_a_remote_exit_does_not_end_the_caller(error: BaseException) -> None:
    """What is no Exception arrives as one."""
    assert type(travel(error)) is RemoteError


def test_an_exception_group_arrives_with_its_parts_in_the_text() -> None:
    """Its parts are not rebuilt."""
    arrived = travel(ExceptionGroup("several", [ValueError(1), OwnError(2)]))
    assert type(arrived) is RemoteError
    assert "several" in str(arrived)
    assert "ValueError(1)" in str(arrived)


STOCK = [
    (DeclaredError("x", 1), ValueError, ("x", 1)),
    (OwnError("x"), Exception, None),
    (OddConstructor(5, reason="why"), Exception, None),
    (OddKeyError(), KeyError, ("a", "b")),
    (ArgumentError("f: argument a: Expected `int`"), TypeError, ("f: argument a: Expected `int`",)),
    (errors.UnknownFunction("no f"), AttributeError, ("no f",)),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), RuntimeError, None),
    (ExceptionGroup("several", [ValueError(1)]), RuntimeError, None),
    (SystemExit(3), RuntimeError, None),
    (TextRaises(), Exception, None),
    (FileNotFoundError(2, "No such file", "/tmp/x"), FileNotFoundError, None),
]


@pytest.mark.parametrize(
    ("error", "kind", "args"), STOCK, ids=lambda value: getattr(value, "__name__", type(value).__name__)
)
def test_a_stock_client_gets_the_nearest_builtin(error: BaseException, kind: type, args: tuple | None) -> None:
    """One that its end can make again; where that says nothing, the text names the class."""
    arrived = travel(error, stock=True)
    assert type(arrived) in {kind, RemoteError}
    data = error_to_wire(error, "tb", stock=True)
    assert data["__class__"] == f"builtins.{kind.__name__}"
    assert data["attributes"] == {"_pyroTraceback": ["tb\n"]}
    if args is not None:
        assert tuple(data["args"]) == args
    elif kind in {Exception, RuntimeError}:
        assert type(error).__qualname__ in data["args"][0]


@pytest.mark.parametrize("data", [None, 5, "x", [], {}, {"__class__": 5}, {"args": []}], ids=repr)
def test_what_is_no_error_is_a_protocol_error(data: Any) -> None:
    """An error must at least name its class."""
    with pytest.raises(ProtocolError, match="not in the form of an error"):
        error_from_wire(data)


@pytest.mark.parametrize(
    "data",
    [
        {"__class__": "builtins.eval", "args": ["1"]},
        {"__class__": "os.system", "args": ["true"]},
        {"__class__": "builtins.ValueError", "args": 5, "attributes": 7},
        {"__class__": "builtins.ValueError", "args": ["x"], "attributes": {"_pyroTraceback": 5}},
        {"__class__": "workerlib.errors.SpawnError", "args": ["x"]},
        {"__class__": "workerlib.errors.Stage", "args": ["launched"]},
    ],
    ids=repr,
)
def test_odd_errors_become_errors_and_nothing_else(data: Any) -> None:
    """Nothing is called but exception classes from the three known sets."""
    assert isinstance(error_from_wire(data), (ValueError, RemoteError))


def test_parameters_of_a_method() -> None:
    """Names, types, how many are required, and which go by name only."""

    def f(self, a: int, b=2, *, c: str, d: float = 1.0) -> bool: ...

    parameters, result = read_parameters(f, skip=1)
    assert parameters == Parameters(
        ("a", "b", "c", "d"), (int, Any, str, float), 1, frozenset({"c", "d"}), frozenset({"c"})
    )
    assert result is bool
