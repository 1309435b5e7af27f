"""Order among units that depend on each other. Layer 0: plain functions over `{name: names that come before it}`."""

from collections.abc import Iterable, Mapping


def find_cycle(before: Mapping[str, Iterable[str]]) -> list[str] | None:
    """A cycle as the list of its names, the first one again at the end; None when there is none.

    Names that are not keys are taken as having nothing before them.
    """
    done: set[str] = set()
    for start in before:
        trail: dict[str, None] = {}  # ordered, and quick to search
        open_at = [(start, iter(before[start]))] if start not in done else []
        if open_at:
            trail[start] = None
        while open_at:
            name, rest = open_at[-1]
            following = next((other for other in rest if other not in done), None)
            if following is None:
                open_at.pop()
                del trail[name]
                done.add(name)
            elif following in trail:
                names = list(trail)
                return [*names[names.index(following) :], following]
            else:
                trail[following] = None
                open_at.append((following, iter(before.get(following, ()))))
    return None


def in_order(before: Mapping[str, Iterable[str]]) -> list[str]:
    """All keys, each after those that come before it, otherwise in the order given; there must be no cycle."""
    placed: dict[str, None] = {}
    for start in before:
        open_at = [(start, iter(before[start]))]
        while open_at:
            name, rest = open_at[-1]
            following = next((other for other in rest if other not in placed), None)
            if following is not None:
                open_at.append((following, iter(before[following])))
            else:
                placed[name] = None
                open_at.pop()
    return list(placed)


def turned(before: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """The same edges the other way: `{name: names that come after it}`."""
    after: dict[str, list[str]] = {name: [] for name in before}
    for name, others in before.items():
        for other in others:
            after[other].append(name)
    return {name: tuple(others) for name, others in after.items()}


def merged(*graphs: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """The edges of all graphs, which have the same keys, each once."""
    return {name: tuple(dict.fromkeys(other for edges in graphs for other in edges[name])) for name in graphs[0]}


def both_ways(edges: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """Each edge in both directions, once."""
    return merged(edges, turned(edges))


def closure(start: Iterable[str], edges: Mapping[str, Iterable[str]]) -> set[str]:
    """`start` and all that can be reached from it."""
    found = set(start)
    todo = list(found)
    while todo:
        for other in edges[todo.pop()]:
            if other not in found:
                found.add(other)
                todo.append(other)
    return found
