"""Readiness: histories of one instance and of a few units. Not ready is not dead: nothing is ended for it."""

from dataclasses import replace
from typing import Any

import pytest
from fleet_stage import Stage, unit, up
from unit_events import (
    CLEAN,
    CRASH,
    DEADLINE,
    DEPS,
    NAME,
    RELOAD,
    START,
    STOP,
    check,
    exited,
    extended,
    fails,
    hook,
    main,
    passes,
    play,
    ready,
    said,
    short,
    spawned,
    spec,
)

from parsupd.core.events import (
    DeadlineReached,
    FoundReady,
    FoundUnready,
    Launched,
    Ready,
    Reconfigure,
    Redescribed,
    ReloadBegun,
    Start,
    StartDefault,
    Stop,
)
from parsupd.core.probe_keys import Probe
from parsupd.core.status import status_of
from parsupd.core.unit_machine import step
from parsupd.core.unit_state import UnitState
from parsupd.core.units import (
    ActiveState,
    Configuration,
    DaemonSettings,
    Hook,
    InstanceName,
    RestartPolicy,
    SubState,
    UnitType,
)

WORKER, SIMPLE, NOTIFY, FORKING = UnitType.WORKER, UnitType.SIMPLE, UnitType.NOTIFY, UnitType.FORKING
TCP = Probe(tcp="127.0.0.1:80")
UP = [(START, 0, ["waiting"]), (DEPS, 0, ["spawn 1", "starting"])]
STARTED = [*UP, (spawned(), 1, []), (ready(), 2, ["start-probe"])]
RUNNING = [*STARTED, (passes(), 3, ["publish 1", "running"])]
UNREADY = [*RUNNING, (fails(), 4, ["withdraw 1", "unready"])]
WITHOUT = Redescribed(spec(exec_reload=(Hook(("reload",)),)))

