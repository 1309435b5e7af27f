"""The fleet: order, dependencies, shutdown, as histories of a few units; and that it is cheap with many."""

from typing import Any

import pytest
from fleet_stage import TERMED, Stage, unit

from parsupd.core.events import (
    DeadlineReached,
    GroupEmpty,
    ReadinessLost,
    Restart,
    ShutdownRequested,
    Spawned,
    SpawnFailed,
    Start,
    StartDefault,
    Stop,
)
from parsupd.core.fleet import ShuttingDownError
from parsupd.core.roster import NoSuchUnitError
from parsupd.core.unit_state import InvalidTransitionError
from parsupd.core.units import (
    ActiveState,
    ExitCause,
    InstanceName,
    RestartPolicy,
    SubState,
    UnitType,
)


def chain(**changes: Any) -> Stage:
    """web requires app requires db; all of them up."""
    stage = Stage(unit("web", requires="app"), unit("app", requires="db"), unit("db", **changes))
    stage.do(StartDefault())
    for name in ("db@1", "app@1", "web@1"):
        stage.up(name)
    assert set(stage.states().values()) == {"running"}
    return stage


def test_the_default_target_starts_in_order_of_readiness() -> None:
    """A dependant is spawned only when all instances of what it requires are ready."""
    stage = Stage(unit("report", UnitType.ONESHOT, requires="corpus"), unit("corpus", UnitType.WORKER, instances=2))
    assert stage.do(StartDefault()) == ["spawn corpus@1", "spawn corpus@2"]
    assert stage.states() == {"report@1": "waiting", "corpus@1": "starting", "corpus@2": "starting"}
    assert stage.fleet.status("report")[0].reason == "part of the default target; waits for corpus"
    assert stage.up("corpus@2") == ["publish corpus@2"]
    assert stage.up("corpus@1") == ["publish corpus@1", "spawn report@1"]


def test_only_enabled_units_and_what_they_need_are_started() -> None:
    """A unit that is not enabled is started when an enabled one requires or wants it, not for `after`."""
    stage = Stage(
        unit("a", requires="b", wants="c", after="d"),
        unit("b", enabled=False),
        unit("c", enabled=False),
        unit("d", enabled=False),
        unit("e", enabled=False, requires="f"),
        unit("f", enabled=False),
    )
    assert stage.do(StartDefault()) == ["spawn b@1", "spawn c@1"]
    assert stage.up("b@1") == []
    assert stage.up("c@1") == ["spawn a@1"]


def test_a_start_pulls_in_what_is_required_at_any_depth() -> None:
    """Start of the last of a chain brings up the first first."""
    stage = Stage(unit("web", requires="app"), unit("app", requires="db"), unit("db"))
    assert stage.do(Start("web")) == ["spawn db@1"]
    assert stage.up("db@1") == ["spawn app@1"]
    assert stage.up("app@1") == ["spawn web@1"]


def test_wants_and_after_go_on_when_the_other_fails() -> None:
    """They wait until the other is settled; a failure settles it."""
    for key in ("wants", "after"):
        stage = Stage(unit("a", **{key: "b"}), unit("b", restart=RestartPolicy.NO))
        assert stage.do(StartDefault()) == ["spawn b@1"]
        failed = SpawnFailed(InstanceName("b", 1), 1, ExitCause.spawn_failed("no such program"))
        assert stage.do(failed) == ["spawn a@1"]
        stage.up("a@1")
        assert stage.states() == {"a@1": "running", "b@1": "failed"}


def test_after_waits_only_for_what_is_started_too() -> None:
    """Order alone starts nothing and waits for nothing that is down."""
    stage = Stage(unit("a", after="b"), unit("b"))
    assert stage.do(Start("a")) == ["spawn a@1"]


def test_a_required_unit_that_fails_fails_those_who_wait() -> None:
    """With a reason that names it, through the whole chain."""
    stage = Stage(unit("web", requires="app"), unit("app", requires="db"), unit("db", restart=RestartPolicy.NO))
    stage.do(StartDefault())
    stage.do(SpawnFailed(InstanceName("db", 1), 1, ExitCause.spawn_failed("no such program")))
    assert set(stage.states().values()) == {"failed"}
    reason = "it requires db, which failed: restart=no and it could not be started: no such program"
    assert [each.reason for each in stage.fleet.status()][:2] == [reason, reason]


def test_a_required_unit_that_fails_for_good_takes_running_dependants_down_in_order() -> None:
    """The farthest dependant first, each after the other is down, and all are failed."""
    stage = chain(restart=RestartPolicy.NO)
    assert stage.down("db@1", ExitCause.exited(1)) == ["signal db@1 15", "signal web@1 15"]
    assert stage.down("web@1") == ["signal app@1 15"]
    assert stage.down("app@1") == []
    assert set(stage.states().values()) == {"failed"}


