"""Work that is done a little in each turn of the event loop, so that those who ask are answered meanwhile.

A thousand units that start, or end, are a second of work.
"""

from collections import deque
from collections.abc import Callable, Iterable

TURN_S = 0.002
"""How long one turn may take; what has begun then is finished. Whoever connects and asks waits for some four turns."""

Work = Callable[[], object]


class Turns:
    """A row of work, done in the order in which it was added."""

    def __init__(self, on_turn: Work, call_soon: Callable[[Work], object], clock: Callable[[], float]) -> None:
        """`on_turn` is called at the end of each turn. `clock` is not the loop's, which may stand still for a turn."""
        self._on_turn = on_turn
        self._call_soon = call_soon
        self._clock = clock
        self._row: deque[Work] = deque()
        self._called = False

    def add(self, work: Iterable[Work]) -> None:
        """To be done in a turn that comes."""
        self._row.extend(work)
        self._call()

    def finish(self) -> None:
        """Does all that is left, and what is added meanwhile, however long that takes."""
        while self._row:
            self._row.popleft()()
        self._on_turn()

    def _call(self) -> None:
        if self._row and not self._called:
            self._called = True
            self._call_soon(self._turn)

    def _turn(self) -> None:
        until = self._clock() + TURN_S
        try:
            while self._row:
                self._row.popleft()()
                if self._clock() >= until:
                    break
        finally:  # what has failed shall not hold up the rest
            self._called = False
            self._call()
            self._on_turn()
