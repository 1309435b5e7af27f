"""Entries that journald has not taken: order, bounds, and no loss that is not counted."""

from hypothesis import given
from hypothesis import strategies as st

from workerlib.core.backlog import Backlog


def emptied(backlog: Backlog) -> list[bytes | int]:
    items = []
    while backlog:
        items.append(backlog.head())
        backlog.pop()
    return items


def test_what_does_not_fit_is_a_gap_in_its_place() -> None:
    """The oldest entries stay; the number of those that found no room stands where they would."""
    backlog = Backlog(10)
    for entry in (b"aaaa", b"bbbb", b"cccc", b"dddd"):
        backlog.push(entry)
    backlog.pop()
    backlog.push(b"eeee")
    backlog.push(b"ffff")
    assert emptied(backlog) == [b"bbbb", 2, b"eeee", 1]


def test_one_entry_may_be_larger_than_the_limit() -> None:
    """A large entry is not lost for its size alone: only what waits is bounded."""
    backlog = Backlog(10)
    backlog.push(b"x" * 20)
    backlog.push(b"y")
    assert emptied(backlog) == [b"x" * 20, 1]


def test_everything_lost_is_one_gap() -> None:
    """When journald is away, entries and earlier gaps become one number; nothing lost is nothing said."""
    backlog = Backlog(10)
    backlog.lose_all()
    assert emptied(backlog) == []
    for entry in (b"aaaaaa", b"bbbbbb", b"c"):
        backlog.push(entry)
    backlog.lose_all()
    backlog.push(b"d")
    assert emptied(backlog) == [3, b"d"]


@given(st.lists(st.one_of(st.binary(min_size=1, max_size=6), st.sampled_from(["pop", "lose"]))), st.integers(1, 20))
def test_entries_and_gaps_add_up(actions: list[bytes | str], limit: int) -> None:
    """Whatever happens, what was sent and what is said to be missing is what was given; entries keep their order."""
    backlog, sent, given_ = Backlog(limit), [], []
    for action in actions:
        if isinstance(action, bytes):
            given_.append(action)
            backlog.push(action)
        elif action == "lose":
            backlog.lose_all()
        elif backlog:
            sent.append(backlog.head())
            backlog.pop()
    sent += emptied(backlog)
    assert sum(item if isinstance(item, int) else 1 for item in sent) == len(given_)
    position = 0
    for item in sent:
        position += item if isinstance(item, int) else 1
        if isinstance(item, bytes):
            assert given_[position - 1] == item