def test_a_crash_that_is_restarted_leaves_running_dependants_alone() -> None:
    """`requires` is about start, stop and failure; backoff is none of these."""
    stage = chain()
    assert stage.down("db@1", ExitCause.exited(1)) == ["signal db@1 15"]
    assert stage.states() == {"web@1": "running", "app@1": "running", "db@1": "backoff"}
    assert stage.do(DeadlineReached(), 0.1) == ["spawn db@1"]


def test_a_dependant_that_crashes_meanwhile_waits_for_the_required_unit() -> None:
    """A restart waits for its requirements as a start does."""
    stage = chain()
    stage.down("db@1", ExitCause.exited(1))
    stage.down("app@1", ExitCause.exited(1))
    assert stage.do(DeadlineReached(), 0.1) == ["spawn db@1"]
    assert stage.states()["app@1"] == "waiting"
    assert stage.up("db@1") == ["spawn app@1"]


def test_a_waiting_unit_fails_when_what_it_requires_ended_cleanly() -> None:
    """It would wait for ever otherwise: nobody is going to start the other again."""
    stage = Stage(unit("a", UnitType.WORKER, requires="b"), unit("b", UnitType.WORKER))
    stage.do(Start("a"))
    stage.do(Spawned(InstanceName("b", 1), 1, 100))
    stage.down("b@1", ExitCause.exited(0))
    assert stage.states() == {"a@1": "failed", "b@1": "dead"}


def test_a_oneshot_is_ready_when_it_is_completed() -> None:
    """Whoever requires it starts after it has exited with 0, and it is not run again by another start."""
    stage = Stage(unit("app", requires="migrate"), unit("migrate", UnitType.ONESHOT))
    stage.do(Start("app"))
    assert stage.up("migrate@1") == []
    assert stage.down("migrate@1", ExitCause.exited(0)) == ["signal migrate@1 15", "spawn app@1"]
    stage.do(Stop("app"))
    assert stage.states()["migrate@1"] == "exited"
    assert stage.fleet.status("migrate")[0].active_state is ActiveState.ACTIVE


def test_stop_goes_in_reverse_and_waits() -> None:
    """The required unit gets its signal when its dependants are down, and not a moment before."""
    stage = chain()
    assert stage.do(Stop("db")) == ["signal web@1 15"]
    assert "waits until its dependants are down" in stage.fleet.status("db")[0].reason
    assert stage.down("web@1") == ["signal app@1 15"]
    assert stage.down("app@1") == ["signal db@1 15"]
    assert stage.down("db@1") == []
    assert set(stage.states().values()) == {"dead"}


def test_a_stop_that_is_held_back_holds_when_the_unit_crashes() -> None:
    """A crash must not start again what is to be stopped."""
    stage = chain()
    stage.do(Stop("db"))
    stage.down("db@1", ExitCause.exited(1))
    assert stage.states()["db@1"] == "dead"
    assert stage.fleet.next_deadline() == 10.0  # only that of web's stop


def test_a_held_back_unit_that_fails_by_itself_is_cleared_away_at_once() -> None:
    """Its dependants cannot use it any more, so there is nothing to hold it for (found by the random world)."""
    stage = Stage(unit("a", UnitType.WORKER, requires="b"), unit("b", UnitType.WORKER))
    stage.do(Start("a"))
    stage.up("b@1")
    stage.up("a@1")
    assert stage.do(ShutdownRequested("SIGTERM")) == ["shutdown 0", "withdraw a@1", "signal a@1 15"]
    lost = ReadinessLost(InstanceName("b", 1), 1, "its connection was closed")
    assert stage.do(lost) == ["withdraw b@1", "signal b@1 15"]


def test_a_start_takes_a_held_stop_back() -> None:
    """The last command counts."""
    stage = chain()
    stage.do(Stop("db"))
    assert stage.do(Start("db")) == []
    assert stage.down("web@1") == ["signal app@1 15"]
    assert stage.down("app@1") == []
    assert stage.states()["db@1"] == "running"


def test_restart_takes_running_dependants_along_in_order() -> None:
    """Down from the far end, up from the near end."""
    stage = chain()
    assert stage.do(Restart("db")) == ["signal web@1 15"]
    assert stage.down("web@1") == ["signal app@1 15"]
    assert stage.down("app@1") == ["signal db@1 15"]
    assert stage.down("db@1") == ["spawn db@1"]
    assert stage.up("db@1") == ["spawn app@1"]
    assert stage.up("app@1") == ["spawn web@1"]


