"""The door to structlog for the daemon: its records go to journald with their fields, or to stderr as lines.

Nothing is configured at import. A record that cannot be written (full disk, closed pipe) is counted and reported with
the next one that can: logging never stops the daemon and never loses silently.
"""

import os
from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple

from parsupd.core import messages
from parsupd.core.units import LogFormat
from parsupd.shell import journal_stream
from parsupd.shell.structlog_alone import CallsiteParameter, CallsiteParameterAdder, structlog
from workerlib import UsageError
from workerlib.core import journal_entry
from workerlib.shell.journald import Journald, stream_name


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
_COLOUR = {
    "running": _GREEN,
    "exited": _GREEN,
    "failed": _RED,
    "backoff": _YELLOW,
    "unready": _YELLOW,
    "error": _RED,
    "warning": _YELLOW,
}


class _Described(NamedTuple):
    """A record for people: whom it concerns, what happened, why and what else is known."""

    subject: str
    what: str
    details: str
    colour: str
    error: str


def _describe(record: Mapping[str, Any]) -> _Described:
    rest = {key: value for key, value in record.items() if key not in {"timestamp", *_CODE}}
    level, event = (rest.pop(key, "") for key in ("level", "event"))
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
    what = str(event) if " " in str(event) else str(event).replace("_", " ")  # names of events, not what units say
    return _Described(subject, what, "  ".join(details), _COLOUR.get(level) or _COLOUR.get(event, ""), error)


class _Console:
    """Writes a record as a line, with the time."""

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def __call__(self, _logger: Any, _method: str, record: MutableMapping[str, Any]) -> str:
        subject, what, details, colour, error = _describe(record)
        line = f"{self._in(_DIM, record.get('timestamp', ''))} {self._in(_BOLD, f'{subject:<12}')} "
        line += f"{self._in(colour, f'{what:<10}')} {self._in(_DIM, details)}" if details else what
        return f"{line}\n{error}" if error else line

    def _in(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colours and colour else text


_CODE = {"pathname": "CODE_FILE", "lineno": "CODE_LINE", "func_name": "CODE_FUNC"}

_IDENTIFIER = ("SYSLOG_IDENTIFIER", "parsupd")

_PRIORITY = {"debug": "7", "info": "6", "warning": "4", "error": "3", "critical": "2"}


def _entry(_logger: Any, _method: str, record: MutableMapping[str, Any]) -> bytes:
    """A record as an entry of the journal: a sentence for people, and every field under a name."""
    subject, what, details, _, error = _describe(record)
    message = f"{subject}: {what}" + (f": {details}" if details else "")
    fields = [
        ("MESSAGE", f"{message}\n{error}" if error else message),
        ("PRIORITY", _PRIORITY.get(record.pop("level"), "6")),
        _IDENTIFIER,
        *((name, str(record.pop(key))) for key, name in _CODE.items()),
    ]
    if found := messages.message_id(record["event"], record.get("new", "")):
        fields.append(("MESSAGE_ID", found))
    if not record["event"].isidentifier():
        del record["event"]  # what a worker has written to its stderr
    if instance := record.pop("unit", ""):
        fields += [("PARSUP_UNIT", instance.rpartition("@")[0] or instance), ("PARSUP_INSTANCE", instance)]
    fields += [(journal_entry.field_name(key, "PARSUP_"), str(value)) for key, value in record.items()]
    return journal_entry.encode(fields)


class _Sender:
    """journald, as structlog's loggers want it."""

    def __init__(self) -> None:
        self._journald = Journald([_IDENTIFIER])

    def msg(self, entry: bytes) -> None:
        self._journald.send(entry)

    debug = info = warning = warn = error = critical = exception = msg


def resolve(form: LogFormat, fd: int = 2) -> LogFormat:
    """What AUTO means: the journal where systemd has connected `fd` to it, people on a terminal, else JSON lines.

    Raises UsageError when the journal is asked for by name and there is none.
    """
    if form is LogFormat.JOURNAL and not journal_stream.available():
        raise UsageError(f"log = journal, but there is no journald here ({journal_stream.STREAM_SOCKET} is missing)")
    if form is not LogFormat.AUTO:
        return form
    if os.environ.get("JOURNAL_STREAM") == stream_name(fd) and journal_stream.available():
        return LogFormat.JOURNAL
    return LogFormat.CONSOLE if os.isatty(fd) else LogFormat.JSON


def configure(form: LogFormat, fd: int = 2) -> Any:
    """The daemon's logger, for a form that is resolved."""
    if form is LogFormat.JOURNAL:
        where = CallsiteParameterAdder(
            [CallsiteParameter.PATHNAME, CallsiteParameter.LINENO, CallsiteParameter.FUNC_NAME]
        )
        return _wrap(_Sender(), where, structlog.processors.format_exc_info, _entry)
    if form is LogFormat.CONSOLE:
        last: list[Any] = [structlog.processors.format_exc_info, _Console(colours=os.isatty(fd))]
        stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
    else:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
        stamp = structlog.processors.TimeStamper(fmt="iso")
    return _wrap(_Lines(fd), stamp, *last)


def _wrap(sink: object, *processors: Any) -> Any:
    return structlog.wrap_logger(
        sink,
        processors=[structlog.processors.add_log_level, *processors],
        wrapper_class=structlog.make_filtering_bound_logger(20),
    ).bind()  # else each record would be bound anew
