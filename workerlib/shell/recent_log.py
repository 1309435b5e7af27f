"""The last records of this process's log, and who wants to see the next ones as they come."""

import logging
import threading
import traceback
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable

import msgspec

KEPT = 1000
"""Records that are kept for those who ask later."""
LONGEST = 8192
"""Characters of a text or a field that are kept of a record; the rest is cut off."""

_RESERVED = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime"})


class LogRecord(msgspec.Struct, frozen=True):
    """One record of a worker's log."""

    number: int
    """Counts the records of a worker from 1: a gap says that some are no longer kept."""
    at: float
    """Unix time in seconds."""
    level: str
    logger: str
    event: str
    fields: dict[str, str] = {}
    """What was given beside the text, as text."""
    traceback: str = ""


def _cut(value: object) -> str:
    try:
        text = value if isinstance(value, str) else str(value)
    except Exception as error:  # noqa: BLE001 - user code; a log must not fail over it
        text = f"<{type(value).__qualname__}: its text raises {type(error).__name__}>"
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"
    return text.encode(errors="backslashreplace").decode()


class RecentLog(logging.Handler):
    """Keeps the last records that reach it, bounded in number and size, and gives each new one to `listeners`.

    Everything but `emit` belongs to the thread of the loop that is given to `follow`: records of other threads are
    handed over to it, so that nobody who first reads `kept` and then listens misses one or gets it twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept: deque[LogRecord] = deque(maxlen=KEPT)
        self.listeners: set[Callable[[LogRecord], object]] = set()
        self._count = 0
        self._loop: AbstractEventLoop | None = None
        self._thread = threading.get_ident()

    def follow(self, loop: AbstractEventLoop) -> None:
        """From now on this runs in that loop, in the calling thread."""
        self._loop, self._thread = loop, threading.get_ident()

    def attach(self) -> None:
        """Takes all records that the root logger gets. Idempotent."""
        logging.getLogger().addHandler(self)

    def detach(self) -> None:
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        last = logging.lastResort
        if last is not None and record.levelno >= last.level and logging.getLogger().handlers == [self]:
            last.handle(record)  # a program that has set up no logging still sees its warnings on stderr
        if self._loop is None or threading.get_ident() == self._thread:
            self._take(record)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._take, record)

    def _take(self, record: logging.LogRecord) -> None:
        self._count += 1
        error = record.exc_info[1] if record.exc_info else None
        try:
            event = record.getMessage()
        except Exception:  # noqa: BLE001 - arguments that do not fit the text: the standard handlers complain already
            event = str(record.msg)
        kept = LogRecord(
            self._count,
            record.created,
            record.levelname.lower(),
            record.name,
            _cut(event),
            {name: _cut(value) for name, value in vars(record).items() if name not in _RESERVED},
            _cut("".join(traceback.format_exception(error))) if error is not None else "",
        )
        self.kept.append(kept)
        for listener in tuple(self.listeners):
            listener(kept)
