"""The ring of events: numbers without holes, and every loss counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsupd.core.event_ring import EventRing


def ring(count: int, last: int = 0, capacity: int = 3) -> EventRing:
    found = EventRing(last, capacity)
    for number in range(count):
        found.add(float(number), "changed", "web@1", new=str(number))
    return found


@pytest.mark.parametrize(
    ("count", "since", "lost", "numbers"),
    [
        (0, 0, 0, []),
        (2, 0, 0, [1, 2]),
        (2, 1, 0, [2]),
        (2, 2, 0, []),
        (3, 0, 0, [1, 2, 3]),
        (5, 0, 2, [3, 4, 5]),
        (5, 1, 1, [3, 4, 5]),
        (5, 2, 0, [3, 4, 5]),
        (5, 4, 0, [5]),
        (5, 99, 2, [3, 4, 5]),
    ],
)
def test_who_has_seen_a_number_gets_what_came_since(count: int, since: int, lost: int, numbers: list[int]) -> None:
    """And how much of that is not kept; a number that was never given counts as none."""
    missing, entries = ring(count).since(since)
    assert (missing, [entry.number for entry in entries]) == (lost, numbers)


def test_numbers_go_on_after_those_of_an_earlier_ring() -> None:
    """What that ring had is told as lost to who has not seen it."""
    assert [entry.number for entry in ring(1, last=7).since(7)[1]] == [8]
    assert ring(1, last=7).since(5)[0] == 2
    assert ring(1, last=7).oldest == 7


def test_an_entry_names_unit_and_instance() -> None:
    """Both are empty for what concerns parsupd itself."""
    found = EventRing()
    found.add(1.0, "ended", "a-b@12", cause="x")
    found.add(2.0, "reloaded")
    first, second = found.since(0)[1]
    assert (first.unit, first.instance, first.fields) == ("a-b", "a-b@12", {"cause": "x"})
    assert (second.unit, second.instance) == ("", "")


@given(st.lists(st.one_of(st.just("add"), st.integers(0, 8)), max_size=60), st.integers(1, 5))
def test_no_event_is_missed_silently(steps: list[str | int], capacity: int) -> None:
    """Whoever reads from where it stopped sees each number once, or hears that it is lost."""
    found = EventRing(capacity=capacity)
    seen = [0] * 9
    for step in steps:
        if isinstance(step, int):
            lost, entries = found.since(seen[step])
            assert [entry.number for entry in entries] == list(range(seen[step] + lost + 1, found.last + 1))
            assert len(entries) <= capacity
            seen[step] = found.last
        else:
            found.add(0.0, step)
