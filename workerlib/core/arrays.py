"""How numpy's arrays travel: their type, shape and order, and their memory as it is.

numpy is never imported: who annotates something with `numpy.ndarray` has done so, and that class is all that is needed.
"""

import math
import re
from typing import Any, get_args, get_origin

import msgspec

from workerlib.core.form import Form
from workerlib.core.parts import Extension, split_extension

CODE = 0x6E

_DTYPE = r"[<>|=](?:[?biufc]\d{1,2}|[SUV]\d{1,7}|[mM]8(?:\[\d{0,9}[A-Za-zμ]{1,7}\])?)"
"""The types of elements that are plain memory: no objects, no fields. What is more, numpy itself refuses.

Compiled when the first array comes: each worker imports this file, and compiling takes as long as all else in it.
"""


class Head(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What is told of an array beside its memory."""

    dtype: str
    shape: tuple[int, ...]
    by_columns: bool
    """Whether the first index varies fastest in memory, as in Fortran."""


_decode_head = msgspec.msgpack.Decoder(Head).decode
_encode_head = msgspec.msgpack.Encoder().encode


class ArrayForm(Form):
    """Arrays of one annotation, `numpy.ndarray` or `numpy.typing.NDArray[...]`."""

    code = CODE

    def __init__(self, kind: Any) -> None:
        self.name = describe_array(kind)
        self._class: Any = get_origin(kind) or kind
        self._scalar = _scalar_of(kind)

    def dump(self, value: Any) -> Extension:
        self.check(value)
        dtype = value.dtype
        if dtype.hasobject or dtype.fields is not None or not re.fullmatch(_DTYPE, dtype.str):
            raise TypeError(f"an array of {dtype} cannot travel: its elements must be numbers, text, bytes or times")
        by_columns = value.flags.f_contiguous and not value.flags.c_contiguous
        flat = value.ravel("F" if by_columns else "C")  # copied only when it is contiguous in neither order
        if not flat.flags.c_contiguous:
            flat = flat.copy()
        data = memoryview(flat.view("u1")) if flat.nbytes else memoryview(b"")
        return Extension(CODE, _encode_head(Head(dtype.str, value.shape, by_columns)), data)

    def load(self, data: bytes | memoryview) -> Any:
        raw_head, memory = split_extension(memoryview(data))
        head = _decode_head(raw_head)
        if not re.fullmatch(_DTYPE, head.dtype):
            raise ValueError(f"arrays of {head.dtype[:40]!r} are not accepted")
        if any(size < 0 for size in head.shape):
            raise ValueError(f"a shape of {head.shape}")
        item = self._class(0, head.dtype).dtype.itemsize
        if math.prod(head.shape) * item != len(memory):
            raise ValueError(f"{len(memory)} bytes for an array of {head.dtype} and shape {head.shape}")
        order = "F" if head.by_columns else "C"
        array = self._class(head.shape, head.dtype, buffer=memory or None, order=order)
        self.check(array)
        # It is a view of a large message, which belongs to nobody else; one of a small message cannot be written to.
        return array if array.flags.writeable and array.flags.aligned else array.copy(order="K")

    def check(self, value: Any) -> None:
        if type(value) is not self._class and not (
            isinstance(value, self._class) and type(value).__name__ == "memmap"
        ):  # other subclasses have more to them than their memory: masks, units
            raise TypeError(f"Expected `{self.name}`, got `{type(value).__qualname__}`")
        if self._scalar is not None and not issubclass(value.dtype.type, self._scalar):
            raise TypeError(f"Expected `{self.name}`, got an array of {value.dtype}")


def is_array(kind: Any) -> bool:
    """Whether a type is numpy's array."""
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and origin.__name__ == "ndarray" and origin.__module__.partition(".")[0] == "numpy"


def _scalar_of(kind: Any) -> type | None:
    """The `float64` of `NDArray[float64]`; None when any will do."""
    arguments = get_args(kind)
    scalars = get_args(arguments[1]) if len(arguments) > 1 else ()
    return scalars[0] if scalars and isinstance(scalars[0], type) and scalars[0] is not Any else None


def describe_array(kind: Any) -> str:
    """The annotation as text, the same for all versions of numpy."""
    scalar = _scalar_of(kind)
    return f"NDArray[{scalar.__name__}]" if scalar is not None else "ndarray"
