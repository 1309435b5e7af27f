"""One instance of a unit: every state, every transition. Layer 2.

Rules:

1. Everything that changes a `UnitState` is in this file and is reached through TABLE, which is keyed by names:
   sub-state and type of event. A pair that TABLE does not list is an error and carries the story.
2. The machine knows one instance. It never asks whether others are ready: the fleet gives DependenciesReady.
3. `target` is what is wanted, `sub_state` what is. Orders set the target; the machine converges.
4. Each Spawn has a new generation. A report of an older generation never acts: it is written into the story, no more.
   At most one generation lives: `run` holds it, and exists exactly in STARTING, RUNNING, STOPPING and KILLING.
5. A run ends only when its process group is empty (or no process ever came to be). Nothing is spawned before that.
6. Who ended a run decides what follows: a request (the target), a dependency (failed), or nobody (the restart policy).
7. `now` is an argument; a retry is a deadline, never a loop, so that a stop can always come between.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from msgspec.structs import replace

from parsupd.core import backoff, restart, start_limit
from parsupd.core.effects import (
    CancelSpawn,
    Changed,
    Note,
    Publish,
    SignalGroup,
    Spawn,
    UnitEffect,
    Unkillable,
    Withdraw,
)
from parsupd.core.events import (
    DeadlineReached,
    DependenciesReady,
    DependencyFailed,
    Exited,
    GroupEmpty,
    Order,
    ReadinessLost,
    Ready,
    Redescribed,
    Report,
    RestartOrder,
    Spawned,
    SpawnFailed,
    SpawnInterrupted,
    StartOrder,
    StopOrder,
    Unhealthy,
    UnitEvent,
)
from parsupd.core.restart import Outcome
from parsupd.core.unit_keys import live_part
from parsupd.core.unit_state import Ending, InvalidTransitionError, Run, StoryEntry, UnitState
from parsupd.core.units import (
    SIGKILL,
    SIGNAL_NAMES,
    ExitCause,
    ExitKind,
    Incarnation,
    RestartDecision,
    SubState,
    Target,
    UnitType,
)

KEPT_INCARNATIONS = 10
KEPT_STORY = 20
KILL_PATIENCE_S = 10.0  # how long after SIGKILL a group may live before that is said loudly


class Step(NamedTuple):
    """What a rule decides; `reason` tells why nothing changed, and is the state's own reason when something did."""

    state: UnitState
    effects: tuple[UnitEffect, ...]
    reason: str


def step(state: UnitState, event: UnitEvent, now: float) -> tuple[UnitState, tuple[UnitEffect, ...]]:
    """Gives one event to the machine.

    Args:
        state: What is.
        event: What happened, or was ordered.
        now: The instant, in seconds of a monotonic clock.

    Raises:
        InvalidTransitionError: The event cannot come in this state.
    """
    rule = _rule(state, event)
    after, effects, reason = rule(state, event, now)
    decision = f"stays {state.sub_state.value}"
    if after.sub_state is not state.sub_state:
        decision = f"{state.sub_state.value} -> {after.sub_state.value}"
        changed = Changed(state.instance, after.generation, state.sub_state, after.sub_state, reason)
        effects = (*effects, changed)
    story = (*state.story, StoryEntry(now, event, decision, reason))[-KEPT_STORY:]
    return replace(after, story=story), effects


def next_deadline(state: UnitState) -> float | None:
    """The instant at which DeadlineReached is due, or None."""
    return state.deadline_at


def _rule(state: UnitState, event: UnitEvent) -> "Rule":
    if isinstance(event, Report):
        if event.generation < state.generation:
            return _ignore_old
        if event.generation > state.generation:
            raise InvalidTransitionError(state, event, "a report of a generation that was never spawned")
    rule = TABLE[state.sub_state].get(type(event))
    if rule is None:
        raise InvalidTransitionError(state, event, "no such transition")
    return rule


# What rules are made of.


def _stay(state: UnitState, reason: str, *effects: UnitEffect) -> Step:
    return Step(state, effects, reason)


def _move(state: UnitState, to: SubState, now: float, reason: str, *effects: UnitEffect, **changes: Any) -> Step:
    """Goes to another sub-state; a deadline is only what `changes` sets anew."""
    changes.setdefault("deadline_at", None)
    return Step(replace(state, sub_state=to, since=now, reason=reason, **changes), effects, reason)


def _deadline(now: float, timeout_s: float) -> float | None:
    return None if math.isinf(timeout_s) else now + timeout_s


