"""Which arguments, results and items travel in a form of their own, and how they are brought into it.

A form is for a whole argument, result or item, not for a part of one: the worker's check of types, which knows nothing
of forms, would let them pass inside.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

import msgspec

from workerlib.core.arrays import ArrayForm, describe_array, is_array
from workerlib.core.form import Form, Mark, has_fields
from workerlib.core.parts import Extension
from workerlib.errors import ArgumentError, UsageError
from workerlib.spec import Function, Parameters


def form_of(kind: Any, where: str) -> Form | None:
    """The form of a whole argument, result or item; None when MessagePack does. Raises UsageError for a part of one."""
    if get_origin(kind) is Annotated:
        for mark in get_args(kind)[1:]:
            if isinstance(mark, Mark):
                if not is_array(get_args(kind)[0]):
                    refuse_forms(get_args(kind)[0], where)
                return mark.form(get_args(kind)[0])
    if is_array(kind):
        return ArrayForm(kind)
    refuse_forms(kind, where)
    return None


def refuse_forms(kind: Any, where: str) -> None:
    """Raises UsageError when a type has another form than MessagePack's anywhere."""
    if (name := _form_inside(kind, ())) is not None:
        raise UsageError(
            f"{where}: {name} is for a whole argument, result or stream item of a worker's function; it cannot be a "
            "part of one, such as in a list, a union or a class, nor be used by maps, executors and `connected`"
        )


def _form_inside(kind: Any, within: tuple[Any, ...]) -> str | None:
    if kind in within:
        return None
    if is_array(kind):
        return describe_array(kind)
    parts = [part for part in get_args(kind) if not isinstance(part, (str, int))]
    origin = get_origin(kind) or kind
    if has_fields(origin):
        try:
            parts += get_type_hints(origin, include_extras=True).values()
        except NameError:
            parts += vars(origin).get("__annotations__", {}).values()
    for part in parts:
        if isinstance(part, Mark):
            return part.name
        if (found := _form_inside(part, (*within, kind))) is not None:
            return found
    return None


def pack(form: Form, value: Any) -> Any:
    """The value as it travels. Raises TypeError when it has no form."""
    try:
        return form.dump(value)
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

    def pack_as_data(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same for arguments that travel as plain data in a call of another function."""
        positional, named = self.pack(args, kwargs)
        return tuple(map(_as_data, positional)), {name: _as_data(value) for name, value in named.items()}

    def _one(self, name: str, value: Any) -> Any:
        form = self.forms.get(name)
        try:
            return value if form is None else pack(form, value)
        except TypeError as error:
            raise ArgumentError(f"{self._where}: argument {name}: {error}") from error.__cause__


def _as_data(value: Any) -> Any:
    return value.as_one() if isinstance(value, Extension) else value


def forms_of(where: str, parameters: Parameters) -> dict[str, Form]:
    """The forms of those parameters that have one of their own."""
    found = ((name, form_of(kind, f"{where}, argument {name}")) for name, kind in parameters.by_name.items())
    return {name: form for name, form in found if form is not None}


def forms_in(function: Function[..., Any]) -> list[Form]:
    """The forms of all that a function takes or gives."""
    types, where = function.types, function.qualified_name
    places = [form_of(types.result, where), form_of(types.items, where), *forms_of(where, types.parameters).values()]
    return [form for form in places if form is not None]


def same_user_only(function: Function[..., Any]) -> bool:
    """Whether anything that a function takes or gives may be exchanged with processes of the same user only."""
    return any(form.same_user_only for form in forms_in(function))
