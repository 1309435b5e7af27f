"""The fleet under random commands and an executor that answers late, in any order, and with stale reports."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import Raw
from unit_events import LIVING, check

from parsupd.core import graph, snapshot
from parsupd.core.effects import (
    Alarm,
    AllDown,
    CancelSpawn,
    Changed,
    CheckLife,
    EndHook,
    Escalate,
    FindMain,
    Forgotten,
    GroupFailed,
    Note,
    Publish,
    RunHook,
    Shutdown,
    SignalGroup,
    SignalMain,
    Spawn,
    StormBegan,
    StormEnded,
    Unkillable,
    Withdraw,
)
from parsupd.core.events import (
    DeadlineReached,
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
    Reconfigure,
    ReloadBegun,
    ReloadUnit,
    Restart,
    Scale,
    ShutdownRequested,
    Spawned,
    SpawnFailed,
    SpawnInterrupted,
    Start,
    StartDefault,
    Stop,
    StopBegun,
    Unhealthy,
    WatchdogFired,
)
from parsupd.core.fleet import Fleet, ShuttingDownError
from parsupd.core.probe_keys import Probe
from parsupd.core.recovery import ENDING
from parsupd.core.roster import NoSuchUnitError
from parsupd.core.tally import AT_REST, UP
from parsupd.core.units import (
    AT_WORK,
    SIGKILL,
    Configuration,
    DaemonSettings,
    Dependency,
    Escalation,
    ExitCause,
    GroupSpec,
    GroupStrategy,
    Hook,
    HookStage,
    InstanceName,
    KillMode,
    RestartPolicy,
    StartLimitAction,
    SubState,
    UnitSpec,
    UnitType,
)

NAMES = ("a", "b", "c", "d", "e")
HOOKS = st.sampled_from([(), (), (), (), (Hook(("x",)),), (Hook(("x",), ignore_failure=True), Hook(("y",), 3.0))])
PROBES = (None, None, Probe(tcp="/x"), Probe(tcp="/y"))
CAUSES = st.sampled_from(
    [ExitCause.exited(0), ExitCause.exited(1), ExitCause.signaled(9), ExitCause.signaled(15), ExitCause.unknown()]
)


def possible_conflicts(units: Mapping[str, UnitSpec]) -> dict[str, UnitSpec]:
    """The units without the conflicts that a unit file may not have: no unit can need both."""
    needed_by = graph.turned({name: [other for other in spec.needed if other in units] for name, spec in units.items()})
    needy = {name: graph.closure([name], needed_by) for name in units}
    return {
        name: replace(spec, conflicts=tuple(other for other in spec.conflicts if not needy[name] & needy[other]))
        for name, spec in units.items()
    }


@st.composite
def groups(draw: Any, names: tuple[str, ...]) -> dict[str, GroupSpec]:
    """None, or one of some of the units, in their order so that there is no cycle."""
    members = tuple(name for name in names if draw(st.booleans()))
    if len(members) < 2:
        return {}
    strategy, escalation = (
        draw(st.sampled_from(GroupStrategy)),
        draw(st.sampled_from([Escalation.FAIL] * 7 + [Escalation.EXIT])),
    )
    intensity = draw(st.sampled_from([0, 1, 5]))
    return {"g": GroupSpec(name="g", units=members, strategy=strategy, intensity=intensity, escalation=escalation)}


@st.composite
def configurations(draw: Any) -> Configuration:
    """Five units at most; each may name those before it."""
    units: dict[str, UnitSpec] = {}
    for name in NAMES[: draw(st.integers(2, len(NAMES)))]:
        kind = draw(st.sampled_from(UnitType))
        edges = {
            key: tuple(Dependency(other) for other in draw(st.sets(st.sampled_from(sorted(units)), max_size=2)))
            for key in ("requires", "binds_to", "wants", "after")
            if units
        }
        names = {
            key: tuple(draw(st.sets(st.sampled_from(sorted(units)), max_size=1)))
            for key in ("part_of", "conflicts", "on_failure")
            if units and draw(st.booleans())
        }
        policies = [RestartPolicy.NO, RestartPolicy.ON_FAILURE, RestartPolicy.ALWAYS]
        units[name] = UnitSpec(
            name=name,
            type=kind,
            instances=draw(st.sampled_from([1, 1, 2, 2, 0])),
            enabled=draw(st.integers(0, 3)) > 0,
            exit_with=draw(st.integers(0, 15)) == 15,
            restart=draw(st.sampled_from(policies[:2] if kind is UnitType.ONESHOT else policies)),
            start_limit_burst=draw(st.sampled_from([0, 2])),
            start_limit_action=draw(st.sampled_from([*StartLimitAction, StartLimitAction.FAIL])),
            remain_after_exit=draw(st.sampled_from([True, True, False])),
            runtime_max_s=draw(st.sampled_from([math.inf, 20.0])),
            readiness=draw(st.sampled_from(PROBES)) if kind is not UnitType.ONESHOT else None,
            watchdog_s=draw(st.sampled_from([math.inf, math.inf, 5.0])),
            kill_mode=draw(st.sampled_from([KillMode.GROUP, *KillMode])),
            send_sigkill=draw(st.sampled_from([True, True, False])),
            **{stage.value: draw(HOOKS) for stage in HookStage},
            **edges,
            **names,
        )
    daemon = DaemonSettings(restart_storm_burst=draw(st.sampled_from([0, 1, 500])), restart_storm_interval_s=20)
    return Configuration(daemon, possible_conflicts(units), draw(groups(tuple(units))))


@dataclass
class Life:
    """What the fake executor knows of one generation: the contract that `events` describes."""

    instance: InstanceName
    generation: int
    kind: UnitType
    spawning: bool = True  # the spawn has not told its end
    hook: bool = False  # one of the unit's commands runs
    launched: bool = False  # of type forking: its program has ended, and its daemon is looked for
    begun: bool = False  # a process was to come to be
    pid: bool = False
    ready: bool = False
    signalled: bool = False
    exited: bool = False
    gone: bool = False
    left: bool = False  # only the main process counted, and it has gone
    reports: list[Any] = field(default_factory=list)  # everything ever reported, to be repeated as stale


NOT_YET = {SubState.STARTING, SubState.RELOADING}
UNPROVED = {SubState.START_PROBE, SubState.UNREADY}
ASKED = AT_WORK | {SubState.START_PROBE, SubState.START_POST}


class Machine(RuleBasedStateMachine):
    """Commands, reports in any order that the contract allows, and time."""

    @initialize(configuration=configurations())
    def begin(self, configuration: Configuration) -> None:
        self.fleet = Fleet(configuration)
        self.now = 0.0
        self.lives: dict[InstanceName, list[Life]] = {}
        self.published: set[InstanceName] = set()
        self.later: list[Any] = []
        self.shutdowns = 0
        self.all_downs = 0
        self.storm = False
        self.give(StartDefault())

    @property
    def specs(self) -> Mapping[str, UnitSpec]:
        return self.fleet.configuration.units

    def kept(self) -> set[str]:
        return {str(instance) for spec in self.specs.values() for instance in spec.instance_names}

    # The fake executor.

    def give(self, event: Any) -> None:
        note(f"{self.now:.2f} {event}")
        effects = self.fleet.handle(event, self.now)
        for effect in effects:
            note(f"    {effect}")
            self.carry_out(effect, event)
        if isinstance(event, FoundUnready):
            assert all(isinstance(each, Changed | Withdraw) for each in effects), "something was done for readiness"
            assert all(each.instance == event.instance for each in effects), "others were touched for readiness"
        while self.later:
            self.give(self.later.pop(0))

    def begun(self, instance: InstanceName, generation: int) -> Life:
        """The life of a generation, made anew when it is its first effect."""
        lives = self.lives.setdefault(instance, [])
        if len(lives) < generation:
            assert all(life.gone or life.left for life in lives), "spawned beside a living generation"
            assert not any(life.hook for life in lives), "spawned beside a command"
            assert generation == len(lives) + 1, "generations are counted one by one"
            spec = self.specs[instance.unit]
            for other in (*spec.requires, *spec.binds_to):
                for status in self.fleet.status(other.unit):
                    assert status.sub_state in UP or status.target.value == "down"
            for one in self.specs.values():
                if one.name in spec.conflicts or spec.name in one.conflicts:
                    for status in self.fleet.status(one.name):
                        # As in systemd, a start goes on when the stop of what is in its way has failed for good.
                        over = {*AT_REST, SubState.UNKILLABLE}
                        ended = status.sub_state in over or status.target.value == "up"
                        assert ended, "started beside what it conflicts with, and which is being stopped"
            kind = self.fleet.spec(instance).type
            lives.append(Life(instance, generation, kind, spawning=False, gone=True))
        return lives[generation - 1]

    def carry_out(self, effect: Any, event: Any) -> None:
        match effect:
            case Spawn(instance, generation):
                life = self.begun(instance, generation)
                assert not life.begun, "spawned twice"
                assert not life.hook, "spawned while exec_start_pre runs"
                life.begun = life.spawning = True
                life.gone = False
            case RunHook(instance, generation, stage):
                life = self.begun(instance, generation)
                assert not life.hook, "two commands at once"
                if stage is HookStage.STOP_POST:
                    assert life.gone or life.left, "exec_stop_post beside what is left"
                life.hook = True
            case EndHook(instance, generation):
                assert self.lives[instance][generation - 1].hook, "ended a command that does not run"
            case FindMain(instance, generation):
                self.lives[instance][generation - 1].launched = True
            case CheckLife(instance, generation):
                at = self.now - 1 if self.now % 2 else self.now - 100
                self.later.append(LastSign(instance, generation, at))
            case Escalate():
                assert self.fleet.shutting_down
            case SignalGroup(instance, generation, signal) | SignalMain(instance, generation, signal):
                life = self.lives[instance][generation - 1]
                life.signalled = True
                assert life.pid, "signalled what has no process"
                assert not life.gone, "signalled a group that is gone"
                assert not life.left, "signalled what is to be left to itself"
                its_own_failure = isinstance(event, DeadlineReached) or getattr(event, "instance", None) == instance
                if signal != SIGKILL and not its_own_failure:
                    self.check_dependants_down(instance)
            case CancelSpawn(instance, generation):
                assert generation == len(self.lives[instance])
            case Publish(instance, _, _):
                assert instance not in self.published
                self.published.add(instance)
            case Withdraw(instance, _):
                self.published.remove(instance)
            case Shutdown():
                self.shutdowns += 1
            case AllDown():
                self.all_downs += 1
            case Forgotten(instance):
                assert all(life.gone or life.left for life in self.lives.get(instance, []))
                assert instance not in self.published
            case StormBegan() | StormEnded():
                assert self.storm is isinstance(effect, StormEnded), "a storm is told once"
                self.storm = not self.storm
            case Alarm() | GroupFailed():
                assert not self.shutdowns
            case Changed() | Note() | Unkillable():
                assert effect.instance in self.lives or isinstance(effect, Changed)

    def check_dependants_down(self, instance: InstanceName) -> None:
        """When a whole unit is being stopped, whoever requires it is down first."""
        if instance.unit in self.specs and str(instance) not in self.kept():
            return  # it was scaled away, be it the last one: whoever requires none is content with none
        if any(each.target.value == "up" for each in self.fleet.status(instance.unit)):
            return
        for spec in self.fleet.specs.values():
            if any(edge.unit == instance.unit for edge in (*spec.requires, *spec.binds_to)):
                for status in self.fleet.status(spec.name):
                    idle = {*AT_REST, SubState.WAITING, SubState.BACKOFF, SubState.UNKILLABLE}  # for that, nobody waits
                    assert status.sub_state in idle, f"{instance} is signalled while {status.name} is up"

    def current(self) -> list[Life]:
        return [
            lives[-1]
            for lives in self.lives.values()
            if lives and not (lives[-1].gone and not lives[-1].spawning and not lives[-1].hook)
        ]

    def report(self, life: Life, event: Any) -> None:
        life.reports.append(event)
        self.give(event)

    def possible(self) -> list[tuple[Life, str]]:
        """All reports that the contract allows now."""
        found = []
        for life in self.current():
            if not life.pid and life.spawning and not life.gone:
                found += [(life, "spawned"), (life, "spawn failed")]
            worker = life.kind is UnitType.WORKER
            if life.hook:
                found.append((life, "hook"))
            if life.pid and worker and life.spawning:
                found += [(life, "ready"), (life, "spawn failed")]
            if worker and life.ready:
                found.append((life, "lost"))
            if life.pid and not life.exited:
                found += [(life, "exited"), (life, "unhealthy")]
                if life.kind is UnitType.NOTIFY:
                    found += [(life, "says"), (life, "says"), (life, "up")]
                if life.kind is UnitType.FORKING and not life.launched and not life.ready:
                    found[-2] = (life, "launched")
                state = self.fleet.state(life.instance)[0]
                if state.sub_state in ASKED and life.kind is not UnitType.ONESHOT:
                    found += [(life, "passes"), (life, "fails")]
            if life.kind is UnitType.FORKING and life.launched and not life.gone:
                found.append((life, "found"))
            if life.exited and not life.gone:
                found.append((life, "empty"))
        return found

    def answer(self, life: Life, what: str, cause: ExitCause) -> None:
        names = (life.instance, life.generation)
        match what:
            case "spawned":
                life.pid = True
                life.spawning = life.kind is UnitType.WORKER
                self.report(life, Spawned(*names, 100 + life.generation))
            case "spawn failed":
                life.spawning = False
                life.gone = life.gone or not life.pid
                self.report(life, SpawnFailed(*names, ExitCause.spawn_failed("made up"), ("line",)))
            case "ready":
                life.spawning, life.ready = False, True
                self.report(life, Ready(*names, "PYRO:x@./u:/x"))
            case "lost":
                life.ready = False
                self.report(life, ReadinessLost(*names, "made up"))
            case "hook":
                life.hook = False
                self.report(life, HookEnded(*names, cause))
            case "launched":
                life.exited = True
                self.report(life, Launched(*names, cause))
            case "found":
                life.launched, life.exited, life.ready = False, False, True
                self.report(life, MainChanged(*names, 200))
            case "up":
                self.report(life, Ready(*names))
            case "says":
                words: list[Any] = [
                    Ready(*names), Ready(*names), ReloadBegun(*names), StopBegun(*names), Extended(*names, 5.0),
                    WatchdogFired(*names, "made up"), MainChanged(*names, 300),
                ]  # fmt: skip
                self.report(life, words[len(life.reports) % len(words)])
            case "unhealthy":
                self.report(life, Unhealthy(*names, "made up"))
            case "passes":
                self.report(life, FoundReady(*names, "it passes"))
            case "fails":
                self.report(life, FoundUnready(*names, f"made up {len(life.reports)}"))
            case "exited":
                life.exited = True
                spec = self.fleet.state(life.instance)[0].spec
                if spec.kill_mode is KillMode.PROCESS:
                    life.left = True
                self.report(life, Exited(*names, cause))
            case "empty":
                life.gone = True
                self.report(life, GroupEmpty(*names))

    # Rules.

    def command(self, event: Any) -> None:
        try:
            self.give(event)
        except ShuttingDownError:
            assert self.shutdowns == 1

    @rule(kind=st.sampled_from([Start, Stop, Restart, StartDefault, ReloadUnit]), which=st.integers(0, 99))
    def order(self, kind: Any, which: int) -> None:
        names = [*self.specs, *(status.name for status in self.fleet.status())]
        name = names[which % len(names)]
        if kind in {Start, Restart} and name not in self.specs and name not in self.kept():
            with pytest.raises(NoSuchUnitError, match="is being removed"):
                self.give(kind(name))
            return
        self.command(StartDefault() if kind is StartDefault else kind(name))

    @rule(configuration=configurations(), keep=st.integers(0, 31))
    def reconfigure(self, configuration: Configuration, keep: int) -> None:
        """Some units as they are, some new, some changed, some gone; what names a unit that is gone forgets it."""
        units = {
            name: self.specs[name] if name in self.specs and keep >> place & 1 else spec
            for place, (name, spec) in enumerate(configuration.units.items())
        }
        edges, names = ("requires", "binds_to", "wants", "after"), ("part_of", "conflicts", "on_failure")
        pruned = {
            name: replace(
                spec,
                **{key: tuple(e for e in getattr(spec, key) if e.unit in units) for key in edges},
                **{key: tuple(e for e in getattr(spec, key) if e in units) for key in names},
            )
            for name, spec in units.items()
        }
        pruned = possible_conflicts(pruned)
        new = Configuration(configuration.daemon, pruned, configuration.groups)
        before = {
            status.name: status
            for status in self.fleet.status()
            if status.sub_state is not SubState.WAITING and self.fleet.state(InstanceName.parse(status.name))[1] is None
        }  # what waits may go on waiting for less
        plan = self.fleet.plan(new)
        self.command(Reconfigure(new))
        if self.shutdowns:
            return
        assert self.fleet.configuration == new
        assert self.fleet.plan(new).is_empty, "what was done is still to be done"
        after = {status.name: status for status in self.fleet.status()}
        touched = {unit.unit for unit in plan.touched}
        if any(one.sub_state is SubState.FAILED and before.get(name) != one for name, one in after.items()):
            return  # what was started has failed at once, which touches those that require it
        for name, status in before.items():
            if status.unit in pruned and status.unit not in touched and not pruned[status.unit].binds_to:
                same = (after[name].sub_state, after[name].generation) == (status.sub_state, status.generation)
                assert same, "what the plan does not touch was touched"

    @rule(which=st.integers(0, 99), count=st.integers(0, 3))
    def scale(self, which: int, count: int) -> None:
        names = [*self.specs]
        if names:
            self.command(Scale(names[which % len(names)], count))

    @rule(moves=st.lists(st.tuples(st.integers(0, 99), CAUSES), min_size=1, max_size=10))
    def world_answers(self, moves: list[tuple[int, ExitCause]]) -> None:
        for which, cause in moves:
            possible = self.possible()
            if possible:
                self.answer(*possible[which % len(possible)], cause)
                self.states_agree_with_the_world()

    @rule(limit=st.integers(5, 30))
    def all_goes_well(self, limit: int) -> None:
        """Spawns succeed and workers become ready: else a random world rarely gets everything up."""
        for _ in range(limit):
            good = [(life, what) for life, what in self.possible() if what in {"spawned", "ready", "passes"}]
            if good:
                self.answer(*good[0], ExitCause.exited(0))

    @precondition(lambda self: any(len(lives) > 1 for lives in self.lives.values()))
    @rule(which=st.integers(0, 999))
    def stale_report(self, which: int) -> None:
        reports = [report for lives in self.lives.values() for life in lives[:-1] for report in life.reports]
        before = self.fleet.status()
        self.give(reports[which % len(reports)])
        assert self.fleet.status() == before, "a stale report acted"

    @precondition(lambda self: self.fleet.next_deadline() is not None)
    @rule()
    def time_passes(self) -> None:
        self.now = max(self.now, self.fleet.next_deadline())
        self.give(DeadlineReached())

    @rule(seconds=st.floats(0.01, 100))
    def deadlines_come_late(self, seconds: float) -> None:
        self.now += seconds
        self.give(DeadlineReached())
        assert self.fleet.next_deadline() is None or self.fleet.next_deadline() > self.now

    @precondition(lambda self: self.shutdowns == 0)
    @rule(often=st.integers(0, 9))
    def shutdown(self, often: int) -> None:
        if often == 9:
            self.give(ShutdownRequested("SIGTERM"))

    @precondition(lambda self: self.shutdowns == 0)
    @rule()
    def the_daemon_is_replaced(self) -> None:
        """A fleet made from the snapshot of another goes on as that would have."""
        before = self.fleet.status()
        instances = [InstanceName.parse(status.name) for status in before]
        records = [snapshot.encode(snapshot.record(*self.fleet.state(instance), None)) for instance in instances]
        data = snapshot.encode(
            snapshot.Snapshot(
                snapshot.FORMAT,
                "b",
                1,
                False,
                {},
                {name: Raw(snapshot.encode(spec)) for name, spec in self.fleet.specs.items()},
                {str(name): Raw(record) for name, record in zip(instances, records, strict=True)},
            )
        )
        found = snapshot.decode([data], "b")
        assert found is not None
        specs = found.specs()
        restored = [
            (snapshot.state_of(record, specs[name.unit]), snapshot.held_of(record))
            for name, record in zip(instances, found.records(), strict=True)
        ]
        kept = {name: specs[name] for name in self.specs}
        was = self.fleet.configuration
        self.fleet = Fleet(Configuration(was.daemon, kept, was.groups), restored)
        self.storm = False
        braked = "the brake on restarts"  # a new parsupd begins with a full bucket
        now, then = sorted(map(str, self.fleet.status())), sorted(map(str, before))
        assert [one for one, old in zip(now, then, strict=True) if one != old and braked not in old] == []
        for instance in self.lives.keys() - instances:
            del self.lives[instance]  # forgotten: its numbers begin anew
        for life in self.current():
            if life.spawning:
                life.spawning, gone, life.gone = False, life.gone, True
                if not gone:
                    self.report(life, SpawnInterrupted(life.instance, life.generation))
            elif not life.gone and self.fleet.state(life.instance)[0].sub_state in ENDING:
                self.report(life, EndInterrupted(life.instance, life.generation))
        self.give(DeadlineReached())

    # What always holds.

    @invariant()
    def states_agree_with_the_world(self) -> None:
        if not hasattr(self, "fleet"):
            return
        for status in self.fleet.status():
            instance = InstanceName.parse(status.name)
            lives = self.lives.get(instance, [])
            assert sum(not (life.gone or life.left) for life in lives) <= 1
            busy = bool(lives) and (lives[-1].hook or not (lives[-1].gone or lives[-1].left))
            assert busy == (status.sub_state in LIVING), status
            check(self.fleet.state(instance)[0])
            worker = status.type is UnitType.WORKER
            ready = status.sub_state in {SubState.RUNNING, SubState.RELOADING}
            assert (instance in self.published) == (worker and ready), status
            assert (status.uri != "") == (instance in self.published)
            assert status.generation == len(lives)
        shown = {InstanceName.parse(status.name) for status in self.fleet.status()}
        assert {
            instance for instance, lives in self.lives.items() if lives and not (lives[-1].gone or lives[-1].left)
        } <= shown
        assert self.all_downs <= self.shutdowns <= 1
        assert self.check_tallies() == []

    def check_tallies(self) -> list[str]:
        """The tallies that are kept up to date equal those counted afresh, and nobody waits for nothing."""
        wrong = []
        for name, unit in self.fleet._units.items():
            parts = [self.fleet._parts[instance] for instance in unit.all_instances]
            if tuple(unit.tally) != tuple(map(sum, zip(*parts, strict=True))) and parts:
                wrong.append(f"{name} tally")
            leaving = sum(self.fleet._units[other].tally.leaving > 0 for other in self.fleet._wiring.dependants[name])
            if unit.leaving_dependants != leaving:
                wrong.append(f"{name} leaving")
            if unit.obstacles != {
                one for one in self.fleet._wiring.apart[name] if self.fleet._units[one].tally.leaving
            }:
                wrong.append(f"{name} obstacles")
            free = any(not self.fleet._brake.holds(instance) for instance in unit.waiting)
            if free and not (unit.blockers or unit.obstacles):
                wrong.append(f"{name} waits for nothing")
            if unit.waiting and any(
                self.fleet._is_hopeless(other, name) for other in self.fleet._wiring.requires[name]
            ):
                wrong.append(f"{name} waits for the hopeless")
            if unit.held and not unit.leaving_dependants:
                wrong.append(f"{name} is held back for nothing")
        return wrong

    def settle(self) -> None:
        """Processes obey their signals and time passes, until nothing is left to happen."""
        for _ in range(200):
            possible = [
                (life, what)
                for life, what in self.possible()
                if what in {"spawned", "empty", "hook"} or (what in {"exited", "launched"} and life.signalled)
            ]
            if not possible and self.fleet.next_deadline() is None:
                return
            for life, what in possible:
                self.answer(life, what, ExitCause.signaled(15))
            if self.fleet.next_deadline() is not None:
                self.time_passes()
            self.states_agree_with_the_world()

    def prosper(self) -> None:
        """Everything goes well, until nothing is left to happen."""
        for _ in range(300):
            good = [
                (life, what)
                for life, what in self.possible()
                if what in {"spawned", "ready", "empty", "hook", "launched", "found"}
                or (what == "exited" and (life.signalled or self.fleet.spec(life.instance).type is UnitType.ONESHOT))
                or (what == "up" and self.fleet.state(life.instance)[0].sub_state in NOT_YET)
                or (what == "passes" and self.fleet.state(life.instance)[0].sub_state in UNPROVED)
            ]
            runs = [state for state in self.fleet._states.values() if state.sub_state is SubState.RUNNING]
            if not good and self.fleet.next_deadline() in {None, *(state.deadline_at for state in runs)}:
                return  # what runs may be looked after for ever
            for life, what in good[:1]:
                ended = what != "hook" and life.signalled
                self.answer(life, what, ExitCause.signaled(15) if ended else ExitCause.exited(0))
            if not good:
                self.time_passes()
            self.states_agree_with_the_world()
        raise AssertionError("it does not come to rest")

    def check_that_all_came_up(self) -> None:
        """What is wanted is up, or at rest with a reason, or waits for what was stopped and it is bound to.

        Or it backs off for longer than another one may run: then there is no instant at which all are up.
        """
        units, wiring = self.fleet._units, self.fleet._wiring
        until = self.fleet.next_deadline()
        for status in self.fleet.status():
            assert status.reason
            if status.sub_state is SubState.WAITING:
                unit = units[status.unit]
                stopped = [name for name in wiring.binds_to[status.unit] if not units[name].tally.wanted]
                braked = any(self.fleet._brake.holds(each) for each in unit.waiting)
                assert not braked or self.fleet.next_deadline() is not None
                assert stopped or braked or any(units[name].waiting for name in unit.blockers), status
            elif status.sub_state is SubState.BACKOFF:
                assert self.fleet.state(InstanceName.parse(status.name))[0].deadline_at > until, status
            elif status.target.value == "up":
                assert status.sub_state in {SubState.RUNNING, SubState.UNKILLABLE, *AT_REST}, status
            else:
                assert status.sub_state in AT_REST

    def teardown(self) -> None:
        """Stops and a shutdown converge from wherever it is."""
        if not hasattr(self, "fleet"):
            return
        if not self.shutdowns:
            self.prosper()
            if not self.shutdowns:
                self.check_that_all_came_up()
        if not self.shutdowns and len(self.lives) % 2:
            for name in self.specs:
                self.give(Stop(name))
            self.settle()
            assert self.shutdowns or {status.sub_state for status in self.fleet.status()} <= AT_REST
        if not self.shutdowns:
            self.give(ShutdownRequested("the end"))
        self.settle()
        assert self.all_downs == 1, "a shutdown did not converge"
        assert {status.sub_state for status in self.fleet.status()} <= AT_REST


@pytest.mark.timeout(400)  # seconds are enough when it passes; a failure is to be shrunk to a short story
@pytest.mark.parametrize("part", range(2))
def test_the_fleet_keeps_its_promises_whatever_comes(part: int) -> None:
    """Never two live generations, never a spawn beside a living group, a name exactly while running, dependants down
    before what they require is stopped, stale reports without effect, and a shutdown that always converges, once.
    """
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            deadline=None,
            derandomize=part == 0,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
