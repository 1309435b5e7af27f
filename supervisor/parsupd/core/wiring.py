"""Which unit concerns which: the edges of a configuration, in both directions and in order. Layer 1."""

from collections.abc import Iterable, Mapping

from parsupd.core import graph
from parsupd.core.units import UnitSpec


class Wiring:
    """The edges between units, which have no cycle; an edge to a unit that is not among them is left out."""

    def __init__(self, specs: Mapping[str, UnitSpec]) -> None:
        self.before = {name: tuple(other for other in spec.order if other in specs) for name, spec in specs.items()}
        """Units that are started before it and stopped after it."""
        self.dependants = graph.turned(self.before)
        self.requires = {
            name: tuple(dict.fromkeys(edge.unit for edge in spec.requires if edge.unit in specs))
            for name, spec in specs.items()
        }
        self.required_by = graph.turned(self.requires)
        self.pulls_in = {
            name: tuple(edge.unit for edge in (*spec.requires, *spec.wants) if edge.unit in specs)
            for name, spec in specs.items()
        }
        self.order = graph.in_order(self.before)
        self._place = {name: place for place, name in enumerate(self.order)}

    def in_order(self, names: Iterable[str]) -> list[str]:
        """The names, each after those that are started before it."""
        return sorted(names, key=self._place.__getitem__)
