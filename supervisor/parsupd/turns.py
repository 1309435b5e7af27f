"""Work that is done a little in each turn of the event loop, so that those who ask are answered meanwhile.

A thousand units that start, or end, are a second of work.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable

TURN_S = 0.002
"""How long one turn may take; what has begun then is finished. Whoever connects and asks waits for some four turns."""

Work = Callable[[], object]


class Turns:
    """A row of work, done in the order in which it was added."""

    def __init__(self, on_turn: Work, call_soon: Callable[[Work], object], clock: Callable[[], float]) -> None:
        """`on_turn` is called when something was done. `clock` is not the loop's, which may stand still for a turn."""
        self._on_turn = on_turn
        self._call_soon = call_soon
        self._clock = clock
        self._row: deque[Work] = deque()
        self._until = 0.0  # the end of this turn's time
        self._called = False  # for the turn after this one
        self._busy = False

    def add(self, work: Iterable[Work]) -> None:
        """To be done now, if there is time left in this turn; else in one that comes."""
        self._row.extend(work)
        if not self._called:
            self._begin()
        if not self._busy and self._clock() < self._until:
            self._work()

    def finish(self) -> None:
        """Does all that is left, and what is added meanwhile, however long that takes."""
        self._until = math.inf
        self._work()

    def _begin(self) -> None:
        self._called = True
        self._until = self._clock() + TURN_S
        self._call_soon(self._turn)

    def _turn(self) -> None:
        self._called = False
        if self._row:
            self._begin()
            self._work()

    def _work(self) -> None:
        self._busy = True
        try:
            while self._row:
                self._row.popleft()()
                if self._clock() >= self._until:
                    break
        finally:  # what has failed shall not hold up the rest, which the next turn does
            self._busy = False
            self._on_turn()
