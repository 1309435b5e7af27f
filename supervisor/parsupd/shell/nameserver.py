"""The door to Pyro5's name server: its own class keeps the names, parsupd's engine serves them.

Entries of units live exactly as long as their workers are ready; clients of this user may keep other names beside
them. The library's auto-cleaner is not used: it dials TCP addresses, and dies on a Unix socket's URI.
"""

from collections.abc import Iterable
from typing import Any

from Pyro5.core import NAMESERVER_NAME, URI
from Pyro5.errors import NamingError
from Pyro5.nameserver import NameServer

from workerlib import rpc

OBJECT = NAMESERVER_NAME


def _wire_uri(uri: URI) -> dict[str, Any]:
    """A URI object in the form that every serializer of Pyro5 rebuilds at the client."""
    return {"__class__": "Pyro5.core.URI", "state": list(uri.__getstate__())}


class Names:
    """Serves the name server's functions to stock clients and to workerlib's."""

    def __init__(self) -> None:
        self._names = NameServer()
        self._owned: set[str] = set()

    # What parsupd does

    def publish(self, name: str, uri: str, metadata: Iterable[str]) -> None:
        """Enters a name that only parsupd may change."""
        self._owned.add(name)
        self._names.register(name, uri, metadata=set(metadata))

    def withdraw(self, name: str) -> None:
        """Removes such a name. Idempotent."""
        self._owned.discard(name)
        self._names.remove(name)

    # What clients call

    @rpc
    async def count(self) -> int:
        """Number of names."""
        return int(self._names.count())

    @rpc
    async def lookup(self, name: str, return_metadata: bool = False) -> Any:
        """The URI of a name; with metadata, a pair of both. Raises NamingError (for stock clients) when unknown."""
        found = self._names.lookup(name, return_metadata)
        if return_metadata:
            uri, metadata = found
            return [_wire_uri(uri), sorted(metadata)]
        return _wire_uri(found)

    @rpc
    async def list(self, prefix: str | None = None, regex: str | None = None, return_metadata: bool = False) -> Any:
        """All names with their URIs as text, or those that a prefix or a regular expression selects."""
        return _plain(self._names.list(prefix, regex, return_metadata))

    @rpc
    async def yplookup(self, meta_all: Any = None, meta_any: Any = None, return_metadata: bool = True) -> Any:
        """The names whose metadata has all, or any, of the given tags."""
        return _plain(self._names.yplookup(meta_all, meta_any, return_metadata))

    @rpc
    async def register(self, name: str, uri: Any, safe: bool = False, metadata: Any = None) -> None:
        """Enters a name that is no unit's."""
        self._refuse_owned(name)
        self._names.register(name, uri if isinstance(uri, str) else str(uri), safe, metadata)

    @rpc
    async def set_metadata(self, name: str, metadata: Any) -> None:
        """Replaces the metadata of a name that is no unit's."""
        self._refuse_owned(name)
        self._names.set_metadata(name, metadata)

    @rpc
    async def remove(self, name: str | None = None, prefix: str | None = None, regex: str | None = None) -> int:
        """Removes names that are no unit's; returns how many."""
        if name is not None:
            self._refuse_owned(name)
            return int(self._names.remove(name))
        if not prefix and not regex:
            return 0
        chosen = [key for key in self._names.list(prefix, regex) if key not in self._owned]
        return sum(int(self._names.remove(key)) for key in chosen)

    @rpc
    async def ping(self) -> None:
        """A simple test whether the name server answers."""

    def _refuse_owned(self, name: str) -> None:
        if name in self._owned:
            raise NamingError(f"{name!r} is kept by parsupd: it is there exactly while its unit is ready")


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    """Pairs of URI and metadata as plain lists; URIs alone as they are."""
    return {
        name: [value[0], sorted(value[1] or ())] if isinstance(value, tuple) else value for name, value in found.items()
    }
