"""One unit of the fleet, and what its instances add up to. Layer 0.

The tallies let the work for one event be bounded by the number of units that are concerned, not of instances: only a
change of what a tally means (ready, settled, leaving) reaches other units.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from parsupd.core.events import DependencyFailed, RestartOrder, StopOrder
from parsupd.core.unit_state import Ending, UnitState
from parsupd.core.units import AT_WORK, STARTS, InstanceName, SubState, Target, UnitSpec

ALIVE = frozenset(SubState) - {SubState.DEAD, SubState.EXITED, SubState.FAILED}
AT_REST = frozenset(SubState) - ALIVE
DOWN = AT_REST - {SubState.EXITED}  # neither has processes nor stands for work that was done
UP = frozenset({SubState.RUNNING, SubState.RELOADING, SubState.EXITED})  # what others wait for
PRESENT = UP | {SubState.UNREADY}  # what others that have come up stay for
SERVING = STARTS | AT_WORK  # what a stop must be held back from, for dependants' sake
HOLDS = SERVING | {SubState.EXITED}  # what is ended only when its dependants are down

StopLike = StopOrder | RestartOrder | DependencyFailed


class Tally(NamedTuple):
    """How many instances of a unit are so; of a single instance, 0 or 1 each."""

    wanted: int = 0  # target up, and no stop held back
    ready: int = 0
    present: int = 0  # ready, or was and goes on
    unsettled: int = 0  # wanted, neither ready nor at rest
    broken: int = 0  # wanted, and at rest without being ready
    leaving: int = 0  # being stopped by request or because of a dependency, not down yet
    alive: int = 0  # not at rest


@dataclass(slots=True)
class Unit:
    """One unit and what its instances add up to."""

    spec: UnitSpec
    instances: tuple[InstanceName, ...]
    removed: dict[InstanceName, None] = field(default_factory=dict)  # ordered set: to be forgotten as soon as down
    tally: Tally = field(default_factory=Tally)
    blockers: set[str] = field(default_factory=set)  # units it waits for before any instance may start
    waiting: dict[InstanceName, None] = field(default_factory=dict)  # ordered set
    held: dict[InstanceName, StopLike] = field(default_factory=dict)  # orders that dependants hold back
    leaving_dependants: int = 0  # units that must be down before an order is given out
    obstacles: set[str] = field(default_factory=set)  # units that must be down before any instance may start

    @property
    def all_instances(self) -> tuple[InstanceName, ...]:
        return (*self.instances, *self.removed)

    @property
    def is_ready(self) -> bool:
        return self.tally.ready == self.tally.wanted and (self.tally.wanted > 0 or not self.instances)

    @property
    def is_whole(self) -> bool:
        """Whether nothing of it is missing, be all of it ready or not."""
        return self.tally.present == self.tally.wanted and (self.tally.wanted > 0 or not self.instances)

    @property
    def is_settled(self) -> bool:
        return self.tally.unsettled == 0

    @property
    def is_present(self) -> bool:
        """Whether it is there for those that are bound to it: one of several instances may be missing."""
        return self.tally.present > 0 or self.is_whole

    @property
    def is_hopeless(self) -> bool:
        """Whether it will not become ready unless somebody starts it."""
        return self.tally.broken > 0 or (self.tally.wanted == 0 and bool(self.instances))


def rearranged(units: Mapping[str, Unit], specs: Mapping[str, UnitSpec]) -> dict[str, Unit]:
    """The units of a new configuration, with all that is known of them, and then those that are not down yet.

    The old ones are changed. A unit that is gone and has no instance left is dropped only here: until then nothing
    needs to be wired anew when the last of them is forgotten.
    """
    found: dict[str, Unit] = {}
    for name, spec in specs.items():
        unit = found[name] = units.get(name) or Unit(spec, ())
        unit.removed = {each: None for each in unit.all_instances if each.number > spec.instances}
        unit.spec, unit.instances = spec, spec.instance_names
    for name, unit in units.items():
        if name not in found and unit.all_instances:
            unit.removed = dict.fromkeys(unit.all_instances)
            unit.instances = ()
            found[name] = unit
    return found


def tally_of(state: UnitState, held: StopLike | None) -> Tally:
    """What one instance adds to the tally of its unit."""
    wanted = state.target is Target.UP and (held is None or isinstance(held, RestartOrder))
    # What cannot be killed is alive, but nobody can wait for its end. What a oneshot has brought about is undone first.
    alive = state.sub_state in ALIVE - {SubState.UNKILLABLE} or (
        state.sub_state is SubState.EXITED and held is not None
    )
    stays = wanted and held is None
    ready, present = stays and state.sub_state in UP, stays and state.sub_state in PRESENT
    broken = wanted and state.sub_state in {SubState.DEAD, SubState.FAILED}
    asked = held is not None or state.target is Target.DOWN
    asked = asked or (state.run is not None and state.run.ending is not Ending.ITSELF)
    return Tally(wanted, ready, present, wanted and not ready and not broken, broken, alive and asked, alive)
