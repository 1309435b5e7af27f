"""What a server offers: objects, their functions ready to be called, and the session of each client."""

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from typing import Any

from workerlib.core.packing import form_of, forms_in
from workerlib.core.payload import Items, Signature, pack_result
from workerlib.core.schema import fingerprint
from workerlib.errors import UnknownFunction
from workerlib.shell.transport import Peer
from workerlib.spec import (
    Function,
    Kind,
    functions_of,
    nearest,
    read_parameters,
)


class Session:
    """One client's connection, as the worker sees it: given to `connected`, and by `current_session()` inside calls."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.state: Any = None
        """What `connected` returned: the connection state."""
        self.stock = True
        """Whether the client is a stock Pyro5 one."""
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done when the connection has ended, with the reason."""


session_variable: contextvars.ContextVar[Session] = contextvars.ContextVar("workerlib_session")


def current_session() -> Session:
    """The connection whose call is being served. Raises LookupError outside of calls."""
    return session_variable.get()


class Callee:
    """One function of one served object, ready to be called."""

    __slots__ = (
        "calls", "forms", "function", "is_plain", "item_form", "items", "kind", "method", "result_form", "runs_on_loop",
        "same_user_only", "signature", "where",
    )  # fmt: skip

    def __init__(
        self, function: Function[..., Any], signature: Signature, method: Callable[..., Any], *, runs_on_loop: bool
    ) -> None:
        self.calls = 0  # that have come
        self.function = function
        self.signature = signature
        self.runs_on_loop = runs_on_loop
        self.kind = function.kind
        types, where = function.types, function.qualified_name
        yields = function.kind in {Kind.PIPE, Kind.DIRECT_PIPE}
        self.result_form = None if yields else form_of(types.result, f"{where}, result")
        self.item_form = form_of(types.result if yields else types.items, f"{where}, items")
        """The form of the items that it gives, or takes."""
        forms = forms_in(function)
        self.forms = forms[0].name if forms else ""
        """What it takes or gives that MessagePack knows nothing of."""
        self.same_user_only = any(form.same_user_only for form in forms)
        packs = self.result_form is not None and function.kind is not Kind.STATE  # whose snapshot is one of two results
        self.method = _packing(method, self.result_form, where) if packs else method
        self.items: Any = Items(function) if function.kind.sends_items else None
        """Decodes what the caller streams into the function, when it does."""
        self.is_plain = function.kind in {Kind.RPC, Kind.ONE_WAY}
        self.where = function.qualified_name


def _packing(method: Callable[..., Any], form: Any, where: str) -> Callable[..., Any]:
    """The same function, with its result as it travels."""
    if inspect.iscoroutinefunction(method):

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            return pack_result(where, form, await method(*args, **kwargs))

        return awaited
    return lambda *args, **kwargs: pack_result(where, form, method(*args, **kwargs))


class Servant:
    """One object and the functions that it offers. Raises UsageError when a function's types cannot travel."""

    def __init__(self, worker: object) -> None:
        self.worker = worker
        self.callees: dict[str, Callee] = {}
        for name, function in functions_of(type(worker)).items():
            signature = Signature(function.qualified_name, function.types.parameters, takes_forms=True)
            code_flags = function.call.__code__.co_flags if hasattr(function.call, "__code__") else 0
            on_loop = bool(code_flags & (_CO_COROUTINE | _CO_ASYNC_GENERATOR))
            self.callees[name] = Callee(
                function, signature, function.call.__get__(worker, type(worker)), runs_on_loop=on_loop
            )
        self._schema: dict[str, str] | None = None
        self.on_connect = getattr(worker, "connected", None)
        self.connect_signature: Signature | None = None
        if self.on_connect is not None:
            parameters, _ = read_parameters(self.on_connect, skip=1)
            self.connect_signature = Signature(f"{type(worker).__qualname__}.connected", parameters)

    def metadata(self) -> dict[str, list[str]]:
        """What Pyro5's clients want to know of an object."""
        one_way = [name for name, callee in self.callees.items() if callee.function.kind is Kind.ONE_WAY]
        return {"methods": list(self.callees), "oneway": one_way, "attrs": []}

    def kinds(self) -> dict[str, str]:
        return {name: callee.function.kind.value for name, callee in self.callees.items()}

    def schema(self) -> dict[str, str]:
        """The fingerprint of each function; made when the first client connects."""
        if self._schema is None:
            self._schema = {name: fingerprint(callee.function) for name, callee in self.callees.items()}
        return self._schema

    def find(self, name: str) -> Callee:
        """Raises UnknownFunction with the nearest name."""
        try:
            callee = self.callees[name]
        except KeyError:
            what = type(self.worker).__qualname__
            raise UnknownFunction(f"{what} has no function {name!r}{nearest(name, list(self.callees))}") from None
        callee.calls += 1
        return callee


_CO_COROUTINE, _CO_ASYNC_GENERATOR = 0x80, 0x200
