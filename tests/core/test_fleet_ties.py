"""Units that are bound to others, part of others, or in conflict with them: histories of a few units."""

from typing import Any

import pytest
from fleet_stage import Stage, unit, up

from parsupd.core.events import (
    DeadlineReached,
    Restart,
    Scale,
    ShutdownRequested,
    SpawnFailed,
    Start,
    StartDefault,
    Stop,
)
from parsupd.core.units import ExitCause, InstanceName, RestartPolicy, UnitType

CRASH = ExitCause.exited(1)


def bound(**changes: Any) -> Stage:
    """site requires app, which is bound to db."""
    return up(unit("db", **changes), unit("app", binds_to="db"), unit("site", requires="app"))


def test_what_is_bound_goes_when_the_other_crashes_and_comes_back_with_it() -> None:
    """In order: what requires it first; and both wait until the other is ready again."""
    stage = bound()
    assert stage.down("db@1", CRASH) == ["signal db@1 15", "signal site@1 15"]  # what is left of db, at once
    assert stage.down("site@1") == ["signal app@1 15"]
    assert stage.do(DeadlineReached(), after_s=1) == ["spawn db@1"]
    assert stage.down("app@1") == []
    assert stage.states() == {"db@1": "starting", "app@1": "waiting", "site@1": "waiting"}
    assert stage.fleet.status("app")[0].reason == "it is bound to db, which is gone; waits for db"
    assert stage.up("db@1") == ["spawn app@1"]
    assert stage.up("app@1") == ["spawn site@1"]
    assert [each.restarts for each in stage.fleet.status()] == [1, 1, 1]


def test_what_is_bound_waits_while_the_other_is_stopped() -> None:
    """It is stopped first, stays wanted, and starts when somebody starts the other."""
    stage = bound()
    assert stage.do(Stop("db")) == ["signal site@1 15"]
    stage.down("site@1")
    assert stage.down("app@1") == ["signal db@1 15"]
    stage.down("db@1")
    assert stage.states() == {"db@1": "dead", "app@1": "waiting", "site@1": "waiting"}
    assert stage.do(Start("db")) == ["spawn db@1"]
    assert stage.up("db@1") == ["spawn app@1"]


def test_what_is_bound_fails_with_the_other_and_comes_back_with_it() -> None:
    """For good means failed; a start of the other is enough to have both again."""
    stage = bound(restart=RestartPolicy.NO)
    stage.down("db@1", CRASH)
    stage.down("site@1")
    stage.down("app@1")
    assert set(stage.states().values()) == {"failed"}
    stage.do(Start("db"))
    assert stage.up("db@1") == ["spawn app@1"]
    assert stage.states()["site@1"] == "failed"  # it only requires


def test_an_end_without_failure_is_an_end_too() -> None:
    """What is bound to a program that has ended cleanly cannot stay."""
    stage = bound()
    stage.down("db@1", ExitCause.exited(0))
    stage.down("site@1")
    stage.down("app@1")
    assert stage.states() == {"db@1": "dead", "app@1": "failed", "site@1": "failed"}
    assert "it requires db, which is not going to be ready" in stage.fleet.status("app")[0].reason


def test_one_of_several_instances_may_be_missing() -> None:
    """Only when none is left, the unit is gone; more instances are no loss either."""
    stage = bound(instances=2)
    assert stage.down("db@1", CRASH) == ["signal db@1 15"]
    assert stage.do(Scale("db", 3)) == ["spawn db@3"]
    assert stage.down("db@2", CRASH) == ["signal db@2 15", "signal site@1 15"]


def test_a_start_that_was_ended_for_others_does_not_count() -> None:
    """However often the other goes, what is bound to it does not hit its own start limit."""
    stage = bound(start_limit_burst=0, restart_s=0.0)
    for _ in range(20):
        stage.down("db@1", CRASH)
        stage.down("site@1")
        stage.down("app@1")
        stage.do(DeadlineReached())
        for name in ("db@1", "app@1", "site@1"):
            stage.up(name)
    assert set(stage.states().values()) == {"running"}


def test_stop_and_restart_reach_the_parts() -> None:
    """The parts first; a start does not start them, and a crash is no stop."""
    stage = up(unit("main"), unit("part", part_of="main"), unit("piece", part_of="part"))
    assert stage.down("main@1", CRASH) == ["signal main@1 15"]
    stage.do(DeadlineReached(), after_s=1)
    stage.up("main@1")
    assert stage.do(Restart("main")) == ["signal piece@1 15"]
    assert stage.down("piece@1") == ["signal part@1 15"]
    assert stage.down("part@1") == ["signal main@1 15"]
    assert stage.down("main@1") == ["spawn main@1"]
    stage.up("main@1")
    stage.up("part@1")
    stage.up("piece@1")
    stage.do(Stop("main"))
    assert stage.fleet.status("part")[0].reason.endswith(
        "it is part of main: stop requested: waits until its dependants are down"
    )
    for name in ("piece@1", "part@1", "main@1"):
        stage.down(name)
    assert set(stage.states().values()) == {"dead"}
    assert stage.do(Start("main")) == ["spawn main@1"]
    assert stage.states()["part@1"] == "dead"


@pytest.mark.parametrize("by", ["a", "b"])
def test_of_two_in_conflict_the_last_one_started_stays(by: str) -> None:
    """Whoever names whom: the other is stopped, after what requires it, and is down before the start."""
    names = {"conflicts": "b"} if by == "a" else {}
    other = {"conflicts": "a"} if by == "b" else {}
    stage = Stage(unit("a", enabled=False, **names), unit("b", **other), unit("c", requires="b"))
    stage.do(StartDefault())
    stage.up("b@1")
    stage.up("c@1")
    assert stage.do(Start("a")) == ["signal c@1 15"]
    assert stage.fleet.status("a")[0].reason == "start requested; waits for the end of b"
    assert stage.down("c@1") == ["signal b@1 15"]
    assert stage.down("b@1") == ["spawn a@1"]
    stage.up("a@1")
    assert stage.states() == {"a@1": "running", "b@1": "dead", "c@1": "dead"}
    assert stage.do(Start("c")) == ["signal a@1 15"]  # it needs b
    assert stage.down("a@1") == ["spawn b@1"]


def test_a_conflict_ends_what_would_have_come_back() -> None:
    """Also what is not up: a backoff, a failure, a oneshot that is done."""
    stage = Stage(
        unit("a", enabled=False, conflicts="b c d"),
        unit("b"),
        unit("c", restart=RestartPolicy.NO),
        unit("d", UnitType.ONESHOT, restart=RestartPolicy.NO),
    )
    stage.do(StartDefault())
    stage.up("b@1")
    stage.down("b@1", CRASH)
    stage.do(SpawnFailed(InstanceName("c", 1), 1, ExitCause.spawn_failed("no")))
    stage.up("d@1")
    stage.down("d@1", ExitCause.exited(0))
    assert stage.states() == {"a@1": "dead", "b@1": "backoff", "c@1": "failed", "d@1": "exited"}
    assert stage.do(Start("a")) == ["spawn a@1"]
    assert stage.states() == {"a@1": "starting", "b@1": "dead", "c@1": "failed", "d@1": "dead"}
    assert {each.target.value for each in stage.fleet.status()[1:]} == {"down"}


def test_a_shutdown_stops_what_is_bound_for_good() -> None:
    """Nothing waits for anything any more."""
    stage = bound()
    assert stage.do(ShutdownRequested("SIGTERM")) == ["shutdown 0", "signal site@1 15"]
    stage.down("site@1")
    stage.down("app@1")
    assert stage.down("db@1") == ["all down 0"]
