"""Rules for what is up: whether it is ready, its signs of life, its reloads, and what ends it. Layer 2."""

import math

from msgspec.structs import replace

from parsupd.core.effects import CheckLife, EndHook, FindMain, Publish, UnitEffect
from parsupd.core.events import (
    DeadlineReached,
    Exited,
    Extended,
    FoundReady,
    FoundUnready,
    GroupEmpty,
    HookEnded,
    LastSign,
    MainChanged,
    ReadinessLost,
    Ready,
    Redescribed,
    ReloadBegun,
    ReloadOrder,
    StopBegun,
    Unhealthy,
    WatchdogFired,
)
from parsupd.core.unit_keys import live_part
from parsupd.core.unit_machine.basics import (
    Step,
    deadline,
    has_next,
    hook_failure,
    move,
    next_hook,
    run_hook,
    stay,
    the_run,
    with_run,
)
from parsupd.core.unit_machine.stopping import abort, begin_end, let_end, with_exit, with_nobody, withdrawn
from parsupd.core.unit_state import Run, UnitState
from parsupd.core.units import AT_WORK, SIGKILL, STARTS, ExitCause, HookStage, SubState, UnitType

SETTLE_S = 2.0
"""How long after it was found the daemon of a forking unit may turn out to have been a step on the way to it."""


def begin_running(state: UnitState, now: float, reason: str) -> Step:
    state = with_run(
        state, ready_at=now, watchdog_at=deadline(now, state.spec.watchdog_s), over_at=_over_at(state, now)
    )
    return _settle(state, now, the_run(state).unready or reason, *_published(state))


def _published(state: UnitState) -> list[UnitEffect]:
    uri = the_run(state).published
    return [Publish(state.instance, state.generation, uri)] if uri else []


def _settle(state: UnitState, now: float, reason: str, *effects: UnitEffect) -> Step:
    """To the state that what is known of a run that is up amounts to."""
    run = the_run(state)
    to = SubState.UNREADY if run.unready else SubState.RELOADING if run.reloads else SubState.RUNNING
    if to is not state.sub_state:
        return move(state, to, now, reason, *effects, deadline_at=_nearest(run))
    return stay(replace(state, deadline_at=_nearest(run), reason=run.unready or state.reason), reason, *effects)


def _nearest(run: Run) -> float | None:
    """The first of the deadlines that hold beside each other while it runs."""
    return min((at for at in (run.watchdog_at, run.over_at, run.reload_until) if at is not None), default=None)


def _go_on(state: UnitState, reason: str, *, told: bool = True) -> Step:
    return Step(replace(state, deadline_at=_nearest(the_run(state))), (), reason, told)


def _over_at(state: UnitState, since: float) -> float | None:
    """The spread is by chance, but the same for each look at it: instances that started together end one by one."""
    spec = state.spec
    return deadline(
        since, spec.runtime_max_s + spec.runtime_max_spread_s * chance(f"{state.instance}:{state.generation}")
    )


def chance(text: str) -> float:
    """A number from 0 to 1 that is evenly spread over texts: FNV-1a, and a multiplication for texts that are alike."""
    number = 0x811C9DC5
    for byte in text.encode():
        number = (number ^ byte) * 0x01000193 & 0xFFFFFFFF
    number = (number ^ number >> 15) * 0x2C1B3C6D & 0xFFFFFFFF
    return (number ^ number >> 13) / 0xFFFFFFFF


def redescribe(state: UnitState, event: Redescribed, now: float) -> Step:
    """What has gone into a process stays while that runs; what is being stopped is stopped as described till now."""
    ending = state.run is not None and state.sub_state not in STARTS | AT_WORK
    spec = event.spec if state.run is None else state.spec if ending else live_part(state.spec, event.spec)
    later = spec != event.spec
    reason = "its configuration has changed" + (
        ", for what a process is started with from its next run on" if later else ""
    )
    state = replace(state, spec=spec, next_spec=event.spec if later else None)
    if state.sub_state not in AT_WORK:
        return stay(state, reason)
    state = with_run(state, over_at=_over_at(state, the_run(state).ready_at or 0.0))
    if state.sub_state is SubState.UNREADY and spec.readiness is None:
        return found_ready(state, FoundReady(state.instance, state.generation, f"{reason}: {NOT_ASKED}"), now)
    return _go_on(state, reason)


