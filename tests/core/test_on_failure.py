"""Units that are started because another one has failed."""

from fleet_stage import Stage, unit, up

from parsupd.core import snapshot
from parsupd.core.events import DeadlineReached, ShutdownRequested, Start, StartDefault, Stop
from parsupd.core.units import ExitCause, Failure, InstanceName, RestartPolicy, UnitType

CRASH = ExitCause.exited(3)
NO = RestartPolicy.NO


def watched(**changes: object) -> Stage:
    """pricing, of two instances, for which alert is started, which needs mail."""
    return up(
        unit("pricing", instances=2, restart=NO, on_failure="alert", **changes),
        unit("alert", UnitType.ONESHOT, restart=NO, enabled=False, requires="mail"),
        unit("mail", enabled=False),
    )


def test_a_failure_starts_the_unit_with_what_it_requires() -> None:
    """And tells it which instance has failed, why, and how it ended."""
    stage = watched()
    assert stage.down("pricing@2", CRASH) == ["signal pricing@2 15", "alarm alert for pricing@2", "spawn mail@1"]
    assert stage.up("mail@1") == ["spawn alert@1"]
    failure = Failure("pricing@2", "restart=no and it exited with 3", "exited with 3", 3)
    assert stage.fleet.state(InstanceName("alert", 1))[0].failure == failure
    assert stage.fleet.state(InstanceName("mail", 1))[0].failure is None
    assert stage.fleet.status("alert")[0].reason == "pricing@2 has failed: restart=no and it exited with 3"


def test_what_has_done_its_work_does_it_again_for_the_next_failure() -> None:
    """A oneshot stays `exited`; and a start by hand forgets the failure."""
    stage = watched()
    stage.down("pricing@1", CRASH)
    stage.up("mail@1")
    stage.up("alert@1")
    stage.down("alert@1", ExitCause.exited(0))
    assert stage.states()["alert@1"] == "exited"
    assert stage.down("pricing@2", CRASH)[1:] == ["alarm alert for pricing@2", "spawn alert@1"]
    stage.up("alert@1")
    stage.down("alert@1", ExitCause.exited(0))
    stage.do(Stop("alert"))
    stage.do(Start("alert"))
    assert stage.fleet.state(InstanceName("alert", 1))[0].failure is None


def test_only_a_failure_for_good_counts() -> None:
    """Not an end that is followed by a restart, nor a clean end, nor a stop."""
    stage = up(unit("a", on_failure="b", start_limit_burst=2), unit("b", enabled=False))
    assert stage.down("a@1", CRASH) == ["signal a@1 15"]
    stage.do(DeadlineReached(), after_s=1)
    stage.up("a@1")
    stage.down("a@1", CRASH)
    assert stage.do(DeadlineReached(), after_s=1) == ["alarm b for a@1", "spawn b@1"]
    assert "start limit hit" in stage.fleet.status("b")[0].reason
    stage.do(Start("a"))
    stage.up("a@1")
    assert stage.down("a@1", ExitCause.exited(0)) == ["signal a@1 15"]


def test_a_dependency_that_failed_counts_too() -> None:
    """Whoever cannot run has failed."""
    stage = Stage(unit("db", restart=NO), unit("a", requires="db", on_failure="b"), unit("b", enabled=False))
    stage.do(StartDefault())
    stage.up("db@1")
    stage.up("a@1")
    assert stage.down("db@1", CRASH)[-1] == "signal a@1 15"
    assert stage.down("a@1") == ["alarm b for a@1", "spawn b@1"]


def test_a_loop_cannot_spin() -> None:
    """What starts again what it was started for does so only a few times in a while, though no start limit is set."""
    stage = up(
        unit("db", restart=NO),
        unit("a", binds_to="db", on_failure="b"),  # comes back with db, and fails with it again
        unit("b", requires="db", enabled=False, start_limit_burst=0),
    )
    said: list[str] = []
    for _ in range(20):
        for name in ("db@1", "a@1", "b@1"):
            if stage.states()[name] == "starting":
                said += stage.up(name)
        for name in ("db@1", "a@1", "b@1"):
            if stage.states()[name] in {"running", "stopping"}:
                said += stage.down(name, CRASH)
    alarms = [word for word in said if "alarm" in word]
    assert alarms == ["alarm b for a@1"] * 5 + ["no alarm b for a@1"]


def test_a_shutdown_starts_nothing() -> None:
    """Whatever fails then."""
    stage = watched()
    stage.do(ShutdownRequested("SIGTERM"))
    assert stage.down("pricing@1", CRASH) == []


def test_a_new_parsupd_knows_what_it_is_started_for() -> None:
    """What waits for something while parsupd is replaced is still told of the failure."""
    stage = watched()
    stage.down("pricing@2", CRASH)
    name = InstanceName("alert", 1)
    state, held = stage.fleet.state(name)
    assert stage.states()["alert@1"] == "waiting"
    kept = snapshot.state_of(snapshot.record(state, held, None), state.spec)
    assert kept.failure == state.failure == Failure("pricing@2", "restart=no and it exited with 3", "exited with 3", 3)
