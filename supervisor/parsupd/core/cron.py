"""Cron expressions: what they say, and when they come next. Layer 0.

Own code, as the libraries for it are either not typed or bring a calendar of their own; and no `datetime`, which could
read the clock. Days are counted from 1970-01-01, as in Howard Hinnant's "chrono-compatible low-level date algorithms".
"""

import re
from bisect import bisect_left
from collections.abc import Callable
from typing import Any, NamedTuple

from parsupd.core.readers import BadValueError, text

Offset = Callable[[float], int]
"""Seconds by which local time is ahead of UTC at an instant of Unix time."""

DAY = 86400
_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()  # noqa: SIM905 - it reads better
_DAYS = "sun mon tue wed thu fri sat".split()  # noqa: SIM905 - as above
_WORDS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
_HORIZON_DAYS = 366 * 29
"""29 February on a given day of the week comes within 28 years, but around a year such as 2100."""


class Cron(NamedTuple):
    """An expression, read: the numbers that each field allows, in order."""

    text: str
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]  # 0 is Sunday
    any_hour: bool
    either_day: bool  # both days are restricted: one of them is enough

    def __str__(self) -> str:
        return self.text


class _Field(NamedTuple):
    name: str
    low: int
    high: int
    names: list[str]


_FIELDS = (
    _Field("minute", 0, 59, []),
    _Field("hour", 0, 23, []),
    _Field("day of month", 1, 31, []),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 7, _DAYS),
)
_PART = re.compile(r"(?:(\*)|([a-z0-9]{1,3})(?:-([a-z0-9]{1,3}))?)(?:/([0-9]{1,2}))?")


def cron(value: Any) -> Cron:
    """Reads an expression of five fields, or one of the words for the usual ones. Raises BadValueError."""
    fields = _WORDS.get(text(value).strip(), value).lower().split()
    if len(fields) != 5:
        words = ", ".join(_WORDS)
        raise BadValueError(
            f"must have five fields (minute, hour, day, month, day of week) or be {words}, not {value!r}"
        )
    minutes, hours, days, months, weekdays = (
        _read(words, field, value) for words, field in zip(fields, _FIELDS, strict=True)
    )
    found = Cron(
        value.strip(),
        minutes,
        hours,
        days,
        months,
        tuple(sorted({day % 7 for day in weekdays})),
        any_hour=fields[1].startswith("*"),
        either_day=not (fields[2].startswith("*") or fields[4].startswith("*")),
    )
    if _next_local(found, 0) is None:
        raise BadValueError(f"never comes: {value!r}")
    return found


def _read(words: str, field: _Field, whole: str) -> tuple[int, ...]:
    found: set[int] = set()
    for word in words.split(","):
        part = _PART.fullmatch(word)
        if part is None:
            raise BadValueError(f"{word!r} is no {field.name} of {whole!r}")
        star, first, last, step = part.groups()
        low = field.low if star else _number(first, field, whole)
        high = low
        if star or (step and not last):
            high = field.high - (field.names is _DAYS)  # 7 is only another name for Sunday
        elif last:
            high = _number(last, field, whole)
        if low > high or step in {"0", "00"}:
            raise BadValueError(f"{word!r} is no {field.name} of {whole!r}")
        found.update(range(low, high + 1, int(step or 1)))
    return tuple(sorted(found))


def _number(word: str, field: _Field, whole: str) -> int:
    number = field.names.index(word) + field.low if word in field.names else int(word) if word.isdigit() else -1
    if not field.low <= number <= field.high:
        raise BadValueError(f"{word!r} is no {field.name} of {whole!r}: it goes from {field.low} to {field.high}")
    return number


def _civil(day: int) -> tuple[int, int, int]:
    """Year, month and day of month of a day."""
    day += 719468
    era, of_era = divmod(day, 146097)
    year_of_era = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    of_year = of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    return year_of_era + era * 400 + (month <= 2), month, of_year - (153 * shifted + 2) // 5 + 1


def _fits(found: Cron, day: int) -> bool:
    _, month, of_month = _civil(day)
    if month not in found.months:
        return False
    by_month, by_week = of_month in found.days, (day + 4) % 7 in found.weekdays
    return by_month or by_week if found.either_day else by_month and by_week


def _next_local(found: Cron, after: int) -> int | None:
    """The first time that fits after `after`; both count local seconds, as if all days had 24 hours."""
    day, rest = divmod(after, DAY)
    minute = rest // 60 + 1
    for each in range(day, day + _HORIZON_DAYS):
        if _fits(found, each):
            hour = minute // 60
            for one in found.hours[bisect_left(found.hours, hour) :]:
                first = minute % 60 if one == hour else 0
                index = bisect_left(found.minutes, first)
                if index < len(found.minutes):
                    return each * DAY + one * 3600 + found.minutes[index] * 60
        minute = 0
    return None


def next_time(found: Cron, after: float, offset: Offset) -> float | None:
    """The first instant after `after` at which the expression comes, in Unix time."""
    now = int(after)
    if found.any_hour:
        return _next_passing(found, now, offset)
    local = now + offset(now)
    for _ in range(8):  # a time that comes twice may have been the first of the two
        local_next = _next_local(found, local)
        if local_next is None:
            return None
        at = _instant(local_next, offset)
        if at > now:
            return float(at)
        local = local_next
    return None


def _instant(local: int, offset: Offset) -> int:
    """When the clocks show that: the first time of two, and as long after a jump as it would have been before it."""
    before, behind = offset(local - DAY), offset(local + DAY)
    fitting = [local - each for each in (before, behind) if offset(local - each) == each]
    return min(fitting, default=local - before)


def _next_passing(found: Cron, now: int, offset: Offset) -> float | None:
    """As time passes: from one change of the clocks to the next, the offset is what it is."""
    for _ in range(200):
        here = offset(now)
        local = _next_local(found, now + here)
        if local is None:
            return None
        at = local - here
        if offset(at) == here:
            return float(at)
        now = _change(now, at, offset) - 1  # so that the second of the change itself can fit
        here_after = offset(now + 1)
        local = _next_local(found, now + here_after)
        if local is not None and offset(local - here_after) == here_after:
            return float(local - here_after)
        now += 1
    return None


def _change(low: int, high: int, offset: Offset) -> int:
    """The first second after `low`, up to `high`, at which the offset is not that of `low` any more."""
    here = offset(low)
    while high - low > 1:
        middle = (low + high) // 2
        if offset(middle) == here:
            low = middle
        else:
            high = middle
    return high
