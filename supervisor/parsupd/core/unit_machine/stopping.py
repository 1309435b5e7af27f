"""Rules for the end of a run: how it is brought about, and what follows. Layer 2."""

import dataclasses
from typing import Any

from msgspec.structs import replace

from parsupd.core import backoff, restart
from parsupd.core.effects import (
    CancelSpawn,
    EndHook,
    Note,
    SignalGroup,
    SignalMain,
    UnitEffect,
    Unkillable,
    Withdraw,
)
from parsupd.core.events import (
    DeadlineReached,
    DependencyFailed,
    EndInterrupted,
    Exited,
    GroupEmpty,
    HookEnded,
    Launched,
    MainChanged,
    Order,
    RestartOrder,
    Spawned,
    SpawnFailed,
    SpawnInterrupted,
    StartOrder,
    StopOrder,
)
from parsupd.core.restart import Outcome
from parsupd.core.unit_machine.basics import (
    Step,
    completed,
    deadline,
    fresh,
    has_next,
    hook_failure,
    hook_name,
    hook_timeout_s,
    is_over,
    move,
    next_hook,
    run_hook,
    stay,
    the_run,
    with_run,
)
from parsupd.core.unit_state import Ending, InvalidTransitionError, Run, UnitState
from parsupd.core.units import (
    SIGABRT,
    SIGKILL,
    SIGNAL_NAMES,
    SIGTERM,
    ExitCause,
    ExitKind,
    HookStage,
    Incarnation,
    KillMode,
    RestartDecision,
    SubState,
    Target,
    UnitType,
)

KEPT_INCARNATIONS = 10
KILL_PATIENCE_S = 10.0  # how long after SIGKILL a group may live before that is said loudly
ABORT_PATIENCE_S = 10.0  # how long a dump may take, at most


def without_run(state: UnitState) -> UnitState:
    """The next run is of the newest description."""
    return replace(state, run=None, spec=state.next_spec or state.spec, next_spec=None)


# Who ends it.


def _ended_by(state: UnitState, event: Order) -> UnitState:
    """Notes who ends the run. A stop outranks a failed dependency: what is not wanted cannot fail."""
    match event:
        case StopOrder():
            state = replace(state, target=Target.DOWN)
        case StartOrder() | RestartOrder():
            state = fresh(state, event)
        case DependencyFailed() if state.target is Target.DOWN:
            return state
    ending = Ending.DEPENDENCY if isinstance(event, DependencyFailed) else Ending.REQUEST
    return with_run(state, ending=ending, ending_reason=event.reason)


def stop(state: UnitState, event: Order, now: float) -> Step:
    cancel = state.sub_state is SubState.STARTING
    return begin_end(_ended_by(state, event), now, event.reason, cancel=cancel)


def stop_differently(state: UnitState, event: Order, now: float) -> Step:  # noqa: ARG001
    after = _ended_by(state, event)
    return stay(after, f"{event.reason}: when it is down, its target is {after.target.value}")


def tear_down(state: UnitState, event: Order, now: float) -> Step:
    """A oneshot that is done, and has commands that undo it: a run without a process of its own."""
    run = Run(started_at=now, ready_at=now, exit=ExitCause.exited(0), empty=True)
    return begin_end(_ended_by(replace(state, run=run), event), now, event.reason)


# The way down: exec_stop, the stop signal, SIGKILL, exec_stop_post.