# Readiness. Not ready is not dead: nothing here ends anything.

NOT_ASKED = "it has no readiness probe any more"


def found_ready(state: UnitState, event: FoundReady, now: float) -> Step:
    if not the_run(state).unready:
        return stay(state, "it is ready already")
    state = with_run(state, unready="")
    return _settle(state, now, event.reason, *_published(state))


def found_unready(state: UnitState, event: FoundUnready, now: float) -> Step:
    if state.spec.readiness is None:  # a reload came before the answer
        return stay(state, NOT_ASKED)
    return _settle(with_run(state, unready=event.reason), now, event.reason, *withdrawn(state))


# Deadlines


def due(state: UnitState, event: DeadlineReached, now: float) -> Step:  # noqa: ARG001
    """Signs of life are asked for, not counted: a process that gives one each second shall not cost a step each."""
    run = the_run(state)
    if run.over_at is not None and run.over_at <= now:
        cause = ExitCause.timed_out(f"it has run for {now - (run.ready_at or now):.3g} s, as long as it may")
        return begin_end(with_run(state, verdict=cause), now, f"it {cause}")
    if run.reload_until is not None and run.reload_until <= now:
        return _reload_timed_out(state, now)
    state = with_run(state, watchdog_at=None)
    step = _go_on(state, "its signs of life are looked at", told=False)
    return step._replace(effects=(CheckLife(state.instance, state.generation),))


def last_sign(state: UnitState, event: LastSign, now: float) -> Step:
    ready_at = the_run(state).ready_at or 0.0
    due_at = max(event.at, ready_at) + state.spec.watchdog_s
    if due_at > now:
        at = None if math.isinf(due_at) else due_at
        return _go_on(with_run(state, watchdog_at=at), "it gives signs of life", told=False)
    return abort(state, now, f"none for {now - max(event.at, ready_at):.3g} s")


def watchdog_fired(state: UnitState, event: WatchdogFired, now: float) -> Step:
    if state.sub_state is SubState.STARTING:
        cause = ExitCause.watchdog(event.reason)
        return begin_end(with_run(state, verdict=cause), now, f"it {cause}", cancel=True)
    return abort(state, now, event.reason)


def extend(state: UnitState, event: Extended, now: float) -> Step:
    """Time for what it does now; it can only become more."""
    at = now + event.by_s
    reason = f"it asks for {event.by_s:.3g} s"
    if state.sub_state in AT_WORK:
        run = the_run(state)
        more = {name: max(old, at) for name in ("over_at", "reload_until") if (old := getattr(run, name)) is not None}
        return _go_on(with_run(state, **more), reason)
    if state.deadline_at is None:
        return stay(state, reason)
    return stay(replace(state, deadline_at=max(state.deadline_at, at)), reason)


# Reloads


def reload(state: UnitState, event: ReloadOrder, now: float) -> Step:
    if not state.spec.exec_reload:
        return stay(state, "it has no exec_reload")
    if the_run(state).reloads:
        return reload_refused(state, event, now)
    return _reloading(run_hook(state, HookStage.RELOAD, 0, now, event.reason))


def _reloading(step: Step) -> Step:
    """The time for a reload runs beside that of the watchdog and that of the whole run."""
    state = with_run(step.state, reload_until=step.state.deadline_at)
    return step._replace(state=replace(state, deadline_at=_nearest(the_run(state))))


