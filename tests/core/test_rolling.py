"""A rolling restart as data: who is restarted when, and what ends it."""

import pytest

from parsupd.core.rolling import REMOVED, Rolling, Seen, advance, begin
from parsupd.core.units import InstanceName, SubState

A, B, C, D = (InstanceName("u", number) for number in range(1, 5))


def run(generation: int, sub_state: SubState = SubState.RUNNING, reason: str = "why") -> Seen:
    return Seen(sub_state, generation, reason)


OLD = {A: run(4), B: run(5), C: run(6)}


def test_one_after_the_other() -> None:
    """Each waits for the one before to be up in a new generation."""
    state, turn = advance(begin((A, B, C)), OLD)
    assert turn == (A,)
    for between in (
        run(4, SubState.STOPPING),
        run(4, SubState.WAITING),
        run(5, SubState.STARTING),
        run(5, SubState.UNREADY),
    ):
        assert advance(state, {**OLD, A: between}) == (state, ())
    state, turn = advance(state, {**OLD, A: run(5)})
    assert (turn, state.restarted, state.left) == ((B,), (A,), (C,))
    state, turn = advance(state, {**OLD, A: run(5), B: run(6)})
    state, turn = advance(state, {A: run(5), B: run(6), C: run(7, SubState.EXITED)})
    assert (turn, state.restarted, state.is_over, state.failed) == ((), (A, B, C), True, None)


def test_with_extra_ones_as_many_at_once() -> None:
    """Nothing is touched before they are up, and none of a batch is followed before all of it is up."""
    state, turn = advance(begin((A, B, C), extra=(D,)), {**OLD, D: run(1, SubState.STARTING)})
    assert turn == ()
    assert advance(state, {**OLD, D: run(1)})[1] == (A,)
    two = InstanceName("u", 5)
    state, turn = advance(begin((A, B, C), extra=(D, two)), {**OLD, D: run(1), two: run(1)})
    assert turn == (A, B)
    state, turn = advance(state, {**OLD, A: run(5)})
    assert (turn, state.restarted) == ((), (A,))
    assert advance(state, {**OLD, A: run(5), B: run(6)})[1] == (C,)


@pytest.mark.parametrize(
    "seen",
    [
        run(5, SubState.FAILED), run(4, SubState.DEAD), run(5, SubState.BACKOFF), run(6, SubState.RUNNING), run(6, SubState.STARTING), None,
    ],
)  # fmt: skip
def test_the_first_that_does_not_come_up_ends_it(seen: Seen | None) -> None:
    """It failed, was stopped, ended and backs off, has been restarted since, or is gone; the others are not touched."""
    state, _ = advance(begin((A, B)), OLD)
    found = {key: value for key, value in {**OLD, A: seen}.items() if value is not None}
    state, turn = advance(state, found)
    assert (turn, state.left, state.restarted, state.is_over) == ((), (B,), (), True)
    assert state.failed == (A, "why" if seen else REMOVED)


def test_an_extra_one_that_does_not_come_up_ends_it_before_it_begins() -> None:
    """Nothing has been restarted then."""
    state, turn = advance(begin((A, B), extra=(C,)), {**OLD, C: run(1, SubState.BACKOFF)})
    assert (turn, state.left, state.failed) == ((), (A, B), (C, "why"))


def test_what_is_removed_before_its_turn_ends_it_too() -> None:
    """And is named."""
    state, turn = advance(begin((A,)), {})
    assert (turn, state.failed) == ((), (A, REMOVED))
    assert isinstance(state, Rolling)