def _the_run(state: UnitState) -> Run:
    assert state.run is not None, f"{state.instance} is {state.sub_state.value} without a run"
    return state.run


def _with_run(state: UnitState, **changes: Any) -> UnitState:
    return replace(state, run=replace(_the_run(state), **changes))


def _without_run(state: UnitState) -> UnitState:
    """The next run is of the newest description."""
    return replace(state, run=None, spec=state.next_spec or state.spec, next_spec=None)


def _fresh(state: UnitState, event: Order) -> UnitState:
    """Forgets what earlier failures led to, because somebody asked for a start; for others' sake it is no start."""
    if isinstance(event, RestartOrder) and not event.fresh:
        return replace(state, target=Target.UP, restarts=state.restarts + 1, starts=state.starts[:-1])
    failure = event.failure if isinstance(event, StartOrder) else None
    return replace(state, target=Target.UP, restarts=0, restarts_in_row=0, starts=(), failure=failure)


# Rules for orders.


def _begin(state: UnitState, event: Order, now: float) -> Step:
    return _move(_fresh(state, event), SubState.WAITING, now, event.reason)


def _spawn(state: UnitState, event: DependenciesReady, now: float) -> Step:
    spec = state.spec
    starts = start_limit.admit(state.starts, now, burst=spec.start_limit_burst, interval_s=spec.start_limit_interval_s)
    if starts is None:
        reason = f"start limit hit: {spec.start_limit_burst} starts within {spec.start_limit_interval_s:g} s"
        return _move(state, SubState.FAILED, now, reason)
    generation = state.generation + 1
    return _move(
        state,
        SubState.STARTING,
        now,
        event.reason,
        Spawn(state.instance, generation),
        generation=generation,
        run=Run(started_at=now),
        starts=starts,
        deadline_at=_deadline(now, spec.timeout_start_s),
    )


def _already_up(state: UnitState, event: Order, now: float) -> Step:  # noqa: ARG001
    return _stay(replace(state, target=Target.UP, starts=()), "it is up, or on its way")


def _already_down(state: UnitState, event: Order, now: float) -> Step:  # noqa: ARG001
    return _stay(replace(state, target=Target.DOWN), "it is down")


def _remain(state: UnitState, event: Order, now: float) -> Step:  # noqa: ARG001
    return _stay(state, "it has nothing left to stop")


def _rest(state: UnitState, event: Order, now: float) -> Step:
    return _move(state, SubState.DEAD, now, event.reason, target=Target.DOWN)


def _fail(state: UnitState, event: Order, now: float) -> Step:
    return _move(state, SubState.FAILED, now, event.reason)


def _ended_by(state: UnitState, event: Order) -> UnitState:
    """Notes who ends the run. A stop outranks a failed dependency: what is not wanted cannot fail."""
    match event:
        case StopOrder():
            state = replace(state, target=Target.DOWN)
        case StartOrder() | RestartOrder():
            state = _fresh(state, event)
        case DependencyFailed() if state.target is Target.DOWN:
            return state
    ending = Ending.DEPENDENCY if isinstance(event, DependencyFailed) else Ending.REQUEST
    return _with_run(state, ending=ending, ending_reason=event.reason)


def _stop(state: UnitState, event: Order, now: float) -> Step:
    cancel = state.sub_state is SubState.STARTING
    return _begin_stop(_ended_by(state, event), now, event.reason, cancel=cancel)


def _stop_differently(state: UnitState, event: Order, now: float) -> Step:  # noqa: ARG001
    after = _ended_by(state, event)
    return _stay(after, f"{event.reason}: when it is down, its target is {after.target.value}")


def _redescribe(state: UnitState, event: Redescribed, now: float) -> Step:  # noqa: ARG001
    """What has gone into a process stays while that runs; what is being stopped is stopped as described till now."""
    stopping = state.sub_state in {SubState.STOPPING, SubState.KILLING}
    spec = event.spec if state.run is None else state.spec if stopping else live_part(state.spec, event.spec)
    later = spec != event.spec
    reason = "its configuration has changed" + (
        ", for what a process is started with from its next run on" if later else ""
    )
    return _stay(replace(state, spec=spec, next_spec=event.spec if later else None), reason)


# Rules for the life of a run.


