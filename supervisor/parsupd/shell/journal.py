"""The door to structlog for the daemon: its records go to stderr as JSON lines, or in colours on a terminal.

Nothing is configured at import. A record that cannot be written (full disk, closed pipe) is counted and reported with
the next one that can: logging never stops the daemon and never loses silently.
"""

import sys
from typing import Any, TextIO

import structlog

from parsupd.core.units import LogFormat


class _Stream:
    """stderr, as structlog's loggers want it: writes never raise, losses are counted."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lost = 0

    def msg(self, message: str) -> None:
        text = message + "\n"
        if self._lost:
            text = f'{{"event": "log_records_lost", "level": "error", "count": {self._lost}}}\n{text}'
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._lost += 1
        else:
            self._lost = 0

    log = debug = info = warning = warn = error = critical = exception = msg


def configure(form: LogFormat, stream: TextIO | None = None) -> Any:
    """The daemon's logger. AUTO means colours on a terminal, else JSON lines."""
    stream = stream or sys.stderr
    console = form is LogFormat.CONSOLE or (form is LogFormat.AUTO and stream.isatty())
    if console:
        last: list[Any] = [structlog.dev.ConsoleRenderer(colors=stream.isatty())]
        stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
    else:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
        stamp = structlog.processors.TimeStamper(fmt="iso")
    return structlog.wrap_logger(
        _Stream(stream),
        processors=[structlog.processors.add_log_level, stamp, *last],
        wrapper_class=structlog.make_filtering_bound_logger(20),
    )
