"""What a new parsupd does about the instances of one that has ended: for each, from what is recorded and what lives.

A record alone proves nothing, since its process may have ended and its pid may be somebody else's by now; nor does a
process alone, since it may be of a run that was over. Both together decide. A process is of a run when its environment
names unit, instance and generation.
"""

import enum
from collections.abc import Iterable
from typing import NamedTuple

from parsupd.core.snapshot import InstanceRecord, ProcessRecord
from parsupd.core.units import InstanceName, SubState, UnitType


class Found(NamedTuple):
    """A living process that carries this parsupd's token."""

    pid: int
    started: int  # clock ticks since boot
    group: int
    instance: InstanceName | None  # None when its environment does not say it
    generation: int
    hook: str = ""  # of the unit's own commands: which one


class Fate(enum.Enum):
    """What becomes of an instance."""

    REST = "rest"  # nothing of it runs
    ADOPT = "adopt"  # its main process is known: it is taken over, or found to have ended
    FIND = "find"  # a program whose start was not recorded any more, and that lives
    COMMAND = "command"  # nothing of it runs but one of its commands, or did
    INTERRUPT = "interrupt"  # it was being started: what there is of it is ended, and it starts anew


class Verdict(NamedTuple):
    """The fate of one instance, and its main process where there is one to be taken over."""

    fate: Fate
    process: ProcessRecord | None = None


def judge(record: InstanceRecord, kind: UnitType, found: Iterable[Found]) -> Verdict:
    """Decides about one instance; `found` are the living processes of its recorded generation."""
    if record.run is None:
        return Verdict(Fate.REST)
    if record.process is not None:
        return Verdict(Fate.ADOPT, record.process)
    if record.run.empty and record.sub_state is not SubState.START_PRE:
        return Verdict(Fate.COMMAND)
    # The process was started, if at all, in the moment between two records. A worker is of no use then: whoever would
    # have initialised it has gone, and it ends by itself. A program leads the group that it was started in.
    leaders = sorted((one for one in found if one.pid == one.group and not one.hook), key=lambda one: one.started)
    if kind is UnitType.WORKER or not leaders:
        return Verdict(Fate.INTERRUPT)
    first = leaders[0]
    return Verdict(Fate.FIND, ProcessRecord(first.pid, first.started, first.group))


def command_of(record: InstanceRecord, found: Iterable[Found]) -> Found | None:
    """The command that ran when the record was made, if it still does; it leads the group that it was started in."""
    leaders = [one for one in found if one.hook and one.pid == one.group]
    return min(leaders, key=lambda one: one.started, default=None) if runs_command(record) else None


def runs_command(record: InstanceRecord) -> bool:
    """Whether one of the unit's commands ran when the record was made."""
    return record.run is not None and record.run.hook is not None


ENDING = frozenset({SubState.ABORTING, SubState.STOPPING, SubState.KILLING})
"""What is only waited for in these states was signalled before, or was to be: it is put on record first."""


def strays(found: Iterable[Found], kept: Iterable[tuple[InstanceName, int]]) -> list[Found]:
    """The processes that belong to none of the generations that are kept, and so to nobody."""
    known = set(kept)
    return [one for one in found if one.instance is None or (one.instance, one.generation) not in known]
