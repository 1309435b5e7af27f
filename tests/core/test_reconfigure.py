"""The fleet follows a changed configuration: histories of a few units, and that it is cheap with many."""

from dataclasses import replace
from typing import Any

import pytest
from fleet_stage import Stage, unit
from test_fleet import chain

from parsupd.core.effects import Forgotten
from parsupd.core.events import (
    DeadlineReached,
    Exited,
    GroupEmpty,
    Reconfigure,
    Restart,
    Scale,
    ShutdownRequested,
    Spawned,
    SpawnFailed,
    Start,
    StartDefault,
    Stop,
)
from parsupd.core.fleet import Fleet, ShuttingDownError
from parsupd.core.roster import NoSuchUnitError
from parsupd.core.units import Configuration, DaemonSettings, ExitCause, InstanceName, RestartPolicy, UnitSpec, UnitType


def to(*units: UnitSpec) -> Reconfigure:
    return Reconfigure(Configuration(DaemonSettings(), {each.name: each for each in units}))


def changed(stage: Stage, **changes: dict[str, Any]) -> Reconfigure:
    """The configuration in force with keys of some units changed; None removes a unit."""
    specs = stage.fleet.configuration.units.values()
    return to(*(replace(spec, **changes.get(spec.name, {})) for spec in specs))


def forgotten(stage: Stage, event: Any) -> list[str]:
    return [str(effect.instance) for effect in stage.fleet.handle(event, stage.now) if isinstance(effect, Forgotten)]


def test_what_is_new_comes_up_in_order() -> None:
    """A new unit is started with what it requires; what ran before sees nothing of it."""
    stage = chain()
    before = [stage.fleet.state(InstanceName(name, 1))[0] for name in ("web", "app", "db")]
    new = (unit("report", requires="corpus web"), unit("corpus", enabled=False), unit("off", enabled=False))
    assert stage.do(to(*stage.fleet.configuration.units.values(), *new)) == ["spawn corpus@1"]
    assert stage.up("corpus@1") == ["spawn report@1"]
    assert stage.states()["off@1"] == "dead"
    assert [stage.fleet.state(InstanceName(name, 1))[0] for name in ("web", "app", "db")] == before


def test_what_is_gone_is_stopped_in_order_and_forgotten() -> None:
    """A unit is stopped after those that require it, is shown until it is down, and then unknown."""
    stage = chain()
    assert stage.do(to()) == ["signal web@1 15"]
    assert stage.states() == {"web@1": "stopping", "app@1": "running", "db@1": "running"}
    assert stage.down("web@1") == ["signal app@1 15"]
    assert list(stage.states()) == ["app@1", "db@1"]
    assert stage.down("app@1") == ["signal db@1 15"]
    stage.down("db@1")
    assert stage.states() == {}
    with pytest.raises(NoSuchUnitError):
        stage.fleet.status("db")


def test_what_is_down_is_forgotten_at_once() -> None:
    """Nothing has to be waited for; the caller is told, so that it can forget, too."""
    stage = Stage(unit("a"), unit("b", instances=2))
    assert forgotten(stage, to(unit("a"))) == ["b@1", "b@2"]
    assert stage.states() == {"a@1": "dead"}


def test_a_removed_unit_takes_no_orders() -> None:
    """A start or restart is refused with the reason; a stop is what happens anyhow."""
    stage = chain()
    stage.do(to())
    for event in (Start("db"), Restart("db@1"), Start("app")):
        with pytest.raises(NoSuchUnitError, match="is being removed"):
            stage.do(event)
    assert stage.do(Stop("db")) == []
    assert stage.down("web@1") == ["signal app@1 15"]


def test_a_removed_unit_that_is_added_again_comes_back() -> None:
    """Its end goes on, its next run is of the new description, and its numbers go on."""
    stage = Stage(unit("a", exec=("old",)))
    stage.do(StartDefault())
    stage.up("a@1")
    assert stage.do(to()) == ["signal a@1 15"]
    assert stage.do(to(unit("a", exec=("new",)))) == []
    assert stage.down("a@1") == ["spawn a@1"]
    assert stage.generations[InstanceName("a", 1)] == 2
    assert stage.fleet.spec(InstanceName("a", 1)).exec == ("new",)


def test_a_unit_that_was_forgotten_never_uses_a_number_twice() -> None:
    """A late report of its forgotten life does nothing to the new one."""
    stage = Stage(unit("a", UnitType.WORKER))
    stage.do(StartDefault())
    stage.do(Spawned(InstanceName("a", 1), 1, 100))
    stage.do(to())
    stage.do(Exited(InstanceName("a", 1), 1, ExitCause.exited(1)))
    assert forgotten(stage, GroupEmpty(InstanceName("a", 1), 1)) == ["a@1"]
    late = SpawnFailed(InstanceName("a", 1), 1, ExitCause.spawn_failed("cancelled"))
    assert stage.do(late) == []
    assert stage.do(to(unit("a", UnitType.WORKER))) == ["spawn a@1"]
    assert stage.generations[InstanceName("a", 1)] == 2
    assert stage.do(late) == []
    assert stage.states() == {"a@1": "starting"}


