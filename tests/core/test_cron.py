"""Cron expressions: what they say, when they come next, and what they do when the clocks change."""

import calendar
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsupd.core.cron import cron, next_time
from parsupd.core.readers import BadValueError

BERLIN = ZoneInfo("Europe/Berlin")  # summer time from 2026-03-29 02:00 to 2026-10-25 03:00
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")  # which changes by half an hour
Offset = Callable[[float], int]


def utc(_: float) -> int:
    return 0


def offset_of(zone: ZoneInfo) -> Offset:
    def offset(at: float) -> int:
        found = datetime.fromtimestamp(at, zone).utcoffset()
        assert found is not None
        return int(found.total_seconds())

    return offset


def unix(text: str) -> int:
    return calendar.timegm(datetime.fromisoformat(text).timetuple())


def coming(expression: str, after: str, count: int = 1) -> list[str]:
    """The next times in UTC."""
    found, at = [], float(unix(after))
    for _ in range(count):
        following = next_time(cron(expression), at, utc)
        assert following is not None
        at = following
        found.append(datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M"))
    return found


CASES = [
    ("* * * * *", "2026-01-01 00:00", ["2026-01-01 00:01", "2026-01-01 00:02"]),
    ("*/15 * * * *", "2026-01-01 00:46", ["2026-01-01 01:00", "2026-01-01 01:15"]),
    ("5/20 * * * *", "2026-01-01 00:00", ["2026-01-01 00:05", "2026-01-01 00:25", "2026-01-01 00:45"]),
    ("10-14/2 * * * *", "2026-01-01 00:00", ["2026-01-01 00:10", "2026-01-01 00:12", "2026-01-01 00:14"]),
    ("0 3 * * *", "2026-01-01 03:00", ["2026-01-02 03:00"]),
    ("30 4 1,15 * *", "2026-01-01 05:00", ["2026-01-15 04:30", "2026-02-01 04:30"]),
    ("0 0 29 2 *", "2026-01-01 00:00", ["2028-02-29 00:00", "2032-02-29 00:00"]),
    ("0 0 31 * *", "2026-01-31 00:00", ["2026-03-31 00:00", "2026-05-31 00:00"]),
    ("0 12 * * mon-fri", "2026-01-02 12:00", ["2026-01-05 12:00", "2026-01-06 12:00"]),
    ("0 0 * * 7", "2026-01-01 00:00", ["2026-01-04 00:00"]),
    ("0 0 * * 0", "2026-01-01 00:00", ["2026-01-04 00:00"]),
    (
        "0 0 * * 5-7",
        "2026-01-01 00:00",
        ["2026-01-02 00:00", "2026-01-03 00:00", "2026-01-04 00:00", "2026-01-09 00:00"],
    ),
    ("0 0 13 * fri", "2026-02-10 00:00", ["2026-02-13 00:00", "2026-02-20 00:00"]),  # either day is enough
    ("0 0 */2 * mon", "2026-01-01 00:00", ["2026-01-05 00:00", "2026-01-19 00:00"]),  # `*` restricts no day: both count
    ("59 23 31 dec *", "2026-06-01 00:00", ["2026-12-31 23:59", "2027-12-31 23:59"]),
    ("@hourly", "2026-12-31 23:30", ["2027-01-01 00:00"]),
    ("@yearly", "2026-12-31 23:30", ["2027-01-01 00:00", "2028-01-01 00:00"]),
]


@pytest.mark.parametrize(("expression", "after", "expected"), CASES)
def test_the_next_times(expression: str, after: str, expected: list[str]) -> None:
    """What cron would do, over the ends of hours, months and years."""
    assert coming(expression, after, len(expected)) == expected


BAD = ["", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "5-3 * * * *",
       "*/0 * * * *", "a * * * *", "1,,2 * * * *", "* * * * mon-", "0 0 30 2 *", "0 0 31 4,6,9,11 *", "@reboot", "-1 * * * *"]  # fmt: skip


@pytest.mark.parametrize("expression", BAD)
def test_what_is_no_expression_is_refused(expression: str) -> None:
    """Also what would never come."""
    with pytest.raises(BadValueError):
        cron(expression)


def local_times(expression: str, zone: ZoneInfo, after: str, hours: int) -> list[str]:
    """All times within so many hours, as the clocks on the wall show them, with the offset."""
    at = datetime.fromisoformat(after).replace(tzinfo=zone).timestamp()
    end, found = at + hours * 3600, []
    while (following := next_time(cron(expression), at, offset_of(zone))) is not None and following <= end:
        assert following > at
        at = following
        found.append(datetime.fromtimestamp(at, zone).strftime("%d %H:%M%z"))
    return found


def test_a_time_that_is_jumped_over_comes_after_the_jump() -> None:
    """02:30 does not exist on 29 March: it comes at 03:30, once, and the day after as always."""
    assert local_times("30 2 * * *", BERLIN, "2026-03-28 12:00", 48) == ["29 03:30+0200", "30 02:30+0200"]


def test_a_time_that_comes_twice_counts_once() -> None:
    """02:30 comes twice on 25 October: the first one counts."""
    assert local_times("30 2 * * *", BERLIN, "2026-10-24 12:00", 48) == ["25 02:30+0200", "26 02:30+0100"]


def test_what_runs_every_hour_goes_on() -> None:
    """With `*` hours nothing is left out and nothing comes twice at once, whatever the clocks do."""
    assert local_times("0 * * * *", BERLIN, "2026-10-25 01:30", 4) == [
        "25 02:00+0200", "25 02:00+0100", "25 03:00+0100", "25 04:00+0100",
    ]  # fmt: skip
    assert local_times("0 * * * *", BERLIN, "2026-03-29 00:30", 3) == [
        "29 01:00+0100",
        "29 03:00+0200",
        "29 04:00+0200",
    ]
    assert local_times("*/20 * * * *", LORD_HOWE, "2026-04-05 01:30", 2) == [
        "05 01:40+1100", "05 01:40+1030", "05 02:00+1030", "05 02:20+1030", "05 02:40+1030", "05 03:00+1030",
    ]  # fmt: skip


def numbers(low: int, high: int) -> st.SearchStrategy[str]:
    single = st.integers(low, high).map(str)
    step = st.integers(1, 20).map(lambda n: f"*/{n}")
    return st.one_of(st.just("*"), single, step, st.lists(single, min_size=1, max_size=4).map(",".join))


EXPRESSIONS = st.tuples(numbers(0, 59), numbers(0, 23), numbers(1, 28), numbers(1, 12), numbers(0, 7)).map(" ".join)


@settings(deadline=None)
@given(EXPRESSIONS, st.integers(unix("2020-01-01"), unix("2035-01-01")))
def test_it_is_the_first_minute_that_fits(expression: str, after: int) -> None:
    """Compared with a walk through the minutes by the standard library's calendar, for as long as that is quick."""
    found = cron(expression)
    at = next_time(found, after, utc)
    assert at is not None

    def fits(moment: datetime) -> bool:
        by_month, by_week = moment.day in found.days, moment.isoweekday() % 7 in found.weekdays
        day = by_month or by_week if found.either_day else by_month and by_week
        return day and moment.month in found.months and moment.hour in found.hours and moment.minute in found.minutes

    assert fits(datetime.fromtimestamp(at, UTC))
    moment = datetime.fromtimestamp(after, UTC).replace(second=0) + timedelta(minutes=1)
    for _ in range(3000):
        if moment.timestamp() >= at:
            break
        assert not fits(moment)
        moment += timedelta(minutes=1)


@settings(deadline=None)
@given(EXPRESSIONS, st.integers(unix("2026-01-01"), unix("2027-01-01")), st.sampled_from([BERLIN, LORD_HOWE]))
def test_time_goes_on(expression: str, after: int, zone: ZoneInfo) -> None:
    """The next time is always later, whatever the zone does: nothing repeats for ever."""
    at = float(after)
    for _ in range(5):
        following = next_time(cron(expression), at, offset_of(zone))
        assert following is not None
        assert following > at
        at = following
