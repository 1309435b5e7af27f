"""A server: objects with typed functions behind sockets, for workerlib's peers and for stock Pyro5 clients."""

import asyncio
import os
import re
import socket
import ssl
from collections.abc import Callable
from typing import Any

from workerlib.core import frames
from workerlib.core.session import CloseKind
from workerlib.core.uri import Location
from workerlib.servant import Servant, current_session
from workerlib.serving import Host, ServerConnection
from workerlib.shell.listening import Listener, listen
from workerlib.shell.transport import Peer
from workerlib.spec import (
    RpcSettings,
    one_way,
    rpc,
)
from workerlib.version import __version__

DAEMON = "Pyro.Daemon"
"""The object that stock clients call for metadata and for the items of streams."""

CLOSE_S = 1.0
"""How long a closing server waits for its calls to be cancelled, and then for its sockets to close."""


DRAIN_STEP_S = 0.005
"""How often a draining server looks whether its calls have ended; they have no common event, and it is over soon."""


def new_worker_id(name: str) -> str:
    """An id that no other worker has, beginning with the name as far as URIs can express it."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', name)}-{os.urandom(6).hex()}"


def same_user(peer: Peer) -> str | None:
    """Why a peer may not connect, or None: on a Unix socket only the user that this process runs as, and root, may."""
    if peer.uid is None or peer.uid in {os.geteuid(), 0}:
        return None
    return f"user {peer.uid} may not connect to a worker of user {os.geteuid()}"


class DaemonObject:
    """What stock clients ask of the daemon itself, under the names that they use."""

    def __init__(self, server: "Server") -> None:
        self._server = server

    @rpc
    async def ping(self) -> None: ...

    @rpc
    async def registered(self) -> list[str]:
        return list(self._server.servants)

    @rpc
    async def info(self) -> str:
        return f"workerlib {__version__}, protocol {frames.VERSION}, {len(self._server.servants)} objects"

    @rpc
    async def get_metadata(self, objectId: str, as_lists: bool = False) -> dict[str, list[str]]:  # noqa: ARG002, N803
        return self._server.find(objectId).metadata()  # as Pyro5 names them; JSON knows lists only, so all are lists

    @rpc
    async def get_next_stream_item(self, streamId: str) -> Any:  # noqa: N803 - Pyro5's name
        return await self._server.stock_streams.next(streamId, current_session())

    @one_way
    async def close_stream(self, streamId: str) -> None:  # noqa: N803 - Pyro5's name
        self._server.stock_streams.drop(streamId)


class Server(Host):
    """Serves any number of objects on any number of sockets, in the running event loop."""

    def __init__(self, settings: RpcSettings, *, authorize: Callable[[Peer], str | None] = same_user) -> None:
        super().__init__(settings, authorize)
        self._listeners: list[Listener] = []
        self.add(DAEMON, DaemonObject(self))

    def add(self, target: str, worker: object) -> Servant:
        """Offers an object under an id."""
        servant = self.servants[target] = Servant(worker)
        return servant

    async def listen(
        self, location: Location, *, tls: ssl.SSLContext | None = None, sock: socket.socket | None = None
    ) -> Location:
        """Accepts connections at `location`; returns where it really is (the port that the system chose).

        With `sock`, a Unix socket that listens there already, its file is not removed at the end.
        """
        listener = await listen(location, lambda: ServerConnection(self).wire, tls=tls, sock=sock)
        self._listeners.append(listener)
        return listener.location

    def stop_listening(self) -> None:
        """No new connections; those that exist stay. Idempotent."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    async def drain(self, within_s: float) -> None:
        """Stops listening, and gives what has been accepted so long to end: calls under way, and first calls.

        Connections that are idle then stay, for `close` to end them.
        """
        self.stop_listening()
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + within_s
        while any(connection.is_busy for connection in self.connections) and loop.time() < give_up_at:  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_STEP_S)

    async def close(self) -> None:
        """Stops listening, sends what is written, ends all connections and their calls. Idempotent.

        Calls are cancelled and have CLOSE_S for their own cleanup; a thread that is inside a `def` function is not
        waited for. A call that calls this itself goes on.
        """
        self.stop_listening()
        connections = list(self.connections)
        tasks = [task for connection in connections for task in connection.close(CloseKind.LOCAL)]
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)
        await self.stock_streams.close(CLOSE_S)
        for sending in [asyncio.ensure_future(connection.wire.wait_gone()) for connection in connections]:
            await asyncio.wait({sending}, timeout=CLOSE_S)
            sending.cancel()
        for connection in connections:
            connection.wire.abort()
        self.stop_threads()