def test_a_restart_goes_through_those_that_require_it() -> None:
    """They are down before it is stopped, and come up after it is ready, as with the command."""
    stage = chain()
    assert stage.do(changed(stage, app={"umask": 0})) == ["signal web@1 15"]
    assert stage.down("web@1") == ["signal app@1 15"]
    assert stage.down("app@1") == ["spawn app@1"]
    assert stage.up("app@1") == ["spawn web@1"]
    assert stage.fleet.spec(InstanceName("app", 1)).umask == 0
    assert stage.fleet.status("web")[0].reason == "it requires app, which is restarted"
    assert stage.states()["db@1"] == "running"


def test_a_live_change_is_seen_by_nobody() -> None:
    """No effect at all, and the next decision goes by the new value."""
    stage = chain()
    assert stage.fleet.handle(changed(stage, db={"restart_s": 7.0}), 1.0) == []
    stage.down("db@1", ExitCause.exited(1))
    assert stage.fleet.next_deadline() == 7.0


def test_what_backs_off_tries_the_new_description_at_once() -> None:
    """Whoever has mended the file does not wait for the delay of the old mistake."""
    stage = Stage(unit("a", restart_s=100.0))
    stage.do(StartDefault())
    stage.up("a@1")
    stage.down("a@1", ExitCause.exited(1))
    assert stage.states() == {"a@1": "backoff"}
    assert stage.do(changed(stage, a={"umask": 0})) == ["spawn a@1"]


def test_what_failed_tries_the_new_description_at_once() -> None:
    """The start limit is forgotten, and what failed because of it is started with it."""
    stage = Stage(unit("a", restart=RestartPolicy.NO), unit("b", requires="a"))
    stage.do(StartDefault())
    stage.up("a@1")
    stage.up("b@1")
    stage.down("a@1", ExitCause.exited(1))
    stage.down("b@1")
    assert stage.states() == {"a@1": "failed", "b@1": "failed"}
    assert stage.do(changed(stage, a={"umask": 0})) == ["spawn a@1"]
    assert stage.up("a@1") == ["spawn b@1"]


def test_a_start_under_way_is_given_up_for_the_new_description() -> None:
    """What is being spawned is cancelled and spawned anew; nothing runs twice meanwhile."""
    stage = Stage(unit("a", UnitType.WORKER))
    stage.do(StartDefault())
    assert stage.do(changed(stage, a={"worker": "m:C"})) == []
    assert stage.states() == {"a@1": "stopping"}
    assert stage.do(SpawnFailed(InstanceName("a", 1), 1, ExitCause.spawn_failed("cancelled"))) == ["spawn a@1"]


def test_a_stop_under_way_goes_on() -> None:
    """A unit that somebody is stopping stays down, and has the change at its next start."""
    stage = chain()
    stage.do(Stop("web"))
    assert stage.do(changed(stage, web={"umask": 0})) == []
    assert stage.down("web@1") == []
    assert stage.states()["web@1"] == "dead"
    assert stage.do(Start("web")) == ["spawn web@1"]
    assert stage.fleet.spec(InstanceName("web", 1)).umask == 0


def test_more_and_fewer_instances() -> None:
    """Only those at the end come and go; the others, and those who require the unit, see nothing."""
    stage = Stage(unit("a", instances=2), unit("b", requires="a"))
    stage.do(StartDefault())
    for name in ("a@1", "a@2", "b@1"):
        stage.up(name)
    assert stage.do(Scale("a", 4)) == ["spawn a@3", "spawn a@4"]
    stage.up("a@3")
    assert stage.do(Scale("a", 1)) == ["signal a@2 15", "signal a@3 15"]
    assert stage.do(Scale("a", 2)) == []
    assert stage.down("a@2") == ["spawn a@2"]
    stage.down("a@3")
    assert {"a@1": "running", "b@1": "running"}.items() <= stage.states().items()
    assert stage.do(Scale("a", 0)) == ["signal a@1 15"]
    assert stage.states()["b@1"] == "running"


def test_a_unit_waits_for_new_instances_of_what_it_requires() -> None:
    """Ready means all wanted instances, also those that were added a moment ago."""
    stage = Stage(unit("a"), unit("b", requires="a"))
    stage.do(StartDefault())
    assert stage.do(Scale("a", 2)) == ["spawn a@2"]
    assert stage.up("a@1") == []
    assert stage.up("a@2") == ["spawn b@1"]


def test_the_files_win_over_scale() -> None:
    """What was set by hand is a difference to the files like any other."""
    stage = Stage(unit("a", instances=2))
    stage.do(StartDefault())
    stage.do(Scale("a", 3))
    found = stage.fleet.plan(to(unit("a", instances=2)).configuration)
    assert [(change.key, change.old, change.new) for change in found.units[0].keys] == [("instances", 3, 2)]
    assert found.units[0].stops == (InstanceName("a", 3),)


