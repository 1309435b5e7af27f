"""One line about all units, for the service manager's status. Layer 3."""

from collections.abc import Iterable

from parsupd.core.status import InstanceStatus
from parsupd.core.units import STARTS, SubState, Target

NAMED = 3
"""Instances of a kind that are named; of more, the number must do."""

WORDS = {
    SubState.UNKILLABLE: "unkillable",
    SubState.BACKOFF: "backing off",
    SubState.FAILED: "failed",
    SubState.UNREADY: "not ready",
    SubState.KILLING: "being killed",
    SubState.ABORTING: "being aborted",
    SubState.STOP_POST: "stopping (exec_stop_post)",
    SubState.STOPPING: "stopping",
    SubState.EXEC_STOP: "stopping (exec_stop)",
    SubState.START_PRE: "starting (exec_start_pre)",
    SubState.STARTING: "starting",
    SubState.START_PROBE: "starting (readiness probe)",
    SubState.START_POST: "starting (exec_start_post)",
    SubState.RELOADING: "reloading",
    SubState.WAITING: "waiting",
    SubState.RUNNING: "ready",
    SubState.EXITED: "done",
    SubState.DEAD: "down",
}
"""How each state is said, the worst first."""
CALM = frozenset({SubState.RUNNING, SubState.EXITED, SubState.DEAD})
"""States of which the number is enough."""


def summary(statuses: Iterable[InstanceStatus]) -> str:
    """Such as `12 units: 11 ready, 1 backing off (pricing@3)`; an instance counts as a unit here, as in systemd."""
    names: dict[SubState, list[str]] = {state: [] for state in WORDS}
    for status in statuses:
        names[status.sub_state].append(status.name)
    total = sum(map(len, names.values()))
    calm = [state for state in WORDS if state in CALM]
    parts = []
    for state in (*calm, *(state for state in WORDS if state not in CALM)):
        found = names[state]
        if found:
            more = ", ..." if len(found) > NAMED else ""
            which = "" if state in CALM else f" ({', '.join(found[:NAMED])}{more})"
            parts.append(f"{len(found)} {WORDS[state]}{which}")
    return f"{total} unit{'' if total == 1 else 's'}" + (f": {', '.join(parts)}" if parts else "")


def is_started(statuses: Iterable[InstanceStatus]) -> bool:
    """Whether the first attempt of everything that is wanted is over, whatever came of it.

    What waits while nothing starts, waits for something that backs off or has ended: that can take for ever.
    """
    return not any(status.target is Target.UP and status.sub_state in STARTS for status in statuses)