# name: (type, changes of the spec, [(event, now, effects)])
HISTORIES: dict[str, tuple[UnitType, dict[str, Any], list[tuple[Any, float, list[str]]]]] = {
    "a worker has its name while its probe passes": (
        WORKER, {},
        [*UNREADY, (passes(), 5, ["publish 1", "running"]), (fails(), 6, ["withdraw 1", "unready"]),
         (STOP, 7, ["signal 1 15", "stopping"])],
    ),
    "a program that runs is asked": (SIMPLE, {}, [*UP, (spawned(), 1, ["start-probe"]), (passes(), 2, ["running"])]),
    "so is one that has said READY=1": (
        NOTIFY, {}, [*UP, (spawned(), 1, []), (said(Ready), 1, ["start-probe"]), (passes(), 2, ["running"])]
    ),
    "and a daemon that was found": (
        FORKING, {},
        [*UP, (spawned(), 1, []), (Launched(NAME, 1, CLEAN), 1, ["find main 1"]), (main(7), 1, ["start-probe"]),
         (passes(), 2, ["running"])],
    ),
    "exec_start_post comes when the probe has passed": (
        WORKER, {"exec_start_post": (Hook(("post",)),)},
        [*STARTED, (passes(), 3, ["run exec_start_post[0]", "start-post"]), (hook(), 4, ["publish 1", "running"])],
    ),
    "what fails meanwhile is not ready then": (
        WORKER, {"exec_start_post": (Hook(("post",)),)},
        [*STARTED, (passes(), 3, ["run exec_start_post[0]", "start-post"]), (fails(), 4, []), (hook(), 5, ["unready"]),
         (passes(), 6, ["publish 1", "running"])],
    ),
    "a start that does not pass in time has failed": (
        WORKER, {},
        [*STARTED, (fails(), 3, []), (fails("status 503"), 4, []), (DEADLINE, 30, ["signal 1 15", "stopping"])],
    ),
    "more time may be asked for": (
        NOTIFY, {},
        [*UP, (spawned(), 1, []), (said(Ready), 1, ["start-probe"]), (extended(60), 2, []), (passes(), 61, ["running"])],
    ),
    "the end of what is not ready is an end as any other": (
        WORKER, {}, [*UNREADY, (exited(CRASH), 5, ["signal 1 15", "stopping"])]
    ),
    "the end of what never was ready, too": (
        WORKER, {"exec_stop": (Hook(("stop",)),)}, [*STARTED, (exited(CRASH), 5, ["signal 1 15", "stopping"])]
    ),
    "it may fail while it reloads": (
        WORKER, {},
        [*RUNNING, (said(ReloadBegun), 4, ["reloading"]), (fails(), 5, ["withdraw 1", "unready"]), (said(Ready), 6, []),
         (passes(), 7, ["publish 1", "running"])],
    ),
    "and pass again before it has reloaded": (
        WORKER, {},
        [*UNREADY, (RELOAD, 5, ["run exec_reload[0]"]), (RELOAD, 5, []), (passes(), 6, ["publish 1", "reloading"]),
         (hook(), 7, ["running"])],
    ),
    "a reload that takes too long ends neither": (
        WORKER, {}, [*UNREADY, (said(ReloadBegun), 5, []), (DEADLINE, 35, []), (passes(), 36, ["publish 1", "running"])],
    ),
    "without its probe it is ready": (WORKER, {}, [*UNREADY, (WITHOUT, 5, ["publish 1", "running"]), (fails(), 6, [])]),
    "also at its start": (WORKER, {}, [*STARTED, (WITHOUT, 5, ["publish 1", "running"])]),
    "another probe changes nothing by itself": (
        WORKER, {}, [*UNREADY, (Redescribed(spec(readiness=Probe(tcp="/x"))), 5, []), (passes(), 6, ["publish 1", "running"])],
    ),
    "a probe that comes late does not make it start anew": (
        WORKER, {"readiness": None},
        [*UP, (spawned(), 1, []), (ready(), 2, ["publish 1", "running"]), (Redescribed(spec(readiness=TCP)), 3, []),
         (fails(), 4, ["withdraw 1", "unready"])],
    ),
    "the age of a run counts, ready or not": (
        WORKER, {"runtime_max_s": 10.0}, [*UNREADY, (DEADLINE, 13, ["signal 1 15", "stopping"])]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HISTORIES)
def test_history(name: str) -> None:
    """Each event of the history has exactly the effects that are written beside it."""
    kind, changes, history = HISTORIES[name]
    state = UnitState(NAME, spec(kind, **{"readiness": TCP, "exec_reload": (Hook(("reload",)),), **changes}))
    for event, now, expected in history:
        state, effects = step(state, event, now)
        assert [short(effect) for effect in effects] == expected, "\n".join(map(str, state.story))
        check(state)


def test_the_reason_of_a_start_that_fails_has_the_last_answer() -> None:
    """In the state while it is awaited, and in the cause of the end."""
    begun = play(UnitState(NAME, spec(readiness=TCP)), START, DEPS, spawned(), ready())
    assert "its readiness probe is awaited" in begun.reason
    never = play(begun, DEADLINE, now=30.0)
    assert never.reason == "it timed out: not ready within 30 s: its readiness probe has not passed"
    state = play(begun, fails(), fails("status 503"))
    assert (state.sub_state, state.reason) == (SubState.START_PROBE, "its tcp probe failed: status 503")
    state = play(state, DEADLINE, now=30.0)
    assert state.reason == "it timed out: not ready within 30 s: its tcp probe failed: status 503"


def test_what_is_shown_of_one_that_is_not_ready() -> None:
    """Activating, so that who waits waits on; without a URI; with the newest answer, since when, and as of before."""
    state = play(UnitState(NAME, spec(readiness=TCP)), START, DEPS, spawned(), ready(), passes())
    state = play(state, fails(), now=5.0)
    state = play(state, fails("status 503"), now=9.0)
    status = status_of(state, None, ())
    assert (status.active_state, status.sub_state, status.uri) == (ActiveState.ACTIVATING, SubState.UNREADY, "")
    assert (status.reason, status.since, status.restarts) == ("its tcp probe failed: status 503", 5.0, 0)


def up_with(*units: Any) -> Stage:
    """All up; `web` has a readiness probe, which has passed."""
    stage = Stage(*units)
    stage.do(StartDefault())
    stage.up("web@1")
    return stage


def found(passes: bool, name: str = "web@1") -> FoundReady | FoundUnready:
    return (
        FoundReady(InstanceName.parse(name), 1, "passes")
        if passes
        else FoundUnready(InstanceName.parse(name), 1, "fails")
    )


@pytest.mark.parametrize("key", ["requires", "wants", "after", "binds_to"])
def test_dependants_wait_until_it_is_ready_for_the_first_time(key: str) -> None:
    """Of whatever kind they are."""
    stage = up_with(unit("web", readiness=TCP), unit("site", **{key: "web"}))
    assert stage.states() == {"web@1": "start-probe", "site@1": "waiting"}
    assert stage.do(found(passes=False)) == []
    assert stage.do(found(passes=True)) == ["spawn site@1"]


@pytest.mark.parametrize("key", ["requires", "wants", "after", "binds_to"])
def test_dependants_that_are_up_stay_so(key: str) -> None:
    """Also those that are bound to it; one that starts later waits."""
    stage = up_with(
        unit("web", readiness=TCP), unit("site", **{key: "web"}), unit("late", enabled=False, **{key: "web"})
    )
    stage.do(found(passes=True))
    stage.up("site@1")
    assert stage.do(found(passes=False)) == []
    assert stage.do(Start("late")) == []
    assert stage.states() == {"web@1": "unready", "site@1": "running", "late@1": "waiting"}
    assert stage.do(found(passes=True)) == ["spawn late@1"]


def test_a_start_that_times_out_leads_to_what_a_failed_start_leads_to() -> None:
    """Its policy decides, and dependants wait on."""
    stage = up_with(unit("web", readiness=TCP), unit("site", requires="web"))
    assert stage.do(DeadlineReached(), after_s=30) == ["signal web@1 15"]
    stage.down("web@1")
    assert stage.states() == {"web@1": "backoff", "site@1": "waiting"}


def test_what_had_failed_for_itself_is_not_started_when_another_is_ready_again() -> None:
    """What is bound to a unit comes back when that has been gone, not when it only was not ready."""
    stage = up_with(unit("web", readiness=TCP), unit("site", binds_to="web", restart=RestartPolicy.NO))
    stage.do(found(passes=True))
    stage.up("site@1")
    stage.down("site@1", CRASH)
    assert stage.states()["site@1"] == "failed"
    stage.do(found(passes=False))
    assert stage.do(found(passes=True)) == []
    assert stage.states()["site@1"] == "failed"


def test_a_stop_is_held_back_for_dependants_of_what_is_not_ready() -> None:
    """They are stopped first, as ever."""
    stage = up_with(unit("web", readiness=TCP), unit("site", requires="web"))
    stage.do(found(passes=True))
    stage.up("site@1")
    stage.do(found(passes=False))
    assert stage.do(Stop("web")) == ["signal site@1 15"]
    assert stage.down("site@1") == ["signal web@1 15"]


def test_a_removed_probe_lets_those_start_that_waited() -> None:
    """A reload is the way out of a probe that asks for the wrong thing."""
    stage = up_with(unit("web", readiness=TCP), unit("site", requires="web"))
    specs = stage.fleet.configuration.units
    new = Configuration(DaemonSettings(), {**specs, "web": replace(specs["web"], readiness=None)})
    assert stage.fleet.plan(new).touched[0].restarts == ()
    assert stage.do(Reconfigure(new)) == ["spawn site@1"]


def test_one_of_several_may_be_missing() -> None:
    """A unit is there for those bound to it as long as one of its instances is up, ready or not."""
    stage = up(unit("web", instances=2), unit("site", binds_to="web"))
    specs = stage.fleet.configuration.units
    stage.do(Reconfigure(Configuration(DaemonSettings(), {**specs, "web": replace(specs["web"], readiness=TCP)})))
    assert stage.do(found(passes=False)) == []
    assert stage.do(found(passes=False, name="web@2")) == []
    stage.down("web@2", CRASH)
    assert stage.states()["site@1"] == "running"
    assert "signal site@1 15" in stage.down("web@1", CRASH)