def test_only_a_unit_is_scaled() -> None:
    """An unknown name has the nearest one in its message."""
    with pytest.raises(NoSuchUnitError, match="'pricing'"):
        Stage(unit("pricing")).do(Scale("prcing", 3))


def test_edges_count_at_once() -> None:
    """A unit that is no longer required is stopped alone; one that is newly required is stopped after."""
    stage = Stage(unit("app", requires="db"), unit("db"), unit("cache"))
    stage.do(StartDefault())
    for name in ("db@1", "cache@1", "app@1"):
        stage.up(name)
    assert stage.do(to(unit("app", requires="cache"), unit("db"), unit("cache"))) == []
    assert stage.do(Stop("db")) == ["signal db@1 15"]
    assert stage.do(Stop("cache")) == ["signal app@1 15"]
    assert stage.down("app@1") == ["signal cache@1 15"]


def test_a_waiting_unit_is_judged_by_its_new_edges() -> None:
    """What it does not name any more, it does not wait for."""
    stage = Stage(unit("app", requires="db"), unit("db"))
    stage.do(StartDefault())
    assert stage.do(to(unit("app"), unit("db"))) == ["spawn app@1"]


def test_nothing_is_changed_during_a_shutdown() -> None:
    """The end of everything comes first; the configuration stays what it was."""
    stage = chain()
    stage.do(ShutdownRequested("the end"))
    for event in (to(), Scale("db", 3)):
        with pytest.raises(ShuttingDownError, match="not changed any more"):
            stage.do(event)
    assert list(stage.fleet.configuration.units) == ["web", "app", "db"]


def test_a_shutdown_waits_for_what_was_being_removed() -> None:
    """An instance that the configuration does not have any more still counts until it is down."""
    stage = Stage(unit("a"))
    stage.do(StartDefault())
    stage.up("a@1")
    stage.do(to())
    assert stage.do(ShutdownRequested("the end", 3)) == ["shutdown 3"]
    assert stage.down("a@1") == ["all down 3"]


def test_a_removed_unit_does_not_end_the_daemon() -> None:
    """exit_with is about a unit that ends by itself, not about one that the configuration drops."""
    stage = Stage(unit("a", exit_with=True), unit("b"))
    stage.do(StartDefault())
    stage.up("a@1")
    stage.up("b@1")
    stage.do(to(unit("b")))
    assert stage.down("a@1") == []
    assert not stage.fleet.shutting_down


def test_a_crash_before_its_removal_does_not_end_the_daemon_either() -> None:
    """It fails while its stop is held back by a unit that requires it."""
    stage = Stage(unit("a", exit_with=True, restart=RestartPolicy.NO), unit("b", requires="a"), unit("c"))
    stage.do(StartDefault())
    for name in ("c@1", "a@1", "b@1"):
        stage.up(name)
    assert stage.do(to(unit("c"))) == ["signal b@1 15"]
    stage.down("a@1", ExitCause.exited(7))
    assert not stage.fleet.shutting_down


def test_what_was_being_removed_is_removed_by_the_next_daemon() -> None:
    """A fleet that is made from the states of another goes on with their removal."""
    stage = Stage(unit("a", instances=2), unit("b"))
    stage.do(StartDefault())
    for name in ("a@1", "a@2", "b@1"):
        stage.up(name)
    stage.do(to(unit("a", instances=1)))
    names = [InstanceName("a", 1), InstanceName("a", 2), InstanceName("b", 1)]
    stage.fleet = Fleet(stage.fleet.configuration, [stage.fleet.state(name) for name in names])
    stage.do(DeadlineReached())
    assert stage.states() == {"a@1": "running", "a@2": "stopping", "b@1": "stopping"}
    stage.down("a@2")
    stage.down("b@1")
    assert stage.states() == {"a@1": "running"}


def test_specs_are_those_of_all_that_there_is() -> None:
    """Also of what is being removed, for whoever keeps a record of it."""
    stage = chain()
    stage.do(to(unit("idle", instances=0)))
    assert list(stage.fleet.specs) == ["idle", "web", "app", "db"]
    for name in ("web@1", "app@1", "db@1"):
        stage.down(name)
    assert list(stage.fleet.specs) == ["idle"]


def test_many_units_come_and_go_quickly() -> None:
    """Thousands of units are added, changed and removed with work that grows with their number, not its square."""
    hub, spokes = unit("hub"), [unit(f"u{number}", requires="hub") for number in range(1500)]
    stage = Stage(hub)
    stage.do(StartDefault())
    stage.up("hub@1")
    assert len(stage.do(to(hub, *spokes))) == 1500
    for spoke in spokes:
        stage.up(f"{spoke.name}@1")
    assert len(stage.do(to())) == 1500
    for spoke in spokes:
        stage.down(f"{spoke.name}@1")
    assert stage.states() == {"hub@1": "stopping"}
