"""The unit machine: histories as data, the table cell by cell, and policy x cause x limit."""

import itertools
import math
from typing import Any

import pytest
from unit_events import (
    CLEAN,
    CRASH,
    DEADLINE,
    DEPS,
    FAILED_DEP,
    KILLED,
    NAME,
    RELOAD,
    RESTART,
    START,
    STOP,
    TERMED,
    check,
    empty,
    exited,
    extended,
    failed,
    fails,
    fired,
    hook,
    launched,
    lost,
    main,
    passes,
    play,
    ready,
    said,
    short,
    sign,
    spawned,
    spec,
    unhealthy,
)

from parsupd.core.events import (
    DeadlineReached,
    EndInterrupted,
    GroupEmpty,
    LastSign,
    Redescribed,
    ReloadBegun,
    SpawnInterrupted,
    StopBegun,
)
from parsupd.core.probe_keys import Probe
from parsupd.core.restart import RESTARTS_ON, outcome
from parsupd.core.unit_machine import (
    KEPT_STORY,
    TABLE,
    next_deadline,
    step,
)
from parsupd.core.unit_machine.stopping import KEPT_INCARNATIONS
from parsupd.core.unit_state import InvalidTransitionError, UnitState
from parsupd.core.units import (
    ACTIVE_STATE,
    AT_WORK,
    ExitCause,
    ExitKind,
    Hook,
    RestartPolicy,
    SubState,
    Target,
    UnitSpec,
    UnitType,
)

WORKER, SIMPLE, ONESHOT = UnitType.WORKER, UnitType.SIMPLE, UnitType.ONESHOT
UP = [(START, 0, ["waiting"]), (DEPS, 0, ["spawn 1", "starting"])]
RUNNING_WORKER = [*UP, (spawned(), 1, []), (ready(), 2, ["publish 1", "running"])]
RUNNING_SIMPLE = [*UP, (spawned(), 1, ["running"])]