def begin_end(state: UnitState, now: float, reason: str, *, cancel: bool = False, hooks: bool = True) -> Step:
    """Takes the name away, then runs exec_stop if it was ready once, or asks all processes to end.

    A spawn that fails by itself is not cancelled: its report brings the lines that explain the failure.
    """
    run = the_run(state)
    effects = withdrawn(state)
    state = _not_ready(state, now)
    # What a oneshot has brought about stays, unless its file says otherwise: then this is its end.
    remains = completed(state) and run.ending is Ending.ITSELF and state.spec.remain_after_exit
    if hooks and run.ready_at is not None and state.spec.exec_stop and not remains:
        if run.hook is None:
            return run_hook(state, HookStage.STOP, 0, now, reason, *effects)
        effects.append(EndHook(state.instance, state.generation, SIGKILL))  # a reload is of no use any more
        at = deadline(now, hook_timeout_s(state, HookStage.STOP, 0))
        return move(with_run(state, hook=-1), SubState.EXEC_STOP, now, reason, *effects, deadline_at=at)
    if cancel:
        effects.append(CancelSpawn(state.instance, state.generation))
    return _terminate(state, now, reason, *effects)


def let_end(state: UnitState, now: float, reason: str) -> Step:
    """Without a signal: it ends by itself, and has the usual time for it."""
    effects = withdrawn(state)
    at = deadline(now, state.spec.timeout_stop_s)
    return move(_not_ready(state, now), SubState.STOPPING, now, reason, *effects, deadline_at=at)


def abort(state: UnitState, now: float, reason: str) -> Step:
    """It gives no sign of life: it may leave a dump of its stacks, before it is ended as everything else."""
    instance, generation = state.instance, state.generation
    cause = ExitCause.watchdog(reason)
    effects = [*withdrawn(state), *_ends_hook(state, SIGKILL), SignalMain(instance, generation, SIGABRT)]
    return move(
        with_run(_not_ready(state, now), verdict=cause),
        SubState.ABORTING,
        now,
        f"it {cause}",
        *effects,
        deadline_at=now + min(ABORT_PATIENCE_S, state.spec.timeout_stop_s),
    )


def withdrawn(state: UnitState) -> list[UnitEffect]:
    return [Withdraw(state.instance, state.generation)] if the_run(state).published else []


def _not_ready(state: UnitState, now: float) -> UnitState:
    run = the_run(state)
    return with_run(state, ready_s=0.0 if run.ready_at is None else now - run.ready_at, uri="", unready="")


def _terminate(state: UnitState, now: float, reason: str, *effects: UnitEffect) -> Step:
    run = the_run(state)
    if is_over(run):
        step = _wind_up(state, now, reason)
        return step._replace(effects=(*effects, *step.effects))
    at = deadline(now, state.spec.timeout_stop_s)
    return move(state, SubState.STOPPING, now, reason, *effects, *_asks(state), deadline_at=at)


def _asks(state: UnitState) -> list[UnitEffect]:
    """All of it to end."""
    return [*_signals(state, state.spec.kill_signal), *_ends_hook(state, SIGTERM)]


def _kills(state: UnitState) -> list[UnitEffect]:
    return [*_signals(state, SIGKILL), *_ends_hook(state, SIGKILL)]


def _ends_hook(state: UnitState, signal: int) -> list[UnitEffect]:
    return [] if the_run(state).hook is None else [EndHook(state.instance, state.generation, signal)]


def _signals(state: UnitState, signal: int) -> list[UnitEffect]:
    """To whom the kill mode sends it; nobody when there is no process."""
    run, names = the_run(state), (state.instance, state.generation)
    if run.empty or run.pid is None:
        # The program of a forking unit has ended, and its daemon has not been found: there is a group all the same.
        forked = state.spec.type is UnitType.FORKING and run.exit is not None and not run.empty
        return [SignalGroup(*names, signal)] if forked else []
    match state.spec.kill_mode:
        case KillMode.GROUP:
            return [SignalGroup(*names, signal)]
        case KillMode.MIXED if signal == SIGKILL or run.exit is not None:
            return [SignalGroup(*names, SIGKILL)]
        case _:
            return [SignalMain(*names, signal)]


def with_exit(state: UnitState, event: Exited | Launched) -> UnitState:
    """Notes how the main process ended; others that are to be left to themselves do not count any more.

    Whoever takes a run over may report an end again of which he knows less than is on record.
    """
    run = the_run(state)
    cause = run.exit if run.exit is not None and event.cause.kind is ExitKind.UNKNOWN else event.cause
    alone = state.spec.kill_mode is KillMode.PROCESS and isinstance(event, Exited)
    stack = event.stack if isinstance(event, Exited) else ()
    return with_run(state, exit=cause, stack=stack, empty=run.empty or alone)


