"""One stream on its way to the peer: items into frames, with credit. Without a loop: for the blocking client, too."""

import traceback
from collections.abc import Callable
from typing import Any, Protocol

from workerlib.core.client_session import ClientSession
from workerlib.core.form import Form
from workerlib.core.packing import pack_items
from workerlib.core.parts import LARGE, encode_list
from workerlib.core.payload import NIL, NO_ENCODING, encode, encode_items, error_to_wire
from workerlib.core.session import (
    ServerSession,
)
from workerlib.errors import ArgumentError, ResultError, WorkerlibError

FIRST_BATCH, BATCH = 4, 512
"""Items that go into one frame at most: few at first, since nobody knows yet how large they are."""

BATCH_BYTES = 256 << 10
"""The size that a frame of several items should have at most; batches shrink and grow with it."""


def format_error(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


class Port(Protocol):
    """What takes the bytes: a Wire, or what stands for it in the blocking client."""

    @property
    def write(self) -> Callable[[bytes], object]: ...
    @property
    def paused(self) -> bool: ...


class Outflow:
    """Sends items and the end of one stream. Who uses it takes care that there is room; `over` is called at the end."""

    def __init__(
        self,
        wire: Port,
        session: ServerSession | ClientSession,
        seq: int,
        where: str,
        over: Callable[[], object] = lambda: None,
        form: Form | None = None,
    ) -> None:
        self._wire = wire
        self._session = session
        self._seq = seq
        self._where = where
        self._over = over
        self._form = form
        self.batch = FIRST_BATCH
        self._large = False  # what was sent last

    def room(self) -> int:
        """Items that may be sent now, in one frame."""
        return 0 if self._wire.paused else min(self._session.credit(self._seq), self.batch)

    def send(self, items: list[Any]) -> None:
        """Sends items for which there is credit, together if they fit.

        Raises ResultError (from a caller: ArgumentError) for the first that has no encoding or is too long, after those
        before it.
        """
        try:
            payload = self._encode(items)
            fits = len(payload) <= self._session.settings.max_message_size
        except (ResultError, ArgumentError):
            fits, payload = False, b""
        if not fits:
            self._send_singly(items)
            return
        count = len(items)
        self._large = len(payload) >= LARGE
        self._wire.write(self._session.items(self._seq, payload, count))
        if len(payload) > BATCH_BYTES:
            self.batch = max(1, count * BATCH_BYTES // len(payload))
        elif count >= self.batch and 2 * len(payload) <= BATCH_BYTES:
            self.batch = min(2 * self.batch, BATCH)

    def _send_singly(self, items: list[Any]) -> None:
        self.batch = 1
        most = self._session.settings.max_message_size
        for item in items:
            payload = self._encode([item])
            if len(payload) > most:
                raise self._refusal(f"an item of {self._where} has {len(payload)} bytes; a message may have {most}")
            self._wire.write(self._session.items(self._seq, payload, 1))

    def _encode(self, items: list[Any]) -> bytes:
        try:
            items = pack_items(self._form, items)
        except TypeError as error:
            raise ResultError(f"an item of {self._where} cannot be encoded: {error}") from error.__cause__
        return encode_items(self._where, items, large=self._large)

    def _refusal(self, text: str) -> Exception:
        return ResultError(text)

    def end(self, error: Exception | None) -> None:
        """Ends the stream, for the reader with `error` if there is one."""
        if self._session.closed is None:
            payload = NIL if error is None else self._describe(error)
            self._wire.write(self._session.end(self._seq, payload, failed=error is not None))
        self._over()

    def _describe(self, error: Exception) -> bytes:
        # Errors of workerlib itself tell nothing by where they were raised.
        text = "" if isinstance(error, WorkerlibError) else format_error(error)
        payload = encode(error_to_wire(error, text, stock=False))
        if len(payload) > self._session.settings.max_message_size:
            short = RuntimeError(f"{type(error).__name__}, whose text has {len(payload)} bytes")
            payload = encode(error_to_wire(short, "", stock=False))
        return payload

    def abort(self, reason: str) -> None:
        """Gives the stream up, as the last word about it."""
        if self._session.closed is None:
            self._wire.write(self._session.abort(self._seq, reason))
        self._over()


class Updates(Outflow):
    """Sends the items of a call to the worker."""

    def _encode(self, items: list[Any]) -> bytes:
        try:
            return encode_list(pack_items(self._form, items), large=self._large)
        except NO_ENCODING as error:
            raise self._refusal(f"an item for {self._where} cannot be encoded: {error}") from None

    def _refusal(self, text: str) -> Exception:
        return ArgumentError(text)
