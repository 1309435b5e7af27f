"""Rules for what does not run: orders, the end of a backoff, and reports that come late. Layer 2."""

import dataclasses

from msgspec.structs import replace

from parsupd.core.effects import Note
from parsupd.core.events import DeadlineReached, Order, SpawnFailed
from parsupd.core.unit_machine.basics import Step, fresh, move, stay
from parsupd.core.unit_machine.stopping import tear_down
from parsupd.core.unit_state import UnitState
from parsupd.core.units import SubState, Target


def begin(state: UnitState, event: Order, now: float) -> Step:
    return move(fresh(state, event), SubState.WAITING, now, event.reason)


def already_down(state: UnitState, event: Order, now: float) -> Step:  # noqa: ARG001
    return stay(replace(state, target=Target.DOWN), "it is down")


def remain(state: UnitState, event: Order, now: float) -> Step:  # noqa: ARG001
    return stay(state, "it has nothing left to stop")


def rest(state: UnitState, event: Order, now: float) -> Step:
    return move(state, SubState.DEAD, now, event.reason, target=Target.DOWN)


def fail(state: UnitState, event: Order, now: float) -> Step:
    return move(state, SubState.FAILED, now, event.reason)


def undo(state: UnitState, event: Order, now: float) -> Step:
    return tear_down(state, event, now) if state.spec.has_teardown else rest(state, event, now)


def redo(state: UnitState, event: Order, now: float) -> Step:
    return tear_down(state, event, now) if state.spec.has_teardown else begin(state, event, now)


def try_again(state: UnitState, event: DeadlineReached, now: float) -> Step:  # noqa: ARG001
    return move(state, SubState.WAITING, now, "its backoff is over", restarts=state.restarts + 1)


def learn_why(state: UnitState, event: SpawnFailed, now: float) -> Step:  # noqa: ARG001
    """The exit of a worker was seen before its spawn failed: the lines belong to the incarnation that is over."""
    if not state.incarnations:  # it was forgotten meanwhile, and is in the configuration again
        return stay(state, "ignored: it has been forgotten")
    last = dataclasses.replace(state.incarnations[-1], lines=event.lines)
    return stay(
        replace(state, incarnations=(*state.incarnations[:-1], last)), f"it {event.cause}", Note(state.instance, last)
    )
