"""The line about all units that the service manager shows, and when a start is over."""

import pytest

from parsupd.core.status import InstanceStatus, status_of
from parsupd.core.summary import is_started, summary
from parsupd.core.unit_state import UnitState
from parsupd.core.units import InstanceName, SubState, Target, UnitSpec, UnitType

SPEC = UnitSpec(name="pricing", type=UnitType.SIMPLE)


def statuses(*states: SubState, target: Target = Target.UP) -> list[InstanceStatus]:
    return [
        status_of(UnitState(InstanceName("pricing", number), SPEC, target=target, sub_state=state), None, ())
        for number, state in enumerate(states, 1)
    ]


RUNNING, BACKOFF, FAILED = SubState.RUNNING, SubState.BACKOFF, SubState.FAILED


@pytest.mark.parametrize(
    ("states", "line"),
    [
        ([], "0 units"),
        ([RUNNING], "1 unit: 1 ready"),
        ([RUNNING, RUNNING, BACKOFF, *[RUNNING] * 9], "12 units: 11 ready, 1 backing off (pricing@3)"),
        ([FAILED, BACKOFF], "2 units: 1 backing off (pricing@2), 1 failed (pricing@1)"),
        ([FAILED] * 3, "3 units: 3 failed (pricing@1, pricing@2, pricing@3)"),
        ([FAILED] * 4, "4 units: 4 failed (pricing@1, pricing@2, pricing@3, ...)"),
        ([RUNNING, SubState.UNREADY], "2 units: 1 ready, 1 not ready (pricing@2)"),
        ([SubState.DEAD, SubState.EXITED, RUNNING], "3 units: 1 ready, 1 done, 1 down"),
    ],
)
def test_what_needs_attention_is_named(states: list[SubState], line: str) -> None:
    """Of what is well the number is enough; of what is not, three at most are named."""
    assert summary(statuses(*states)) == line


@pytest.mark.parametrize("state", list(SubState))
def test_every_state_has_words(state: SubState) -> None:
    """No state is left out of the count."""
    assert summary(statuses(state)).startswith("1 unit: 1 ")


STARTING = {SubState.START_PRE, SubState.STARTING, SubState.START_PROBE, SubState.START_POST}


@pytest.mark.parametrize("state", list(SubState))
def test_a_start_is_over_when_nothing_wanted_starts(state: SubState) -> None:
    """What failed, backs off or waits for that does not keep the service from being started; what starts does."""
    assert is_started(statuses(state)) is (state not in STARTING)
    assert is_started(statuses(state, target=Target.DOWN))
