"""Order among units: cycles are found, order is kept, at any depth."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from parsupd.core import graph

NAMES = "abcdef"
GRAPHS = st.fixed_dictionaries({name: st.lists(st.sampled_from(NAMES), max_size=3, unique=True) for name in NAMES})


@given(GRAPHS)
def test_either_there_is_a_cycle_or_an_order(before: dict[str, list[str]]) -> None:
    """A cycle that is named is one, edge by edge; without one, each name stands after all that come before it."""
    cycle = graph.find_cycle(before)
    if cycle:
        assert cycle[0] == cycle[-1]
        assert len(set(cycle)) == len(cycle) - 1
        assert all(following in before[name] for name, following in pairwise(cycle))
        return
    order = graph.in_order(before)
    assert sorted(order) == sorted(before)
    assert all(order.index(other) < order.index(name) for name, others in before.items() for other in others)


@given(GRAPHS)
def test_turning_twice_gives_the_same_edges(before: dict[str, list[str]]) -> None:
    """The other way of the other way."""
    twice = graph.turned(graph.turned(before))
    assert {name: sorted(others) for name, others in twice.items()} == {n: sorted(o) for n, o in before.items()}


@given(GRAPHS, st.sampled_from(NAMES))
def test_a_closure_is_closed(before: dict[str, list[str]], start: str) -> None:
    """It has its start, and with each name all names before it."""
    found = graph.closure([start], before)
    assert start in found
    assert all(set(before[name]) <= found for name in found)


def test_names_that_no_unit_has_are_no_cycle() -> None:
    """The unit file reports them itself."""
    assert graph.find_cycle({"a": ["nobody"]}) is None


def test_a_long_chain_does_not_recurse() -> None:
    """10,000 units in a row, and in a ring."""
    chain = {str(n): [str(n - 1)] if n else [] for n in range(10_000)}
    assert graph.find_cycle(chain) is None
    assert graph.in_order(chain) == list(chain)
    ring = graph.find_cycle({**chain, "0": ["9999"]})
    assert ring is not None
    assert len(ring) == 10_001
