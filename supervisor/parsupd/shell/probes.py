"""The doors of probes: a program's exit, a connection, an HTTP status. Each may take as long as its caller lets it.

Whoever cancels one of these leaves nothing: no process, no connection. Names are not looked up, redirects not followed,
and of an answer no more is read than its first line.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence

from parsupd.core.probe_keys import split_address, split_url
from parsupd.shell.children import Child, Children
from parsupd.shell.preparing import Step
from workerlib.core.daemonizing import ExitCause, Exited

MAX_LINE = 1024
"""Bytes of the first line of an answer."""


class ProbeFailedError(Exception):
    """The answer was not a good one; the message says what it was."""


async def ask_program(
    children: Children,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str,
    umask: int | None,
    steps: Sequence[Step],
) -> None:
    """Runs a program in a group of its own, and ends what is left of that. Raises ProbeFailedError and OSError."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        child = children.spawn(argv, env=env, cwd=cwd, umask=umask, stdout=null, stderr=null, steps=steps)
    finally:
        os.close(null)
    try:
        cause = await asyncio.shield(child.exited)
    finally:
        _end(children, child)
    if cause != Exited(0):
        raise ProbeFailedError(f"it {_described(cause)}")


def _described(cause: ExitCause | None) -> str:
    if cause is None:
        return "ended in an unknown way"
    return f"exited with {cause.code}" if isinstance(cause, Exited) else f"was killed by signal {cause.signal}"


def _end(children: Children, child: Child) -> None:
    """Kills what is left of the group; the one reaper sees to the rest."""
    if not child.group_empty.done():
        children.signal_all(child, signal.SIGKILL)


async def ask_tcp(address: str) -> None:
    """Connects, and closes. Raises OSError."""
    _, writer = await _connect(address)
    await _close(writer)


async def ask_http(url: str) -> None:
    """Asks with GET. Raises ProbeFailedError and OSError."""
    address, path = split_url(url)
    reader, writer = await _connect(address)
    try:
        writer.write(
            f"GET {path} HTTP/1.0\r\nHost: {address}\r\nUser-Agent: parsupd\r\nConnection: close\r\n\r\n".encode()
        )
        await writer.drain()
        try:
            line = (await reader.readuntil(b"\n")).rstrip()
        except asyncio.IncompleteReadError as error:
            raise ProbeFailedError(f"the answer ended after {error.partial!r}") from None
        except asyncio.LimitOverrunError:
            raise ProbeFailedError(f"the answer does not begin with a line of at most {MAX_LINE} bytes") from None
    finally:
        await _close(writer)
    words = line.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not (len(words[1]) == 3 and words[1].isdigit()):
        raise ProbeFailedError(f"that is no HTTP: {line[:100]!r}")
    if not 200 <= int(words[1]) < 300:
        raise ProbeFailedError(f"status {int(words[1])}")


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.startswith("/"):
        return await asyncio.open_unix_connection(address, limit=MAX_LINE)
    host, port = split_address(address)
    return await asyncio.open_connection(host, port, limit=MAX_LINE)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()  # nobody waits for a peer that does not read
    with contextlib.suppress(OSError):
        await writer.wait_closed()
