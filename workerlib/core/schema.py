"""What a function is to its callers, as text: kind, parameters, types down to their fields. Two ends compare it.

Only what matters on the wire counts: a class is its name and its fields, wherever it is defined; of a default value
counts only whether there is one.
"""

import enum
import types
from collections.abc import Mapping
from typing import (
    Annotated,
    Any,
    ForwardRef,
    Literal,
    NewType,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from workerlib.core.arrays import describe_array, is_array
from workerlib.core.form import Mark, has_fields
from workerlib.spec import Function, Kind


def describe_type(kind: Any, within: tuple[Any, ...] = ()) -> str:
    """A type as text; a class that is being described already (`within`) by its name only."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_array(kind):
        return describe_array(kind)
    if origin is Annotated:
        for mark in arguments[1:]:
            if isinstance(mark, Mark):
                return f"{mark}[{describe_type(arguments[0], within)}]"
        return f"{describe_type(arguments[0], within)} with {', '.join(map(repr, arguments[1:]))}"
    if origin in {Union, types.UnionType}:
        return " | ".join(sorted(describe_type(argument, within) for argument in arguments))
    if origin is Literal:
        return f"Literal[{', '.join(sorted(map(repr, arguments)))}]"
    if origin is not None:
        inner = ", ".join("..." if a is Ellipsis else describe_type(a, within) for a in arguments)
        return f"{_describe_class(origin, within, kind)}[{inner}]"
    if kind is None or kind is type(None):
        return "None"
    if isinstance(kind, NewType):
        return describe_type(kind.__supertype__, within)
    if isinstance(kind, TypeVar):
        return describe_type(kind.__bound__, within) if kind.__bound__ is not None else "Any"
    if isinstance(kind, (str, ForwardRef)):
        return str(getattr(kind, "__forward_arg__", kind))
    return _describe_class(kind, within, kind) if isinstance(kind, type) else str(kind).removeprefix("typing.")


def _describe_class(kind: Any, within: tuple[Any, ...], spelled: Any) -> str:
    name = str(getattr(kind, "__qualname__", kind)).rpartition("<locals>.")[2]
    if kind in within:
        return name
    if issubclass(kind, enum.Enum):
        return f"{name}{{{', '.join(f'{member.name}={member.value!r}' for member in kind)}}}"
    if not has_fields(kind):
        return name
    try:
        hints = get_type_hints(kind, include_extras=True)
    except NameError:
        hints = dict(kind.__annotations__)
    names = getattr(kind, "__struct_encode_fields__", None) or tuple(hints)  # a Struct may rename its fields
    keys = getattr(kind, "__struct_fields__", None) or tuple(hints)
    inside = (*within, kind, spelled)
    fields = (f"{name}: {describe_type(hints[key], inside)}" for name, key in zip(names, keys, strict=True))
    return f"{name}{{{', '.join(fields)}}}"


def describe(function: Function[..., Any]) -> str:
    """A function as its callers see it, such as `rpc (n: int, b: int = ...) -> int`."""
    parameters = function.types.parameters
    parts: list[str] = []
    position = 0
    for name, kind in zip(parameters.names, parameters.types, strict=True):
        if name in parameters.keyword_only:
            if "*" not in parts:
                parts.append("*")
            optional = name not in parameters.required_keywords
        else:
            optional = position >= parameters.required
            position += 1
        parts.append(f"{name}: {describe_type(kind)}{' = ...' if optional else ''}")
    if function.kind.sends_items:
        parts.insert(0, f"items of {describe_type(function.types.items)}")
    result = describe_type(function.types.result)
    if function.kind in {Kind.PIPE, Kind.DIRECT_PIPE}:
        result = f"items of {result}"
    elif function.kind is Kind.STATE:
        result = f"{result}, then items of {describe_type(function.types.items)}"
    return f"{function.kind.value} ({', '.join(parts)}) -> {result}"


_FNV_START, _FNV_PRIME, _64_BITS = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1


def fingerprint(function: Function[..., Any]) -> str:
    """A short hash (FNV-1a) of what `describe` says: it guards against mistakes, not against malice."""
    known: str | None = vars(function).get("_fingerprint")
    if known is None:
        value = _FNV_START
        for byte in describe(function).encode():
            value = ((value ^ byte) * _FNV_PRIME) & _64_BITS
        known = vars(function)["_fingerprint"] = f"{value:016x}"
    return known


def differences(ours: Mapping[str, Function[..., Any]], theirs: Mapping[str, str]) -> list[str]:
    """The functions of ours that a worker, which told the fingerprints of its own, has not or has otherwise."""
    found: list[str] = []
    for name, function in sorted(ours.items()):
        if name not in theirs:
            found.append(f"{name} (the worker has none)")
        elif theirs[name] != fingerprint(function):
            found.append(f"{name} (here: {describe(function)})")
    return found
