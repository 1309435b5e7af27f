"""The door to structlog for the daemon: its records go to stderr as JSON lines, or in colours on a terminal.

Nothing is configured at import. A record that cannot be written (full disk, closed pipe) is counted and reported with
the next one that can: logging never stops the daemon and never loses silently.
"""

import os
from collections.abc import MutableMapping
from typing import Any

import structlog

from parsupd.core.units import LogFormat
from parsupd.shell import journal_stream
from workerlib import UsageError


class _Lines:
    """A descriptor, as structlog's loggers want it: writes never raise, losses are counted.

    Nothing is buffered: what a file object could not write it would keep, more and more of it, while a disk is full.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lost = 0
        self._torn = False
        """Whether the last record was written in part."""

    def msg(self, message: str) -> None:
        text = message + "\n"
        if self._lost:
            lost = f'{{"event": "log_records_lost", "level": "error", "count": {self._lost}}}\n'
            text = ("\n" if self._torn else "") + lost + text
        left = memoryview(text.encode(errors="backslashreplace"))
        try:
            while left:
                left = left[os.write(self._fd, left) :]
                self._torn = True
        except OSError:
            self._lost += 1
        else:
            self._lost, self._torn = 0, False

    log = debug = info = warning = warn = error = critical = exception = msg


_BOLD, _DIM, _RED, _GREEN, _YELLOW = "1", "2", "31", "32", "33"
_COLOUR = {"running": _GREEN, "exited": _GREEN, "failed": _RED, "backoff": _YELLOW, "error": _RED, "warning": _YELLOW}


class _Console:
    """Writes a record for people: the time, whom it concerns, what happened, why, and what else is known."""

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def __call__(self, _logger: Any, _method: str, record: MutableMapping[str, Any]) -> str:
        rest = dict(record)
        time, level, event = (rest.pop(key, "") for key in ("timestamp", "level", "event"))
        subject, reason, error = rest.pop("unit", "parsupd"), rest.pop("reason", ""), rest.pop("exception", "")
        if event == "unit_changed":
            event = rest.pop("new", "")
            del rest["old"]
        elif event == "unit_ended":
            event = "ended, to be started again" if rest.pop("restart", False) else "ended"
            del rest["cause"]  # it is part of the reason
        if rest.get("generation") in {0, 1}:
            del rest["generation"]  # of interest from the second on
        details = [str(reason)] if reason else []
        details += [f"{key}={value}" for key, value in rest.items()]
        colour = _COLOUR.get(level) or _COLOUR.get(event, "")
        what = str(event) if " " in str(event) else str(event).replace("_", " ")  # names of events, not what units say
        line = f"{self._in(_DIM, time)} {self._in(_BOLD, f'{subject:<12}')} "
        line += f"{self._in(colour, f'{what:<10}')} {self._in(_DIM, '  '.join(details))}" if details else what
        return f"{line}\n{error}" if error else line

    def _in(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colours and colour else text


def resolve(form: LogFormat, fd: int = 2) -> LogFormat:
    """What AUTO means: the journal where systemd has connected `fd` to it, people on a terminal, else JSON lines.

    Raises UsageError when the journal is asked for by name and there is none.
    """
    if form is LogFormat.JOURNAL and not journal_stream.available():
        raise UsageError(f"log = journal, but there is no journald here ({journal_stream.STREAM_SOCKET} is missing)")
    if form is not LogFormat.AUTO:
        return form
    if os.environ.get("JOURNAL_STREAM") == journal_stream.named(fd) and journal_stream.available():
        return LogFormat.JOURNAL
    return LogFormat.CONSOLE if os.isatty(fd) else LogFormat.JSON


def configure(form: LogFormat, fd: int = 2) -> Any:
    """The daemon's logger, for a form that is resolved."""
    if form is LogFormat.CONSOLE:
        last: list[Any] = [structlog.processors.format_exc_info, _Console(colours=os.isatty(fd))]
        stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
    else:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
        stamp = structlog.processors.TimeStamper(fmt="iso")
    return structlog.wrap_logger(
        _Lines(fd),
        processors=[structlog.processors.add_log_level, stamp, *last],
        wrapper_class=structlog.make_filtering_bound_logger(20),
    )
