"""Groups as in OTP's supervisor: the policy as data, then histories of a fleet."""

from typing import Any

import pytest
from fleet_stage import Stage, unit, up

from parsupd.core.events import DeadlineReached, Restart, Start, Stop
from parsupd.core.groups import GroupState, step
from parsupd.core.units import Escalation, ExitCause, GroupSpec, GroupStrategy, RestartPolicy, UnitType

CRASH = ExitCause.exited(1)
ALL, ONE, REST = GroupStrategy.ONE_FOR_ALL, GroupStrategy.ONE_FOR_ONE, GroupStrategy.REST_FOR_ONE


def group(strategy: GroupStrategy, units: str = "a b c", **changes: Any) -> GroupSpec:
    return GroupSpec(name="g", units=tuple(units.split()), strategy=strategy, **changes)


@pytest.mark.parametrize(
    ("strategy", "unit_name", "others"),
    [
        (ONE, "a", ""), (ONE, "b", ""), (ONE, "c", ""),
        (ALL, "a", "a b c"), (ALL, "b", "a b c"), (ALL, "c", "a b c"),
        (REST, "a", "b c"), (REST, "b", "c"), (REST, "c", ""),
    ],
)  # fmt: skip
def test_who_is_restarted_with_whom(strategy: GroupStrategy, unit_name: str, others: str) -> None:
    """Each strategy and each place in the group; its own unit for the sake of its other instances."""
    _, verdict = step(group(strategy), GroupState(), unit_name, 0.0, 1.0)
    assert verdict.restarts == tuple(others.split())
    assert not verdict.exceeded


@pytest.mark.parametrize(
    ("intensity", "period_s", "at", "exceeded"),
    [
        (0, 10, [1], [True]),
        (1, 5, [1, 2], [False, True]),
        (1, 5, [1, 6.1], [False, False]),
        (1, 5, [1, 6], [False, True]),
        (2, 10, [1, 2, 3, 4], [False, False, True, False]),  # after it was given up it counts anew
        (3, 0, [1, 1, 1, 1], [False, False, False, True]),
    ],
)
def test_too_many_restarts(intensity: int, period_s: float, at: list[float], exceeded: list[bool]) -> None:
    """As add_restart of supervisor.erl: so many within the period, and one more is too many."""
    state, found = GroupState(), []
    for now in at:
        state, verdict = step(group(ONE, intensity=intensity, period_s=period_s), state, "a", now - 0.1, now)
        found.append(verdict.exceeded)
    assert found == exceeded


def test_what_ends_together_counts_once() -> None:
    """A run that the group is about to end anyway ends as part of that restart; a later run counts."""
    state, _ = step(group(ALL), GroupState(), "a", 0.0, 5.0)
    assert step(group(ALL), state, "b", 0.0, 5.1) == (state, (False, ()))
    assert len(step(group(ALL), state, "b", 6.0, 7.0)[0].restarts) == 2
    state, _ = step(group(REST), GroupState(), "b", 0.0, 5.0)
    assert len(step(group(REST), state, "a", 0.0, 5.1)[0].restarts) == 2  # a comes before b


def three(strategy: GroupStrategy, **changes: Any) -> Stage:
    return up(*(unit(name, start_limit_burst=0) for name in "abc"), groups=(group(strategy, **changes),))


def test_a_group_starts_in_order_and_stops_in_reverse() -> None:
    """Each when the one before is ready, or down."""
    stage = Stage(*(unit(name) for name in "cab"), groups=(group(ONE),))
    assert stage.do(Start("c")) == ["spawn c@1"]  # nothing is pulled in
    stage.up("c@1")
    assert stage.do(Start("a")) == ["spawn a@1"]
    stage.up("a@1")
    stage.do(Start("b"))
    stage.up("b@1")
    for name in "abc":
        stage.do(Stop(name))
    assert stage.states() == {"c@1": "stopping", "a@1": "stopping", "b@1": "stopping"}
    stage = three(ONE)
    assert [stage.do(Restart("b")), stage.do(Restart("a")), stage.do(Restart("c"))] == [
        ["signal b@1 15"],
        [],
        ["signal c@1 15"],
    ]
    assert stage.down("b@1") == []  # a has not gone yet, which waits for c
    assert stage.down("c@1") == ["signal a@1 15"]
    assert stage.down("a@1") == ["spawn a@1"]
    assert stage.up("a@1") == ["spawn b@1"]


