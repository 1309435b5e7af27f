"""What `status`, `list` and `why` show of one instance. Layer 1."""

from collections.abc import Collection
from dataclasses import dataclass

from parsupd.core.events import StopOrder
from parsupd.core.tally import StopLike
from parsupd.core.unit_state import StoryEntry, UnitState
from parsupd.core.units import ACTIVE_STATE, ActiveState, Incarnation, SubState, Target, UnitType


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """What `status` and `list` show of one instance. `since` is an instant of the monotonic clock."""

    name: str
    unit: str
    type: UnitType
    description: str
    target: Target
    active_state: ActiveState
    sub_state: SubState
    since: float | None  # None: it is as it was when parsupd got to know it
    reason: str
    pid: int | None
    uri: str  # empty unless a worker is ready
    generation: int
    restarts: int


@dataclass(frozen=True, slots=True)
class Why:
    """What `why` shows of one instance: what is, how its last incarnations ended, and what was decided lately."""

    status: InstanceStatus
    incarnations: tuple[Incarnation, ...]
    story: tuple[StoryEntry, ...]
    next_attempt_at: float | None  # set while it backs off


def status_of(state: UnitState, held: StopLike | None, blockers: Collection[str]) -> InstanceStatus:
    """The status of an instance whose end is held back by `held`, and whose unit waits for `blockers`, in words."""
    reason = state.reason
    if state.sub_state is SubState.WAITING and blockers:
        reason = f"{reason}; waits for {', '.join(blockers)}"
    if held is not None:
        reason = f"{reason}; {held.reason}: waits until its dependants are down"
    return InstanceStatus(
        name=str(state.instance),
        unit=state.instance.unit,
        type=state.spec.type,
        description=state.spec.description,
        target=Target.DOWN if isinstance(held, StopOrder) else state.target,
        active_state=ACTIVE_STATE[state.sub_state],
        sub_state=state.sub_state,
        since=state.since or None,
        reason=reason,
        pid=None if state.run is None else state.run.pid,
        uri="" if state.run is None else state.run.published,
        generation=state.generation,
        restarts=state.restarts,
    )


def why_of(state: UnitState, status: InstanceStatus) -> Why:
    """What happened to an instance that has this status."""
    next_attempt_at = state.deadline_at if state.sub_state is SubState.BACKOFF else None
    return Why(status, state.incarnations, state.story, next_attempt_at)
