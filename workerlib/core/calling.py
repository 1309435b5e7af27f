"""What a calling end makes of frames: the greeting, calls by name, answers, items. Without a socket or a loop, so that
the blocking client and asyncio's read answers alike.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from workerlib.core import frames
from workerlib.core.frames import Frame
from workerlib.core.payload import (
    NO_ENCODING,
    NO_KEYWORDS,
    REFUSED,
    Outgoing,
    call_prefix,
    decode,
    encode,
    error_from_wire,
)
from workerlib.core.schema import differences
from workerlib.core.session import parse_dialect
from workerlib.core.uri import Uri
from workerlib.errors import (
    ArgumentError,
    FunctionsDiffer,
    HandshakeError,
    NotTrusted,
    ProtocolError,
    ResultError,
    StreamAborted,
    UnknownFunction,
    UsageError,
)
from workerlib.spec import Function, Kind, nearest


def read(frame: Frame) -> Any:
    """The plain data in a frame. Raises ProtocolError."""
    try:
        return decode(frame.payload)
    except REFUSED as error:
        raise ProtocolError(f"the payload cannot be read: {error}") from None


class Offer(msgspec.Struct, frozen=True):
    """What a worker offers, as its greeting says."""

    kinds: dict[str, Kind] = {}
    schema: dict[str, str] = {}
    """The fingerprints of its functions; a function that is missing here is not checked."""

    def check(self, functions: Mapping[str, Function[..., Any]], uri: Uri, *, all_needed: bool) -> None:
        """Raises FunctionsDiffer when the worker knows one of them otherwise, or (if all are needed) not at all."""
        asked = functions if all_needed else {name: f for name, f in functions.items() if name in self.schema}
        if found := differences(asked, self.schema):
            raise FunctionsDiffer(f"{uri}: this program and the worker disagree about {'; '.join(found)}")


def read_greeting(frame: Frame, uri: Uri) -> tuple[Mapping[str, Any], Offer]:
    """What the server announced in its answer to CONNECT, and the functions that it offers.

    Raises HandshakeError when it refused, ProtocolError when it is a stock daemon or cannot be read.
    """
    answer = read(frame)
    if frame.type == frames.CONNECT_FAIL:
        raise HandshakeError(f"{uri}: {answer}")
    if not isinstance(answer, dict) or (dialect := parse_dialect(answer.get("handshake"))) is None:
        raise ProtocolError(f"{uri} is served by a stock Pyro5 daemon; use Pyro5.api.Proxy for that")
    try:
        return dialect, msgspec.convert(
            {"kinds": dialect.get("functions", {}), "schema": dialect.get("schema", {})}, Offer
        )
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the functions of {uri} cannot be read: {error}") from None


def prepare(
    function: Function[..., Any],
    known: dict[Function[..., Any], Outgoing],
    offer: Offer,
    uri: Uri,
    why_not_trusted: Callable[[], str | None],
) -> Outgoing:
    """What is needed to run a function, kept in `known` for the next time.

    Raises UsageError, FunctionsDiffer, and NotTrusted when the function is for processes of the same user and the other
    end is not known to be one.

    An adapted function is not kept, since it may be made for one call; what it was made from is.
    """
    origin: Function[..., Any] = function.origin or function
    if origin not in known:
        offer.check({origin.name: origin}, uri, all_needed=False)
        outgoing = Outgoing(origin, uri.target)
        if outgoing.same_user_only and (why := why_not_trusted()) is not None:
            raise NotTrusted(f"{outgoing.name} takes or gives Pickled values: {why}")
        known[origin] = outgoing
    return known[origin] if origin is function else Outgoing(function, uri.target)


def kind_of(name: str, functions: Mapping[str, Kind], target: str) -> Kind:
    """The kind of a function by name. Raises UnknownFunction with the nearest one."""
    if name not in functions:
        raise UnknownFunction(f"{target} has no function {name!r}{nearest(name, list(functions))}")
    return functions[name]


def plain_call(target: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
    """The payload of a call by name with plain data. Raises ArgumentError when a value has no encoding."""
    try:
        return call_prefix(target, name) + encode(args) + (encode(kwargs) if kwargs else NO_KEYWORDS)
    except NO_ENCODING as error:
        raise ArgumentError(f"{name}: an argument cannot travel between processes: {error}") from None


def check_size(data: bytes, most: int, what: str) -> None:
    """Raises ArgumentError for what the peer would refuse."""
    if len(data) > most:
        raise ArgumentError(f"{what}: {len(data)} bytes; a message may have {most} (max_message_size)")


def starts_stream(frame: Frame) -> bool:
    """Whether an answer says that items will come."""
    return frame.type == frames.RESULT and frame.flags & (frames.ITEM_STREAM | frames.EXCEPTION) == frames.ITEM_STREAM


def is_last(frame: Frame) -> bool:
    """Whether nothing more will come for the call that a frame belongs to."""
    return frame.type in {frames.END, frames.ABORT} or (frame.type == frames.RESULT and not starts_stream(frame))


def read_result(frame: Frame, outgoing: Outgoing | None, name: str) -> Any:
    """The one result of a call, or raises what the function raised.

    Raises UsageError when the function turned out to be a pipe; the caller gives that stream up.
    """
    if tells_failure(frame):
        raise failure(frame, outgoing, name)
    if frame.flags & frames.ITEM_STREAM:
        raise UsageError(f"{name} is a pipe in this worker: its result is a stream, not one value")
    return read_value(frame, outgoing)


def read_value(frame: Frame, outgoing: Outgoing | None) -> Any:
    """One value of the function's declared type. Raises ResultError when it is of another, ProtocolError."""
    if outgoing is None:
        return read(frame)
    try:
        return outgoing.results.one(frame.payload)
    except Exception as error:  # noqa: BLE001 - the types' own checks are user code
        raise outgoing.results.error(error) from None


