"""One instance of a unit: every state, every transition. Layer 2.

Rules:

1. Everything that changes a `UnitState` is in the modules of this package and is reached through TABLE here, which is
   keyed by names: sub-state and type of event. A pair that TABLE does not list is an error and carries the story.
2. The machine knows one instance. It never asks whether others are ready: the fleet gives DependenciesReady.
3. `target` is what is wanted, `sub_state` what is. Orders set the target; the machine converges.
4. Each start has a new generation. A report of an older generation never acts: it is written into the story, no more.
   At most one generation lives: `run` holds it, and exists exactly from START_PRE to RELOADING, and from ABORTING to
   STOP_POST.
5. A run ends only when none of its processes is left (or none ever came to be) and none of its commands runs. Nothing
   is spawned before that. Where its file says that only the main process counts, that is the only one.
6. Who ended a run decides what follows: a request (the target), a dependency (failed), or nobody (the restart policy).
7. `now` is an argument; a retry is a deadline, never a loop, so that a stop can always come between.
8. At most one of the unit's own commands (exec_start_pre and the like) runs at a time, and each has its time.
9. Nothing waits for ever: what SIGKILL does not end is UNKILLABLE, which others need not wait for.
10. Not ready is not dead: FoundUnready takes the name away, and ends nothing; only the time of a start is bounded.
"""

from collections.abc import Mapping

from msgspec.structs import replace

from parsupd.core.effects import Changed, UnitEffect
from parsupd.core.events import (
    DeadlineReached,
    DependenciesReady,
    DependencyFailed,
    EndInterrupted,
    Exited,
    Extended,
    FoundReady,
    FoundUnready,
    GroupEmpty,
    HookEnded,
    LastSign,
    Launched,
    MainChanged,
    ReadinessLost,
    Ready,
    Redescribed,
    ReloadBegun,
    ReloadOrder,
    Report,
    RestartOrder,
    Spawned,
    SpawnFailed,
    SpawnInterrupted,
    StartOrder,
    StopBegun,
    StopOrder,
    Unhealthy,
    UnitEvent,
    WatchdogFired,
)
from parsupd.core.unit_machine import basics, resting, running, starting, stopping
from parsupd.core.unit_machine.basics import Rule
from parsupd.core.unit_state import InvalidTransitionError, StoryEntry, UnitState
from parsupd.core.units import SubState

KEPT_STORY = 20


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
    after, effects, reason, told = rule(state, event, now)
    decision = f"stays {state.sub_state.value}"
    if after.sub_state is not state.sub_state:
        decision = f"{state.sub_state.value} -> {after.sub_state.value}"
        changed = Changed(state.instance, after.generation, state.sub_state, after.sub_state, reason)
        effects = (*effects, changed)
    if not told:
        return after, effects
    story = (*state.story, StoryEntry(now, event, decision, reason))[-KEPT_STORY:]
    return replace(after, story=story), effects


def next_deadline(state: UnitState) -> float | None:
    """The instant at which DeadlineReached is due, or None."""
    return state.deadline_at


def _rule(state: UnitState, event: UnitEvent) -> Rule:
    if isinstance(event, Report):
        if event.generation < state.generation:
            return basics.ignore_old
        if event.generation > state.generation:
            raise InvalidTransitionError(state, event, "a report of a generation that was never spawned")
    rule = TABLE[state.sub_state].get(type(event))
    if rule is None:
        raise InvalidTransitionError(state, event, "no such transition")
    return rule


# What it says, or is said of it, when that no longer matters.
_TOO_LATE: dict[type[UnitEvent], Rule] = {
    Ready: basics.ignore_late,
    ReadinessLost: basics.ignore_late,
    Unhealthy: basics.ignore_late,
    FoundReady: basics.ignore_late,
    FoundUnready: basics.ignore_late,
    MainChanged: basics.ignore_late,
    ReloadBegun: basics.ignore_late,
    StopBegun: basics.ignore_late,
    Extended: basics.ignore_late,
    EndInterrupted: basics.ignore_late,
    LastSign: basics.ignore_late,
    WatchdogFired: basics.ignore_late,
}

# Reports that may come after the process was gone, from another source (see `events`), and the end of those that a
# main process was to leave to themselves.
_AT_REST: dict[type[UnitEvent], Rule] = {
    **_TOO_LATE,
    Redescribed: running.redescribe,
    ReloadOrder: running.reload_refused,
    SpawnFailed: resting.learn_why,
    GroupEmpty: basics.ignore_late,
}

_UP: dict[type[UnitEvent], Rule] = {
    Redescribed: running.redescribe,
    StartOrder: basics.already_up,
    StopOrder: stopping.stop,
    RestartOrder: stopping.stop,
    ReloadOrder: running.reload_refused,
    DependencyFailed: stopping.stop,
    Unhealthy: running.unhealthy,
    MainChanged: running.main_changed,
    StopBegun: running.ends_itself,
    Extended: running.extend,
}

# What it may say, or have said of it, from when its type says that it is started.
_STARTED: dict[type[UnitEvent], Rule] = {
    **_UP,
    Redescribed: starting.redescribed,
    FoundReady: starting.found_ready,
    FoundUnready: starting.found_unready,
    Ready: running.is_ready_already,
    ReadinessLost: running.readiness_lost,
    ReloadBegun: basics.ignore_late,
    WatchdogFired: running.watchdog_fired,
    Exited: running.exited,
    GroupEmpty: starting.emptied,
}

