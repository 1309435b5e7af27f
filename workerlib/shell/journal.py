"""The door to structlog: where log records of workerlib and of worker processes go. Configured nowhere else.

As a library in somebody's program, workerlib logs through the standard loggers, so the program decides. A worker
process that runs under the generic entry sends its records, and those of any code in it that uses the standard
`logging`, to journald with their fields when its stderr is a stream of the journal, and else to its stderr as JSON
lines (or in colours on a terminal).
"""

import functools
import logging
import os
import sys
import traceback
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from workerlib.core import journal_entry
from workerlib.core.journal_entry import Field
from workerlib.core.messages import MESSAGE_IDS
from workerlib.shell.journald import Journald, stream_name

if TYPE_CHECKING:
    import structlog

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "exception": 40, "critical": 50}
PRIORITIES = {10: "7", 20: "6", 30: "4", 40: "3", 50: "2"}
"""syslog's number for each level of the standard logging."""

_RESERVED = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime"})
"""Attributes of the standard logging's records, which no field may be named like."""


class _StandardLogger:
    """What structlog's logger writes to: a standard logger, told where the record comes from.

    Its own methods would look for the caller in the stack, and find structlog.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self.isEnabledFor = self._logger.isEnabledFor

    def take(
        self, *, level: int, place: tuple[str, int, str], event: str, error: Any, fields: Mapping[str, Any]
    ) -> None:
        record = self._logger.makeRecord(
            self._logger.name, level, place[0], place[1], event, (), error, func=place[2], extra=fields
        )
        self._logger.handle(record)

    debug = info = warning = error = exception = critical = take


def _to_standard(_logger: object, method: str, record: Any) -> dict[str, Any]:
    """The last processor: structlog's record as `_StandardLogger` takes it."""
    error = record.pop("exc_info", None)
    if isinstance(error, BaseException):
        error = (type(error), error, error.__traceback__)
    elif error is True:
        error = sys.exc_info()
    place = (record.pop("pathname"), record.pop("lineno"), record.pop("func_name"))
    event = str(record.pop("event", ""))
    fields = {f"{name}_" if name in _RESERVED else name: value for name, value in record.items()}
    return {"level": LEVELS[method], "place": place, "event": event, "error": error, "fields": fields}