def _begin_stop(state: UnitState, now: float, reason: str, *, cancel: bool = False) -> Step:
    """Takes the name away, then asks the whole process group to end.

    A spawn that fails by itself is not cancelled: its report brings the lines that explain the failure.
    """
    run, instance, generation = _the_run(state), state.instance, state.generation
    effects: list[UnitEffect] = []
    if run.uri:
        effects.append(Withdraw(instance, generation))
    if cancel:
        effects.append(CancelSpawn(instance, generation))
    if run.pid is not None:
        effects.append(SignalGroup(instance, generation, state.spec.kill_signal))
    ready_s = 0.0 if run.ready_at is None else now - run.ready_at
    deadline_at = _deadline(now, state.spec.timeout_stop_s)
    return _move(
        _with_run(state, ready_s=ready_s, uri=""), SubState.STOPPING, now, reason, *effects, deadline_at=deadline_at
    )


def _spawned(state: UnitState, event: Spawned, now: float) -> Step:
    state = _with_run(state, pid=event.pid)
    if state.spec.type is UnitType.SIMPLE:
        return _move(_with_run(state, ready_at=now), SubState.RUNNING, now, f"process {event.pid} runs its program")
    return _stay(state, f"process {event.pid} is at work, not ready")


def _ready(state: UnitState, event: Ready, now: float) -> Step:
    publish = Publish(state.instance, state.generation, event.uri)
    return _move(_with_run(state, ready_at=now, uri=event.uri), SubState.RUNNING, now, "it is ready", publish)


def _spawn_failed(state: UnitState, event: SpawnFailed, now: float) -> Step:
    state = _with_run(state, verdict=event.cause, lines=event.lines)
    if _the_run(state).pid is None:
        return _end(state, now)
    return _begin_stop(state, now, f"it {event.cause}")


def _interrupted(state: UnitState, event: SpawnInterrupted, now: float) -> Step:  # noqa: ARG001
    """Not its own failure: it starts anew, without backoff, and the attempt does not count."""
    state = replace(_without_run(state), starts=state.starts[:-1])
    return _move(state, SubState.WAITING, now, "parsupd was replaced while it was being started")


def _exited(state: UnitState, event: Exited, now: float) -> Step:
    return _begin_stop(_with_run(state, exit=event.cause), now, f"it {event.cause}")


def _start_timed_out(state: UnitState, event: DeadlineReached, now: float) -> Step:  # noqa: ARG001
    cause = ExitCause.timed_out(f"not ready within {state.spec.timeout_start_s:g} s")
    return _begin_stop(_with_run(state, verdict=cause), now, f"it {cause}", cancel=True)


def _readiness_lost(state: UnitState, event: ReadinessLost, now: float) -> Step:
    cause = ExitCause.watchdog(event.reason)
    return _begin_stop(_with_run(state, verdict=cause), now, f"it {cause}")


def _unhealthy(state: UnitState, event: Unhealthy, now: float) -> Step:
    cause = ExitCause.unhealthy(event.reason)
    cancel = state.sub_state is SubState.STARTING
    return _begin_stop(_with_run(state, verdict=cause), now, f"it {cause}", cancel=cancel)


# Rules for a run that is being stopped.


def _spawned_too_late(state: UnitState, event: Spawned, now: float) -> Step:  # noqa: ARG001
    signal = state.spec.kill_signal if state.sub_state is SubState.STOPPING else SIGKILL
    effect = SignalGroup(state.instance, state.generation, signal)
    return _stay(_with_run(state, pid=event.pid), "its process came to be after its stop", effect)


def _spawn_given_up(state: UnitState, event: SpawnFailed, now: float) -> Step:
    run = _the_run(state)
    state = _with_run(state, verdict=run.verdict or event.cause, lines=event.lines)
    if run.pid is None:
        return _end(state, now)
    return _stay(state, "its spawn has ended; its process group has not")


def _interrupted_at_its_end(state: UnitState, event: SpawnInterrupted, now: float) -> Step:  # noqa: ARG001
    return _end(state, now)


def _main_exited(state: UnitState, event: Exited, now: float) -> Step:  # noqa: ARG001
    """Main process gone, group perhaps not.

    A worker that crashes can lose its connection before its exit is seen; then the exit is the cause, not the lost
    connection, unless it exited because we stopped it.
    """
    run, cause = _the_run(state), event.cause
    ours = {ExitCause.exited(0), ExitCause.signaled(state.spec.kill_signal)}
    if state.sub_state is SubState.KILLING:
        ours.add(ExitCause.signaled(SIGKILL))
    symptom = run.verdict is not None and run.verdict.kind is ExitKind.WATCHDOG
    by_itself = cause not in ours and cause.kind is not ExitKind.UNKNOWN
    verdict = None if symptom and by_itself else run.verdict
    return _stay(_with_run(state, exit=cause, verdict=verdict), f"it {cause}; its process group may not be empty")


