"""Units that are started because others have failed: what they are told, and how often that may be. Layer 2."""

from parsupd.core import start_limit
from parsupd.core.unit_state import UnitState
from parsupd.core.units import Failure

BURST, INTERVAL_S = 5, 10.0
"""Not a unit's own start limit, which may be off: a unit that leads to the failure it is started for must not spin."""


class Alarms:
    """When each unit was started for a failure lately."""

    def __init__(self) -> None:
        self._starts: dict[str, tuple[float, ...]] = {}

    def limit_hit(self, unit: str, now: float) -> str:
        """Counts one more; when that is too many, says so."""
        starts = start_limit.admit(self._starts.get(unit, ()), now, burst=BURST, interval_s=INTERVAL_S)
        if starts is None:
            return f"it was started for failures {BURST} times within {INTERVAL_S:g} s"
        self._starts[unit] = starts
        return ""


def failure_of(state: UnitState) -> Failure:
    """What is told to those who are started because this instance has failed."""
    last = state.incarnations[-1].cause if state.incarnations else None
    status = 1 if last is None else last.exit_status
    return Failure(str(state.instance), state.reason, "" if last is None else str(last), status)
