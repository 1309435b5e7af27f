"""Which unit concerns which: the edges of a configuration, in both directions and in order. Layer 0."""

from collections.abc import Iterable, Mapping

from parsupd.core import graph
from parsupd.core.units import GroupSpec, GroupStrategy, UnitSpec


def earlier_in_groups(groups: Iterable[GroupSpec]) -> dict[str, tuple[str, ...]]:
    """`{unit: units of its group that come before it}`."""
    return {name: group.units[:place] for group in groups for place, name in enumerate(group.units)}


class Wiring:
    """The edges between units, which have no cycle; an edge to a unit that is not among them is left out."""

    def __init__(self, specs: Mapping[str, UnitSpec], groups: Iterable[GroupSpec] = ()) -> None:
        def kept(names: Iterable[str]) -> tuple[str, ...]:
            return tuple(dict.fromkeys(name for name in names if name in specs))

        groups = tuple(groups)
        earlier = earlier_in_groups(groups)
        self.before = {name: kept((*spec.order, *earlier.get(name, ()))) for name, spec in specs.items()}
        """Units that are started before it and stopped after it."""
        self.dependants = graph.turned(self.before)
        self.binds_to = {name: kept(edge.unit for edge in spec.binds_to) for name, spec in specs.items()}
        self.bound = graph.turned(self.binds_to)
        self.requires = {
            name: kept(edge.unit for edge in (*spec.requires, *spec.binds_to)) for name, spec in specs.items()
        }
        """Units that must be ready before it starts; those that it is bound to are among them."""
        self.required_by = graph.turned(self.requires)
        self.part_of = {name: kept(spec.part_of) for name, spec in specs.items()}
        self.restarted_with = graph.turned(graph.merged(self.requires, self.part_of))
        """Units that a restart of it restarts as well."""
        requires_only = {name: kept(edge.unit for edge in spec.requires) for name, spec in specs.items()}
        self.stopped_with = graph.turned(graph.merged(requires_only, self.part_of))
        """Units that a stop of it stops as well; those bound to it wait for it instead."""
        self.pulls_in = {name: kept(spec.needed) for name, spec in specs.items()}
        self.conflicts = graph.both_ways({name: kept(spec.conflicts) for name, spec in specs.items()})
        together = [group for group in groups if group.strategy is not GroupStrategy.ONE_FOR_ONE]
        later = {name: group.units[place + 1 :] for group in together for place, name in enumerate(group.units)}
        self.apart = {name: kept((*others, *later.get(name, ()))) for name, others in self.conflicts.items()}
        """Units that must not be on their way down when it starts."""
        self.apart_from = graph.turned(self.apart)
        self.order = graph.in_order(self.before)
        self._place = {name: place for place, name in enumerate(self.order)}

    def in_order(self, names: Iterable[str]) -> list[str]:
        """The names, each after those that are started before it."""
        return sorted(names, key=self._place.__getitem__)

    def tie(self, name: str, other: str) -> str:
        """How `name` depends on `other`, after "it"."""
        if other in self.binds_to[name]:
            return "is bound to"
        return "is part of" if other in self.part_of[name] and other not in self.requires[name] else "requires"

    def farthest_first(self, name: str, edges: Mapping[str, tuple[str, ...]]) -> list[str]:
        """What can be reached from a unit by these edges, in the order in which it is stopped."""
        if not edges[name]:  # most units: they are spared the walk
            return []
        return self.in_order(graph.closure(edges[name], edges))[::-1]
