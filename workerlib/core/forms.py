"""Types whose values travel in a form of their own, because MessagePack knows none for them: what a form has to be.

A form is for a whole argument, result or item, not for a part of one: the worker's check of types, which knows nothing
of forms, would let them pass inside.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints, is_typeddict

import msgspec

from workerlib.errors import ArgumentError, UsageError
from workerlib.spec import Function, Parameters


class Form:
    """How the values of one annotation become bytes and back. Subclasses are doors to what does it."""

    name: str
    """What the annotation is called in errors."""
    code: int
    """The number of the MessagePack extension that the bytes travel in."""
    same_user_only = False
    """Whether bytes of somebody else must not even be looked at."""

    def dump(self, value: Any) -> bytes | bytearray | memoryview:
        """Raises whatever says that there is no form for this value."""
        raise NotImplementedError

    def load(self, data: bytes | memoryview) -> Any:
        """Raises whatever says that these bytes are no value of the annotated type."""
        raise NotImplementedError

    def check(self, value: Any) -> None:
        """Raises TypeError for a value that is not of the annotated type."""
        raise NotImplementedError


class Mark:
    """What `Annotated` has beside a type whose values travel in another form."""

    name: str

    def form(self, kind: Any) -> Form:
        """The form of values of that type. Raises UsageError when it has none."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.name


def form_of(kind: Any, where: str) -> Form | None:
    """The form of a whole argument, result or item; None when MessagePack does. Raises UsageError for a part of one."""
    if get_origin(kind) is Annotated:
        for mark in get_args(kind)[1:]:
            if isinstance(mark, Mark):
                refuse_forms(get_args(kind)[0], where)
                return mark.form(get_args(kind)[0])
    refuse_forms(kind, where)
    return None


def refuse_forms(kind: Any, where: str) -> None:
    """Raises UsageError when a type has another form than MessagePack's anywhere."""
    if (mark := _mark_inside(kind, ())) is not None:
        raise UsageError(
            f"{where}: {mark} is for a whole argument, result or stream item of a worker's function, such as "
            f"{mark}[list[int]]; it cannot be a part of one, nor be used by maps, executors and `connected`"
        )


def _mark_inside(kind: Any, within: tuple[Any, ...]) -> Mark | None:
    if kind in within:
        return None
    parts = [part for part in get_args(kind) if not isinstance(part, (str, int))]
    origin = get_origin(kind) or kind
    if (
        dataclasses.is_dataclass(origin)
        or hasattr(origin, "__struct_fields__")
        or hasattr(origin, "__attrs_attrs__")
        or hasattr(origin, "_fields")
        or is_typeddict(origin)
    ):
        try:
            parts += get_type_hints(origin, include_extras=True).values()
        except NameError:
            parts += vars(origin).get("__annotations__", {}).values()
    for part in parts:
        if isinstance(part, Mark):
            return part
        if (found := _mark_inside(part, (*within, kind))) is not None:
            return found
    return None


def pack(form: Form, value: Any) -> msgspec.msgpack.Ext:
    """The value as it travels. Raises TypeError when it has no form."""
    try:
        return msgspec.msgpack.Ext(form.code, form.dump(value))
    except Exception as error:
        raise TypeError(f"it cannot travel as {form.name}: {_reason(error)}") from error


def unpack(form: Form, value: Any) -> Any:
    """The value that has come. Raises TypeError when it is none, whatever its own code raises."""
    if not isinstance(value, msgspec.msgpack.Ext) or value.code != form.code:
        raise TypeError(f"Expected a value sent as {form.name}, got `{type(value).__qualname__}`")
    try:
        return form.load(cast("bytes", value.data))
    except Exception as error:
        raise TypeError(f"it was sent as {form.name} and cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    try:
        text = str(error)
    except Exception as failed:  # noqa: BLE001 - user code
        text = f"its text raises {type(failed).__name__}"
    return text if type(error) is TypeError else f"{type(error).__name__}: {text}"


def pack_items(form: Form | None, items: list[Any]) -> list[Any]:
    """The items of a stream as they travel. Raises TypeError for one that has no form."""
    return items if form is None else [pack(form, item) for item in items]


class Packer:
    """Brings the arguments that have a form of their own into it, at the caller."""

    def __init__(self, where: str, parameters: Parameters) -> None:
        self._where = where
        self._names = tuple(name for name in parameters.names if name not in parameters.keyword_only)
        self.forms = forms_of(where, parameters)

    def pack(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Raises ArgumentError for a value that has no form; what is too much is the worker's to refuse."""
        names = (*self._names, *[""] * len(args))
        positional = tuple(self._one(name, value) for name, value in zip(names, args, strict=False))
        return positional, {name: self._one(name, value) for name, value in kwargs.items()}

    def _one(self, name: str, value: Any) -> Any:
        form = self.forms.get(name)
        try:
            return value if form is None else pack(form, value)
        except TypeError as error:
            raise ArgumentError(f"{self._where}: argument {name}: {error}") from error.__cause__


def forms_of(where: str, parameters: Parameters) -> dict[str, Form]:
    """The forms of those parameters that have one of their own."""
    found = ((name, form_of(kind, f"{where}, argument {name}")) for name, kind in parameters.by_name.items())
    return {name: form for name, form in found if form is not None}


def same_user_only(function: Function[..., Any]) -> bool:
    """Whether anything that a function takes or gives may be exchanged with processes of the same user only."""
    types, where = function.types, function.qualified_name
    places = [form_of(types.result, where), form_of(types.items, where), *forms_of(where, types.parameters).values()]
    return any(form is not None and form.same_user_only for form in places)
