"""Rules for a start: the limit, exec_start_pre, the spawn, the readiness probe, exec_start_post. Layer 2."""

from msgspec.structs import replace

from parsupd.core import start_limit
from parsupd.core.effects import Escalate, FindMain, Spawn
from parsupd.core.events import (
    DeadlineReached,
    DependenciesReady,
    Exited,
    FoundReady,
    FoundUnready,
    GroupEmpty,
    HookEnded,
    Launched,
    MainChanged,
    Ready,
    Redescribed,
    Spawned,
    SpawnFailed,
    SpawnInterrupted,
)
from parsupd.core.unit_machine.basics import (
    Step,
    deadline,
    has_next,
    hook_failure,
    hook_name,
    hook_timeout_s,
    is_success,
    move,
    next_hook,
    run_hook,
    stay,
    the_run,
    with_run,
)
from parsupd.core.unit_machine.running import NOT_ASKED, begin_running, nobody_goes_on, redescribe
from parsupd.core.unit_machine.stopping import begin_end, with_exit, with_nobody, without_run
from parsupd.core.unit_state import Run, UnitState
from parsupd.core.units import ExitCause, HookStage, StartLimitAction, SubState, UnitType


def launch(state: UnitState, event: DependenciesReady, now: float) -> Step:
    spec = state.spec
    starts = start_limit.admit(state.starts, now, burst=spec.start_limit_burst, interval_s=spec.start_limit_interval_s)
    if starts is None:
        return _limit_hit(state, now)
    state = replace(state, generation=state.generation + 1, run=Run(started_at=now, empty=True), starts=starts)
    if spec.exec_start_pre:
        return run_hook(state, HookStage.START_PRE, 0, now, event.reason)
    return _spawn(state, now, event.reason)


def _limit_hit(state: UnitState, now: float) -> Step:
    spec = state.spec
    reason = f"start limit hit: {spec.start_limit_burst} starts within {spec.start_limit_interval_s:g} s"
    match spec.start_limit_action:
        case StartLimitAction.FAIL:
            return move(state, SubState.FAILED, now, reason)
        case StartLimitAction.EXIT:
            return move(state, SubState.FAILED, now, reason, Escalate(state.instance, f"{state.instance}: {reason}"))
        case StartLimitAction.SLOW_RETRY:
            at = start_limit.retry_at(
                state.starts, now, interval_s=spec.start_limit_interval_s, not_within_s=spec.restart_max_delay_s
            )
            return move(state, SubState.BACKOFF, now, f"{reason}; next start in {at - now:.3g} s", deadline_at=at)


def _spawn(state: UnitState, now: float, reason: str) -> Step:
    return move(
        with_run(state, empty=False, hook=None),
        SubState.STARTING,
        now,
        reason,
        Spawn(state.instance, state.generation),
        deadline_at=deadline(now, state.spec.timeout_start_s),
    )


# exec_start_pre


def prepared(state: UnitState, event: HookEnded, now: float) -> Step:
    failure = hook_failure(state, HookStage.START_PRE, event.cause)
    if failure:
        cause = ExitCause.spawn_failed(failure)
        return begin_end(with_run(state, hook=None, verdict=cause), now, f"it {cause}")
    if has_next(state, HookStage.START_PRE):
        return next_hook(state, HookStage.START_PRE, now)
    return _spawn(state, now, "exec_start_pre is done")


def hook_timed_out(state: UnitState, event: DeadlineReached, now: float) -> Step:  # noqa: ARG001
    """A command before or after the start takes too long: the start has failed."""
    stage = HookStage.START_PRE if state.sub_state is SubState.START_PRE else HookStage.START_POST
    index = the_run(state).hook
    limit_s = hook_timeout_s(state, stage, index) if index is not None else 0.0
    cause = ExitCause.timed_out(f"{hook_name(state, stage)} took more than {limit_s:g} s")
    return begin_end(with_run(state, verdict=cause), now, f"it {cause}")


# The spawn


def spawned(state: UnitState, event: Spawned, now: float) -> Step:
    state = with_run(state, pid=event.pid)
    if state.spec.type is UnitType.SIMPLE:
        return _started(state, now, f"process {event.pid} runs its program")
    return stay(state, f"process {event.pid} is at work, not ready")


def ready(state: UnitState, event: Ready, now: float) -> Step:
    return _started(with_run(state, uri=event.uri), now, "it is ready")


def launched(state: UnitState, event: Launched, now: float) -> Step:
    """The program of a forking unit has ended; when it says that all went well, its daemon is looked for."""
    if is_success(state, event.cause):
        return stay(
            with_run(state, pid=None, exit=event.cause),
            f"its program {event.cause}; its daemon is looked for",
            FindMain(state.instance, state.generation),
        )
    return begin_end(with_exit(state, event), now, f"it {event.cause}")