def read_snapshot(frame: Frame, outgoing: Outgoing | None, name: str) -> Any:
    """What precedes the changes of a state function, or raises what the function raised.

    Raises ResultError when it is not of the declared type, UsageError when the function turned out to be of another
    kind; the caller gives the stream up then, if it is one.
    """
    if tells_failure(frame):
        raise failure(frame, outgoing, name)
    if not starts_stream(frame):
        raise UsageError(f"{name} is no state function in this worker: it answered with one value")
    return read_value(frame, outgoing)


def read_items(frame: Frame, outgoing: Outgoing | None, name: str) -> list[Any] | None:
    """The items in one frame of a stream, or None for its regular end.

    Raises what the function raised, ResultError when an item is not of the declared type (the caller gives the stream
    up then), and UsageError when the function turned out to be no pipe.
    """
    if frame.type == frames.ITEM:
        many: Callable[[bytes | memoryview], Any] = outgoing.results.many if outgoing is not None else decode
        try:
            items: list[Any] = many(frame.payload)
        except Exception as error:  # noqa: BLE001 - the types' own checks are user code
            if outgoing is None:
                raise ResultError(f"{name} yielded something else than it declares: {error}") from None
            raise outgoing.results.item_error(error) from None
        return items
    if starts_stream(frame):
        return []
    if tells_failure(frame):
        raise failure(frame, outgoing, name)
    if frame.type == frames.END:
        return None
    raise UsageError(f"{name} is no pipe in this worker: it answered with one value")


def tells_failure(frame: Frame) -> bool:
    """Whether an answer is an error, to be read with `failure`."""
    return bool(frame.flags & frames.EXCEPTION) or frame.type == frames.ABORT


def failure(frame: Frame, outgoing: Outgoing | None, name: str) -> Exception:
    """The error in an answer, to be raised at the caller. Raises ProtocolError when it cannot be read."""
    if frame.type == frames.ABORT:
        return StreamAborted(f"{name}: {read(frame)}")
    return error_from_wire(read(frame), outgoing.function.errors if outgoing is not None else ())
