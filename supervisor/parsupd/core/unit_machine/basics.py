"""What the rules of the unit machine are made of. Layer 2."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from msgspec.structs import replace

from parsupd.core.effects import RunHook, UnitEffect
from parsupd.core.events import Order, Report, RestartOrder, StartOrder
from parsupd.core.unit_state import Run, UnitState
from parsupd.core.units import ExitCause, ExitKind, HookStage, SubState, Target, UnitType


class Step(NamedTuple):
    """What a rule decides; `reason` tells why nothing changed, and is the state's own reason when something did."""

    state: UnitState
    effects: tuple[UnitEffect, ...]
    reason: str
    told: bool = True
    """Whether the story has it: what comes again and again while all is well would push the rest out."""


Rule = Callable[[UnitState, Any, float], Step]

STATE_OF = {
    HookStage.START_PRE: SubState.START_PRE,
    HookStage.START_POST: SubState.START_POST,
    HookStage.RELOAD: SubState.RELOADING,
    HookStage.STOP: SubState.EXEC_STOP,
    HookStage.STOP_POST: SubState.STOP_POST,
}
"""The state in which the commands of a stage run."""


def stay(state: UnitState, reason: str, *effects: UnitEffect) -> Step:
    return Step(state, effects, reason)


def move(state: UnitState, to: SubState, now: float, reason: str, *effects: UnitEffect, **changes: Any) -> Step:
    """Goes to another sub-state; a deadline is only what `changes` sets anew."""
    changes.setdefault("deadline_at", None)
    return Step(replace(state, sub_state=to, since=now, reason=reason, **changes), effects, reason)


def deadline(now: float, timeout_s: float) -> float | None:
    return None if math.isinf(timeout_s) else now + timeout_s


def the_run(state: UnitState) -> Run:
    assert state.run is not None, f"{state.instance} is {state.sub_state.value} without a run"
    return state.run


def with_run(state: UnitState, **changes: Any) -> UnitState:
    return replace(state, run=replace(the_run(state), **changes))


def fresh(state: UnitState, event: Order) -> UnitState:
    """Forgets what earlier failures led to, because somebody asked for a start; for others' sake it is no start."""
    if isinstance(event, RestartOrder) and not event.fresh:
        return replace(state, target=Target.UP, restarts=state.restarts + 1, starts=state.starts[:-1])
    failure = event.failure if isinstance(event, StartOrder) else None
    return replace(state, target=Target.UP, restarts=0, restarts_in_row=0, starts=(), failure=failure)


def is_over(run: Run) -> bool:
    """Whether nothing of it is left, and none of its commands runs."""
    return run.empty and run.hook is None


# The unit's own commands.


def hook_timeout_s(state: UnitState, stage: HookStage, index: int) -> float:
    hooks = state.spec.hooks(stage)
    own = hooks[index].timeout_s if index < len(hooks) else None  # a reload may have removed the one that runs
    if own is not None:
        return own
    stops = stage in {HookStage.STOP, HookStage.STOP_POST}
    return state.spec.timeout_stop_s if stops else state.spec.timeout_start_s


def run_hook(state: UnitState, stage: HookStage, index: int, now: float, reason: str, *effects: UnitEffect) -> Step:
    """Runs one command of a stage, in the state that is made for it."""
    run = the_run(state)
    effect = RunHook(state.instance, state.generation, stage, index, run.verdict or run.exit)
    at = deadline(now, hook_timeout_s(state, stage, index))
    state = with_run(state, hook=index)
    # What is not ready goes on saying that while it reloads: it matters more to others.
    to = SubState.UNREADY if state.sub_state is SubState.UNREADY and stage is HookStage.RELOAD else STATE_OF[stage]
    if state.sub_state is to:
        return stay(replace(state, deadline_at=at), f"runs {stage.value}[{index}]", *effects, effect)
    return move(state, to, now, reason, *effects, effect, deadline_at=at)


def has_next(state: UnitState, stage: HookStage) -> bool:
    """Whether another command of the stage follows the one that has run; a reload may have changed them."""
    done = the_run(state).hook
    return done is not None and done + 1 < len(state.spec.hooks(stage))


def next_hook(state: UnitState, stage: HookStage, now: float) -> Step:
    done = the_run(state).hook
    assert done is not None, f"{state.instance} runs no command"
    return run_hook(state, stage, done + 1, now, state.reason)


def hook_name(state: UnitState, stage: HookStage) -> str:
    index, hooks = the_run(state).hook, state.spec.hooks(stage)
    known = index is not None and 0 <= index < len(hooks)
    return f"{stage.value}[{index}] ({hooks[index].exec[0]})" if known and index is not None else stage.value


def hook_failure(state: UnitState, stage: HookStage, cause: ExitCause) -> str:
    """How the command that has ended has failed; empty when it has not, or when that is to be ignored."""
    index, hooks = the_run(state).hook, state.spec.hooks(stage)
    ignored = index is None or not 0 <= index < len(hooks) or hooks[index].ignore_failure
    return "" if ignored or cause == ExitCause.exited(0) else f"{hook_name(state, stage)} {cause}"


# Ends.


def completed(state: UnitState) -> bool:
    """Whether the run is that of a oneshot that has done its work."""
    run = the_run(state)
    return (
        state.spec.type is UnitType.ONESHOT
        and run.verdict is None
        and run.exit is not None
        and is_success(state, run.exit)
    )


def is_success(state: UnitState, cause: ExitCause) -> bool:
    """Whether a program that was to do something and end has done it."""
    return cause == ExitCause.exited(0) or (
        cause.kind is ExitKind.EXITED and cause.number in state.spec.success_exit_status
    )


# Rules for what comes when it no longer matters.


def already_up(state: UnitState, event: Order, now: float) -> Step:  # noqa: ARG001
    return stay(replace(state, target=Target.UP, starts=()), "it is up, or on its way")


def ignore_old(state: UnitState, event: Report, now: float) -> Step:  # noqa: ARG001
    return stay(state, f"ignored: generation {event.generation} is over")


def ignore_late(state: UnitState, event: Report, now: float) -> Step:  # noqa: ARG001
    return stay(state, "ignored: it has ended, or is being stopped")
