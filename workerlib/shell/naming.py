"""The door to the Pyro5 library: the serializers of stock clients. Imported only when such a client comes."""

import datetime as dt
import struct
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import serpent
from Pyro5 import serializers

from workerlib.errors import ProtocolError

SERPENT, MARSHAL, JSON, MSGPACK = 1, 2, 3, 4

MOST_SERPENT_VALUES = 500_000
"""Serpent is Python text that becomes a syntax tree first, of some 500 bytes a value: a megabyte can claim hundreds."""

_EXACT = frozenset({str, int, float, bool, bytes, type(None)})


def _plain(value: Any, *, convert: Callable[[Any], Any]) -> Any:
    """Containers as they are, Structs, dataclasses, dates and the like as what every serializer knows."""
    kind = type(value)
    if kind in _EXACT:
        return value
    if kind is dict:
        return {_plain(key, convert=convert): _plain(item, convert=convert) for key, item in value.items()}
    if kind in {list, tuple, set, frozenset}:
        return kind(_plain(item, convert=convert) for item in value)
    return convert(value)


def _with_bytes(value: Any) -> Any:
    return msgspec.to_builtins(value, builtin_types=(bytes, bytearray, memoryview))


def _for_json(value: Any) -> Any:
    """JSON has no bytes (base64 text instead), no sets, and only text as keys."""
    return msgspec.to_builtins(value, str_keys=True)


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
        self._number = number
        self._serializer = serializers.serializers_by_id[number]

    def loads(self, data: bytes) -> Any:
        """Raises ProtocolError for anything that is not valid."""
        self._check(data)
        try:
            return self._unpack(self._serializer.loads(data))
        except Exception as error:  # noqa: BLE001 - each serializer has its own errors, and hostile input finds all of them
            raise ProtocolError(f"the payload cannot be read: {error}") from None

    def loads_call(self, data: bytes) -> tuple[Any, Any, Any, Any]:
        """Object, method, arguments and keyword arguments of a call, unchecked. Raises ProtocolError."""
        self._check(data)
        try:
            target, method, args, kwargs = self._serializer.loadsCall(data)
            return target, method, self._unpack(args), self._unpack(kwargs)
        except Exception as error:  # noqa: BLE001 - as above
            raise ProtocolError(f"the call cannot be read: {error}") from None

    def dumps(self, value: Any) -> bytes:
        """Raises TypeError or ValueError when the value has no encoding."""
        plain = _for_json(value) if self._number == JSON else _plain(value, convert=_with_bytes)
        return bytes(self._serializer.dumps(plain))

    def _check(self, data: bytes) -> None:
        if self._number == SERPENT and data.count(b",") > MOST_SERPENT_VALUES:
            raise ProtocolError(
                f"serpent data with more than {MOST_SERPENT_VALUES} values; use json or msgpack for that"
            )

    def _unpack(self, value: Any) -> Any:
        return _unpack_serpent_bytes(value) if self._number == SERPENT else value


def _extension(code: int, data: memoryview) -> Any:
    """Pyro5's own MessagePack extensions."""
    if code == 0x30:
        return complex(*struct.unpack("dd", data))
    if code == 0x31:
        return int(bytes(data))
    if code == 0x32:
        return dt.datetime.fromtimestamp(struct.unpack("d", data)[0])  # noqa: DTZ006 - Pyro5 sends naive ones
    if code == 0x33:
        return dt.date.fromordinal(struct.unpack("l", data)[0])
    raise ValueError(f"unknown MessagePack extension {code:#x}")


class StockMsgpack:
    """What stock clients send as MessagePack, read without the msgpack package."""

    _decode = staticmethod(msgspec.msgpack.Decoder(ext_hook=_extension).decode)

    def loads_call(self, data: bytes) -> tuple[Any, Any, Any, Any]:
        """Object, method, arguments and keyword arguments of a call, unchecked. Raises ProtocolError."""
        try:
            target, method, args, kwargs = self._decode(data)
        except Exception as error:  # noqa: BLE001 - hostile input finds more than MsgspecError
            raise ProtocolError(f"the call cannot be read: {error}") from None
        return target, method, args, kwargs


_made: Mapping[int, StockSerializer | StockMsgpack] = {
    SERPENT: StockSerializer(SERPENT),
    MARSHAL: StockSerializer(MARSHAL),
    JSON: StockSerializer(JSON),
    MSGPACK: StockMsgpack(),
}


def stock_serializer(number: int) -> StockSerializer | StockMsgpack:
    """The serializer with that id of Pyro5's."""
    return _made[number]