def test_a_stop_during_a_restart_wins() -> None:
    """Stop raced by restart: nothing comes up again."""
    stage = chain()
    stage.do(Restart("db"))
    stage.do(Stop("db"))
    for name in ("web@1", "app@1", "db@1"):
        stage.down(name)
    assert set(stage.states().values()) == {"dead"}


def test_restart_starts_what_is_down() -> None:
    """As systemctl restart does."""
    stage = Stage(unit("a", requires="b"), unit("b"))
    assert stage.do(Restart("a")) == ["spawn b@1"]


def test_one_instance_can_be_stopped_and_restarted_alone() -> None:
    """Dependants stay, and their restart by policy waits only for the instances that are wanted."""
    stage = Stage(unit("a", requires="b"), unit("b", instances=2))
    stage.do(Start("b"))
    stage.up("b@1")
    stage.up("b@2")
    stage.do(Start("a"))
    stage.up("a@1")
    assert stage.do(Stop("b@2")) == ["signal b@2 15"]
    stage.down("b@2")
    assert stage.states() == {"a@1": "running", "b@1": "running", "b@2": "dead"}
    stage.down("a@1", ExitCause.exited(1))
    assert stage.do(DeadlineReached(), 0.1) == ["spawn a@1"]


def test_stopping_the_last_instance_is_stopping_the_unit() -> None:
    """By whatever name: dependants go first, and are not left without what they require (found by the random world)."""
    stage = chain()
    assert stage.do(Stop("db@1")) == ["signal web@1 15"]
    stage = Stage(unit("a", requires="b"), unit("b", instances=2))
    stage.do(Start("b"))
    for name in ("b@1", "b@2"):
        stage.up(name)
    stage.do(Start("a"))
    stage.up("a@1")
    assert stage.do(Stop("b@2")) == ["signal b@2 15"]
    assert stage.do(Stop("b@1")) == ["signal a@1 15"]
    assert stage.down("a@1") == ["signal b@1 15"]


def test_commands_are_idempotent() -> None:
    """Start of what is up and stop of what is down do nothing and succeed."""
    stage = chain()
    assert stage.do(Start("web")) == []
    stage.do(Stop("web"))
    stage.down("web@1")
    assert stage.do(Stop("web")) == []


def test_exit_with_ends_everything_with_its_status() -> None:
    """The job is done: the rest is stopped in reverse order, and the exit code is its own."""
    stage = Stage(
        unit("report", UnitType.ONESHOT, requires="corpus", exit_with=True, restart=RestartPolicy.NO),
        unit("corpus", UnitType.WORKER, requires="base"),
        unit("base"),
    )
    stage.do(StartDefault())
    for name in ("base@1", "corpus@1", "report@1"):
        stage.up(name)
    effects = stage.down("report@1", ExitCause.exited(0))
    assert effects == ["signal report@1 15", "shutdown 0", "withdraw corpus@1", "signal corpus@1 15"]
    assert stage.down("corpus@1") == ["signal base@1 15"]
    assert stage.down("base@1") == ["all down 0"]
    with pytest.raises(ShuttingDownError):
        stage.do(Start("base"))
    assert stage.do(ShutdownRequested("again")) == []


@pytest.mark.parametrize(
    ("cause", "code"),
    [(ExitCause.exited(3), 3), (ExitCause.signaled(9), 137), (TERMED, 143), (ExitCause.unknown(), 1)],
)
def test_exit_with_gives_the_status_of_a_failed_job(cause: ExitCause, code: int) -> None:
    """Its own code, 128 + signal, otherwise 1."""
    stage = Stage(unit("job", UnitType.ONESHOT, exit_with=True, restart=RestartPolicy.NO))
    stage.do(StartDefault())
    stage.up("job@1")
    assert stage.down("job@1", cause) == ["signal job@1 15", f"shutdown {code}", f"all down {code}"]


def test_exit_with_ends_everything_when_its_requirement_fails() -> None:
    """The job never ran, and never will: exit code 1 rather than waiting for ever."""
    stage = Stage(unit("job", exit_with=True, requires="base"), unit("base", restart=RestartPolicy.NO))
    stage.do(StartDefault())
    failed = SpawnFailed(InstanceName("base", 1), 1, ExitCause.spawn_failed("no such program"))
    assert stage.do(failed) == ["shutdown 1", "all down 1"]


