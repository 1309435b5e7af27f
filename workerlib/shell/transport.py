"""Sockets: carries bytes between an asyncio transport and a connection's machine. The only file that touches them.

The machine decides; here its deadlines become timers, its output is written, and a peer that does not read is given a
bounded time before it is cut off.
"""

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import msgspec

from workerlib.core.compiled import compiled
from workerlib.core.session import Closed, CloseKind, Event
from workerlib.core.uri import Location, UnixLocation, check_socket_path
from workerlib.errors import ProtocolError, UsageError
from workerlib.shell import forks, journal
from workerlib.shell.alarm import Deadline, alarm_of
from workerlib.shell.beating import Beat
from workerlib.spec import RpcSettings

WRITE_HIGH_WATER = 1 << 20
"""Bytes that may wait in a connection's write buffer before its producers are held up."""

TOGETHER = 1 << 10
"""Bytes that are collected before they are sent, about fifteen small calls. Not more: the other process works on these
while the next ones are made here.
"""

DIRECTLY = 64 << 10
"""Bytes of a message that have to be missing for the socket to write them to their place by itself."""


class Peer(msgspec.Struct, frozen=True):
    """Who is at the other end: credentials for a Unix socket, the address for TCP."""

    address: str
    pid: int | None = None
    uid: int | None = None
    gid: int | None = None


class Machine(Protocol):
    """What `Wire` needs of a session."""

    settings: RpcSettings
    deadline_at: float

    @property
    def closed(self) -> Closed | None: ...
    @property
    def beats(self) -> bool: ...
    def receive(self, data: bytes, now: float) -> Sequence[Event]: ...
    @property
    def missing(self) -> int: ...
    def room(self) -> memoryview: ...
    def receive_filled(self, size: int, now: float) -> Sequence[Event]: ...
    def tick(self, now: float) -> Sequence[Event]: ...
    def hold(self, now: float) -> None: ...
    def unhold(self, now: float) -> None: ...
    def take_output(self) -> bytes: ...
    def close(self, kind: CloseKind, detail: str = "") -> Closed: ...


data_receiver: Callable[[Any, Callable[[bytes], bool]], Callable[[bytes], None]] | None = compiled(
    "data_receiver", None
)


def _discard(_data: object) -> None:
    """What is written to a connection that has ended goes nowhere; its user is told by the Closed event."""


