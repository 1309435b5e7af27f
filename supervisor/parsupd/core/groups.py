"""What a group does when one of its units is restarted, as Erlang/OTP's supervisor does it. Layer 1.

As in stdlib's supervisor.erl: a restart is counted, then the strategy says which other units are stopped, in reverse
order, and started again, in order. `add_restart` there allows `intensity` restarts within the period; one more, and the
whole group is given up. One difference: what ends while the group is already being restarted for another is part of
that restart and not counted; in OTP its exit is swallowed by the termination of the others.
"""

from dataclasses import dataclass
from typing import NamedTuple

from parsupd.core.units import GroupSpec, GroupStrategy


@dataclass(frozen=True, slots=True)
class GroupState:
    """What a group remembers. It is not kept over a restart of parsupd: a new one counts from nothing."""

    restarts: tuple[float, ...] = ()  # instants of those that count
    swept_at: float = -1.0  # when others were restarted last
    swept: frozenset[str] = frozenset()  # units that were


class Verdict(NamedTuple):
    """What follows from the end of an instance that its policy restarts."""

    exceeded: bool  # the group is to be given up
    restarts: tuple[str, ...]  # units whose instances are restarted with it, in the order of the group


def step(group: GroupSpec, state: GroupState, unit: str, began_at: float, now: float) -> tuple[GroupState, Verdict]:
    """An instance of `unit` has ended and will be started again.

    Args:
        group: The group that the unit belongs to.
        state: What the group remembers.
        unit: The name of the unit.
        began_at: When the run began that has ended.
        now: The instant, of the same clock.
    """
    if unit in state.swept and began_at < state.swept_at:
        return state, Verdict(exceeded=False, restarts=())
    recent = (*(at for at in state.restarts if now - at <= group.period_s), now)
    if len(recent) > group.intensity:
        return GroupState(), Verdict(exceeded=True, restarts=())
    others = _others(group, unit)
    if others:
        return GroupState(recent, now, frozenset(others)), Verdict(exceeded=False, restarts=others)
    return GroupState(recent, state.swept_at, state.swept), Verdict(exceeded=False, restarts=())


def _others(group: GroupSpec, unit: str) -> tuple[str, ...]:
    match group.strategy:
        case GroupStrategy.ONE_FOR_ONE:
            return ()
        case GroupStrategy.ONE_FOR_ALL:
            return group.units  # its own other instances, too
        case GroupStrategy.REST_FOR_ONE:
            return group.units[group.units.index(unit) + 1 :]
