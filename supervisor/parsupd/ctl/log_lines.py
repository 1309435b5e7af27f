"""What `parsupctl logs` shows, from journalctl's JSON and from the lines of files: values in, values and text out."""

import json
import math
import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from parsupd.ctl.render import Paint

PRIORITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
INFO = 6
_LEVELS = {"critical": 2, "error": 3, "exception": 3, "warning": 4, "info": INFO, "debug": 7}

TIME_FORMS = 'e.g. "2026-01-31 14:00", "14:00", "yesterday", "-1h", "5min ago", "@1767225600"'

_UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "hour": 3600, "d": 86400, "day": 86400, "week": 7 * 86400}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+?)s?(?=[\s\d]|$)")


class Line(NamedTuple):
    """One record or raw line."""

    time: float | None
    """Unix time; None for a line of a file before the first one that has a time."""
    name: str
    message: str
    priority: int = INFO
    pid: int | None = None
    generation: int | None = None
    by: str = ""
    """The syslog identifier: "parsupd" for what the daemon says about the unit."""
    fields: dict[str, str] = {}  # noqa: RUF012 - never changed


def parse_time(text: str, now: float) -> float:
    """The Unix time that a person means; local time. Raises ValueError."""
    word = text.strip().lower()
    moment = datetime.fromtimestamp(now)  # noqa: DTZ006 - people mean the time on their clock
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    days = {"today": 0, "yesterday": -1}
    if word == "now":
        return now
    if word in days:
        return (midnight + timedelta(days=days[word])).timestamp()
    if word.startswith("@"):
        if not math.isfinite(found := float(word[1:])):
            raise ValueError(f"{text!r} is at no time")
        return found
    if word.startswith(("-", "+")):
        return now + _span(word[1:]) * (-1 if word[0] == "-" else 1)
    if word.endswith(" ago"):
        return now - _span(word.removesuffix(" ago"))
    if re.fullmatch(r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?", word):
        word = f"{midnight:%Y-%m-%d} {'0' * (word[1] == ':')}{word}"
    return datetime.fromisoformat(word.upper()).timestamp()


def _span(text: str) -> float:
    parts = _SPAN.findall(text)
    if not parts or _SPAN.sub("", text).strip():
        raise ValueError(f"{text!r} is no span of time")
    try:
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    except KeyError as error:
        raise ValueError(f"there is no unit of time {error}") from None


def from_journal(text: str) -> Line:
    """An entry of `journalctl -o json`. Raises ValueError when it is none."""
    entry = json.loads(text)
    if not isinstance(entry, dict):
        raise ValueError(f"no journal entry: {text[:80]}")  # noqa: TRY004 - it is the text that is wrong
    entry = {name: _text(value) for name, value in entry.items()}
    by = entry.get("SYSLOG_IDENTIFIER", "")
    generation, priority, pid = (entry.get(name, "") for name in ("PARSUP_GENERATION", "PRIORITY", "_PID"))
    return Line(
        int(entry["__REALTIME_TIMESTAMP"]) / 1e6,
        entry.get("PARSUP_INSTANCE") or by,
        entry.get("MESSAGE", ""),
        int(priority) if priority.isdigit() else INFO,
        int(pid) if pid.isdigit() else None,
        int(generation) if generation.isdigit() else None,
        by,
        {name: value for name, value in entry.items() if not name.startswith("_") and name not in _SHOWN_OTHERWISE},
    )


_SHOWN_OTHERWISE = {
    "MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "PARSUP_UNIT", "PARSUP_INSTANCE", "PARSUP_GENERATION",
    "SYSLOG_FACILITY", "SYSLOG_TIMESTAMP",
}  # fmt: skip


def _text(value: Any) -> str:
    """Journalctl gives text, an array of numbers for what is no UTF-8, or an array of several values."""
    if isinstance(value, list):
        if all(isinstance(item, int) for item in value):
            return bytes(value).decode(errors="backslashreplace")
        return ", ".join(_text(item) for item in value)
    return "" if value is None else str(value)


def from_file(text: str, name: str, before: Line | None) -> Line:
    """A line of a unit's output file. It has a time only when workerlib wrote it, else that of the line `before`."""
    if text.startswith("{"):
        try:
            record = json.loads(text)
            time = datetime.fromisoformat(record.pop("timestamp")).timestamp()
            level, event = record.pop("level"), str(record.pop("event"))
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        else:
            record.pop("worker", None)
            message = "  ".join([event, *(f"{key}={value}" for key, value in record.items())])
            fields = {key.upper(): str(value) for key, value in record.items()}
            return Line(time, name, message, _LEVELS.get(level, INFO), by=name, fields=fields)
    return Line(before.time if before is not None else None, name, text, by=name)


def of_generation(lines: Iterable[Line], generation: int) -> Iterator[Line]:
    """Those of one life of each instance: raw lines belong to the life that the daemon began last."""
    current: dict[str, int] = {}
    for line in lines:
        known = line.generation
        if known is not None and line.by == "parsupd":
            current[line.name] = known
        if (current.get(line.name) if known is None else known) == generation:
            yield line


def in_range(line: Line, since: float | None, until: float | None, priority: int | None) -> bool:
    """Whether a line of a file is asked for; journalctl decides for the journal. No time is earlier than any."""
    time = line.time if line.time is not None else float("-inf")
    if since is not None and time < since:
        return False
    if until is not None and time > until:
        return False
    return priority is None or line.priority <= priority


def as_object(line: Line) -> dict[str, Any]:
    """With stable keys, for JSON."""
    unit = line.name.rpartition("@")[0] or line.name
    return {
        "time": line.time,
        "name": line.name,
        "unit": unit,
        "generation": line.generation,
        "pid": line.pid,
        "priority": line.priority,
        "by": line.by,
        "message": line.message,
        "fields": line.fields,
    }


def as_json(line: Line) -> str:
    """One object a line."""
    return json.dumps(as_object(line), ensure_ascii=False)


def as_text(line: Line, paint: Paint) -> str:
    """For people: time, instance, message; further lines of a message below its first."""
    stamp = "" if line.time is None else f"{datetime.fromtimestamp(line.time):%b %d %H:%M:%S}"  # noqa: DTZ006 - local
    colour = "failed" if line.priority <= 3 else "activating" if line.priority == 4 else ""
    head = f"{stamp:<15} {line.name:<12} "
    message = line.message.removeprefix(f"{line.name}: ") if line.by == "parsupd" else line.message
    who = "parsupd: " if line.by == "parsupd" else ""
    first, *rest = (who + message).split("\n")
    return "\n".join([head + paint(first, colour), *(" " * len(head) + paint(text, colour) for text in rest)])
