"""Payloads: the arguments, results and errors inside messages, checked against the types of the function.

The own form is MessagePack by msgspec (Pyro5's serializer id 4): a value is decoded straight into its type or refused
with the path of the offending part. Values from Pyro5's other serializers come as plain data from the door
`workerlib.shell.naming` and are converted to the same types here.
"""

import builtins
import enum
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, get_args

import msgspec

from workerlib import errors as own_errors
from workerlib.core.form import Form
from workerlib.core.packing import Packer, form_of, forms_of, pack, refuse_forms, same_user_only, unpack
from workerlib.core.parts import BUFFERS, Extension, Parts, encode_list, encode_value, is_large
from workerlib.errors import ArgumentError, NotTrusted, ProtocolError, RemoteError, ResultError, UsageError
from workerlib.spec import Function, Kind, Parameters, nearest

MSGPACK = 4
"""Pyro5's id of the serializer that workerlib speaks natively."""

_encoder = msgspec.msgpack.Encoder()
encode: Callable[[Any], bytes] = _encoder.encode
decode: Callable[[bytes | memoryview], Any] = msgspec.msgpack.Decoder().decode
NIL = encode(None)
NO_KEYWORDS = encode({})
_FOUR = b"\x94"  # MessagePack's start of an array of four: object, method, arguments, keyword arguments