# name: (type, changes of the spec, [(event, now, effects)])
HISTORIES: dict[str, tuple[UnitType, dict[str, Any], list[tuple[Any, float, list[str]]]]] = {
    "a worker starts, and is stopped by request": (
        WORKER,
        {},
        [
            *RUNNING_WORKER,
            (STOP, 3, ["withdraw 1", "signal 1 15", "stopping"]),
            (exited(TERMED), 4, []),
            (empty(), 4, ["note 1: was killed by SIGTERM", "dead"]),
        ],
    ),
    "a simple unit is ready when exec succeeded, and has no name to publish": (
        SIMPLE,
        {},
        [*RUNNING_SIMPLE, (STOP, 3, ["signal 1 15", "stopping"]), (exited(CLEAN), 4, [])],
    ),
    "a oneshot is starting until it has exited, then completed": (
        ONESHOT,
        {"restart": RestartPolicy.NO},
        [
            *UP,
            (spawned(), 1, []),
            (exited(CLEAN), 9, ["signal 1 15", "stopping"]),
            (empty(), 9, ["note 1: exited with 0", "exited"]),
            (START, 10, []),
            (STOP, 11, ["dead"]),
        ],
    ),
    "a oneshot that fails is failed": (
        ONESHOT,
        {"restart": RestartPolicy.NO},
        [
            *UP,
            (spawned(), 1, []),
            (exited(CRASH), 9, ["signal 1 15", "stopping"]),
            (empty(), 9, ["note 1: exited with 1", "failed"]),
        ],
    ),
    "a crash is restarted after the backoff, as a new generation": (
        WORKER,
        {},
        [
            *RUNNING_WORKER,
            (exited(CRASH), 3, ["withdraw 1", "signal 1 15", "stopping"]),
            (empty(), 3, ["note 1: exited with 1", "backoff"]),
            (DEADLINE, 3.1, ["waiting"]),
            (DEPS, 3.1, ["spawn 2", "starting"]),
        ],
    ),
    "a kill is the cause though the lost connection was seen first": (
        WORKER,
        {},
        [
            *RUNNING_WORKER,
            (lost(), 3, ["withdraw 1", "signal 1 15", "stopping"]),
            (exited(KILLED), 3, []),
            (empty(), 3, ["note 1: was killed by SIGKILL", "backoff"]),
        ],
    ),
    "a worker that lives without its registration is stopped, and restarted by policy": (
        WORKER,
        {"restart": RestartPolicy.ON_WATCHDOG},
        [
            *RUNNING_WORKER,
            (lost(), 3, ["withdraw 1", "signal 1 15", "stopping"]),
            (exited(TERMED), 3, []),
            (empty(), 3, ["note 1: gave no sign of life: its connection was closed", "backoff"]),
        ],
    ),
    "a worker that lives without its registration and must be killed": (
        WORKER,
        {},
        [
            *RUNNING_WORKER,
            (lost(), 3, ["withdraw 1", "signal 1 15", "stopping"]),
            (DEADLINE, 13, ["signal 1 9", "killing"]),
            (exited(KILLED), 13, []),
            (empty(), 13, ["note 1: gave no sign of life: its connection was closed", "backoff"]),
        ],
    ),
    "what a probe finds unhealthy is stopped, and restarted as after a watchdog": (
        SIMPLE,
        {"restart": RestartPolicy.ON_WATCHDOG},
        [
            *RUNNING_SIMPLE,
            (unhealthy(), 3, ["signal 1 15", "stopping"]),
            (unhealthy(), 3, []),
            (exited(ExitCause.exited(143)), 3, []),
            (empty(), 3, ["note 1: was unhealthy: its probe `tcp` failed 3 times", "backoff"]),
            (unhealthy(), 3, []),
        ],
    ),
    "a oneshot at its work that goes beyond a limit is stopped": (
        ONESHOT,
        {"restart": RestartPolicy.NO},
        [
            *UP,
            (spawned(), 1, []),
            (unhealthy(), 3, ["cancel 1", "signal 1 15", "stopping"]),
            (exited(TERMED), 3, []),
            (empty(), 3, ["note 1: was unhealthy: its probe `tcp` failed 3 times", "failed"]),
        ],
    ),
    "leftovers of a crash are killed before the restart": (
        SIMPLE,
        {},
        [
            *RUNNING_SIMPLE,
            (exited(CRASH), 3, ["signal 1 15", "stopping"]),
            (DEADLINE, 13, ["signal 1 9", "killing"]),
            (empty(), 13, ["note 1: exited with 1", "backoff"]),
        ],
    ),
    "a group that survives SIGKILL is said loudly, once, and nothing else is started": (
        SIMPLE,
        {},
        [
            *RUNNING_SIMPLE,
            (STOP, 3, ["signal 1 15", "stopping"]),
            (DEADLINE, 13, ["signal 1 9", "killing"]),
            (DEADLINE, 23, ["unkillable 1", "unkillable"]),
            (START, 24, []),
            (exited(KILLED), 99, []),
            (empty(), 99, ["note 1: timed out: not down 10 s after SIGTERM", "waiting"]),
        ],
    ),
    "a start that takes too long is ended": (
        WORKER,
        {"restart": RestartPolicy.NO},
        [
            *UP,
            (spawned(), 1, []),
            (DEADLINE, 30, ["cancel 1", "signal 1 15", "stopping"]),
            (failed(), 30, []),
            (exited(TERMED), 30, []),
            (empty(), 30, ["note 1: timed out: not ready within 30 s", "failed"]),
        ],
    ),
    "a spawn without a process that fails is over at once": (
        SIMPLE,
        {},
        [*UP, (failed(), 1, ["note 1: could not be started: init raised", "backoff"])],
    ),
    "a spawn that fails with a process waits for its group": (
        WORKER,
        {},
        [
            *UP,
            (spawned(), 1, []),
            (failed(), 2, ["signal 1 15", "stopping"]),
            (exited(CRASH), 2, []),
            (empty(), 2, ["note 1: could not be started: init raised", "backoff"]),
        ],
    ),
    "the exit is seen before the spawn fails, and the spawn tells the cause": (
        WORKER,
        {},
        [
            *UP,
            (spawned(), 1, []),
            (exited(CRASH), 2, ["signal 1 15", "stopping"]),
            (failed(), 2, []),
            (empty(), 2, ["note 1: could not be started: init raised", "backoff"]),
        ],
    ),
    "the spawn fails after all is over, and its lines are added": (
        WORKER,
        {},
        [
            *UP,
            (spawned(), 1, []),
            (exited(CRASH), 2, ["signal 1 15", "stopping"]),
            (empty(), 2, ["note 1: exited with 1", "backoff"]),
            (failed(), 2.05, ["note 1: exited with 1"]),
        ],
    ),
    "a stop during the spawn cancels it": (
        WORKER,
        {},
        [
            *UP,
            (STOP, 1, ["cancel 1", "stopping"]),
            (failed(), 1, ["note 1: could not be started: init raised", "dead"]),
        ],
    ),
    "a process that comes to be after its stop is ended": (
        WORKER,
        {},
        [
            *UP,
            (STOP, 1, ["cancel 1", "stopping"]),
            (spawned(), 1, ["signal 1 15"]),
            (ready(), 1, []),
            (exited(TERMED), 1, []),
            (empty(), 1, ["note 1: was killed by SIGTERM", "dead"]),
        ],
    ),
    "a process that comes to be long after its stop is killed": (
        WORKER,
        {},
        [
            *UP,
            (STOP, 1, ["cancel 1", "stopping"]),
            (DEADLINE, 11, ["killing"]),
            (spawned(), 12, ["signal 1 9"]),
            (exited(KILLED), 12, []),
            (empty(), 12, ["note 1: timed out: not down 10 s after SIGTERM", "dead"]),
        ],
    ),
    "a stop in the backoff ends it": (
        SIMPLE,
        {},
        [
            *RUNNING_SIMPLE,
            (exited(CRASH), 3, ["signal 1 15", "stopping"]),
            (empty(), 3, ["note 1: exited with 1", "backoff"]),
            (STOP, 3.05, ["dead"]),
        ],
    ),
    "a stop while the leftovers of a crash are cleared wins over the restart": (
        SIMPLE,
        {},
        [
            *RUNNING_SIMPLE,
            (exited(CRASH), 3, ["signal 1 15", "stopping"]),
            (STOP, 3, []),
            (empty(), 3, ["note 1: exited with 1", "dead"]),
        ],
    ),
    "a start while it stops is met after the stop": (
        SIMPLE,
        {},
        [
            *RUNNING_SIMPLE,
            (STOP, 3, ["signal 1 15", "stopping"]),
            (START, 3, []),
            (exited(TERMED), 4, []),
            (empty(), 4, ["note 1: was killed by SIGTERM", "waiting"]),
        ],
    ),
    "a restart is a stop and a start, whatever the policy": (
        SIMPLE,
        {"restart": RestartPolicy.NO},
        [
            *RUNNING_SIMPLE,
            (RESTART, 3, ["signal 1 15", "stopping"]),
            (exited(CRASH), 4, []),
            (empty(), 4, ["note 1: exited with 1", "waiting"]),
            (DEPS, 4, ["spawn 2", "starting"]),
        ],
    ),
    "a failed dependency stops it, and it is failed": (
        SIMPLE,
        {"restart": RestartPolicy.ALWAYS},
        [
            *RUNNING_SIMPLE,
            (FAILED_DEP, 3, ["signal 1 15", "stopping"]),
            (exited(TERMED), 4, []),
            (empty(), 4, ["note 1: was killed by SIGTERM", "failed"]),
        ],
    ),
    "what is not wanted cannot fail": (
        SIMPLE,
        {},
        [
            *RUNNING_SIMPLE,
            (STOP, 3, ["signal 1 15", "stopping"]),
            (FAILED_DEP, 3, []),
            (exited(TERMED), 4, []),
            (empty(), 4, ["note 1: was killed by SIGTERM", "dead"]),
        ],
    ),
    "reports of an old generation never act": (
        SIMPLE,
        {},
        [
            *RUNNING_SIMPLE,
            (RESTART, 3, ["signal 1 15", "stopping"]),
            (exited(CLEAN), 3, []),
            (empty(), 3, ["note 1: exited with 0", "waiting"]),
            (DEPS, 3, ["spawn 2", "starting"]),
            (exited(KILLED, 1), 3, []),
            (empty(1), 3, []),
            (failed(1), 3, []),
            (ready(1), 3, []),
            (spawned(2), 3, ["running"]),
            (lost(1), 3, []),
        ],
    ),
    "start of what is up and stop of what is down do nothing": (
        SIMPLE,
        {},
        [(STOP, 0, []), *RUNNING_SIMPLE, (START, 2, []), (START, 2, [])],
    ),
    "the stop signal is the unit's own": (
        SIMPLE,
        {"kill_signal": 2},
        [*RUNNING_SIMPLE, (STOP, 3, ["signal 1 2", "stopping"])],
    ),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_history(name: str) -> None:
    """Each event of the history has exactly the effects that are written beside it."""
    kind, changes, history = HISTORIES[name]
    state = UnitState(NAME, spec(kind, **changes))
    for event, now, expected in history:
        state, effects = step(state, event, now)
        assert [short(effect) for effect in effects] == expected, "\n".join(map(str, state.story))


HOOKS = (Hook(("run",)),)


def a_state(sub_state: SubState) -> UnitState:
    """A worker that got into a sub-state by itself; EXITED needs a oneshot."""
    begun = (START, DEPS, spawned())
    ways: dict[SubState, tuple[Any, ...]] = {
        SubState.DEAD: (*begun, exited(CLEAN), empty()),
        SubState.WAITING: (*begun, exited(CRASH), empty(), DEADLINE),
        SubState.START_PRE: (START, DEPS),
        SubState.STARTING: begun,
        SubState.START_PROBE: (*begun, ready()),
        SubState.START_POST: (*begun, ready()),
        SubState.RUNNING: (*begun, ready()),
        SubState.UNREADY: (*begun, ready(), passes(), fails()),
        SubState.RELOADING: (*begun, ready(), said(ReloadBegun)),
        SubState.EXITED: (*begun, exited(CLEAN), empty()),
        SubState.ABORTING: (*begun, ready(), fired()),
        SubState.EXEC_STOP: (*begun, ready(), STOP, exited(CLEAN)),
        SubState.STOPPING: (*begun, ready(), STOP, exited(CLEAN)),
        SubState.KILLING: (*begun, ready(), STOP, exited(CLEAN), DEADLINE),
        SubState.UNKILLABLE: (*begun, ready(), STOP, exited(CLEAN), DEADLINE, DEADLINE),
        SubState.STOP_POST: (*begun, ready(), STOP, exited(CLEAN), empty()),
        SubState.BACKOFF: (*begun, exited(CRASH), empty()),
        SubState.FAILED: (*begun, FAILED_DEP, exited(CLEAN), empty()),
    }
    changes: dict[SubState, dict[str, Any]] = {
        SubState.START_PROBE: {"readiness": Probe(tcp="/x")},
        SubState.UNREADY: {"readiness": Probe(tcp="/x")},
        SubState.START_PRE: {"exec_start_pre": HOOKS},
        SubState.START_POST: {"exec_start_post": HOOKS},
        SubState.EXEC_STOP: {"exec_stop": HOOKS},
        SubState.STOP_POST: {"exec_stop_post": HOOKS},
    }
    kind = ONESHOT if sub_state is SubState.EXITED else WORKER
    state = play(UnitState(NAME, spec(kind, **changes.get(sub_state, {}))), *ways[sub_state])
    assert state.sub_state is sub_state
    return state


EVENTS = [
    START,
    STOP,
    RESTART,
    FAILED_DEP,
    DEPS,
    DEADLINE,
    spawned(),
    ready(),
    failed(),
    SpawnInterrupted(NAME, 1),
    EndInterrupted(NAME, 1),
    lost(),
    unhealthy(),
    passes(),
    fails(),
    exited(CLEAN),
    empty(),
    RELOAD,
    hook(),
    launched(),
    main(7),
    said(ReloadBegun),
    said(StopBegun),
    extended(9.0),
    sign(49.0),
    fired(),
    Redescribed(UnitSpec(name="job", exec=("other",))),
]


@pytest.mark.parametrize("sub_state", SubState)
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_cell_of_the_table(sub_state: SubState, event: Any) -> None:
    """A listed pair works and keeps the invariants; an unlisted one is an error that tells the story."""
    state = a_state(sub_state)
    if type(event) not in TABLE[sub_state]:
        with pytest.raises(InvalidTransitionError, match=r"no such transition.*\n.*StartOrder"):
            step(state, event, 50.0)
        return
    if isinstance(event, GroupEmpty) and state.run is not None and state.run.exit is None:
        with pytest.raises(InvalidTransitionError, match=r"cannot be empty"):
            step(state, event, 50.0)
        return
    after, _ = step(state, event, 50.0)
    check(after)
    if isinstance(event, LastSign | DeadlineReached) and sub_state in AT_WORK:
        return  # the story does not tell of what comes again and again
    assert len(after.story) == min(len(state.story) + 1, KEPT_STORY)
    assert after.story[-1].event is event
    assert after.story[-1].reason


def test_every_event_and_state_is_in_the_table() -> None:
    """No state lacks a row, and each event has a place in some row; states map to public states."""
    assert set(TABLE) == set(SubState) == set(ACTIVE_STATE)
    assert set().union(*TABLE.values()) == {type(event) for event in EVENTS}


LIMITS = ("under the limit", "at the limit")
CAUSES = (
    CLEAN,
    CRASH,
    KILLED,
    TERMED,
    ExitCause.unknown(),
    ExitCause.timed_out("t"),
    ExitCause.watchdog("w"),
    ExitCause.unhealthy("u"),
    ExitCause.spawn_failed("s"),
)
MATRIX = list(itertools.product(RestartPolicy, (SIMPLE, ONESHOT), CAUSES, LIMITS))


def test_the_matrix_has_every_cell() -> None:
    """Policy x type x cause x limit."""
    assert len(MATRIX) == 6 * 2 * 9 * 2


@pytest.mark.parametrize(("policy", "kind", "cause", "limit"), MATRIX, ids=str)
def test_policy_cause_and_limit(policy: RestartPolicy, kind: UnitType, cause: ExitCause, limit: str) -> None:
    """An end leads to backoff and another spawn, to the start limit, or to rest; the note has the same reason."""
    burst = 5 if limit == LIMITS[0] else 1
    state = UnitState(NAME, spec(kind, restart=policy, start_limit_burst=burst))
    state = play(state, START, DEPS, spawned(), exited(cause), empty())
    incarnation = state.incarnations[-1]
    assert incarnation.cause == cause
    assert incarnation.decision.reason == f"restart={policy.value} and it {cause}"
    restarts = outcome(cause, oneshot=kind is ONESHOT) in RESTARTS_ON[policy]
    assert incarnation.decision.restart == restarts
    if not restarts:
        clean = SubState.EXITED if kind is ONESHOT else SubState.DEAD
        done = cause == CLEAN or (cause == TERMED and kind is SIMPLE)
        assert state.sub_state is (clean if done else SubState.FAILED)
        assert incarnation.next_attempt_at is next_deadline(state) is None
        return
    assert incarnation.next_attempt_at == next_deadline(state) == pytest.approx(0.1)
    state = play(state, DEADLINE, DEPS, now=0.1)
    if burst == 1:
        assert state.sub_state is SubState.FAILED
        assert state.reason == "start limit hit: 1 starts within 10 s"
        state = play(state, START, DEPS, now=0.2)  # a start by hand forgets the limit
    assert state.sub_state is SubState.STARTING
    assert state.generation == 2


def crash(state: UnitState, now: float) -> UnitState:
    """One more life of a simple unit, that ends at once."""
    generation = state.generation + 1
    return play(state, DEPS, spawned(generation), exited(CRASH, generation), empty(generation), now=now)


def test_the_default_backoff_stays_below_the_default_start_limit() -> None:
    """With the defaults a unit that always crashes is tried for ever, at the end each 30 s."""
    state = play(UnitState(NAME, spec(SIMPLE)), START)
    now, delays = 0.0, []
    for _ in range(50):
        state = crash(state, now)
        at = next_deadline(state)
        assert at is not None, state.reason
        delays.append(at - now)
        now = at
        state = play(state, DEADLINE, now=now)
    assert delays[:6] == pytest.approx([0.1, 0.313, 0.979, 3.065, 9.593, 30], rel=1e-2)
    assert delays[6:] == pytest.approx([30] * 44)
    assert state.restarts == 50


def test_a_stable_run_resets_the_backoff() -> None:
    """Only time spent ready counts, and it must reach restart_reset_after_sec."""
    state = play(UnitState(NAME, spec(SIMPLE)), START)
    state = play(crash(state, 0.0), DEADLINE, now=1.0)
    state = play(crash(state, 1.0), DEADLINE, now=2.0)
    assert state.restarts_in_row == 2
    state = play(state, DEPS, spawned(3), now=2.0)
    state = play(state, exited(CRASH, 3), now=62.0)
    state = play(state, empty(3), now=62.0)
    assert state.restarts_in_row == 1
    assert next_deadline(state) == pytest.approx(62.1)


def test_a_start_by_order_forgets_backoff_and_counts() -> None:
    """As systemctl reset-failed and start; it also skips the wait."""
    state = play(UnitState(NAME, spec(SIMPLE)), START)
    for now in (0.0, 1.0, 2.0):
        state = play(crash(state, now), DEADLINE, now=now + 0.5)
    state = play(crash(state, 3.0), START, now=3.0)
    assert state.sub_state is SubState.WAITING
    assert (state.restarts, state.restarts_in_row, state.starts) == (0, 0, ())


@pytest.mark.parametrize(("key", "events"), [("timeout_start_s", ()), ("timeout_stop_s", (spawned(), ready(), STOP))])
def test_an_endless_timeout_has_no_deadline(key: str, events: tuple[Any, ...]) -> None:
    """inf switches a timeout off."""
    state = play(UnitState(NAME, spec(**{key: math.inf})), START, DEPS, *events)
    assert next_deadline(state) is None


def test_what_is_kept_is_bounded() -> None:
    """Incarnations and story do not grow for ever, and the newest are kept."""
    state = play(UnitState(NAME, spec(SIMPLE, start_limit_burst=0)), START)
    for now in range(40):
        state = play(crash(state, float(now)), DEADLINE, now=float(now))
    assert [each.generation for each in state.incarnations] == list(range(41 - KEPT_INCARNATIONS, 41))
    assert len(state.story) == KEPT_STORY


def test_a_report_from_the_future_is_an_error() -> None:
    """Nobody can know of a generation that was never spawned."""
    with pytest.raises(InvalidTransitionError, match="never spawned"):
        step(a_state(SubState.RUNNING), exited(CRASH, 2), 1.0)


def test_an_empty_group_before_the_exit_is_an_error() -> None:
    """Else a second copy could be started beside a living main process."""
    state = play(UnitState(NAME, spec()), START, DEPS, spawned(), ready(), STOP)
    with pytest.raises(InvalidTransitionError, match="cannot be empty"):
        step(state, empty(), 1.0)


def described(state: UnitState) -> tuple[Any, Any]:
    """What the machine goes by now: of what went into the process, and of what only parsupd looks at."""
    return state.spec.init, state.spec.restart_s


def test_a_running_process_keeps_what_has_gone_into_it() -> None:
    """Live keys count at once, the others from the next run on; the change back leaves nothing to come."""
    old, new = spec(init={"a": 1}, restart_s=1.0), spec(init={"a": 2}, restart_s=2.0)
    for events in ((START, DEPS), (START, DEPS, spawned()), (START, DEPS, spawned(), ready())):
        state = play(UnitState(NAME, old), *events, Redescribed(new))
        assert described(state) == ({"a": 1}, 2.0)
        assert play(state, Redescribed(old)).next_spec is None
    state = play(state, exited(CRASH), empty())
    assert state.sub_state is SubState.BACKOFF
    assert state.deadline_at == 2.0
    assert described(state) == ({"a": 2}, 2.0)


def test_a_new_description_waits_for_the_end_of_a_stop() -> None:
    """Else the exit by the old stop signal would look like one of its own."""
    new = spec(kill_signal=2, timeout_stop_s=99)
    state = play(UnitState(NAME, spec()), START, DEPS, spawned(), ready(), lost(), Redescribed(new))
    assert (state.sub_state, state.spec) == (SubState.STOPPING, spec())
    state = play(state, exited(TERMED), empty())
    assert state.incarnations[0].cause.kind is ExitKind.WATCHDOG
    assert state.spec == new


@pytest.mark.parametrize("sub_state", [SubState.DEAD, SubState.WAITING, SubState.BACKOFF, SubState.FAILED])
def test_without_a_process_a_new_description_counts_at_once(sub_state: SubState) -> None:
    """Nothing else changes, and the story says that it has come."""
    before = a_state(sub_state)
    new = UnitSpec(name="job", exec=("other",))
    after = play(before, Redescribed(new))
    assert (after.spec, after.next_spec) == (new, None)
    assert (after.sub_state, after.target, after.deadline_at) == (before.sub_state, before.target, before.deadline_at)
    assert after.story[-1].reason == "its configuration has changed"


def test_a_late_failure_of_a_forgotten_life_is_ignored() -> None:
    """The name is in the configuration again: the report is of the last number that the forgotten one had used."""
    state = UnitState(NAME, spec(), generation=3)
    assert play(state, failed(3)).incarnations == ()


def test_target_is_apart_from_state() -> None:
    """A stop sets the target at once, the state follows."""
    state = play(UnitState(NAME, spec()), START, DEPS, spawned(), ready(), STOP)
    assert (state.target, state.sub_state) == (Target.DOWN, SubState.STOPPING)


def test_why_has_the_whole_incarnation() -> None:
    """Instants, cause, decision, next attempt and the lines of a failed spawn."""
    state = play(UnitState(NAME, spec()), START, DEPS, now=5.0)
    state = play(state, failed(), now=6.0)
    (incarnation,) = state.incarnations
    assert (incarnation.generation, incarnation.pid, incarnation.started_at, incarnation.ended_at) == (1, None, 5, 6)
    assert incarnation.lines == ("Traceback", "ValueError")
    assert incarnation.next_attempt_at == pytest.approx(6.1)