def with_nobody(state: UnitState, event: GroupEmpty) -> UnitState:
    """Notes that none of its processes is left. Raises InvalidTransitionError when the main one has not ended."""
    if the_run(state).exit is None:
        raise InvalidTransitionError(state, event, "the process group cannot be empty before the main process exited")
    return with_run(state, empty=True, oom_killed=event.oom_killed)


# While exec_stop runs, or a dump is made.


def exited_meanwhile(state: UnitState, event: Exited | Launched, now: float) -> Step:  # noqa: ARG001
    return stay(with_exit(state, event), f"it {event.cause}, while exec_stop runs")


def emptied_meanwhile(state: UnitState, event: GroupEmpty, now: float) -> Step:  # noqa: ARG001
    return stay(with_nobody(state, event), "nothing of it is left, while exec_stop runs")


def stop_hook_ended(state: UnitState, event: HookEnded, now: float) -> Step:
    failure = hook_failure(state, HookStage.STOP, event.cause)
    if not failure and has_next(state, HookStage.STOP):
        return next_hook(state, HookStage.STOP, now)
    return _terminate(with_run(state, hook=None), now, failure or "exec_stop is done")


def stop_hook_timed_out(state: UnitState, event: DeadlineReached, now: float) -> Step:  # noqa: ARG001
    return _terminate(state, now, f"{hook_name(state, HookStage.STOP)} takes too long")


def aborted(state: UnitState, event: Exited, now: float) -> Step:
    return _terminate(with_exit(state, event), now, f"it {event.cause}")


def not_aborted(state: UnitState, event: DeadlineReached, now: float) -> Step:  # noqa: ARG001
    return _terminate(state, now, "SIGABRT has not ended it")


def abort_hook_ended(state: UnitState, event: HookEnded, now: float) -> Step:  # noqa: ARG001
    return stay(with_run(state, hook=None), "its reload is over")


# While it is being stopped.


def _finish(state: UnitState, now: float, reason: str, *effects: UnitEffect) -> Step:
    """Goes on when nothing of it is left."""
    if is_over(the_run(state)):
        return _wind_up(state, now, reason)
    return stay(state, reason, *effects)


def spawned_too_late(state: UnitState, event: Spawned, now: float) -> Step:  # noqa: ARG001
    kills = state.sub_state is not SubState.STOPPING and state.spec.send_sigkill
    state = with_run(state, pid=event.pid)
    return stay(
        state, "its process came to be after its stop", *_signals(state, SIGKILL if kills else state.spec.kill_signal)
    )


def spawn_given_up(state: UnitState, event: SpawnFailed, now: float) -> Step:
    run = the_run(state)
    verdict = run.verdict or event.cause
    state = with_run(state, verdict=verdict, lines=event.lines, empty=run.empty or run.pid is None)
    return _finish(state, now, "its spawn has ended; its process group has not")


def interrupted(state: UnitState, event: SpawnInterrupted, now: float) -> Step:  # noqa: ARG001
    return _end(state, now)


def signal_again(state: UnitState, event: EndInterrupted, now: float) -> Step:  # noqa: ARG001
    """Twice is better than never: who was not asked to end would be killed when its time is over."""
    match state.sub_state:
        case SubState.ABORTING:
            signals: list[UnitEffect] = [SignalMain(state.instance, state.generation, SIGABRT)]
        case SubState.STOPPING:
            signals = _asks(state)
        case _:
            signals = _kills(state)
    return stay(state, "whether it was signalled is not known, so it is once more", *signals)


