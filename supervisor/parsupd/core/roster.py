"""What there is of units and instances, and every question about it that changes nothing. Layer 2."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from parsupd.core.brake import Brake
from parsupd.core.plan import Plan, Present, plan
from parsupd.core.readers import did_you_mean
from parsupd.core.status import InstanceStatus, Why, status_of, why_of
from parsupd.core.tally import StopLike, Tally, Unit
from parsupd.core.unit_state import UnitState
from parsupd.core.units import AT_WORK, Configuration, InstanceName, UnitSpec
from parsupd.core.wiring import Wiring


class NoSuchUnitError(LookupError):
    """A command names a unit or instance that does not exist; the message has the nearest name."""


class Roster:
    """All units of a configuration, as they are; `Fleet` is the one that changes them."""

    def __init__(self, configuration: Configuration, scaled: Mapping[str, int] | None = None) -> None:
        self._configuration = configuration
        self._scaled = dict(scaled or {})
        self._units = {name: Unit(spec, spec.instance_names) for name, spec in configuration.units.items()}
        self._states = {
            instance: UnitState(instance, unit.spec) for unit in self._units.values() for instance in unit.instances
        }
        self._parts = dict.fromkeys(self._states, Tally())
        self._touched: set[InstanceName] = set()
        self._brake = Brake(configuration.daemon)

    def _connect(self) -> None:
        """Wires the units anew, and counts afresh what each of them waits for."""
        groups = tuple(self._configuration.groups.values())
        self._wiring = Wiring({name: unit.spec for name, unit in self._units.items()}, groups)
        self._group_of = {name: group for group in groups for name in group.units}
        for name, unit in self._units.items():
            unit.blockers = {other for other in self._wiring.before[name] if self._blocks(other, name)}
            unit.leaving_dependants = sum(self._units[one].tally.leaving > 0 for one in self._wiring.dependants[name])
            unit.obstacles = {other for other in self._wiring.apart[name] if self._units[other].tally.leaving > 0}

    def take_touched(self) -> set[InstanceName]:
        """The instances of which something has changed since this was asked last; they may be forgotten by now."""
        touched, self._touched = self._touched, set()
        return touched

    def has(self, instance: InstanceName) -> bool:
        """Whether there is such an instance."""
        return instance in self._states

    def is_kept(self, instance: InstanceName) -> bool:
        """Whether the configuration has the instance; else it is being removed, or gone."""
        unit = self._units.get(instance.unit)
        return unit is not None and instance in unit.instances

    def is_reloading(self, instance: InstanceName) -> bool:
        """Whether the instance reads its own configuration again; what is not ready may do so, too."""
        state = self._states[instance]
        return state.run is not None and state.sub_state in AT_WORK and state.run.reloads

    def is_wanted(self, instance: InstanceName) -> bool:
        """Whether the instance is to be up."""
        return self._parts[instance].wanted > 0

    def state(self, instance: InstanceName) -> tuple[UnitState, StopLike | None]:
        """All that is known of an instance, as the constructor takes it back."""
        return self._states[instance], self._units[instance.unit].held.get(instance)

    def spec(self, instance: InstanceName) -> UnitSpec:
        """The description that an instance is started from."""
        return self._states[instance].spec

    def instances(self, name: str) -> tuple[InstanceName, ...]:
        """The instances that a unit's or an instance's name stands for.

        Raises:
            NoSuchUnitError: There is no such unit or instance.
        """
        unit = self._units.get(name)
        if unit is not None and (unit.all_instances or name in self._configuration.units):
            return unit.all_instances
        try:
            instance = InstanceName.parse(name)
        except ValueError:
            pass
        else:
            if instance in self._states:
                return (instance,)
        raise self._unknown(name)

    def _unknown(self, name: str) -> NoSuchUnitError:
        hint = did_you_mean(name, [*self._configuration.units, *map(str, self._states)])
        return NoSuchUnitError(f"no unit or instance {name!r}{hint}")

    @property
    def configuration(self) -> Configuration:
        """The one in force: that of the files as they were read last, with the numbers of instances set since."""
        return self._configuration

    def with_instances(self, numbers: Mapping[str, int]) -> Configuration:
        """The configuration in force with other numbers of instances.

        Raises:
            NoSuchUnitError: There is no such unit.
        """
        units = self._configuration.units
        for name in numbers:
            if name not in units:
                raise NoSuchUnitError(f"no unit {name!r}{did_you_mean(name, units)}")
        scaled = {name: replace(units[name], instances=number) for name, number in numbers.items()}
        return replace(self._configuration, units={**units, **scaled})

    @property
    def storm(self) -> str:
        """What is to be said of a restart storm; empty when there is none."""
        return self._brake.storm

    @property
    def scaled(self) -> Mapping[str, int]:
        """The numbers of instances that Scale has set, of the units in which no Reconfigure has said otherwise."""
        return self._scaled

    @property
    def specs(self) -> dict[str, UnitSpec]:
        """The descriptions of all units that there are: those in force, and those that are being removed."""
        return {
            name: unit.spec
            for name, unit in self._units.items()
            if unit.all_instances or name in self._configuration.units
        }

    def plan(self, configuration: Configuration) -> Plan:
        """What Reconfigure would do now."""
        present = {
            instance: Present(self._parts[instance].wanted > 0, self._states[instance].sub_state)
            for unit in self._units.values()
            for instance in unit.instances
        }
        return plan(self._configuration, configuration, present)

    def status(self, name: str | None = None) -> list[InstanceStatus]:
        """The status of all instances, or of those that `name` stands for, in the order of the configuration.

        Raises:
            NoSuchUnitError: There is no such unit or instance.
        """
        names: Iterable[InstanceName] = self._states if name is None else self.instances(name)
        return [self._status(instance) for instance in names]

    def why(self, name: str) -> list[Why]:
        """What happened to the instances that `name` stands for.

        Raises:
            NoSuchUnitError: There is no such unit or instance.
        """
        return [why_of(self._states[instance], self._status(instance)) for instance in self.instances(name)]

    # How.

    def _blocks(self, name: str, dependant: str) -> bool:
        unit = self._units[name]
        return not (unit.is_ready if name in self._wiring.requires[dependant] else unit.is_settled)

    def _is_hopeless(self, name: str, dependant: str) -> bool:
        """Whether a dependant waits for a unit in vain. One that was stopped is waited for by what is bound to it."""
        unit = self._units[name]
        return unit.tally.broken > 0 if name in self._wiring.binds_to[dependant] else unit.is_hopeless

    def _status(self, instance: InstanceName) -> InstanceStatus:
        unit = self._units[instance.unit]
        waits_for = ["the brake on restarts"] if self._brake.holds(instance) else self._waits_for(unit)
        return status_of(self._states[instance], unit.held.get(instance), waits_for)

    def _waits_for(self, unit: Unit) -> list[str]:
        """What a waiting instance of a unit waits for, in words."""
        ending = self._wiring.in_order(unit.obstacles)
        return [*self._wiring.in_order(unit.blockers), *(f"the end of {other}" for other in ending)]
