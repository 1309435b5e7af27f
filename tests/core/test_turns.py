"""How work is spread over the turns of a loop."""

from collections.abc import Callable

import pytest

from parsupd.turns import TURN_S, Turns


class Stage:
    """A loop that turns when it is told to, and work that takes half the time of a turn."""

    def __init__(self) -> None:
        self.now = 0.0
        self.soon: list[Callable[[], object]] = []
        self.log: list[str] = []
        self.turns = Turns(lambda: self.log.append("|"), self.soon.append, lambda: self.now)

    def add(self, *names: str) -> None:
        self.turns.add([lambda name=name: self.work(name) for name in names])  # type: ignore[misc]

    def work(self, name: str) -> None:
        """What "bad" does fails, and "more" has something follow."""
        self.now += TURN_S / 2
        self.log.append(name)
        if name == "bad":
            raise LookupError(name)
        if name == "more":
            self.add("then")

    def turn(self) -> str:
        """What one turn of the loop has done, or what was done before it."""
        if not self.log:
            called = self.soon[:]
            self.soon.clear()
            for call in called:
                call()
        done = " ".join(self.log)
        self.log.clear()
        return done


def test_a_turn_ends_when_its_time_is_over() -> None:
    """The rest is done in the turns that follow, in order, and then there are no more."""
    stage = Stage()
    stage.add("a", "b", "c")
    stage.add("d")
    assert [stage.turn() for _ in range(4)] == ["a b |", "c d |", "", ""]
    assert stage.soon == []


def test_what_is_little_is_done_at_once() -> None:
    """As much as a turn has time for, in one or more pieces."""
    stage = Stage()
    stage.add("a")
    assert stage.turn() == "a |"
    stage.add("b")
    assert stage.turn() == "b |"
    stage.add("c")
    assert stage.log == []
    assert [stage.turn() for _ in range(3)] == ["c |", "", ""]


def test_what_follows_comes_after_what_was_there() -> None:
    """Also when there is time left in this turn."""
    stage = Stage()
    stage.add("more", "a", "b")
    assert [stage.turn() for _ in range(2)] == ["more a |", "b then |"]


def test_a_failure_does_not_hold_up_the_rest() -> None:
    """It is raised to whoever has added it, or into the loop; what waits is done in the next turn."""
    stage = Stage()
    with pytest.raises(LookupError):
        stage.add("bad", "a")
    assert stage.turn() == "bad |"
    assert stage.turn() == "a |"


def test_all_can_be_finished_at_once() -> None:
    """With what comes of it; the turn that was called for finds nothing."""
    stage = Stage()
    stage.add("a", "b", "more", "c")
    assert stage.turn() == "a b |"
    stage.turns.finish()
    assert stage.turn() == "more c then |"
    assert stage.turn() == ""
