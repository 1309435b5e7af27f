"""The door to pickle: opt-in, for single arguments, results and items, between processes of one user on one machine."""

import io
import os
import sys
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, is_typeddict

from msgspec.msgpack import Ext

from workerlib.core.config import SCRIPT_MODULE
from workerlib.core.form import Form, Mark

T = TypeVar("T")

PROTOCOL = 5
OVERFLOW_UID = 65534
"""What the kernel says for users that another user namespace does not share: it may be anybody."""


class _PickledForm(Form):
    name = "Pickled"
    code = 0x70
    same_user_only = True

    def __init__(self, kind: Any) -> None:
        self._classes = _classes_of(kind)
        self._kind = kind

    def dump(self, value: Any) -> Any:
        import pickle  # noqa: PLC0415 - most programs never pickle

        self.check(value)
        return Ext(self.code, pickle.dumps(value, PROTOCOL))

    def load(self, data: bytes | memoryview) -> Any:
        try:
            value = _unpickle(data)
        except SystemExit as error:  # code that is run by unpickling must not end this process by an exception
            raise RuntimeError(f"unpickling it raised SystemExit: {error}") from None
        self.check(value)
        return value

    def check(self, value: Any) -> None:
        if self._classes is not None and not isinstance(value, self._classes):
            expected = " | ".join(
                dict.fromkeys(each.__qualname__ for each in _classes_of(self._kind, exact=True) or ())
            )
            raise TypeError(f"Expected `{expected}`, got `{type(value).__qualname__}`")


def _unpickle(data: bytes | memoryview) -> Any:
    """The script that a client was started as is loaded under another name in the worker that it spawned."""
    import pickle  # noqa: PLC0415 - most programs never pickle

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module in {"__main__", SCRIPT_MODULE}:
                module = SCRIPT_MODULE if SCRIPT_MODULE in sys.modules else "__main__"
            return super().find_class(module, name)

    return Unpickler(io.BytesIO(data)).load()  # who may send it was asked before


def _classes_of(kind: Any, *, exact: bool = False) -> tuple[type, ...] | None:
    """The classes whose instances are values of a type; None where that cannot be told from the class.

    Unless `exact`, an int is a float, as type checkers have it.
    """
    origin = get_origin(kind) or kind
    if origin in {Union, UnionType}:
        each = [_classes_of(part, exact=exact) for part in get_args(kind)]
        return None if None in each else tuple(one for some in each for one in some or ())
    if kind is None:
        return (type(None),)
    if not isinstance(origin, type) or origin is Any or is_typeddict(origin) or getattr(origin, "_is_protocol", False):
        return None
    return (origin,) if exact else _WIDER.get(origin, (origin,))


_WIDER: dict[type, tuple[type, ...]] = {float: (float, int), complex: (complex, float, int)}


class _PickledMark(Mark):
    name = "Pickled"

    def form(self, kind: Any) -> Form:
        return _PickledForm(kind)


Pickled = Annotated[T, _PickledMark()]
"""`Pickled[T]`: an argument, result or stream item of any type that pickle knows, for type checkers a T.

Unpickling runs code that whoever sends the bytes chooses. So functions with such values can be called only over a Unix
socket by a process of the same user, which the kernel vouches for; everybody else, over TCP, as another user (root
included) or with a stock Pyro5 client, is refused with NotTrusted before a byte is unpickled, in both directions. What
does not unpickle, or to something else than a T when that is a class, is refused as any argument that does not fit.
"""


def why_not_trusted(uid: int | None, address: str) -> str | None:
    """Why pickled values must not be exchanged with a peer, or None. `uid` is the kernel's word, None for TCP."""
    own = os.geteuid()
    if uid is None:
        return f"this connection, with {address}, is no Unix socket, so nobody vouches for the user at its other end"
    if uid != own:
        return f"{address} is of user {uid}, this process of user {own}"
    if own == OVERFLOW_UID:
        return f"user {own} stands for all that another user namespace does not share"
    return None
