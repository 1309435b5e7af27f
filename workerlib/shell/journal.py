"""The door to structlog: where log records of workerlib and of worker processes go. Configured nowhere else.

As a library in somebody's program, workerlib logs through the standard logger "workerlib", so the program decides. A
worker process that runs under the generic entry writes JSON lines (or colours on a terminal) to its stderr.
"""

import functools
import logging
import sys
from typing import Any


@functools.cache
def _logger() -> Any:
    # structlog takes 60 ms to import: only a process that has something to log pays for it.
    import structlog  # noqa: PLC0415

    return structlog.wrap_logger(
        logging.getLogger("workerlib"),
        processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


_RESERVED = {*vars(logging.makeLogRecord({})), "message", "asctime"}


def _named(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields under names that the standard logging accepts: it refuses those of its own attributes."""
    return {f"{name}_" if name in _RESERVED else name: value for name, value in fields.items()}


def warn(event: str, **fields: Any) -> None:
    """Something that an operator should know; the process goes on."""
    _logger().warning(event, **_named(fields))


def fail(event: str, error: BaseException | None = None, **fields: Any) -> None:
    """Something went wrong; `error` is logged with its traceback."""
    _logger().error(event, exc_info=error, **_named(fields))


def configure_worker(name: str) -> None:
    """Sends the records of a worker process to its stderr, each with the worker's name. Called by the entry point."""
    root = logging.getLogger()
    root.handlers[:] = [_WorkerHandler(name)]
    root.setLevel(logging.INFO)


class _WorkerHandler(logging.StreamHandler[Any]):
    """Writes to stderr; makes its formatter, and so loads structlog, when the first record comes."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        if self.formatter is None:
            self.formatter = _formatter(self._worker)
        return super().format(record)


def _formatter(worker: str) -> logging.Formatter:
    import structlog  # noqa: PLC0415 - see _logger

    stamp: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso"),
        lambda _logger, _method, record: {"worker": worker, **record},
    ]
    last = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=stamp,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            last,
        ],
    )