def main_found(state: UnitState, event: MainChanged, now: float) -> Step:
    state = with_run(state, pid=event.pid, exit=None)
    if state.spec.type is UnitType.FORKING:
        return _started(state, now, f"process {event.pid} is its daemon")
    return stay(state, f"process {event.pid} is its main one")


def no_daemon(state: UnitState, event: GroupEmpty, now: float) -> Step:
    cause = ExitCause.spawn_failed("its program ended and left no process behind")
    return begin_end(with_run(with_nobody(state, event), verdict=cause), now, f"it {cause}")


def spawn_failed(state: UnitState, event: SpawnFailed, now: float) -> Step:
    run = the_run(state)
    state = with_run(state, verdict=event.cause, lines=event.lines, empty=run.empty or run.pid is None)
    return begin_end(state, now, f"it {event.cause}")


def interrupted(state: UnitState, event: SpawnInterrupted, now: float) -> Step:  # noqa: ARG001
    """Not its own failure: it starts anew, without backoff, and the attempt does not count."""
    state = replace(without_run(state), starts=state.starts[:-1])
    return move(state, SubState.WAITING, now, "parsupd was replaced while it was being started")


def exited(state: UnitState, event: Exited, now: float) -> Step:
    """The end of a oneshot's work, and too early for all others."""
    state = with_exit(state, event)
    if is_success(state, event.cause):
        if state.spec.type is UnitType.ONESHOT:
            return _started(state, now, f"it {event.cause}")
        if state.spec.type is UnitType.NOTIFY:
            state = with_run(state, verdict=ExitCause.spawn_failed(f"it {event.cause} without having said READY=1"))
    return begin_end(state, now, f"it {event.cause}")


def timed_out(state: UnitState, event: DeadlineReached, now: float) -> Step:  # noqa: ARG001
    spawning = state.sub_state is SubState.STARTING
    why = "" if spawning else f": {the_run(state).unready or 'its readiness probe has not passed'}"
    cause = ExitCause.timed_out(f"not ready within {state.spec.timeout_start_s:g} s{why}")
    return begin_end(with_run(state, verdict=cause), now, f"it {cause}", cancel=spawning)


# The readiness probe


def _started(state: UnitState, now: float, reason: str) -> Step:
    """Its type says that it is; it has the rest of its time to pass its probe."""
    if state.spec.readiness is not None:
        reason = f"{reason}; its readiness probe is awaited"
        return move(state, SubState.START_PROBE, now, reason, deadline_at=state.deadline_at)
    return _proved(state, now, reason)


def found_ready(state: UnitState, event: FoundReady, now: float) -> Step:
    state = with_run(state, unready="")
    return stay(state, event.reason) if _is_proved(state) else _proved(state, now, event.reason)


def found_unready(state: UnitState, event: FoundUnready, now: float) -> Step:  # noqa: ARG001
    if state.spec.readiness is None:  # a reload came before the answer
        return stay(state, NOT_ASKED)
    reason = state.reason if _is_proved(state) else event.reason
    return stay(replace(with_run(state, unready=event.reason), reason=reason), event.reason)


def redescribed(state: UnitState, event: Redescribed, now: float) -> Step:
    step = redescribe(state, event, now)
    if step.state.spec.readiness is not None:
        return step
    state = with_run(step.state, unready="")
    return step._replace(state=state) if _is_proved(state) else _proved(state, now, f"{step.reason}: {NOT_ASKED}")


def _is_proved(state: UnitState) -> bool:
    """Whether the probe has passed once, so that exec_start_post runs."""
    return state.sub_state is SubState.START_POST


# exec_start_post


def _proved(state: UnitState, now: float, reason: str) -> Step:
    if state.spec.exec_start_post:
        return run_hook(state, HookStage.START_POST, 0, now, reason)
    return _up(state, now, reason)


def finished(state: UnitState, event: HookEnded, now: float) -> Step:
    failure = hook_failure(state, HookStage.START_POST, event.cause)
    if failure:
        cause = ExitCause.spawn_failed(failure)
        return begin_end(with_run(state, hook=None, verdict=cause), now, f"it {cause}")
    if has_next(state, HookStage.START_POST):
        return next_hook(state, HookStage.START_POST, now)
    return _up(with_run(state, hook=None), now, "exec_start_post is done")


def _up(state: UnitState, now: float, reason: str) -> Step:
    if state.spec.type is UnitType.ONESHOT:
        return begin_end(with_run(state, ready_at=now), now, reason)
    return begin_running(state, now, reason)


def emptied(state: UnitState, event: GroupEmpty, now: float) -> Step:
    """While exec_start_post runs, as it should be of a oneshot."""
    if state.spec.type is UnitType.ONESHOT:
        return stay(with_nobody(state, event), "nothing of it is left")
    return nobody_goes_on(state, event, now)