def reload_begun(state: UnitState, event: ReloadBegun, now: float) -> Step:  # noqa: ARG001
    reason = "it says that it reloads"
    if the_run(state).reloads:
        return stay(with_run(state, reload_told=True), reason)
    state = with_run(state, reload_told=True, reload_until=deadline(now, state.spec.timeout_start_s))
    return _settle(state, now, reason)


def reload_refused(state: UnitState, event: ReloadOrder, now: float) -> Step:  # noqa: ARG001
    return stay(state, "it does not run, or is reloading already")


def reload_hook_ended(state: UnitState, event: HookEnded, now: float) -> Step:
    failure = hook_failure(state, HookStage.RELOAD, event.cause)
    if not failure and has_next(state, HookStage.RELOAD):
        return _reloading(next_hook(state, HookStage.RELOAD, now))
    if failure:
        return _reload_over(state, now, f"its reload has failed: {failure}; it goes on")
    if the_run(state).reload_told:
        return _go_on(with_run(state, hook=None), "exec_reload is done; it has not said that it is ready")
    return _reload_over(state, now, "it has reloaded")


def _reload_over(state: UnitState, now: float, reason: str) -> Step:
    return _settle(with_run(state, reload_until=None, hook=None, reload_told=False), now, reason)


def reloaded(state: UnitState, event: Ready, now: float) -> Step:  # noqa: ARG001
    run, state = the_run(state), with_run(state, reload_told=False)
    if run.hook is not None or not run.reload_told:
        return stay(state, "it says that it is ready")
    return _reload_over(state, now, "it has reloaded")


def _reload_timed_out(state: UnitState, now: float) -> Step:
    """The process may be as good as before: its reload has failed, not its run."""
    if the_run(state).hook is None:
        return _reload_over(state, now, "its reload takes too long; it goes on")
    step = _go_on(with_run(state, reload_until=None), "its reload takes too long: exec_reload is killed")
    return step._replace(effects=(EndHook(state.instance, state.generation, SIGKILL),))


# What ends a run


def exited(state: UnitState, event: Exited, now: float) -> Step:
    """By itself.

    A daemon forks twice as a rule, and the first of its processes may have been taken for it.
    """
    spec, run = state.spec, the_run(state)
    state = with_exit(state, event)
    guessed = spec.type is UnitType.FORKING and not spec.pid_file and event.cause == ExitCause.exited(0)
    settled = run.ready_at is not None and now - run.ready_at >= SETTLE_S
    if guessed and not settled and not the_run(state).empty:
        return stay(
            state, f"it {event.cause}; who goes on for it is looked for", FindMain(state.instance, state.generation)
        )
    return begin_end(state, now, f"it {event.cause}")


def main_changed(state: UnitState, event: MainChanged, now: float) -> Step:  # noqa: ARG001
    return stay(with_run(state, pid=event.pid, exit=None), f"process {event.pid} is its main one")


def nobody_goes_on(state: UnitState, event: GroupEmpty, now: float) -> Step:
    after = with_nobody(state, event)
    return begin_end(after, now, f"it {the_run(after).exit}")


def readiness_lost(state: UnitState, event: ReadinessLost, now: float) -> Step:
    cause = ExitCause.watchdog(event.reason)
    return begin_end(with_run(state, verdict=cause, symptom=True), now, f"it {cause}", hooks=False)


def unhealthy(state: UnitState, event: Unhealthy, now: float) -> Step:
    cause = ExitCause.unhealthy(event.reason)
    cancel = state.sub_state is SubState.STARTING
    return begin_end(with_run(state, verdict=cause), now, f"it {cause}", cancel=cancel, hooks=False)


def ends_itself(state: UnitState, event: StopBegun, now: float) -> Step:  # noqa: ARG001
    return let_end(state, now, "it says that it is about to end")


def is_ready_already(state: UnitState, event: Ready, now: float) -> Step:  # noqa: ARG001
    return stay(state, "it is ready already")