class Wire(asyncio.Protocol):
    """One connected socket and its machine. `on_event` is called for each event; the last one is Closed.

    `hold_reading`: while the peer does not take what it was sent, nothing more is read from it (a client that sends
    pings and never reads would fill the memory otherwise). Only the serving end does this: if both did, two ends that
    wait for each other to read would wait for ever.

    `make_shortcut` gives for this wire what is offered all input first, and says whether it took it: one whole message
    of the common kind, for which the machine neither has anything to send nor changes its deadline.
    """

    __slots__ = ("__dict__", "write")  # this one as a slot for the C part

    def __init__(
        self,
        machine: Machine,
        on_event: Callable[[Event], None],
        make_shortcut: Callable[["Wire"], Callable[[bytes], bool]],
        *,
        hold_reading: bool,
    ) -> None:
        self.machine = machine
        self._on_event = on_event
        self._shortcut = make_shortcut(self)
        if data_receiver is not None:
            # Nothing of Python between the loop and a shortcut in C. The loop looks for this when it begins to read.
            self.data_received = data_receiver(self, self._shortcut)  # type: ignore[method-assign,assignment]
        self._hold_reading = hold_reading
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._alarm = alarm_of(self._loop)
        self._timer: asyncio.TimerHandle | Deadline | None = None
        self._armed_at = float("inf")
        self._age_timer: asyncio.TimerHandle | None = None
        self._writable: asyncio.Future[None] | None = None
        self._closing = False
        self._held = False
        self._gone: asyncio.Future[None] | None = None
        self._filling: _Filling | None = None
        self._collected: list[bytes] = []
        self._collected_size = 0
        self._send: Callable[[bytes], object] | None = None  # what `write` is when nothing is collected, meanwhile
        self._beat: Beat | None = None
        self._fd = -1
        self.peer = Peer("not connected")
        self.write: Callable[[bytes], object] = _discard
        """Writes without waiting; after the end of the connection it does nothing."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(WRITE_HIGH_WATER)
        self.peer = identify_peer(self._transport)
        self.write = self._transport.write  # the hot path: no method of ours in between
        self._arm()
        if (sock := transport.get_extra_info("socket")) is None:
            return  # both ends are in this loop, as in tests: nothing for a forked child to disturb, nobody to beat for
        self._fd = sock.fileno()
        forks.guard(self._fd, self._loop, self._silence)
        settings = self.machine.settings
        if settings.heartbeat_from == "thread" and transport.get_extra_info("ssl_object") is None:
            self._beat = Beat(self._transport, lambda: self.machine.beats, settings.heartbeat_interval_s)
            self.write = self._beat.write

    def data_received(self, data: bytes) -> None:
        try:
            if self._shortcut(data):
                return
        except Exception as error:  # noqa: BLE001 - one connection's trouble must not reach the event loop
            self.fail(error)
        else:
            self.receive(data)

    def receive(self, data: bytes) -> None:
        """What the shortcut did not take."""
        try:
            self._deliver(self.machine.receive(data, self._loop.time()))
        except Exception as error:  # noqa: BLE001 - as above
            self.fail(error)

    def data_filled(self, size: int) -> None:
        """`size` bytes were written to the machine's `room`."""
        try:
            self._deliver(self.machine.receive_filled(size, self._loop.time()))
        except Exception as error:  # noqa: BLE001 - as above
            self.fail(error)

    def _deliver(self, events: Sequence[Event]) -> None:
        if len(events) > 1:
            self.write_together()
        for event in events:
            self._on_event(event)
        self._after()
        if self.machine.missing > DIRECTLY if self._filling is None else not self.machine.missing:
            self._change_reader()

    def _change_reader(self) -> None:
        """Has the transport write to the place of a large message while that arrives: bytes of the transport's own
        would be copied twice more. Has it read as always when the message is complete.
        """
        transport = self._transport
        if transport is None or self._fd < 0 or transport.is_closing():
            return
        self._filling = _Filling(self) if self._filling is None else None
        reading = transport.is_reading()
        if reading:
            transport.pause_reading()  # uvloop looks at what it is to read into when it begins to
        transport.set_protocol(self._filling or self)
        if reading:
            transport.resume_reading()

    def fail(self, error: Exception) -> None:
        """An event could not be handled: the peer's fault when it says so, else ours. The connection ends."""
        if isinstance(error, ProtocolError):
            kind = CloseKind.PROTOCOL
        else:
            kind = CloseKind.TRANSPORT
            journal.fail("connection_failed", error, peer=self.peer.address)
        if self.machine.closed is None:
            self._on_event(self.machine.close(kind, str(error)))
        self.abort()

    def _after(self) -> None:
        machine = self.machine
        output = machine.take_output()
        if output:
            self.write(output)
        if machine.closed is not None:
            if not self._closing:  # else what is written is still being sent
                self.abort()
        elif machine.deadline_at != self._armed_at:
            self._arm()

    def _arm(self) -> None:
        before, self._timer = self._timer, None
        self._armed_at = self.machine.deadline_at
        if self._armed_at != float("inf"):
            self._timer = self._alarm.call_at(self._armed_at, self._tick)
        if before is not None:  # not first: the alarm would close and open again
            before.cancel()

    def refresh_deadline(self) -> None:
        """To be called after the machine was changed from outside."""
        if self.machine.deadline_at != self._armed_at:
            self._arm()

    def _tick(self) -> None:
        self._timer = None
        self._armed_at = float("inf")
        for event in self.machine.tick(self._loop.time()):
            self._on_event(event)
        self._after()

    # Many messages in one system call

    def write_together(self) -> None:
        """Until the end of this turn of the loop, collects what is written, and sends it then.

        For who knows that more is to come: a system call for each of many small messages costs more than they do, and
        one message alone would be a turn late. Order is kept. Idempotent.
        """
        if self._send is None and self._transport is not None and not self._closing:
            self._send, self.write = self.write, self._collect
            self._loop.call_soon(self._send_collected)

    def _collect(self, data: bytes) -> None:
        self._collected.append(data)
        self._collected_size += len(data)
        if self._collected_size > TOGETHER:
            self._empty()

    def _empty(self) -> None:
        if self._send is not None and self._collected:
            collected, self._collected = self._collected, []
            self._collected_size = 0
            self._send(b"".join(collected))

    def _send_collected(self) -> None:
        """Ends the collecting."""
        self._empty()
        if self._send is not None:
            self.write, self._send = self._send, None

    def _stop_writing(self) -> None:
        """What is written from now on goes nowhere, and so does what was collected. Nothing is waited for any more: the
        loop may end before it tells that the connection has gone.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.write, self._send = _discard, None
        self._collected.clear()

    # Back-pressure

    @property
    def paused(self) -> bool:
        """Whether the write buffer is full: producers should wait for `writable`."""
        return self._writable is not None

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()
        self._watch_age()
        if self._hold_reading and self._transport is not None and not self._transport.is_closing():
            self._held = True
            self._transport.pause_reading()
            self.machine.hold(self._loop.time())
            self.refresh_deadline()

    def resume_writing(self) -> None:
        self._release_writers()
        if self._held and self._transport is not None and not self._transport.is_closing():
            self._held = False
            self._transport.resume_reading()
            self.machine.unhold(self._loop.time())
            self.refresh_deadline()

    def _watch_age(self) -> None:
        """Gives the peer its time to take what is buffered: the limit, plus a second for each MiB."""
        if self._age_timer is None and self._transport is not None:
            limit = self.machine.settings.buffer_age_limit_s
            limit += self._transport.get_write_buffer_size() / (1 << 20)
            self._age_timer = self._loop.call_later(limit, self._not_reading, limit)

    def _release_writers(self) -> None:
        if self._age_timer is not None:
            self._age_timer.cancel()
            self._age_timer = None
        if self._writable is not None:
            if not self._writable.done():
                self._writable.set_result(None)
            self._writable = None

    def writable(self) -> asyncio.Future[None]:
        """Done when the write buffer has room, or the connection has ended. It need not be awaited."""
        if self._writable is not None:
            return asyncio.shield(self._writable)
        done = self._loop.create_future()
        done.set_result(None)
        return done

    def _not_reading(self, limit: float) -> None:
        self._age_timer = None
        if self.machine.closed is None:
            self._on_event(self.machine.close(CloseKind.NOT_READING, f"for {limit:.3g} s"))
        self.abort()

    # The end

    def _silence(self) -> None:
        """In a forked child, where this connection is the parent's: who writes to it would return to the loop next."""
        self._on_event = _discard
        self._stop_writing()
        self.write = lambda _data: forks.leave()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_writing()
        forks.unguard(self._fd)
        if self._beat is not None:
            self._beat.close()
        self._release_writers()
        self._transport = None
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        if self.machine.closed is None:
            kind = CloseKind.PEER if error is None or isinstance(error, ConnectionError) else CloseKind.TRANSPORT
            self._on_event(self.machine.close(kind, "" if error is None else str(error)))

    def close(self, kind: CloseKind = CloseKind.LOCAL, detail: str = "") -> None:
        """Sends what is buffered, then ends the connection; a peer that does not read gets as long as it always has."""
        if self.machine.closed is None:
            self._on_event(self.machine.close(kind, detail))
        if self._transport is not None and not self._closing:
            self._closing = True
            self._send_collected()
            self._stop_writing()
            self._transport.close()
            self._watch_age()

    async def wait_gone(self) -> None:
        """Waits until the socket is closed; call it after `close` or `abort`."""
        if self._transport is not None:
            if self._gone is None:
                self._gone = self._loop.create_future()
            await asyncio.shield(self._gone)

    def abort(self) -> None:
        """Ends the connection at once; what is buffered is lost."""
        self._stop_writing()
        if self._transport is not None:
            self._transport.abort()


