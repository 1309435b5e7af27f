"""All instances of all units: order, dependencies, shutdown. Layer 3.

Deterministic: the same calls with the same instants give the same effects. Work for one event is bounded by the number
of units that depend on the one concerned, not by the number of instances: each unit keeps a tally of its instances, and
only a change of what the tally means (ready, settled, leaving) reaches other units.

What the dependencies mean, U being the unit that names V:

* `requires`: starting U starts V. U waits until V is ready: every wanted instance of V runs (a oneshot: exited with 0).
  When an instance of V fails, U fails; when V is stopped, U is stopped first. A crash of V that its policy answers with
  a restart does not touch a running U; nor does a V that goes on without being ready, for which a new U waits.
* `binds_to`: as requires; and when V is gone for whatever reason (none of its instances is up any more, ready or not),
  U is stopped and waits. It comes back when V does, also when V was stopped, and also when U had failed because V had.
* `part_of`: as after; and stop and restart of V are those of U too.
* `conflicts`: starting U stops V first, with what depends on V, and starting V stops U.
* `wants`: starting U starts V. U waits until V is settled: ready, failed or ended. V's end does not touch U.
* `after`: as wants, but starts nothing.
* Stop goes the other way: V gets its stop only when every U that is also being stopped is down. When V fails by itself
  meanwhile, it is cleared away at once.
* Restart of V restarts, in the same order, the units that require it and run; they wait for V as at a start.
* A group gives its units an order as `after` does. What its strategy restarts with a unit is down before anything of
  the group is started again, and forgets neither its backoff nor its restarts; see `groups`.
* Restarts of all units together are braked; see `brake`. Starts that somebody asks for are not.
* A changed configuration does what its plan says (`plan`). What it does not have any more is stopped in order, shown
  until it is down, and forgotten; edges count at once.
* Stop or restart of one instance (`V@2`) concerns that instance alone as long as another one is wanted, else the unit.
  While an instance is down by request it is not wanted.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial

from parsupd.core import graph, groups, unit_machine
from parsupd.core.alarms import Alarms, failure_of
from parsupd.core.deadlines import Deadlines
from parsupd.core.effects import Alarm, AllDown, Effect, Escalate, Forgotten, GroupFailed, Shutdown
from parsupd.core.events import (
    DeadlineReached,
    DependenciesReady,
    DependencyFailed,
    FleetEvent,
    Reconfigure,
    Redescribed,
    ReloadOrder,
    ReloadUnit,
    Report,
    Restart,
    RestartOrder,
    Scale,
    ShutdownRequested,
    Start,
    StartDefault,
    StartOrder,
    Stop,
    StopOrder,
    UnitEvent,
)
from parsupd.core.groups import GroupState
from parsupd.core.plan import Action, UnitPlan, settings_in_force
from parsupd.core.roster import NoSuchUnitError, Roster
from parsupd.core.tally import ALIVE, AT_REST, HOLDS, SERVING, StopLike, Tally, Unit, rearranged, tally_of
from parsupd.core.unit_state import UnitState
from parsupd.core.units import Configuration, Escalation, Failure, GroupSpec, InstanceName, SubState, Target

REMOVED = "it is not in the configuration any more"
FollowOrder = partial(RestartOrder, fresh=False)
"""Be down, and up again when what one depends on is there."""


class ShuttingDownError(Exception):
    """A start was asked for while everything is being stopped."""


class Fleet(Roster):
    """All units of a configuration. It decides; the caller carries the effects out, in order, and reports back."""

    def __init__(
        self,
        configuration: Configuration,
        restored: Iterable[tuple[UnitState, StopLike | None]] = (),
        scaled: Mapping[str, int] | None = None,
    ) -> None:
        """`restored`: instances as an earlier fleet had them, each with the order that dependants held back.

        `scaled`: the numbers of instances that were set in it by Scale.
        """
        super().__init__(configuration, scaled)
        self._generations: dict[InstanceName, int] = {}  # of forgotten instances: no number is ever used twice
        self._alive = 0
        self._deadlines = Deadlines()
        self._todo: deque[Callable[[], None]] = deque()
        self._groups: dict[str, GroupState] = {}
        self._alarms = Alarms()
        self._effects: list[Effect] = []
        self._now = 0.0
        self._exit_code: int | None = None  # set when everything is being stopped
        self._all_down = False
        restored = tuple(restored)
        for state, _ in restored:
            if state.instance not in self._states:  # it was being removed
                self._units.setdefault(state.instance.unit, Unit(state.spec, ())).removed[state.instance] = None
                self._parts[state.instance] = Tally()
        self._connect()
        for state, held in restored:
            self._restore(state, held)

    def _restore(self, state: UnitState, held: StopLike | None) -> None:
        instance, unit = state.instance, self._units[state.instance.unit]
        self._states[instance] = state
        self._touched.add(instance)
        if held is not None:
            unit.held[instance] = held
            self._todo.append(partial(self._give_out, instance))
        if instance in unit.removed:
            self._todo.append(partial(self._ask, instance, StopOrder(REMOVED)))
        if state.sub_state is SubState.WAITING:
            unit.waiting[instance] = None
            self._todo.append(partial(self._review, instance))
        if state.deadline_at is not None:
            self._deadlines.add(state.deadline_at, instance)
        self._retally(instance)

    # What the caller uses.

    def handle(self, event: FleetEvent, now: float) -> list[Effect]:
        """Takes one event and gives back what is to be done, in order.

        Commands are idempotent: start of what is up, and stop of what is down, do nothing.

        Args:
            event: A report of the executor, DeadlineReached, or a command.
            now: The instant, in seconds of a monotonic clock.

        Raises:
            NoSuchUnitError: A command names what does not exist.
            ShuttingDownError: A start or restart was asked for after a shutdown.
            InvalidTransitionError: A report broke the order that `events` promises; nothing of it was applied.
        """
        self._now = now
        self._effects = []
        self._take(event)
        while self._todo:
            self._todo.popleft()()
        self._effects.extend(self._brake.told())
        if self._exit_code is not None and self._alive == 0 and not self._all_down:
            self._all_down = True
            self._effects.append(AllDown(self._exit_code))
        return self._effects

    def next_deadline(self) -> float | None:
        """The instant at which DeadlineReached is due, or None."""
        both = (at for at in (self._deadlines.next_at(self._deadline_of), self._brake.next_at()) if at is not None)
        return min(both, default=None)

    def _deadline_of(self, instance: InstanceName) -> float | None:
        state = self._states.get(instance)
        return None if state is None else unit_machine.next_deadline(state)

    @property
    def shutting_down(self) -> bool:
        """Whether everything is being stopped."""
        return self._exit_code is not None

    # Events.

    def _take(self, event: FleetEvent) -> None:
        match event:
            case Report():
                if event.instance in self._states:  # else it is forgotten: the other source tells of its end, too
                    self._step(event.instance, event)
            case DeadlineReached():
                while (instance := self._deadlines.take_due(self._deadline_of, self._now)) is not None:
                    self._step(instance, event)
                self._todo.append(self._release)
            case Start():
                self._start(self._to_be_up(event.name), event.reason)
            case StartDefault():
                names = [name for name in self._wiring.order if self._units[name].spec.in_default_target]
                self._start(
                    [each for name in names for each in self._units[name].instances], "part of the default target"
                )
            case Stop():
                self._stop(event.name, event.reason)
            case Restart():
                self._restart(event.name, event.reason)
            case ReloadUnit():
                for instance in self._kept(event.name):
                    self._step(instance, ReloadOrder(event.reason))
            case Reconfigure():
                self._reconfigure(event.configuration)
            case Scale():
                self._scale(event.name, event.instances)
            case ShutdownRequested():
                self._shut_down(event.reason, event.exit_code)

    def _start(self, instances: Iterable[InstanceName], reason: str, failure: Failure | None = None) -> None:
        chosen = dict.fromkeys(instances)
        self._pull_in(chosen, reason)
        for instance in chosen:
            self._want(instance, reason, failure)

    def _pull_in(self, chosen: Collection[InstanceName], reason: str) -> None:
        """Starts all instances of the units that those of `chosen` require and want, unless they are chosen too."""
        if self.shutting_down:
            raise ShuttingDownError("parsupd is being shut down; nothing is started any more")
        units = {instance.unit for instance in chosen}
        needed = {other for name in units for other in self._wiring.pulls_in[name]}
        order = self._wiring.in_order(graph.closure(needed, self._wiring.pulls_in))
        self._make_way(dict.fromkeys((*order, *units)), reason)
        for name in order:
            for instance in self._units[name].instances:
                if instance not in chosen:
                    self._want(instance, f"{reason}, for a unit that needs it")

    def _make_way(self, names: Iterable[str], reason: str) -> None:
        """Stops what the units that are to be started conflict with."""
        for name in names:
            for other in self._wiring.conflicts[name]:
                tally = self._units[other].tally
                if tally.wanted or tally.alive:
                    self._stop(other, f"it conflicts with {name}: {reason}")

    def _want(self, instance: InstanceName, reason: str, failure: Failure | None = None) -> None:
        held = self._units[instance.unit].held
        if not isinstance(held.get(instance), RestartOrder):
            held.pop(instance, None)
            self._retally(instance)
        if self._brake.spare(instance):  # who asks for a start is not held back
            self._todo.append(partial(self._review, instance))
        self._todo.append(partial(self._step, instance, StartOrder(reason, failure)))

    def _kept(self, name: str) -> tuple[InstanceName, ...]:
        """The instances that a name stands for, without those that are being removed."""
        return tuple(each for each in self.instances(name) if each not in self._units[each.unit].removed)

    def _to_be_up(self, name: str) -> tuple[InstanceName, ...]:
        kept = self._kept(name)
        if not kept and name not in self._configuration.units:
            raise NoSuchUnitError(f"{name} is being removed: the configuration does not have it any more")
        return kept

    def _stop(self, name: str, reason: str) -> None:
        instances = self._kept(name)
        if self._are_the_unit(instances):
            unit = instances[0].unit
            stopped = self._wiring.farthest_first(unit, self._wiring.stopped_with)
            self._ask_all(stopped, StopOrder, unit, f": {reason}", ALIVE)
            bound = [
                other
                for other in self._wiring.farthest_first(unit, self._wiring.restarted_with)
                if other not in stopped
            ]
            self._ask_all(bound, FollowOrder, unit, f": {reason}", SERVING)  # they wait for it
        for instance in instances:
            self._ask(instance, StopOrder(reason))

    def _restart(self, name: str, reason: str) -> None:
        instances = self._to_be_up(name)
        self._pull_in(dict.fromkeys(instances), reason)
        if self._are_the_unit(instances):
            unit = instances[0].unit
            others = self._wiring.farthest_first(unit, self._wiring.restarted_with)
            self._ask_all(others, RestartOrder, unit, f": {reason}", SERVING)
        for instance in instances:
            self._ask(instance, RestartOrder(reason))

    def _are_the_unit(self, instances: tuple[InstanceName, ...]) -> bool:
        """Whether these are all the wanted instances of their unit."""
        wanted = sum(self._parts[instance].wanted for instance in instances)
        return bool(instances) and self._units[instances[0].unit].tally.wanted == wanted

    def _shut_down(self, reason: str, exit_code: int) -> None:
        if self.shutting_down:
            return
        self._exit_code = exit_code
        self._effects.append(Shutdown(exit_code, reason))
        for name in reversed(self._wiring.order):
            for instance in self._units[name].all_instances:
                state = self._states[instance]
                undone = state.sub_state is SubState.EXITED and state.spec.has_teardown
                if undone or state.sub_state not in AT_REST:
                    self._ask(instance, StopOrder(reason))

    def _ask_all(
        self,
        names: Iterable[str],
        order: Callable[[str], StopLike],
        other: str,
        reason: str,
        concerned: frozenset[SubState],
    ) -> None:
        """Asks the instances of units that depend on `other`, as far as they are in a state of `concerned`."""
        for name in names:
            if self._units[name].tally.alive:
                given = order(f"it {self._wiring.tie(name, other)} {other}{reason}")
                for instance in self._units[name].instances:
                    if self._states[instance].sub_state in concerned:
                        self._ask(instance, given)

    # What is bound to a unit goes and comes with it.

    def _part_from(self, name: str) -> None:
        """The unit is gone, by itself: what is bound to it is stopped, with what requires that, and waits for it."""
        if self._units[name].is_present or self.shutting_down:
            return
        names = graph.closure(self._wiring.bound[name], self._wiring.restarted_with)
        for other in reversed(self._wiring.in_order(names)):
            self._follow(other, f"it {self._wiring.tie(other, name)} {name}, which is gone", SERVING)

    def _follow(self, name: str, reason: str, concerned: frozenset[SubState]) -> None:
        """Restarts the wanted instances of a unit for the sake of others, unless they are on their way down."""
        for instance in self._units[name].instances:
            asked = instance in self._units[name].held
            if self._states[instance].sub_state in concerned and self._parts[instance].wanted and not asked:
                self._ask(instance, FollowOrder(reason))

    def _rejoin(self, name: str) -> None:
        """The unit is whole again: what is bound to it and had failed, perhaps for that reason, is started."""
        if self._units[name].tally.present and self._units[name].is_whole and not self.shutting_down:
            for other in self._wiring.bound[name]:
                for instance in self._units[other].instances:
                    if self._states[instance].sub_state is SubState.FAILED and self._parts[instance].wanted:
                        self._want(instance, f"{name}, which it is bound to, is there again")

    # Groups, and units that are started for failures.

    def _regroup(self, instance: InstanceName) -> None:
        """An instance of a group backs off: others are restarted with it, or the group has had enough."""
        state, group = self._states[instance], self._group_of[instance.unit]
        if state.sub_state is not SubState.BACKOFF or self.shutting_down:
            return
        began_at = state.incarnations[-1].started_at
        known = self._groups.get(group.name, GroupState())
        self._groups[group.name], verdict = groups.step(group, known, instance.unit, began_at, self._now)
        if verdict.exceeded:
            self._give_up(group, instance)
            return
        reason = f"group {group.name} is {group.strategy.value}, and {instance} is restarted"
        names = graph.closure(verdict.restarts, self._wiring.restarted_with)
        for other in reversed(self._wiring.in_order(names)):
            self._follow(other, reason, SERVING | {SubState.EXITED} if other in verdict.restarts else SERVING)

    def _give_up(self, group: GroupSpec, last: InstanceName) -> None:
        reason = (
            f"group {group.name} had more than {group.intensity} restarts within {group.period_s:g} s, "
            f"the last of {last}: {self._states[last].incarnations[-1].cause}"
        )
        self._effects.append(GroupFailed(group.name, reason))
        match group.escalation:
            case Escalation.EXIT:
                self._shut_down(reason, 1)
            case Escalation.FAIL:
                for name in reversed(group.units):
                    for instance in self._units[name].instances:
                        if self._states[instance].sub_state in ALIVE:
                            self._ask(instance, DependencyFailed(reason))

    def _alarm(self, failed: InstanceName, name: str) -> None:
        """Starts a unit for a failure; not again and again, should the one lead to the other."""
        state, unit = self._states.get(failed), self._units.get(name)
        if state is None or unit is None or not unit.instances or self.shutting_down:
            return
        limit = self._alarms.limit_hit(name, self._now)
        reason = f"{failed} has failed: {state.reason}"
        self._effects.append(Alarm(failed, name, started=not limit, reason=limit or reason))
        if limit:
            return
        for instance in unit.instances:
            if self._states[instance].sub_state is SubState.EXITED:  # it has done its work for an earlier failure
                self._step(instance, StopOrder(reason))
        self._start(unit.instances, reason, failure_of(state))

    # The brake on restarts.

    def _release(self) -> None:
        """Lets those go on that the brake held back, in their order, as far as it allows."""
        for instance in self._brake.released(self._now):
            self._todo.append(partial(self._review, instance))

    # A changed configuration.

    def _scale(self, name: str, instances: int) -> None:
        self._reconfigure(self.with_instances({name: instances}))
        self._scaled[name] = instances

    def _reconfigure(self, configuration: Configuration) -> None:
        """Does what `plan` says: first everything is as if it had always been so, then the orders are given."""
        if self.shutting_down:
            raise ShuttingDownError("parsupd is being shut down; its configuration is not changed any more")
        touched = self.plan(configuration).touched
        daemon = settings_in_force(self._configuration.daemon, configuration.daemon)
        self._configuration = replace(configuration, daemon=daemon)
        numbers = {name: spec.instances for name, spec in configuration.units.items()}
        self._scaled = {name: count for name, count in self._scaled.items() if numbers.get(name) == count}
        self._units = rearranged(self._units, configuration.units)
        self._states = {
            instance: self._states.get(instance)
            or UnitState(instance, unit.spec, generation=self._generations.pop(instance, 0))
            for unit in self._units.values()
            for instance in unit.all_instances
        }
        self._parts = {instance: self._parts.get(instance, Tally()) for instance in self._states}
        self._connect()
        self._groups = {name: state for name, state in self._groups.items() if name in configuration.groups}
        self._brake.set_to(daemon)
        todo = {each.unit: each for each in touched if each.unit in self._units}  # without those that had no instance
        for each in todo.values():
            self._redescribe(each)
        for name in reversed(self._wiring.in_order(todo)):
            for instance in todo[name].stops:
                self._ask(instance, StopOrder(todo[name].why))
            for instance in todo[name].restarts:
                self._ask(instance, RestartOrder(todo[name].why))
        for name in self._wiring.in_order(todo):
            for instance in todo[name].starts:
                self._want(instance, todo[name].why)
        for unit in self._units.values():  # after the orders, which may have given them something to wait for
            self._todo.extend(partial(self._give_out, each) for each in unit.held)
            self._todo.extend(partial(self._review, each) for each in unit.waiting)

    def _redescribe(self, change: UnitPlan) -> None:
        unit = self._units[change.unit]
        if change.keys or change.action is Action.ADD:
            for instance in unit.all_instances:
                if self._states[instance].spec is not unit.spec:  # it is not a new one
                    self._step(instance, Redescribed(unit.spec))

    def _forget(self, instance: InstanceName) -> None:
        """Forgets what was removed and is down, unless the configuration has it again."""
        unit = self._units[instance.unit]
        if instance not in unit.removed or instance in unit.held or self._states[instance].sub_state not in AT_REST:
            return
        del unit.removed[instance], self._parts[instance]
        self._generations[instance] = self._states.pop(instance).generation
        self._brake.forget(instance)
        self._touched.add(instance)
        self._effects.append(Forgotten(instance))

    # Orders that end something are held back until the dependants that leave as well are down.

    def _ask(self, instance: InstanceName, order: StopLike) -> None:
        held = self._units[instance.unit].held
        if isinstance(order, DependencyFailed) and isinstance(held.get(instance), StopOrder):
            return  # what is not wanted cannot fail
        held[instance] = order
        self._touched.add(instance)
        self._retally(instance)
        self._todo.append(partial(self._give_out, instance))

    def _give_out(self, instance: InstanceName) -> None:
        """Gives out a held order, unless what it ends is needed a little longer."""
        unit = self._units[instance.unit]
        if instance in unit.held:
            needed = unit.leaving_dependants > 0 and self._states[instance].sub_state in HOLDS
            if not needed:
                self._step(instance, unit.held.pop(instance))

    def _review(self, instance: InstanceName) -> None:
        """Lets a waiting instance start, or fail, when what it waits for says so."""
        unit = self._units[instance.unit]
        if instance not in unit.waiting or instance in unit.held:
            return
        hopeless = [other for other in self._wiring.requires[instance.unit] if self._is_hopeless(other, instance.unit)]
        if hopeless:
            self._step(instance, DependencyFailed(f"it requires {hopeless[0]}, which is not going to be ready"))
        elif unit.blockers or unit.obstacles:
            self._brake.drop(instance)
        else:
            admitted, reason = self._brake.admit(self._states[instance], self._now)
            if admitted:
                self._step(instance, DependenciesReady(reason))

    # What follows from a step.

    def _step(self, instance: InstanceName, event: UnitEvent) -> None:
        before = self._states[instance]
        after, effects = unit_machine.step(before, event, self._now)
        self._states[instance] = after
        self._touched.add(instance)
        self._effects.extend(effects)
        for effect in effects:
            if isinstance(effect, Escalate):
                self._shut_down(effect.reason, 1)
        if after.deadline_at is not None and after.deadline_at != before.deadline_at:
            self._deadlines.add(after.deadline_at, instance)
            self._deadlines.tidy(self._deadline_of, self._states)
        if after.sub_state is not before.sub_state:
            self._moved(instance, after, event)
        self._retally(instance)
        if instance in self._units[instance.unit].removed:
            self._todo.append(partial(self._forget, instance))

    def _moved(self, instance: InstanceName, after: UnitState, event: UnitEvent) -> None:
        unit = self._units[instance.unit]
        unit.waiting.pop(instance, None)
        self._brake.drop(instance)
        if instance in unit.held and after.sub_state not in HOLDS:
            self._todo.append(partial(self._give_out, instance))
        if after.sub_state is SubState.WAITING:  # reviewed after what is held is given out: till then it may not start
            unit.waiting[instance] = None
            self._todo.append(partial(self._review, instance))
        if after.sub_state is SubState.FAILED:
            others = self._wiring.farthest_first(unit.spec.name, self._wiring.required_by)
            self._ask_all(others, DependencyFailed, unit.spec.name, f", which failed: {after.reason}", ALIVE)
            self._todo.extend(partial(self._alarm, instance, other) for other in unit.spec.on_failure)
        if after.sub_state is SubState.BACKOFF and instance.unit in self._group_of:
            self._todo.append(partial(self._regroup, instance))
        if unit.spec.exit_with and after.sub_state in AT_REST and after.target is Target.UP:
            code = _exit_code(after, event)
            others_alive = unit.tally.alive > 1  # the tally still counts this instance
            if code != 0 or not others_alive:
                self._shut_down(f"{instance} has exit_with and ended: {after.reason}", code)

    def _retally(self, instance: InstanceName) -> None:
        """Brings the tally of the instance's unit up to date, and tells other units what that means to them."""
        unit = self._units[instance.unit]
        old, new = self._parts[instance], tally_of(self._states[instance], unit.held.get(instance))
        if new == old:
            return
        self._parts[instance] = new
        self._alive += new.alive - old.alive
        ready, settled, hopeless, leaving = unit.is_ready, unit.is_settled, unit.is_hopeless, unit.tally.leaving > 0
        present, whole = unit.is_present, unit.is_whole
        unit.tally = Tally(*(total - gone + come for total, gone, come in zip(unit.tally, old, new, strict=True)))
        if (ready, settled) != (unit.is_ready, unit.is_settled):
            self._tell_blocked(unit)
        if unit.is_hopeless and not hopeless:
            for name in self._wiring.required_by[unit.spec.name]:
                self._todo.extend(partial(self._review, each) for each in self._units[name].waiting)
        if self._wiring.bound[unit.spec.name]:
            if present and not unit.is_present:
                self._todo.append(partial(self._part_from, unit.spec.name))
            if unit.is_whole and not whole:
                self._todo.append(partial(self._rejoin, unit.spec.name))
        if leaving != (unit.tally.leaving > 0):
            self._tell_held_back(unit, 1 if unit.tally.leaving else -1)

    def _tell_blocked(self, unit: Unit) -> None:
        name = unit.spec.name
        for other in self._wiring.dependants[name]:
            dependant = self._units[other]
            if self._blocks(name, other):
                dependant.blockers.add(name)
            else:
                dependant.blockers.discard(name)
            if not dependant.blockers:
                self._todo.extend(partial(self._review, each) for each in dependant.waiting)

    def _tell_held_back(self, unit: Unit, change: int) -> None:
        for other in self._wiring.before[unit.spec.name]:
            needed = self._units[other]
            needed.leaving_dependants += change
            if needed.leaving_dependants == 0:
                self._todo.extend(partial(self._give_out, each) for each in needed.held)
        for other in self._wiring.apart_from[unit.spec.name]:
            follower = self._units[other]
            if change > 0:
                follower.obstacles.add(unit.spec.name)
            else:
                follower.obstacles.discard(unit.spec.name)
                self._todo.extend(partial(self._review, each) for each in follower.waiting)


def _exit_code(state: UnitState, event: UnitEvent) -> int:
    """The status with which parsupd exits for an instance that ended for good: its own, never 0 when it failed."""
    failed = state.sub_state is SubState.FAILED
    if isinstance(event, DependencyFailed) or not state.incarnations:
        return 1
    return state.incarnations[-1].cause.exit_status or int(failed)
