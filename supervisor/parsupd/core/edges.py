"""What units name each other for, and which of it cannot be. Layer 0."""

from dataclasses import replace

from parsupd.core import graph
from parsupd.core.findings import Found
from parsupd.core.readers import did_you_mean
from parsupd.core.units import Dependency, UnitType
from parsupd.core.wiring import earlier_in_groups

PULLING_KEYS = ("requires", "binds_to", "wants")
DEPENDENCY_KEYS = ("requires", "binds_to", "wants", "after")
NAME_KEYS = ("part_of", "conflicts", "on_failure")
EDGE_KEYS = (*DEPENDENCY_KEYS, *NAME_KEYS)
ORDER_KEYS = (*DEPENDENCY_KEYS, "part_of")


def check_dependencies(found: Found) -> None:
    """Complains about names that no file has, about conditions that do not fit, and about a cycle."""
    before: dict[str, list[str]] = {}
    _check_groups(found)
    earlier = earlier_in_groups(found.groups.values())
    for name, edges in found.edges.items():
        before[name] = [edge.unit for key in ORDER_KEYS for edge in edges[key]]
        before[name] += earlier.get(name, ())
        for key, named in edges.items():
            for index, edge in enumerate(named):
                message = _bad_edge(found, edge, key)
                if key == "conflicts" and edge.unit == name:
                    message = "a unit cannot conflict with itself"
                if message:
                    found.files[name].complain(("unit", name, key), message, f"[{index}]")
    cycle = graph.find_cycle(before)
    if cycle:
        message = f"units wait for each other in a cycle: {' -> '.join(cycle)}"
        found.files[cycle[0]].complain(("unit", cycle[0]), message)
    else:
        _check_failures(found)
    _check_conflicts(found)


def _check_groups(found: Found) -> None:
    """Complains about units that no file has, that are in two groups, or that have a start limit of their own.

    The others get none: what counts restarts is their group.
    """
    taken: dict[str, str] = {}
    for group in list(found.groups.values()):
        file, where = found.group_files[group.name], ("group", group.name, "units")
        for index, name in enumerate(group.units):
            if name not in found.edges:
                file.complain(where, f"there is no unit {name!r}{did_you_mean(name, found.edges)}", f"[{index}]")
            elif name in taken:
                file.complain(where, f"{name} is already in group {taken[name]}", f"[{index}]")
                found.groups[group.name] = replace(group, units=())  # else it would also be told of a cycle
                continue
            taken[name] = group.name
            if name in found.units:
                own = found.files[name].document.get("unit", {}).get(name, {})
                for key in ("start_limit_burst", "start_limit_interval_sec"):
                    if key in own:
                        message = f"restarts of {name} are counted by its group {group.name}: set intensity there"
                        found.files[name].complain(("unit", name, key), message)
                found.units[name] = replace(found.units[name], start_limit_burst=0)


def _check_failures(found: Found) -> None:
    """Complains when what is started for a failure would start what has failed."""
    starts = {
        name: [edge.unit for key in (*PULLING_KEYS, "on_failure") for edge in edges[key]]
        for name, edges in found.edges.items()
    }
    cycle = graph.find_cycle(starts)
    if cycle:
        message = f"a failure would start what has failed: {' -> '.join(cycle)}"
        found.files[cycle[0]].complain(("unit", cycle[0]), message)


def _check_conflicts(found: Found) -> None:
    """Complains about conflicts of units that are both started with parsupd, or that one unit needs both."""
    needed = {name: [other for other in spec.needed if other in found.units] for name, spec in found.units.items()}
    needed_by = graph.turned(needed)
    for name, spec in found.units.items():
        for index, other in enumerate(spec.conflicts):
            if other == name or other not in found.units:
                continue
            one, two = (graph.closure([each], needed_by) for each in (name, other))
            both = next((each for each in found.units if each in one and each in two), None)
            first, second = (
                next((each for each in found.units if each in some and found.units[each].enabled), None)
                for some in (one, two)
            )
            message = ""
            if both is not None:
                message = f"{both} needs {name} and {other}, and they conflict"
                if both in {name, other}:
                    message = f"{both} needs {other if both == name else name}, with which it conflicts"
            elif first is not None and second is not None:
                message = f"{name} and {other} conflict, and both are started with parsupd"
                through = [f"{one} for {by}" for one, by in ((name, first), (other, second)) if one != by]
                message += f" ({', '.join(through)})" if through else ""
            if message:
                found.files[name].complain(("unit", name, "conflicts"), message, f"[{index}]")


def _bad_edge(found: Found, edge: Dependency, key: str) -> str:
    if edge.unit not in found.edges:
        return f"there is no unit {edge.unit!r}{did_you_mean(edge.unit, found.edges)}"
    other = found.units.get(edge.unit)  # None when that unit has errors of its own
    if edge.completed and other is not None and other.type is not UnitType.ONESHOT:
        return f"only a oneshot is ever completed, and {edge.unit!r} is of type {other.type.value}"
    if key in {"requires", "binds_to"} and other is not None and not other.remain_after_exit:
        return f"{edge.unit!r} does not stay active after it has exited: name it in `wants` or `after`"
    return ""