def _kill(state: UnitState, event: DeadlineReached, now: float) -> Step:  # noqa: ARG001
    run, spec = _the_run(state), state.spec
    signal = SIGNAL_NAMES[spec.kill_signal]
    reason = f"its process group is not empty {spec.timeout_stop_s:g} s after {signal}"
    if run.pid is None:
        reason = f"its spawn was given up {spec.timeout_stop_s:g} s ago and has not ended"
    if run.verdict is None and run.exit is None:
        state = _with_run(state, verdict=ExitCause.timed_out(f"not down {spec.timeout_stop_s:g} s after {signal}"))
    effects = () if run.pid is None else (SignalGroup(state.instance, state.generation, SIGKILL),)
    return _move(state, SubState.KILLING, now, reason, *effects, deadline_at=now + KILL_PATIENCE_S)


def _unkillable(state: UnitState, event: DeadlineReached, now: float) -> Step:  # noqa: ARG001
    reason = f"something of it is left {KILL_PATIENCE_S:g} s after SIGKILL; no second copy is started while it lives"
    effect = Unkillable(state.instance, state.generation, _the_run(state).pid, reason)
    return _stay(replace(state, deadline_at=None), reason, effect)


def _group_empty(state: UnitState, event: GroupEmpty, now: float) -> Step:
    if _the_run(state).exit is None:
        raise InvalidTransitionError(state, event, "the process group cannot be empty before the main process exited")
    return _end(state, now)


def _end(state: UnitState, now: float) -> Step:
    """Nothing of the run is left: decides what follows, and writes the incarnation down."""
    run = _the_run(state)
    cause = run.verdict or run.exit or ExitCause.unknown()
    decision, after = _what_follows(state, now, cause)
    incarnation = Incarnation(
        generation=state.generation,
        pid=run.pid,
        started_at=run.started_at,
        ready_at=run.ready_at,
        ended_at=now,
        cause=cause,
        decision=decision,
        next_attempt_at=after.state.deadline_at,
        lines=run.lines,
    )
    kept = (*state.incarnations, incarnation)[-KEPT_INCARNATIONS:]
    ended = replace(_without_run(after.state), incarnations=kept)
    return Step(ended, (Note(state.instance, incarnation),), after.reason)


def _what_follows(state: UnitState, now: float, cause: ExitCause) -> tuple[RestartDecision, Step]:
    run, spec = _the_run(state), state.spec
    oneshot = spec.type is UnitType.ONESHOT
    match run.ending:
        case Ending.REQUEST if state.target is Target.UP:
            decision = RestartDecision(restart=True, reason=run.ending_reason)
            return decision, _move(state, SubState.WAITING, now, decision.reason)
        case Ending.REQUEST:
            decision = restart.decide(spec.restart, cause, oneshot=oneshot, stop_requested=True)
            return decision, _move(state, SubState.DEAD, now, run.ending_reason)
        case Ending.DEPENDENCY:
            decision = RestartDecision(restart=False, reason=run.ending_reason)
            return decision, _move(state, SubState.FAILED, now, decision.reason)
        case Ending.ITSELF:
            decision = restart.decide(spec.restart, cause, oneshot=oneshot)
            if decision.restart:
                return decision, _back_off(state, now, decision.reason)
            return decision, _move(state, _resting_state(cause, oneshot=oneshot), now, decision.reason)


def _back_off(state: UnitState, now: float, reason: str) -> Step:
    spec = state.spec
    in_row = backoff.restarts_after_run(
        state.restarts_in_row, ran_s=_the_run(state).ready_s, reset_after_s=spec.restart_reset_after_s
    )
    delay_s = backoff.delay_s(in_row, first_s=spec.restart_s, steps=spec.restart_steps, max_s=spec.restart_max_delay_s)
    return _move(
        state,
        SubState.BACKOFF,
        now,
        f"{reason}; next start in {delay_s:.3g} s",
        restarts_in_row=in_row + 1,
        deadline_at=now + delay_s,
    )


def _resting_state(cause: ExitCause, *, oneshot: bool) -> SubState:
    """Where an instance rests that ended by itself and is not restarted."""
    if restart.outcome(cause, oneshot=oneshot) is not Outcome.CLEAN:
        return SubState.FAILED
    return SubState.EXITED if oneshot else SubState.DEAD


