"""The door to the Pyro5 library: the serializers of stock clients. Imported only when such a client comes."""

from collections.abc import Callable
from typing import Any

import msgspec
import serpent
from Pyro5 import serializers

from workerlib.errors import ProtocolError

SERPENT, MARSHAL, JSON = 1, 2, 3
_NAMES = {SERPENT: "serpent", MARSHAL: "marshal", JSON: "json"}


def _plain(value: Any, *, keep_bytes: bool) -> Any:
    """Structs, dataclasses, dates and the like as what every serializer knows."""
    return msgspec.to_builtins(value, builtin_types=(bytes,) if keep_bytes else (), str_keys=False)


def _unpack_serpent_bytes(value: Any) -> Any:
    """Serpent writes bytes as {"data": base64, "encoding": "base64"}; gives them back as bytes, at any depth."""
    if isinstance(value, dict):
        if value.keys() == {"data", "encoding"} and value["encoding"] == "base64":
            return serpent.tobytes(value)
        return {key: _unpack_serpent_bytes(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_unpack_serpent_bytes(item) for item in value)
    return value


class StockSerializer:
    """One of Pyro5's serializers, between bytes and plain data."""

    def __init__(self, number: int) -> None:
        self._serializer = serializers.serializers_by_id[number]
        self._keep_bytes = number != JSON
        self._unpack: Callable[[Any], Any] = _unpack_serpent_bytes if number == SERPENT else lambda value: value

    def loads(self, data: bytes) -> Any:
        """Raises ProtocolError for anything that is not valid."""
        try:
            return self._unpack(self._serializer.loads(data))
        except Exception as error:  # noqa: BLE001 - each serializer has its own errors, and hostile input finds all of them
            raise ProtocolError(f"the payload cannot be read: {error}") from None

    def loads_call(self, data: bytes) -> tuple[str, str, Any, Any]:
        """Object, method, arguments and keyword arguments of a call. Raises ProtocolError."""
        try:
            target, method, args, kwargs = self._serializer.loadsCall(data)
        except Exception as error:  # noqa: BLE001 - as above
            raise ProtocolError(f"the call cannot be read: {error}") from None
        return target, method, self._unpack(args), self._unpack(kwargs) or {}

    def dumps(self, value: Any) -> bytes:
        """Raises TypeError when the value has no encoding."""
        data = self._serializer.dumps(_plain(value, keep_bytes=self._keep_bytes))
        return bytes(data)


_made: dict[int, StockSerializer] = {}


def stock_serializer(number: int, *, trusted: bool) -> StockSerializer:
    """The serializer with that id. Raises ProtocolError for an unknown one.

    marshal can crash the interpreter on crafted input, so only a `trusted` peer (same user on a Unix socket) may use it.
    """
    if number not in _NAMES:
        raise ProtocolError(f"unknown serializer {number}; known are {_NAMES} and 4, msgpack")
    if number == MARSHAL and not trusted:
        raise ProtocolError("the marshal serializer is accepted from local peers only; use json or msgpack")
    if number not in _made:
        _made[number] = StockSerializer(number)
    return _made[number]
