"""The worker's end of an executor: calls of functions that this process can import by name."""

import inspect
from collections.abc import Callable
from typing import Any

import msgspec

from workerlib.core.payload import Signature, decode, encode, encode_result
from workerlib.map_worker import SteadyThread, describe, types_of
from workerlib.references import load_named
from workerlib.spec import rpc
from workerlib.worker import Worker


class CallAnswer(msgspec.Struct, array_like=True):
    """The results of the calls, or the error that the first of them raised that failed."""

    values: msgspec.Raw
    error: dict[str, Any] | None = None


class _Named:
    """A function that was named, ready to be called with arguments from a message."""

    def __init__(self, reference: str) -> None:
        self.call: Callable[..., Any] = load_named(reference, "function")
        self.where = getattr(self.call, "__qualname__", reference)
        self.awaits = inspect.iscoroutinefunction(self.call)
        parameters = types_of(self.call).parameters
        self._signature = None if parameters is None else Signature(self.where, parameters)

    def bind(self, args: msgspec.Raw, kwargs: msgspec.Raw) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Typed arguments; plain data for a function whose parameters cannot be read. Raises ArgumentError."""
        if self._signature is None:
            return tuple(decode(bytes(args))), decode(bytes(kwargs))
        return self._signature.bind(args, kwargs)


class CallHost(Worker):
    """The process: one call of a `def` function at a time, in a thread of its own; `async def` ones on the loop."""

    async def init(self, initializer: str, initargs: list[Any]) -> None:
        self._thread = SteadyThread()
        self._named: dict[str, _Named] = {}
        if initializer:
            await self._call(initializer, msgspec.Raw(encode(initargs)), msgspec.Raw(encode({})))

    @rpc
    async def call(self, reference: str, each: list[msgspec.Raw], kwargs: msgspec.Raw) -> msgspec.Raw:
        """A CallAnswer for calls with each of these positional arguments."""
        values: list[msgspec.Raw] = []
        error = None
        try:
            for args in each:
                where, value = await self._call(reference, args, kwargs)
                values.append(msgspec.Raw(bytes(encode_result(where, value))))  # bytes: it may be in parts
        except Exception as raised:  # noqa: BLE001 - user code
            values, error = [], describe(raised)
        return msgspec.Raw(encode(CallAnswer(msgspec.Raw(encode(values)), error)))

    async def _call(self, reference: str, args: msgspec.Raw, kwargs: msgspec.Raw) -> tuple[str, Any]:
        named = self._named.get(reference)
        if named is None:
            named = self._named[reference] = _Named(reference)
        positional, by_name = named.bind(args, kwargs)
        if named.awaits:
            return named.where, await named.call(*positional, **by_name)
        return named.where, await self._thread.run(lambda: named.call(*positional, **by_name))