def _make_logger(name: str, context: Mapping[str, Any]) -> Any:
    # structlog takes 60 ms to import: only a process that has something to log pays for it.
    import structlog  # noqa: PLC0415
    from structlog.processors import CallsiteParameter, CallsiteParameterAdder  # noqa: PLC0415

    def only_enabled(logger: _StandardLogger, method: str, record: Any) -> Any:
        if not logger.isEnabledFor(LEVELS[method]):
            raise structlog.DropEvent
        return record

    return structlog.wrap_logger(
        _StandardLogger(name),
        processors=[
            only_enabled,
            structlog.stdlib.PositionalArgumentsFormatter(),
            CallsiteParameterAdder(
                [CallsiteParameter.PATHNAME, CallsiteParameter.LINENO, CallsiteParameter.FUNC_NAME],
                additional_ignores=[__name__],
            ),
            _to_standard,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
        **context,
    )


def get_logger(**context: Any) -> "structlog.stdlib.BoundLogger":
    """A structlog logger for the code of workers; each record has the fields of `context` and those that it is given.

    `log = get_logger(desk="rates"); log.info("filled", order=5)` is, in a worker under parsupd and systemd, an entry
    of the journal with the fields DESK, ORDER, PARSUP_UNIT, PARSUP_INSTANCE, PARSUP_GENERATION, PARSUP_WORKER_ID and
    CODE_FILE, which `journalctl ORDER=5` finds; elsewhere what the program made of the standard `logging` decides.
    The standard logger behind it is named after the calling module. Logging never blocks on journald and never raises
    because of it.
    """
    return _make_logger(sys._getframe(1).f_globals.get("__name__", "workerlib"), context)  # type: ignore[no-any-return]  # noqa: SLF001


@functools.cache
def _own() -> Any:
    return _make_logger("workerlib", {})


def warn(event: str, **fields: Any) -> None:
    """Something that an operator should know; the process goes on."""
    _own().warning(event, **fields)


def fail(event: str, error: BaseException | None = None, **fields: Any) -> None:
    """Something went wrong; `error` is logged with its traceback."""
    _own().error(event, exc_info=error, **fields)


def configure_worker(name: str, worker_id: str) -> None:
    """Sends the records of this process where those of a worker go. Called by the entry point, once detached."""
    root = logging.getLogger()
    root.handlers[:] = [_WorkerHandler(name, worker_id)]
    root.setLevel(logging.INFO)


class _WorkerHandler(logging.StreamHandler[Any]):
    """Writes to journald or to stderr; makes its formatter, and so loads structlog, when the first line comes."""

    def __init__(self, name: str, worker_id: str) -> None:
        super().__init__()
        self._name = name
        self._base = tuple(_identity(name, worker_id, os.environ))
        self._journald = Journald(self._base)

    def emit(self, record: logging.LogRecord) -> None:
        # Asked each time, since stderr is a pipe to the master until the worker is released, and may be redirected.
        if os.environ.get("JOURNAL_STREAM") != stream_name(2):
            super().emit(record)
            return
        try:
            self._journald.send(journal_entry.encode((*self._base, *_fields(record))))
        except Exception:  # noqa: BLE001 - a value whose str() raises: as the standard library's handlers do
            self.handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        if self.formatter is None:
            self.formatter = _formatter(self._name)
        return super().format(record)


def _identity(name: str, worker_id: str, env: Mapping[str, str]) -> Iterable[Field]:
    """The fields that every record of a worker has."""
    yield "SYSLOG_IDENTIFIER", name
    yield "PARSUP_WORKER_ID", worker_id
    if unit := env.get("PARSUP_UNIT"):
        yield "PARSUP_UNIT", unit
        yield "PARSUP_INSTANCE", f"{unit}@{env.get('PARSUP_INSTANCE', '')}"
        yield "PARSUP_GENERATION", env.get("PARSUP_GENERATION", "")


def _fields(record: logging.LogRecord) -> Iterable[Field]:
    """A record as fields. MESSAGE is the text with its fields behind it, for people; programs have them by name."""
    event = record.getMessage()
    given = {
        plain if (plain := name.removesuffix("_")) in _RESERVED else name: value
        for name, value in vars(record).items()
        if name not in _RESERVED
    }
    message = "  ".join([event, *(f"{name}={value}" for name, value in given.items())])
    if record.exc_info and record.exc_info[1] is not None:
        text = "".join(traceback.format_exception(record.exc_info[1])).rstrip()
        message += f"\n{text}"
        yield "PARSUP_EXCEPTION", text
    yield "MESSAGE", message
    yield "PRIORITY", PRIORITIES.get(record.levelno, "6")
    if event.isidentifier():
        yield "PARSUP_EVENT", event
    yield "LOGGER", record.name
    yield "CODE_FILE", record.pathname
    yield "CODE_LINE", str(record.lineno)
    yield "CODE_FUNC", record.funcName or ""
    prefix = ""
    if record.name == "workerlib":
        prefix = "PARSUP_"
        if message_id := MESSAGE_IDS.get(event):
            yield "MESSAGE_ID", message_id
    for name, value in given.items():
        yield journal_entry.field_name(name, prefix), value if isinstance(value, bytes) else str(value)


def _formatter(worker: str) -> logging.Formatter:
    import structlog  # noqa: PLC0415 - see _make_logger

    stamp: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso"),
        lambda _logger, _method, record: {"worker": worker, **record},
    ]
    last = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer(default=str)
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=stamp,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            last,
        ],
    )