class _Filling(asyncio.BufferedProtocol):
    """Reads a large message of a wire; all but the reading is the wire's own affair."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._wire.machine.room()

    def buffer_updated(self, nbytes: int) -> None:
        self._wire.data_filled(nbytes)

    def pause_writing(self) -> None:
        self._wire.pause_writing()

    def resume_writing(self) -> None:
        self._wire.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wire.connection_lost(exc)


def identify_peer(transport: asyncio.Transport) -> Peer:
    if (told := transport.get_extra_info("peer")) is not None:  # a transport without a socket, as in tests
        return cast("Peer", told)
    sock = transport.get_extra_info("socket")
    if sock.family == socket.AF_UNIX:
        size = struct.calcsize("3i")
        pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        return Peer(f"pid {pid}", pid, uid, gid)
    name = transport.get_extra_info("peername")
    return Peer(f"{name[0]}:{name[1]}" if name else "unknown")


Factory = Callable[[], Wire]


async def open_connection(location: Location, factory: Factory, *, tls: ssl.SSLContext | None = None) -> Wire:
    """Connects. Raises OSError with the location in it."""
    loop = asyncio.get_running_loop()
    try:
        if isinstance(location, UnixLocation):
            check_socket_path(location.path)
            _, protocol = await loop.create_unix_connection(factory, location.path)
        else:
            _, protocol = await loop.create_connection(factory, location.host, location.port, ssl=tls)
    except UsageError:
        raise
    except OSError as error:
        raise type(error)(error.errno, error.strerror or str(error), str(location)) from None
    return cast("Wire", cast("Any", protocol))