def test_one_for_all() -> None:
    """The others go in reverse order, all are down before the first is started, and they start in order."""
    stage = three(ALL)
    assert stage.down("a@1", CRASH) == ["signal a@1 15", "signal c@1 15"]
    assert stage.do(DeadlineReached(), after_s=1) == []
    assert stage.fleet.status("a")[0].reason == "its backoff is over; waits for the end of b, the end of c"
    assert stage.down("c@1") == ["signal b@1 15"]
    assert stage.down("b@1") == ["spawn a@1"]
    assert stage.up("a@1") == ["spawn b@1"]
    assert stage.up("b@1") == ["spawn c@1"]
    stage.up("c@1")
    (why,) = stage.fleet.why("c")
    assert why.incarnations[-1].decision.reason == "group g is one_for_all, and a@1 is restarted"
    assert [each.restarts for each in stage.fleet.status()] == [1, 1, 1]


def test_rest_for_one() -> None:
    """Only those after it."""
    stage = three(REST)
    assert stage.down("b@1", CRASH) == ["signal b@1 15", "signal c@1 15"]
    stage.down("c@1")
    assert stage.do(DeadlineReached(), after_s=1) == ["spawn b@1"]
    assert stage.up("b@1") == ["spawn c@1"]
    assert stage.fleet.status("a")[0].generation == 1


def test_what_is_not_restarted_is_no_business_of_the_group() -> None:
    """A clean end, and a policy that says no; OTP's transient and temporary children."""
    stage = three(ALL)
    assert stage.down("a@1", ExitCause.exited(0)) == ["signal a@1 15"]
    stage = up(unit("a", restart=RestartPolicy.NO), unit("b"), unit("c"), groups=(group(ALL),))
    assert stage.down("a@1", CRASH) == ["signal a@1 15"]
    assert stage.states() == {"a@1": "failed", "b@1": "running", "c@1": "running"}


def test_what_somebody_has_stopped_stays_down() -> None:
    """The group restarts what is wanted; a oneshot that is done does its work again."""
    stage = up(unit("a", UnitType.ONESHOT, restart=RestartPolicy.NO), unit("b"), unit("c"), groups=(group(ALL),))
    stage.down("a@1", ExitCause.exited(0))
    stage.up("b@1")
    stage.up("c@1")
    stage.do(Stop("b"))
    stage.down("b@1")
    assert stage.down("c@1", CRASH) == ["signal c@1 15", "spawn a@1"]
    assert stage.states() == {"a@1": "starting", "b@1": "dead", "c@1": "backoff"}


def test_a_backoff_grows_although_others_crash_too() -> None:
    """A restart for the sake of others forgets nothing."""
    stage = three(ALL, intensity=100)
    for name in "abcabc":
        stage.down(f"{name}@1", CRASH)
        for other in "cba":
            if other != name:
                stage.down(f"{other}@1")
        stage.do(DeadlineReached(), after_s=3)
        for other in "abc":
            stage.up(f"{other}@1")
    assert [stage.fleet.state(each)[0].restarts_in_row for each in stage.generations] == [2, 2, 2]
    assert [each.restarts for each in stage.fleet.status()] == [6, 6, 6]


def test_too_many_restarts_fail_the_group() -> None:
    """In reverse order, and for what requires it, too; a start begins anew."""
    stage = three(ONE, intensity=1)
    stage.down("b@1", CRASH)
    stage.do(DeadlineReached(), after_s=1)
    stage.up("b@1")
    assert stage.down("b@1", CRASH) == ["signal b@1 15", "group g failed", "signal c@1 15"]
    assert stage.down("c@1") == ["signal a@1 15"]
    stage.down("a@1")
    assert stage.states() == {"a@1": "failed", "b@1": "failed", "c@1": "failed"}
    reason = "group g had more than 1 restarts within 10 s, the last of b@1: exited with 1"
    assert {each.reason for each in stage.fleet.status()} == {reason}
    assert stage.do(Start("b")) == ["spawn b@1"]


def test_too_many_restarts_end_parsupd_when_told_so() -> None:
    """With status 1."""
    stage = three(ALL, intensity=0, escalation=Escalation.EXIT)
    assert stage.down("b@1", CRASH) == ["signal b@1 15", "group g failed", "shutdown 1", "signal c@1 15"]
    stage.down("c@1")
    assert stage.down("a@1") == ["all down 1"]
