"""Events, effects and histories of one instance, as the tests of the unit machine write them."""

from typing import Any

from parsupd.core.effects import (
    CancelSpawn,
    Changed,
    CheckLife,
    EndHook,
    Escalate,
    FindMain,
    Note,
    Publish,
    RunHook,
    SignalGroup,
    SignalMain,
    Spawn,
    Unkillable,
    Withdraw,
)
from parsupd.core.events import (
    DeadlineReached,
    DependenciesReady,
    DependencyFailed,
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
    ReloadBegun,
    ReloadOrder,
    RestartOrder,
    Spawned,
    SpawnFailed,
    StartOrder,
    StopBegun,
    StopOrder,
    Unhealthy,
    WatchdogFired,
)
from parsupd.core.unit_machine import KEPT_STORY, step
from parsupd.core.unit_machine.stopping import KEPT_INCARNATIONS
from parsupd.core.unit_state import UnitState
from parsupd.core.units import AT_WORK, SIGKILL, SIGTERM, ExitCause, InstanceName, SubState, UnitSpec, UnitType

NAME = InstanceName("job", 1)
URI = "PYRO:job@./u:/run/job"
START, STOP, RESTART, RELOAD = StartOrder("start"), StopOrder("stop"), RestartOrder("restart"), ReloadOrder("reload")
DEPS, DEADLINE = DependenciesReady("all there"), DeadlineReached()
FAILED_DEP = DependencyFailed("it requires db, which failed")
CRASH, CLEAN, KILLED, TERMED = (
    ExitCause.exited(1),
    ExitCause.exited(0),
    ExitCause.signaled(SIGKILL),
    ExitCause.signaled(SIGTERM),
)


def spawned(generation: int = 1, pid: int = 100) -> Spawned:
    return Spawned(NAME, generation, pid)


def ready(generation: int = 1) -> Ready:
    return Ready(NAME, generation, URI)


def exited(cause: ExitCause, generation: int = 1) -> Exited:
    return Exited(NAME, generation, cause)


def empty(generation: int = 1) -> GroupEmpty:
    return GroupEmpty(NAME, generation)


def lost(generation: int = 1) -> ReadinessLost:
    return ReadinessLost(NAME, generation, "its connection was closed")


def unhealthy(generation: int = 1) -> Unhealthy:
    return Unhealthy(NAME, generation, "its probe `tcp` failed 3 times")


def passes(generation: int = 1) -> FoundReady:
    return FoundReady(NAME, generation, "its tcp probe passes")


def fails(answer: str = "refused", generation: int = 1) -> FoundUnready:
    return FoundUnready(NAME, generation, f"its tcp probe failed: {answer}")


def hook(cause: ExitCause = CLEAN, generation: int = 1) -> HookEnded:
    return HookEnded(NAME, generation, cause)


def launched(cause: ExitCause = CLEAN, generation: int = 1) -> Launched:
    return Launched(NAME, generation, cause)


def main(pid: int, generation: int = 1) -> MainChanged:
    return MainChanged(NAME, generation, pid)


def said(kind: type[Ready | ReloadBegun | StopBegun]) -> Ready | ReloadBegun | StopBegun:
    """A word without more to it, of the first generation."""
    return kind(NAME, 1)


def extended(by_s: float) -> Extended:
    return Extended(NAME, 1, by_s)


def sign(at: float) -> LastSign:
    return LastSign(NAME, 1, at)


def fired() -> WatchdogFired:
    return WatchdogFired(NAME, 1, "it says so")


def failed(generation: int = 1) -> SpawnFailed:
    return SpawnFailed(NAME, generation, ExitCause.spawn_failed("init raised"), ("Traceback", "ValueError"))


def short(effect: Any) -> str:
    """An effect as histories write it."""
    match effect:
        case Spawn():
            return f"spawn {effect.generation}"
        case CancelSpawn():
            return f"cancel {effect.generation}"
        case SignalGroup():
            return f"signal {effect.generation} {effect.signal}"
        case SignalMain():
            return f"signal main {effect.generation} {effect.signal}"
        case RunHook():
            return f"run {effect.stage.value}[{effect.index}]"
        case EndHook():
            return f"end hook {effect.signal}"
        case FindMain():
            return f"find main {effect.generation}"
        case CheckLife():
            return f"check life {effect.generation}"
        case Escalate():
            return f"escalate: {effect.reason}"
        case Publish():
            return f"publish {effect.generation}"
        case Withdraw():
            return f"withdraw {effect.generation}"
        case Note():
            return f"note {effect.incarnation.generation}: {effect.incarnation.cause}"
        case Unkillable():
            return f"unkillable {effect.generation}"
        case Changed():
            return effect.new.value
        case _:
            raise AssertionError(effect)


def spec(kind: UnitType = UnitType.WORKER, **changes: Any) -> UnitSpec:
    return UnitSpec(name="job", type=kind, **changes)


def play(state: UnitState, *events: Any, now: float = 0.0) -> UnitState:
    for event in events:
        state, _ = step(state, event, now)
    return state


LIVING = frozenset(SubState) - {
    SubState.DEAD,
    SubState.WAITING,
    SubState.EXITED,
    SubState.BACKOFF,
    SubState.FAILED,
}
HOOK_STATES = {SubState.START_PRE, SubState.START_POST, SubState.EXEC_STOP, SubState.STOP_POST}
TIMED = {SubState.BACKOFF, SubState.KILLING, SubState.ABORTING}


def check(state: UnitState) -> None:
    """What holds in every state, whatever has happened."""
    run, now = state.run, state.sub_state
    assert (run is not None) == (now in LIVING), "there is a run exactly while something of it may be there"
    assert len(state.incarnations) <= KEPT_INCARNATIONS
    assert len(state.story) <= KEPT_STORY
    if now in TIMED:
        assert state.deadline_at is not None, "this would last for ever"
    if now in {SubState.DEAD, SubState.WAITING, SubState.EXITED, SubState.FAILED, SubState.UNKILLABLE}:
        assert state.deadline_at is None
    if run is None:
        return
    assert not (run.empty and run.hook is None), "a run that is over goes on"
    if now in HOOK_STATES:
        assert run.hook is not None, "waits for a command that does not run"
    if now in AT_WORK:
        assert (now is SubState.UNREADY) == (run.unready != ""), "what is said of its readiness is not its state"
        assert run.ready_at is not None
        assert run.verdict is None, "it runs on though it is to end"
        deadlines = [at for at in (run.watchdog_at, run.over_at, run.reload_until) if at is not None]
        assert state.deadline_at == min(deadlines, default=None)
    if now is SubState.STOP_POST:
        assert run.empty, "exec_stop_post runs beside what it is to clear up after"
    if run.uri and now in {SubState.STOPPING, SubState.KILLING, SubState.UNKILLABLE, SubState.EXEC_STOP}:
        raise AssertionError("its name is not taken away")