_RUNNING: dict[type[UnitEvent], Rule] = {
    **_UP,
    ReloadOrder: running.reload,
    FoundReady: running.found_ready,
    FoundUnready: running.found_unready,
    ReadinessLost: running.readiness_lost,
    ReloadBegun: running.reload_begun,
    LastSign: running.last_sign,
    WatchdogFired: running.watchdog_fired,
    Exited: running.exited,
    GroupEmpty: running.nobody_goes_on,
    DeadlineReached: running.due,
}

_ENDING: dict[type[UnitEvent], Rule] = {
    **_TOO_LATE,
    Redescribed: running.redescribe,
    StartOrder: stopping.stop_differently,
    StopOrder: stopping.stop_differently,
    RestartOrder: stopping.stop_differently,
    ReloadOrder: running.reload_refused,
    DependencyFailed: stopping.stop_differently,
    MainChanged: stopping.main_changed,
    Extended: running.extend,
}

_DOWNWARD: dict[type[UnitEvent], Rule] = {
    **_ENDING,
    Spawned: stopping.spawned_too_late,
    SpawnFailed: stopping.spawn_given_up,
    SpawnInterrupted: stopping.interrupted,
    Exited: stopping.main_exited,
    Launched: stopping.main_exited,
    GroupEmpty: stopping.group_empty,
    HookEnded: stopping.hook_ended,
}

# THE table.
TABLE: Mapping[SubState, Mapping[type[UnitEvent], Rule]] = {
    SubState.DEAD: {
        **_AT_REST,
        StartOrder: resting.begin,
        StopOrder: resting.already_down,
        RestartOrder: resting.begin,
        DependencyFailed: resting.remain,
    },
    SubState.WAITING: {
        **_AT_REST,
        StartOrder: basics.already_up,
        StopOrder: resting.rest,
        RestartOrder: basics.already_up,
        DependencyFailed: resting.fail,
        DependenciesReady: starting.launch,
    },
    SubState.START_PRE: {
        **_TOO_LATE,
        **_UP,
        MainChanged: basics.ignore_late,
        StopBegun: basics.ignore_late,
        HookEnded: starting.prepared,
        SpawnInterrupted: starting.interrupted,
        DeadlineReached: starting.hook_timed_out,
    },
    SubState.STARTING: {
        **_UP,
        Spawned: starting.spawned,
        Ready: starting.ready,
        SpawnFailed: starting.spawn_failed,
        SpawnInterrupted: starting.interrupted,
        Launched: starting.launched,
        MainChanged: starting.main_found,
        ReloadBegun: basics.ignore_late,
        WatchdogFired: running.watchdog_fired,
        Exited: starting.exited,
        GroupEmpty: starting.no_daemon,
        DeadlineReached: starting.timed_out,
    },
    SubState.START_PROBE: {**_STARTED, DeadlineReached: starting.timed_out},
    SubState.START_POST: {
        **_STARTED,
        HookEnded: starting.finished,
        DeadlineReached: starting.hook_timed_out,
    },
    SubState.RUNNING: {**_RUNNING, Ready: running.is_ready_already},
    SubState.UNREADY: {**_RUNNING, Ready: running.reloaded, HookEnded: running.reload_hook_ended},
    SubState.RELOADING: {**_RUNNING, Ready: running.reloaded, HookEnded: running.reload_hook_ended},
    SubState.EXITED: {
        **_AT_REST,
        StartOrder: basics.already_up,
        StopOrder: resting.undo,
        RestartOrder: resting.redo,
        DependencyFailed: resting.remain,
    },
    SubState.ABORTING: {
        **_ENDING,
        EndInterrupted: stopping.signal_again,
        Exited: stopping.aborted,
        HookEnded: stopping.abort_hook_ended,
        DeadlineReached: stopping.not_aborted,
    },
    SubState.EXEC_STOP: {
        **_ENDING,
        Exited: stopping.exited_meanwhile,
        GroupEmpty: stopping.emptied_meanwhile,
        HookEnded: stopping.stop_hook_ended,
        DeadlineReached: stopping.stop_hook_timed_out,
    },
    SubState.STOPPING: {**_DOWNWARD, EndInterrupted: stopping.signal_again, DeadlineReached: stopping.kill},
    SubState.KILLING: {**_DOWNWARD, EndInterrupted: stopping.signal_again, DeadlineReached: stopping.not_killed},
    SubState.UNKILLABLE: _DOWNWARD,
    SubState.STOP_POST: {
        **_ENDING,
        MainChanged: basics.ignore_late,
        SpawnFailed: stopping.learn_meanwhile,
        SpawnInterrupted: stopping.interrupted,
        GroupEmpty: basics.ignore_late,
        HookEnded: stopping.post_hook_ended,
        DeadlineReached: stopping.post_hook_timed_out,
    },
    SubState.BACKOFF: {
        **_AT_REST,
        StartOrder: resting.begin,
        StopOrder: resting.rest,
        RestartOrder: resting.begin,
        DependencyFailed: resting.fail,
        DeadlineReached: resting.try_again,
    },
    SubState.FAILED: {
        **_AT_REST,
        StartOrder: resting.begin,
        StopOrder: resting.already_down,
        RestartOrder: resting.begin,
        DependencyFailed: resting.remain,
    },
}
