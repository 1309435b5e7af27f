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


Files = list[tuple[float, str, int, int]]
FILES = st.tuples(st.floats(0, 100), st.sampled_from("ab"), st.integers(1, 99), st.integers(0, 100))


@given(st.lists(FILES, unique_by=lambda file: file[1:3]), st.integers(0, 500), st.integers(0, 1000))
def test_all_keep_to_their_total(files: Files, current: int, limit: int) -> None:
    """Files go until there is room, or nothing but the current ones is left; none that need not, and none before an
    older one of its instance, whatever was done to the clock.
    """
    sizes = {(instance, number): size for _, instance, number, size in files}
    total = current + sum(sizes.values())
    gone = log_files.too_much(files, total, limit)
    left = total - sum(sizes[file] for file in gone)
    assert left <= limit or len(gone) == len(files)
    assert not gone or left + sizes[gone[-1]] > limit
    for instance in "ab":
        numbers = sorted(number for one, number in sizes if one == instance)
        its_gone = [number for one, number in gone if one == instance]
        assert its_gone == numbers[: len(its_gone)]


@given(st.lists(FILES, unique_by=lambda file: file[1:3]))
def test_the_oldest_of_all_go_first(files: Files) -> None:
    """While nobody sets the clock, an instance's files have growing numbers."""
    files = [(at, instance, index, 1) for index, (at, instance, _, _) in enumerate(sorted(files))]
    assert log_files.too_much(files, len(files), 0) == [(instance, number) for _, instance, number, _ in files]


def test_a_clock_that_was_set_back_makes_no_file_older() -> None:
    """What came after it still goes after it."""
    files = [(1000.0, "a", 1, 1), (10.0, "a", 2, 1), (500.0, "b", 1, 1)]
    assert log_files.too_much(files, 3, 1) == [("b", 1), ("a", 1)]


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