def test_exit_with_waits_for_the_restart_policy_and_for_all_instances() -> None:
    """A restart means that it has not ended; success of one instance neither."""
    stage = Stage(unit("job", UnitType.ONESHOT, exit_with=True, instances=2, restart=RestartPolicy.ON_FAILURE))
    stage.do(StartDefault())
    stage.up("job@1")
    stage.up("job@2")
    assert stage.down("job@1", ExitCause.exited(0)) == ["signal job@1 15"]
    assert stage.down("job@2", ExitCause.exited(1)) == ["signal job@2 15"]
    assert stage.do(DeadlineReached(), 0.1) == ["spawn job@2"]
    stage.up("job@2")
    assert stage.down("job@2", ExitCause.exited(0))[-1] == "all down 0"


def test_a_stop_by_request_does_not_trigger_exit_with() -> None:
    """Whoever stops the unit by hand may want to start it again."""
    stage = Stage(unit("job", exit_with=True))
    stage.do(StartDefault())
    stage.up("job@1")
    stage.do(Stop("job"))
    assert stage.down("job@1") == []


def test_shutdown_stops_all_and_says_so_once() -> None:
    """In reverse order, whatever the states; a unit in backoff is down at once."""
    stage = chain()
    stage.down("web@1", ExitCause.exited(1))
    assert stage.do(ShutdownRequested("SIGTERM")) == ["shutdown 0", "signal app@1 15"]
    assert stage.down("app@1") == ["signal db@1 15"]
    assert stage.down("db@1") == ["all down 0"]
    assert stage.fleet.next_deadline() is None


def test_shutdown_of_an_idle_fleet_is_over_at_once() -> None:
    """Nothing has to be waited for."""
    assert Stage(unit("a")).do(ShutdownRequested("SIGINT")) == ["shutdown 0", "all down 0"]


def test_unknown_names_are_refused_with_the_nearest_one() -> None:
    """For units and for instances."""
    stage = Stage(unit("pricing", instances=2))
    for name, near in (("pricng", "pricing"), ("pricing@3", "pricing@")):
        for command in (Start(name), Stop(name), Restart(name)):
            with pytest.raises(NoSuchUnitError, match=f"did you mean '{near}"):
                stage.do(command)


def test_why_tells_decisions_and_the_next_attempt() -> None:
    """Status, incarnations, story, and when it will be tried again."""
    stage = chain()
    stage.down("web@1", ExitCause.exited(1))
    (why,) = stage.fleet.why("web")
    assert why.status.sub_state is SubState.BACKOFF
    assert why.incarnations[-1].decision.reason == "restart=on-failure and it exited with 1"
    assert why.next_attempt_at == pytest.approx(0.1)
    assert why.story


def test_a_report_against_the_contract_changes_nothing() -> None:
    """It is an error of the executor; the fleet is as before, and goes on."""
    stage = chain()
    before = stage.fleet.status()
    with pytest.raises(InvalidTransitionError, match=r"web@1 is running"):
        stage.do(GroupEmpty(InstanceName("web", 1), 1))
    assert stage.fleet.status() == before
    assert stage.do(Stop("web")) == ["signal web@1 15"]


def test_a_unit_without_instances_blocks_nobody() -> None:
    """instances = 0 is ready by having nothing to wait for."""
    stage = Stage(unit("a", requires="b"), unit("b", instances=0))
    assert stage.do(StartDefault()) == ["spawn a@1"]


@pytest.mark.parametrize("units", [1, 1000])
def test_a_crashing_instance_among_many_concerns_nobody_else(units: int) -> None:
    """1000 instances, in one unit or in 1000 units: effects are about the one, and stale deadlines are bounded."""
    each = 1000 // units
    stage = Stage(*(unit(f"u{number}", instances=each) for number in range(units)))
    stage.do(StartDefault())
    for status in stage.fleet.status():
        stage.up(status.name)
    for _ in range(2000):
        assert stage.down("u0@1", ExitCause.exited(1)) == ["signal u0@1 15"]
        assert stage.do(DeadlineReached(), 31.0) == ["spawn u0@1"]
        stage.up("u0@1")
        assert len(stage.fleet._deadlines) <= 2 * 1000 + 65


def test_a_long_chain_neither_recurses_nor_forgets() -> None:
    """3000 units, each requiring the one before."""
    count = 3000
    stage = Stage(*(unit(f"u{n}", requires=f"u{n - 1}" if n else "") for n in range(count)))
    assert stage.do(Start(f"u{count - 1}")) == ["spawn u0@1"]
    for number in range(count - 1):
        assert stage.up(f"u{number}@1") == [f"spawn u{number + 1}@1"]
    stage.up(f"u{count - 1}@1")
    assert stage.do(ShutdownRequested("SIGTERM")) == ["shutdown 0", f"signal u{count - 1}@1 15"]
    for number in reversed(range(count)):
        stage.down(f"u{number}@1")
    assert set(stage.states().values()) == {"dead"}