def main_exited(state: UnitState, event: Exited | Launched, now: float) -> Step:
    """Main process gone, group perhaps not.

    A worker that crashes can lose its connection before its exit is seen; then the exit is the cause, not the lost
    connection, unless it exited because we stopped it.
    """
    run, cause = the_run(state), event.cause
    ours = {ExitCause.exited(0), ExitCause.signaled(state.spec.kill_signal)}
    if state.sub_state is not SubState.STOPPING:
        ours.add(ExitCause.signaled(SIGKILL))
    by_itself = cause not in ours and cause.kind is not ExitKind.UNKNOWN
    verdict = None if run.symptom and by_itself else run.verdict
    state = with_run(with_exit(state, event), verdict=verdict)
    mixed = state.spec.kill_mode is KillMode.MIXED
    rest = [SignalGroup(state.instance, state.generation, SIGKILL)] if mixed and not run.empty else []
    return _finish(state, now, f"it {cause}; its process group may not be empty", *rest)


def main_changed(state: UnitState, event: MainChanged, now: float) -> Step:  # noqa: ARG001
    return stay(with_run(state, pid=event.pid, exit=None), f"process {event.pid} is its main one")


def group_empty(state: UnitState, event: GroupEmpty, now: float) -> Step:
    return _finish(with_nobody(state, event), now, "nothing of it is left but one of its commands")


def hook_ended(state: UnitState, event: HookEnded, now: float) -> Step:
    return _finish(with_run(state, hook=None), now, f"its command {event.cause}")


def kill(state: UnitState, event: DeadlineReached, now: float) -> Step:  # noqa: ARG001
    run, spec = the_run(state), state.spec
    signal = SIGNAL_NAMES[spec.kill_signal]
    reason = f"its process group is not empty {spec.timeout_stop_s:g} s after {signal}"
    if run.pid is None:
        reason = f"its spawn was given up {spec.timeout_stop_s:g} s ago and has not ended"
    if run.verdict is None and run.exit is None:
        state = with_run(state, verdict=ExitCause.timed_out(f"not down {spec.timeout_stop_s:g} s after {signal}"))
    if not spec.send_sigkill and not run.empty:
        once_more = _signals(state, spec.kill_signal)  # it may have wanted to end by itself, and got none till now
        reason = f"{reason}, and send_sigkill is false; no second copy is started while it lives"
        return _give_up(state, now, reason, *once_more, *_ends_hook(state, SIGKILL))
    return move(state, SubState.KILLING, now, reason, *_kills(state), deadline_at=now + KILL_PATIENCE_S)


def not_killed(state: UnitState, event: DeadlineReached, now: float) -> Step:  # noqa: ARG001
    reason = f"something of it is left {KILL_PATIENCE_S:g} s after SIGKILL; no second copy is started while it lives"
    return _give_up(state, now, reason)


def _give_up(state: UnitState, now: float, reason: str, *effects: UnitEffect) -> Step:
    effect = Unkillable(state.instance, state.generation, the_run(state).pid, reason)
    return move(state, SubState.UNKILLABLE, now, reason, *effects, effect)


# When nothing of it is left.


def _wind_up(state: UnitState, now: float, reason: str) -> Step:
    run, spec = the_run(state), state.spec
    remains = completed(state) and run.ending is Ending.ITSELF and spec.remain_after_exit
    if spec.exec_stop_post and not run.wound_up and not remains:
        return run_hook(state, HookStage.STOP_POST, 0, now, reason)
    return _end(state, now)


def post_hook_ended(state: UnitState, event: HookEnded, now: float) -> Step:
    run = the_run(state)
    failure = hook_failure(state, HookStage.STOP_POST, event.cause)
    if failure:  # the rest is not run; it is the cause only when nothing else has failed
        good = run.verdict is None and restart.outcome_of(state.spec, run.exit or ExitCause.unknown()) is Outcome.CLEAN
        text = f"in {hook_name(state, HookStage.STOP_POST)}"
        verdict = dataclasses.replace(event.cause, text=event.cause.text or text) if good else run.verdict
        return _end(with_run(state, hook=None, verdict=verdict), now)
    if has_next(state, HookStage.STOP_POST):
        return next_hook(state, HookStage.STOP_POST, now)
    return _end(with_run(state, hook=None), now)


