"""What becomes of results: order, hits, and the tree of combining steps."""

import math
import random

import pytest

from workerlib.core.gathering import AsTheyCome, FirstHit, InOrder, Tree


def test_results_are_given_as_they_come() -> None:
    """Without an order nothing waits."""
    gatherer = AsTheyCome()
    assert gatherer.mapped(0, 4, 2, ["e", "f"]) == ["e", "f"]
    assert gatherer.mapped(0, 0, 1, ["a"]) == ["a"]


def test_in_order_the_early_ones_wait() -> None:
    """A result is given when all before it have been; `reached` tells up to where."""
    gatherer = InOrder()
    assert gatherer.mapped(0, 3, 1, ["d"]) == []
    assert gatherer.mapped(0, 1, 2, ["b", "c"]) == []
    assert not gatherer.reached(1)
    assert gatherer.mapped(0, 0, 1, ["a"]) == ["a", "b", "c", "d"]
    assert gatherer.reached(4)
    assert not gatherer.reached(5)
    assert gatherer.mapped(0, 4, 1, ["e"]) == ["e"]


def test_the_first_hit_is_enough() -> None:
    """Answers without a hit say nothing; the first hit is given and satisfies."""
    gatherer = FirstHit()
    assert gatherer.mapped(0, 0, 5, []) == []
    assert not gatherer.satisfied()
    assert gatherer.mapped(0, 5, 3, ["x", "y"]) == ["x"]
    assert gatherer.satisfied()
    assert gatherer.mapped(0, 8, 1, ["z"]) == []


def run_tree(tree: Tree, leaves: int, *, split: int, open_leaves: int, rng: random.Random) -> tuple[bytes | None, int]:
    """Maps leaves of two items each, whose value is their numbers as text; returns the result and the most values held.

    Parts come back in random order among the `open_leaves` that are under way; one in `split` leaves in two parts.
    """
    under_way: list[tuple[int, int, int]] = []
    sent = most = 0
    while sent < leaves or under_way:
        while sent < leaves and len(under_way) < open_leaves:
            group = tree.opened(2)
            whole = rng.randrange(split) > 0
            under_way += [(group, 2 * sent, 2)] if whole else [(group, 2 * sent, 1), (group, 2 * sent + 1, 1)]
            sent += 1
        group, start, count = under_way.pop(rng.randrange(len(under_way)))
        tree.mapped(group, start, count, [b"".join(b"%d," % n for n in range(start, start + count))])
        most = max(most, tree.held)
        while (step := tree.due()) is not None:
            tree.combined(step.node, b"".join(step.values))
    while not tree.conclude():
        while (step := tree.due()) is not None:
            tree.combined(step.node, b"".join(step.values))
    return tree.result(), most


@pytest.mark.parametrize("leaves", [0, 1, 2, 3, 7, 8, 100, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_an_ordered_tree_keeps_the_order(leaves: int, seed: int) -> None:
    """Whatever comes back when, in whatever parts, each item is in the result once and in its place."""
    result, _ = run_tree(Tree(ordered=True), leaves, split=3, open_leaves=7, rng=random.Random(seed))
    expected = b"".join(b"%d," % n for n in range(2 * leaves))
    assert result == (expected or None)


@pytest.mark.parametrize("leaves", [0, 1, 2, 3, 7, 8, 100, 1000])
def test_a_tree_without_order_has_every_item_once(leaves: int) -> None:
    """Where the order does not matter, each item is in the result once."""
    result, _ = run_tree(Tree(ordered=False), leaves, split=3, open_leaves=7, rng=random.Random(1))
    numbers = [int(text) for text in (result or b"").split(b",") if text]
    assert sorted(numbers) == list(range(2 * leaves))


def test_a_tree_holds_few_values() -> None:
    """What waits grows with the logarithm of the number of leaves, not with the number."""
    for ordered in (True, False):
        _, most = run_tree(Tree(ordered=ordered), 4096, split=5, open_leaves=4, rng=random.Random(3))
        assert most <= (4 + 1) * (math.log2(4096) + 1)


def test_an_ordered_tree_waits_for_a_slow_leaf_without_holding_all_others() -> None:
    """While the first leaf is missing, a thousand others combine among themselves into a handful."""
    tree = Tree(ordered=True)
    groups = [tree.opened(1) for _ in range(1024)]
    for number in range(1, 1024):
        tree.mapped(groups[number], number, 1, [b"%d," % number])
        while (step := tree.due()) is not None:
            tree.combined(step.node, b"".join(step.values))
    assert tree.held == 10
    tree.mapped(groups[0], 0, 1, [b"0,"])
    while (step := tree.due()) is not None:
        tree.combined(step.node, b"".join(step.values))
    assert tree.conclude()
    assert tree.result() == b"".join(b"%d," % n for n in range(1024))


def test_values_that_are_combined_have_seen_as_many_items() -> None:
    """No value is combined more often than the tree is high: a large one does not travel for each leaf."""
    tree = Tree(ordered=True)
    travelled = 0
    for number in range(1024):
        tree.mapped(tree.opened(1), number, 1, [b"x"])
        while (step := tree.due()) is not None:
            travelled += sum(map(len, step.values))
            tree.combined(step.node, b"".join(step.values))
    assert travelled == 1024 * 10
