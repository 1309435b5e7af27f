"""A client and a worker in one event loop, back to back: nothing is spawned, and no socket is opened."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

from workerlib.connection import Connection
from workerlib.core.uri import Location, UnixLocation, Uri
from workerlib.errors import UsageError
from workerlib.server import Server
from workerlib.serving import ServerConnection
from workerlib.shell.environment import effective_settings
from workerlib.shell.transport import Factory, Peer, Wire
from workerlib.spec import RpcSettings, functions_of
from workerlib.testing.memory import join
from workerlib.worker import initialise, offer


@contextlib.asynccontextmanager
async def joined(
    worker: object,
    *args: Any,
    init: Mapping[str, Any] | None = None,
    connect_arg: Any = None,
    settings: RpcSettings | None = None,
) -> AsyncIterator[Connection]:
    """A connection to a worker that lives in this event loop; leaving the context ends both.

    All that lies between a call and the function is what it is in real life, but for the process and the socket: types
    are checked, everything is encoded, streams have their credit. `worker` is a class, of which one is made and
    initialised with `args` and `init`, or a worker that the test has made and wants to look into: that is not
    initialised, and may be joined to several connections at a time. `connect_arg` goes to its `connected`.

    Raises what `init` raises, HandshakeError when `connected` raises, UsageError for arguments without a class.
    """
    if isinstance(worker, type):
        worker = worker()
        await initialise(worker, list(args), init or {})
    elif args or init:
        raise UsageError("a worker that is given ready made is not initialised: give the class, or no arguments")
    server = Server(effective_settings(settings))
    name = type(worker).__qualname__
    worker_id, recent = offer(worker, name, server)
    recent.attach()
    uri = Uri(worker_id, UnixLocation(f"/in-memory/{worker_id}"))
    connection = Connection(uri, effective_settings(settings), functions_of(type(worker)))

    async def connect(_location: Location, factory: Factory, **_: object) -> Wire:
        client, serving = factory(), ServerConnection(server)
        us = Peer("in memory", os.getpid(), os.geteuid(), os.getegid())
        join(client, serving.wire, one_sees=us, other_sees=us)
        return client

    try:
        await connection.open(connect_arg, tls=None, connect=connect)
        try:
            yield connection
        finally:
            await connection.close()
            await asyncio.sleep(0)  # the worker's end reads what was written, and then the end
    finally:
        recent.detach()
        await server.close()