def post_hook_timed_out(state: UnitState, event: DeadlineReached, now: float) -> Step:  # noqa: ARG001
    run = the_run(state)
    cause = ExitCause.timed_out(f"{hook_name(state, HookStage.STOP_POST)} takes too long")
    state = with_run(state, wound_up=True, verdict=run.verdict or cause)
    effect = EndHook(state.instance, state.generation, SIGKILL)
    return move(state, SubState.KILLING, now, f"it {cause}", effect, deadline_at=now + KILL_PATIENCE_S)


def learn_meanwhile(state: UnitState, event: SpawnFailed, now: float) -> Step:  # noqa: ARG001
    """The exit of a worker was seen before its spawn failed."""
    run = the_run(state)
    return stay(with_run(state, verdict=run.verdict or event.cause, lines=event.lines), f"it {event.cause}")


def _end(state: UnitState, now: float) -> Step:
    """Nothing of the run is left: decides what follows, and writes the incarnation down."""
    run = the_run(state)
    cause = run.verdict or run.exit or ExitCause.unknown()
    decision, after = _what_follows(state, now, cause)
    if state.incarnations and state.incarnations[-1].generation == state.generation:
        return Step(without_run(after.state), (), after.reason)  # a oneshot that was torn down: its life is on record
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
        oom_killed=run.oom_killed,
        stack=run.stack,
    )
    kept = (*state.incarnations, incarnation)[-KEPT_INCARNATIONS:]
    ended = replace(without_run(after.state), incarnations=kept)
    return Step(ended, (Note(state.instance, incarnation),), after.reason)


def _what_follows(state: UnitState, now: float, cause: ExitCause) -> tuple[RestartDecision, Step]:
    run, spec = the_run(state), state.spec
    match run.ending:
        case Ending.REQUEST if state.target is Target.UP:
            decision = RestartDecision(restart=True, reason=run.ending_reason)
            return decision, move(state, SubState.WAITING, now, decision.reason)
        case Ending.REQUEST:
            decision = restart.decide(spec, cause, stop_requested=True)
            return decision, move(state, SubState.DEAD, now, run.ending_reason)
        case Ending.DEPENDENCY:
            decision = RestartDecision(restart=False, reason=run.ending_reason)
            return decision, move(state, SubState.FAILED, now, decision.reason)
        case Ending.ITSELF:
            decision = restart.decide(spec, cause)
            if decision.restart:
                return decision, _back_off(state, now, decision.reason)
            return decision, _rest(state, now, cause, decision.reason)


def _back_off(state: UnitState, now: float, reason: str) -> Step:
    spec = state.spec
    in_row = backoff.restarts_after_run(
        state.restarts_in_row, ran_s=the_run(state).ready_s, reset_after_s=spec.restart_reset_after_s
    )
    delay_s = backoff.delay_s(in_row, first_s=spec.restart_s, steps=spec.restart_steps, max_s=spec.restart_max_delay_s)
    return move(
        state,
        SubState.BACKOFF,
        now,
        f"{reason}; next start in {delay_s:.3g} s",
        restarts_in_row=in_row + 1,
        deadline_at=now + delay_s,
    )


def _rest(state: UnitState, now: float, cause: ExitCause, reason: str) -> Step:
    """Where an instance rests that ended by itself and is not restarted."""
    if restart.outcome_of(state.spec, cause) is not Outcome.CLEAN:
        return move(state, SubState.FAILED, now, reason)
    if state.spec.type is not UnitType.ONESHOT:
        return move(state, SubState.DEAD, now, reason)
    if state.spec.remain_after_exit:
        return move(state, SubState.EXITED, now, reason)
    changes: dict[str, Any] = {"target": Target.DOWN}  # it has done what was wanted of it
    return move(state, SubState.DEAD, now, reason, **changes)