def _try_again(state: UnitState, event: DeadlineReached, now: float) -> Step:  # noqa: ARG001
    return _move(state, SubState.WAITING, now, "its backoff is over", restarts=state.restarts + 1)


# Rules for what comes when it no longer matters.


def _ignore_old(state: UnitState, event: Report, now: float) -> Step:  # noqa: ARG001
    return _stay(state, f"ignored: generation {event.generation} is over")


def _ignore_late(state: UnitState, event: Report, now: float) -> Step:  # noqa: ARG001
    return _stay(state, "ignored: it has ended, or is being stopped")


def _learn_why(state: UnitState, event: SpawnFailed, now: float) -> Step:  # noqa: ARG001
    """The exit of a worker was seen before its spawn failed: the lines belong to the incarnation that is over."""
    if not state.incarnations:  # it was forgotten meanwhile, and is in the configuration again
        return _stay(state, "ignored: it has been forgotten")
    last = dataclasses.replace(state.incarnations[-1], lines=event.lines)
    return _stay(
        replace(state, incarnations=(*state.incarnations[:-1], last)), f"it {event.cause}", Note(state.instance, last)
    )


Rule = Callable[[UnitState, Any, float], Step]

# Reports that may come after the process was gone, from the other source (see `events`).
_AFTER_THE_END: dict[type[UnitEvent], Rule] = {
    Ready: _ignore_late,
    ReadinessLost: _ignore_late,
    Unhealthy: _ignore_late,
    SpawnFailed: _learn_why,
}

_ENDING: dict[type[UnitEvent], Rule] = {
    Redescribed: _redescribe,
    StartOrder: _stop_differently,
    StopOrder: _stop_differently,
    RestartOrder: _stop_differently,
    DependencyFailed: _stop_differently,
    Spawned: _spawned_too_late,
    Ready: _ignore_late,
    ReadinessLost: _ignore_late,
    Unhealthy: _ignore_late,
    SpawnFailed: _spawn_given_up,
    SpawnInterrupted: _interrupted_at_its_end,
    Exited: _main_exited,
    GroupEmpty: _group_empty,
}

# THE table.
TABLE: Mapping[SubState, Mapping[type[UnitEvent], Rule]] = {
    SubState.DEAD: {
        Redescribed: _redescribe,
        StartOrder: _begin,
        StopOrder: _already_down,
        RestartOrder: _begin,
        DependencyFailed: _remain,
        **_AFTER_THE_END,
    },
    SubState.WAITING: {
        Redescribed: _redescribe,
        StartOrder: _already_up,
        StopOrder: _rest,
        RestartOrder: _already_up,
        DependencyFailed: _fail,
        DependenciesReady: _spawn,
        **_AFTER_THE_END,
    },
    SubState.STARTING: {
        Redescribed: _redescribe,
        StartOrder: _already_up,
        StopOrder: _stop,
        RestartOrder: _stop,
        DependencyFailed: _stop,
        Spawned: _spawned,
        Ready: _ready,
        SpawnFailed: _spawn_failed,
        Unhealthy: _unhealthy,
        SpawnInterrupted: _interrupted,
        Exited: _exited,
        DeadlineReached: _start_timed_out,
    },
    SubState.RUNNING: {
        Redescribed: _redescribe,
        StartOrder: _already_up,
        StopOrder: _stop,
        RestartOrder: _stop,
        DependencyFailed: _stop,
        ReadinessLost: _readiness_lost,
        Unhealthy: _unhealthy,
        Exited: _exited,
    },
    SubState.EXITED: {
        Redescribed: _redescribe,
        StartOrder: _already_up,
        StopOrder: _rest,
        RestartOrder: _begin,
        DependencyFailed: _remain,
        **_AFTER_THE_END,
    },
    SubState.STOPPING: {**_ENDING, DeadlineReached: _kill},
    SubState.KILLING: {**_ENDING, DeadlineReached: _unkillable},
    SubState.BACKOFF: {
        Redescribed: _redescribe,
        StartOrder: _begin,
        StopOrder: _rest,
        RestartOrder: _begin,
        DependencyFailed: _fail,
        DeadlineReached: _try_again,
        **_AFTER_THE_END,
    },
    SubState.FAILED: {
        Redescribed: _redescribe,
        StartOrder: _begin,
        StopOrder: _already_down,
        RestartOrder: _begin,
        DependencyFailed: _remain,
        **_AFTER_THE_END,
    },
}
