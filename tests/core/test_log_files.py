"""Log files: names, when a new one is begun, which ones go, and what is done when none can be written."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsupd.core import log_files
from parsupd.core.log_files import LogFile, Trouble
from parsupd.core.log_settings import BLOCK, DROP, JSON, LogSettings


def test_names_are_read_as_they_are_written() -> None:
    """A file's name says the instance, the number and whether it is compressed; no other name does."""
    for name in ("a@1", "a.b-c_d@12", "a@1.00000001.log@2"):
        for file in (LogFile(1), LogFile(123_456_789, compressed=True)):
            assert log_files.parse_name(file.name(name)) == (name, file)
    for other in ("a@1.log", "a.00000001.log", "a@1.1.log", "a@1.00000001.log.gz.tmp", ".lock"):
        assert log_files.parse_name(other) is None


def test_settings_are_read_as_they_are_written() -> None:
    """They go to the logger as words."""
    for settings in (LogSettings(), LogSettings(JSON, 1, 2.5, 3, False, DROP, math.inf)):
        assert LogSettings.read(settings.words()) == settings


@pytest.mark.parametrize(
    ("length", "age_s", "expected"),
    [(0, 1e9, False), (99, 9.9, False), (100, 0, True), (1, 10, True), (150, 20, True)],
)
def test_when_a_new_file_is_begun(length: int, age_s: float, expected: bool) -> None:
    """After its size or its age, but an empty one is never too old; the deadline says the same."""
    settings = LogSettings(rotate_size=100, rotate_age_s=10)
    assert log_files.is_due(length, 5.0, settings, 5.0 + age_s) is expected
    deadline = log_files.rotation_deadline(length, 5.0, settings)
    assert (deadline <= 5.0 + age_s) is (length > 0 and age_s >= 10)


def test_a_small_total_makes_small_files() -> None:
    """A file never takes more than half of what all may take."""
    assert LogSettings(rotate_size=100, total_size=120).rotate_at == 60


@given(st.dictionaries(st.integers(1, 50), st.integers(0, 1000)), st.integers(2, 3000), st.integers(1, 3000))
def test_an_instance_keeps_to_its_total(sizes: dict[int, int], total: int, rotate: int) -> None:
    """What is left and the file to come fit into the total; the oldest go, and none that need not."""
    settings = LogSettings(rotate_size=rotate, total_size=total)
    gone = log_files.too_many(sizes, settings)
    left = [number for number in sizes if number not in gone]
    room = total - settings.rotate_at
    assert sum(sizes[number] for number in left) <= room
    assert gone == sorted(sizes)[: len(gone)]
    if gone:
        assert sum(sizes[number] for number in [*left, gone[-1]]) > room


@given(
    st.lists(st.tuples(st.floats(0, 100), st.sampled_from("ab"), st.integers(1, 99), st.integers(0, 100))),
    st.integers(0, 500),
    st.integers(0, 1000),
)
def test_all_keep_to_their_total(files: list[tuple[float, str, int, int]], current: int, limit: int) -> None:
    """The oldest files of all instances go until there is room, or nothing but the current ones is left."""
    total = current + sum(size for *_, size in files)
    gone = log_files.too_much(files, total, limit)
    ordered = sorted(files)
    assert gone == [(instance, number) for _, instance, number, _ in ordered[: len(gone)]]
    left = total - sum(size for *_, size in ordered[: len(gone)])
    assert left <= limit or len(gone) == len(files)


def test_a_unit_waits_as_long_as_its_policy_says() -> None:
    """First everything waits, with attempts in between; when the time is over, output is dropped until one succeeds."""
    settings = LogSettings(full_policy=BLOCK, block_s=1.2)
    trouble = log_files.failed(None, "full", 10.0)
    assert trouble == Trouble(10.0, 10.5, "full")
    assert not log_files.is_dropping(trouble, settings, 10.0)
    assert log_files.trouble_deadline(trouble, settings, 10.0) == 10.5
    trouble = log_files.failed(log_files.failed(trouble, "full", 10.5), "full", 11.0)
    assert trouble.since == 10.0
    assert log_files.trouble_deadline(trouble, settings, 11.0) == 11.2
    assert log_files.is_dropping(trouble, settings, 11.2)
    assert log_files.trouble_deadline(trouble, settings, 11.2) == 11.5


def test_a_unit_that_shall_not_wait_does_not() -> None:
    """With drop, the time is over at once; with an endless time it never is."""
    trouble = log_files.failed(None, "full", 10.0)
    assert log_files.is_dropping(trouble, LogSettings(full_policy=DROP), 10.0)
    assert not log_files.is_dropping(trouble, LogSettings(full_policy=BLOCK, block_s=math.inf), 1e9)


@given(st.lists(st.binary(max_size=8) | st.just(b"\n")))
def test_lines_that_are_dropped_are_counted_once(chunks: list[bytes]) -> None:
    """However it is cut, each line that begins in what was dropped is counted."""
    count, in_line = 0, False
    for chunk in chunks:
        more, in_line = log_files.count_dropped(chunk, in_line=in_line)
        assert more >= 0
        count += more
    data = b"".join(chunks)
    assert count == data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    assert in_line is (bool(data) and not data.endswith(b"\n"))


@pytest.mark.parametrize(("data", "expected"), [(b"", 0), (b"abc", 3), (b"ab\ncd\n", 3), (b"\n", 1)])
def test_the_rest_of_a_dropped_line(data: bytes, expected: int) -> None:
    """It ends with its newline, or not yet."""
    assert log_files.rest_of_line(data) == expected