class CallHead(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A call with its arguments still undecoded, since their types depend on the method."""

    object: str
    method: str
    args: msgspec.Raw
    kwargs: msgspec.Raw


decode_call_head: Callable[[bytes | memoryview], CallHead] = msgspec.msgpack.Decoder(CallHead).decode


def call_prefix(target: str, method: str) -> bytes:
    """The constant start of every call of one method; the encoded arguments and keyword arguments follow it."""
    return _FOUR + encode(target) + encode(method)


REFUSED = (msgspec.MsgspecError, ValueError, TypeError, RecursionError)
"""What decoding of bytes or data that somebody else made may raise: text that is not UTF-8 and deep nesting have no
MsgspecError of their own."""
NO_ENCODING = (TypeError, ValueError, OverflowError, RecursionError)
"""What encoding of a value may raise."""


def _decoder(kind: Any, where: str, *, forms: bool = False) -> Callable[[bytes | memoryview | msgspec.Raw], Any]:
    """`forms`: that have been replaced by Any; what comes in one is a view of the message, not a copy."""
    refuse_forms(kind, where)
    try:
        if forms:
            return msgspec.msgpack.Decoder(kind, ext_hook=msgspec.msgpack.Ext).decode
        return msgspec.msgpack.Decoder(kind).decode
    except (TypeError, NotImplementedError) as error:
        raise UsageError(f"{where}: this type cannot travel between processes: {error}") from None


class Origin(enum.Enum):
    """Where plain data comes from, which is to be checked against types."""

    HERE = "here"
    """From this process: values are what they are."""
    SAME_USER = "same user"
    """From a process of this user, whom the kernel vouches for: values may be in a form of their own."""
    ANYBODY = "anybody"


_AT = re.compile(r"^(?P<text>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_INDEX = re.compile(r"^\[(\d+)\]")


def _located(error: Exception, names: Sequence[str]) -> str:
    """The message of msgspec, with its path `$[1].x` told as the name of the argument: `who.x`."""
    match = cast("re.Match[str]", _AT.match(str(error)))
    path = match["path"] or ""
    if index := _INDEX.match(path):
        path = names[int(index[1])] + path[index.end() :]
    return f"argument {path}: {match['text']}" if path else match["text"]


class Signature:
    """Decodes and checks the arguments of one callable. Made once for each function; raises UsageError then.

    Arguments in a form of their own are possible only where it `takes_forms`: whoever says that has asked who the
    caller is before `bind` is called.
    """

    def __init__(self, where: str, parameters: Parameters, *, takes_forms: bool = False) -> None:
        self._where = where
        self._parameters = parameters
        self._names = tuple(name for name in parameters.names if name not in parameters.keyword_only)
        self._forms = forms_of(where, parameters) if takes_forms else {}
        by_name: dict[str, Any] = {**parameters.by_name, **dict.fromkeys(self._forms, Any)}
        self._types = by_name
        views = bool(self._forms)
        self._one = {name: _decoder(kind, f"{where}, argument {name}", forms=views) for name, kind in by_name.items()}
        positional = tuple(by_name[name] for name in self._names)
        self._by_count = {
            count: _decoder(tuple[positional[:count]], where, forms=views)  # type: ignore[misc]  # made at run time
            for count in range(parameters.required, len(positional) + 1)
        }
        # For arguments in a form the whole call is decoded once more: what is decoded from a Raw cannot be written to.
        self._whole = {
            count: _decoder(tuple[Any, Any, tuple[positional[:count]], Any], where, forms=True)  # type: ignore[misc]
            for count in (self._by_count if views else ())
        }
        self.exact = len(self._by_count) == 1 and not parameters.keyword_only and not self._forms
        """Whether a call always has the same number of arguments, none by keyword only: the case that is made fast."""
        self.bind_exact = self._by_count[len(positional)]
        """Decodes all positional arguments; raises msgspec.MsgspecError. `bind` tells errors better."""

    def bind(
        self, args: msgspec.Raw, kwargs: msgspec.Raw, payload: bytes | memoryview = b""
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Typed arguments from MessagePack; `payload` is the whole call, if there is one.

        Raises ArgumentError with the path of the first value that does not fit.
        """
        if self.exact and bytes(kwargs) == NO_KEYWORDS:
            try:
                return self.bind_exact(args), {}
            except REFUSED as error:
                raise self._error(error) from None
        return self._bind_slowly(args, kwargs, payload)

    def _bind_slowly(
        self, args: msgspec.Raw, kwargs: msgspec.Raw, payload: bytes | memoryview
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            given = msgspec.msgpack.decode(args, type=list[msgspec.Raw])
            named = msgspec.msgpack.decode(kwargs, type=dict[str, msgspec.Raw])
            self._check_names(len(given), named)
            if len(given) in self._by_count:
                positional = self._positional(len(given), args, payload)
            else:
                positional = tuple(self._decode_one(n, raw) for n, raw in zip(self._names, given, strict=False))
        except ArgumentError:
            raise
        except REFUSED as error:
            raise self._error(error) from None
        by_name = {name: self._decode_one(name, raw) for name, raw in named.items()}
        if self._forms:
            positional = tuple(
                self._take_form(name, value, Origin.SAME_USER)
                for name, value in zip(self._names, positional, strict=False)
            )
            by_name = {name: self._take_form(name, value, Origin.SAME_USER) for name, value in by_name.items()}
        return positional, by_name

    def _positional(self, count: int, args: msgspec.Raw, payload: bytes | memoryview) -> tuple[Any, ...]:
        if payload and count in self._whole:
            try:
                return cast("tuple[Any, ...]", self._whole[count](payload)[2])
            except REFUSED:
                pass  # what follows tells where
        return cast("tuple[Any, ...]", self._by_count[count](args))

    def bind_plain(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], origin: Origin = Origin.ANYBODY
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same from plain data, as another serializer gave it. Raises ArgumentError, and NotTrusted."""
        self._check_names(len(args), kwargs)
        positional = tuple(
            self._convert_one(name, value, origin) for name, value in zip(self._names, args, strict=False)
        )
        return positional, {name: self._convert_one(name, value, origin) for name, value in kwargs.items()}

    def _take_form(self, name: str, value: Any, origin: Origin) -> Any:
        form = self._forms.get(name)
        if form is None:
            return value
        if origin is Origin.ANYBODY and form.same_user_only:
            raise NotTrusted(f"{self._where}: argument {name}: {form.name} is taken from workerlib's own clients only")
        try:
            if origin is not Origin.HERE:
                return unpack(form, value)
            form.check(value)
        except TypeError as error:
            raise ArgumentError(f"{self._where}: argument {name}: {error}") from error.__cause__
        return value

    def _decode_one(self, name: str, raw: msgspec.Raw) -> Any:
        try:
            return self._one[name](raw)
        except REFUSED as error:
            raise self._error_at(name, error) from None

    def _convert_one(self, name: str, value: Any, origin: Origin) -> Any:
        if name in self._forms:
            return self._take_form(name, value, origin)
        try:
            return msgspec.convert(value, self._types[name])
        except REFUSED as error:
            raise self._error_at(name, error) from None

    def _check_names(self, count: int, named: Mapping[str, Any]) -> None:
        names = self._parameters.names
        if count > len(self._names):
            raise ArgumentError(f"{self._where} takes at most {len(self._names)} arguments, {count} were given")
        for name in named:
            if name not in names:
                raise ArgumentError(f"{self._where} has no argument {name!r}{nearest(name, names)}")
            if name in self._names[:count]:
                raise ArgumentError(f"{self._where}: argument {name} was given twice")
        for name in self._names[count : self._parameters.required]:
            if name not in named:
                raise ArgumentError(f"{self._where}: argument {name} is missing")
        for name in names:
            if name in self._parameters.required_keywords and name not in named:
                raise ArgumentError(f"{self._where}: argument {name} is missing; it is given by name")

    def _error_at(self, name: str, error: Exception) -> ArgumentError:
        match = cast("re.Match[str]", _AT.match(str(error)))
        return ArgumentError(f"{self._where}: argument {name}{match['path'] or ''}: {match['text']}")

    def _error(self, error: Exception) -> ArgumentError:
        if str(error).startswith("Expected `array` of length"):
            count, most = re.findall(r"\d+", str(error))[::-1]
            return ArgumentError(f"{self._where} takes {most} arguments, {count} were given")
        return ArgumentError(f"{self._where}: {_located(error, self._names)}")


def _decoder_with_form(kind: Any, where: str) -> Callable[[bytes | memoryview | msgspec.Raw], Any]:
    form = form_of(kind, where)
    if form is None:
        return _decoder(kind, where)
    decode_one = _decoder(Any, where, forms=True)
    return lambda data: unpack(form, decode_one(data))


def _list_decoder_with_form(kind: Any, where: str) -> Callable[[bytes | memoryview | msgspec.Raw], Any]:
    form = form_of(kind, where)
    if form is None:
        return _decoder(list[kind], where)
    decode_many = _decoder(list[Any], where, forms=True)

    def decode_and_unpack(data: bytes | memoryview | msgspec.Raw) -> list[Any]:
        found: list[Any] = []
        for value in decode_many(data):
            try:
                found.append(unpack(form, value))
            except TypeError as error:  # told where it is, as msgspec does
                raise msgspec.ValidationError(f"{error} - at `$[{len(found)}]`") from error.__cause__
        return found

    return decode_and_unpack


class Results:
    """Decodes what one function returned or yields, checked against its declared type."""

    __slots__ = ("__dict__", "one")  # as a slot for the C part

    def __init__(self, function: Function[..., Any]) -> None:
        self._where = function.qualified_name
        types = function.types
        item = types.items if function.kind is Kind.STATE else types.result
        self.one = _decoder_with_form(types.result, f"{self._where}, result")
        self.many = _list_decoder_with_form(item, f"{self._where}, result")

    def error(self, error: Exception) -> Exception:
        return ResultError(f"{self._where} returned something else than it declares: {error}")

    def item_error(self, error: Exception) -> Exception:
        return ResultError(f"{self._where} yielded something else than it declares: {error}")


class _AdaptionFailed(Exception):  # noqa: N818 - never raised to users: it carries what their code raised
    def __init__(self, raised: Exception) -> None:
        self.raised = raised


class AdaptedResults(Results):
    """Decodes as the function declares, and gives what the caller's own `after` makes of it."""

    def __init__(self, function: Function[..., Any], after: Callable[[Any], Any]) -> None:
        super().__init__(function)
        one, many = self.one, self.many

        def adapt(value: Any) -> Any:
            try:
                return after(value)
            except StopIteration as error:  # it would end what waits for the result
                raise _AdaptionFailed(RuntimeError(f"the adaption raised StopIteration: {error}")) from error
            except Exception as error:
                raise _AdaptionFailed(error) from error

        self.one = lambda data: adapt(one(data))
        self.many = lambda data: [adapt(item) for item in many(data)]

    def error(self, error: Exception) -> Exception:
        return error.raised if isinstance(error, _AdaptionFailed) else super().error(error)

    def item_error(self, error: Exception) -> Exception:
        return error.raised if isinstance(error, _AdaptionFailed) else super().item_error(error)


class Items:
    """Decodes the items that callers send to one function, checked against their declared type."""

    def __init__(self, function: Function[..., Any]) -> None:
        self._where = function.qualified_name
        self.errors = function.errors
        self._decode = _list_decoder_with_form(function.types.items, f"{self._where}, items")

    def decode(self, payload: bytes | memoryview, before: int) -> list[Any]:
        """The items in one frame, after `before` others. Raises ArgumentError that says which one does not fit."""
        try:
            return cast("list[Any]", self._decode(payload))
        except REFUSED as error:
            match = cast("re.Match[str]", _AT.match(str(error)))
            index = _INDEX.match(match["path"] or "")
            at = f"item {before + int(index[1])}{match['path'][index.end() :]}" if index else "its items"
            raise ArgumentError(f"{self._where}: {at}: {match['text']}") from None


def _takes_buffer(kind: Any) -> bool:
    """Whether values of a type may be bytes, which may be long."""
    return kind is Any or kind in BUFFERS or any(map(_takes_buffer, get_args(kind)))


class Outgoing:
    """Encodes the calls of one function on one object, decodes their results. Made once for each; raises UsageError."""

    __slots__ = ("__dict__", "is_plain", "name", "prefix", "results")  # these four as slots for the C part

    def __init__(self, function: Function[..., Any], target: str) -> None:
        self.function = function
        self.kind = function.kind
        self.sends_items = function.kind.sends_items
        self.name = function.qualified_name
        self.prefix = call_prefix(target, function.name)
        packer = Packer(self.name, function.types.parameters)
        self._packer = packer if packer.forms else None
        self._takes_buffers = bool(packer.forms) or any(map(_takes_buffer, function.types.parameters.types))
        self.item_form = form_of(function.types.items, self.name) if self.sends_items else None
        self.same_user_only = same_user_only(function)
        self._before = function.before
        self.is_plain = not (
            self._takes_buffers or self._before is not None or self.sends_items or function.kind is not Kind.RPC
        )
        """Whether each call is `prefix`, the arguments in MessagePack, and those by keyword."""
        self.results = Results(function) if function.after is None else AdaptedResults(function, function.after)

    def payload(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Raises ArgumentError when a value has no encoding; whether it fits the types, the worker checks."""
        if self._before is not None:
            args, kwargs = (self._before(*args, **kwargs),), {}
        if self._packer is not None:
            args, kwargs = self._packer.pack(args, kwargs)
        try:
            if self._takes_buffers and (any(map(is_large, args)) or any(map(is_large, kwargs.values()))):
                parts = Parts(self.prefix)
                parts.add_array(args)
                parts.add_map(kwargs)
                return parts.as_payload()
            return self.prefix + encode(args) + (encode(kwargs) if kwargs else NO_KEYWORDS)
        except NO_ENCODING as error:
            where = self.function.qualified_name
            raise ArgumentError(f"{where}: an argument cannot travel between processes: {error}") from None


MAY_BE_LARGE = frozenset({Extension, *BUFFERS})
"""Types of values that are not copied into a message when they are long."""


def pack_result(where: str, form: Form, value: Any) -> Any:
    """A result as it travels. Raises ResultError when it has no form."""
    try:
        return pack(form, value)
    except TypeError as error:
        raise ResultError(f"the result of {where} cannot be encoded: {error}") from error.__cause__


def encode_result(where: str, value: Any) -> bytes:
    """The payload of a result. Raises ResultError when the value has no encoding."""
    try:
        return encode_value(value) if type(value) in MAY_BE_LARGE else encode(value)
    except NO_ENCODING as error:
        raise ResultError(f"the result of {where} cannot be encoded: {error}") from None


def encode_stock_result(where: str, value: Any) -> bytes:
    """The same for a stock client: dates and the like as text, which is what its other serializers make of them."""
    try:
        return encode(msgspec.to_builtins(value, builtin_types=(bytes, bytearray, memoryview)))
    except NO_ENCODING as error:
        raise ResultError(f"the result of {where} cannot be encoded: {error}") from None


def encode_items(where: str, items: list[Any], *, large: bool = False) -> bytes:
    """The payload of some items of a stream, `large` if those before were.

    Raises ResultError when one has no encoding.
    """
    try:
        if large or (items and type(items[0]) in MAY_BE_LARGE):
            return encode_list(items, large=large)
        return encode(items)
    except NO_ENCODING as error:
        raise ResultError(f"the result of {where} cannot be encoded: {error}") from None


# Errors travel as Pyro5 puts them: a dictionary with the class name, the arguments and the remote traceback.

_PLAIN = frozenset({str, int, float, bool, type(None), bytes})
_MAX_INT = 1 << 63
_BUILTIN_ERRORS = {
    name: kind for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)
}
_OWN_ERRORS = {
    f"workerlib.errors.{name}": kind
    for name, kind in vars(own_errors).items()
    if isinstance(kind, type) and issubclass(kind, Exception) and name not in {"RemoteError", "SpawnError"}
}


def _class_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


_FLOW_ERRORS = {"builtins.StopIteration", "builtins.StopAsyncIteration"}
"""Errors that mean something else where they arrive: a future refuses the one, a generator the other."""


def _text(value: Any, *, show: Callable[[Any], str] = str) -> str:
    """The value as text that can be encoded, whatever its class does when it is asked for text."""
    try:
        text = show(value)
    except Exception as error:  # noqa: BLE001 - user code
        text = f"<{type(value).__qualname__}: its text raises {type(error).__name__}>"
    return text.encode(errors="backslashreplace").decode()


def _plain(value: Any) -> Any:
    """An argument of an error as it travels: itself when every serializer knows it, else its text."""
    if type(value) not in _PLAIN or (type(value) is int and not -_MAX_INT <= value < _MAX_INT):
        return _text(value, show=repr)
    return _text(value) if type(value) is str else value


def _wire_arguments(error: BaseException) -> list[Any]:
    if isinstance(error, OSError) and error.filename is not None:
        args: list[Any] = [error.errno, error.strerror, _file_name(error.filename)]
    else:
        args = list(error.args)
    return [_plain(value) for value in args]


def _file_name(name: Any) -> str:
    """A file's name as text; a name in bytes keeps its odd ones as escapes."""
    return name.decode(errors="backslashreplace") if isinstance(name, bytes) else str(name)


def error_to_wire(error: BaseException, traceback: str, *, stock: bool) -> dict[str, Any]:
    """An error as plain data.

    A `stock` client can rebuild builtin classes only: it gets the nearest builtin ancestor that can be rebuilt from the
    plain arguments, with the class name in the text where that ancestor says nothing.
    """
    kind: type[BaseException] = type(error)
    args = _wire_arguments(error)
    if stock:
        if kind.__module__ != "Pyro5.errors":
            kind = next((k for k in kind.__mro__ if k is _BUILTIN_ERRORS.get(k.__name__)), RuntimeError)
        args = [repr(value) if isinstance(value, bytes) else value for value in args]
        try:
            kind(*args)
        except Exception:  # noqa: BLE001 - whatever a constructor does to arguments that are not its own
            kind, args = RuntimeError, [f"{_class_name(type(error))}: {_text(error)}"]
        if not isinstance(error, kind) or (kind is Exception and type(error) is not Exception):
            args = [f"{_class_name(type(error))}: {_text(error)}"]
    attributes = {"_pyroTraceback": [line + "\n" for line in _text(traceback).splitlines()]}
    return {"__class__": _class_name(kind), "__exception__": True, "args": args, "attributes": attributes}


def error_from_wire(data: Any, declared: tuple[type[Exception], ...] = ()) -> Exception:
    """The error that `error_to_wire` described: itself when builtin, workerlib's own or declared, else RemoteError.

    It carries the remote traceback as a note and in its attribute `remote_traceback`. No class is looked up by name
    outside these three sets, nothing is imported.
    """
    if not isinstance(data, dict) or not isinstance(data.get("__class__"), str):
        raise ProtocolError("an error of the peer is not in the form of an error")
    name = data["__class__"]
    args = data.get("args")
    args = list(args) if isinstance(args, (list, tuple)) else []
    attributes = data.get("attributes")
    lines = attributes.get("_pyroTraceback", ()) if isinstance(attributes, dict) else ()
    traceback = "".join(str(line) for line in lines) if isinstance(lines, (list, tuple)) else str(lines)
    kind = _OWN_ERRORS.get(name) or next((k for k in declared if _class_name(k) == name), None)
    if kind is None and name.startswith("builtins.") and name not in _FLOW_ERRORS:
        kind = _BUILTIN_ERRORS.get(name.removeprefix("builtins."))
    error: Exception | None = None
    if kind is not None:
        try:
            error = kind(*args)
        except Exception:  # noqa: BLE001 - whatever a constructor does to arguments that are not its own
            error = None
    if error is None:
        text = ", ".join(str(value) for value in args)
        error = RemoteError(f"{name}: {text}" if text else name, name, traceback)
    if traceback:
        error.add_note(f"Traceback of the worker:\n{traceback.rstrip()}")
        error.remote_traceback = traceback  # type: ignore[attr-defined]
    return error
