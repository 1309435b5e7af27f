"""memory_max and tasks_max, which hold for a run as a whole: who holds them, and how an end by them is told. Layer 1.

The kernel holds them in the run's control group, where that controller is delegated to parsupd. Elsewhere parsupd looks
at the run from time to time and kills it, as the kernel would (see `bounds`). There is one better way for tasks_max:
RLIMIT_NPROC, which the kernel holds, too. But it counts all processes of a user, wherever they come from, and none of
root's. So it is taken only for a unit that runs one instance as a user that no other unit has.

Rejected for memory: RLIMIT_AS and RLIMIT_DATA, which count what is mapped, not what is taken, for each process alone.
"""

import dataclasses
from collections.abc import Iterable, Mapping

from parsupd.core.attributes import CONTROLLERS, Holder
from parsupd.core.cgroups import Counts
from parsupd.core.units import SIGKILL, ExitCause, ExitKind, UnitSpec

FILES = {"memory_max": "memory.max", "tasks_max": "pids.max"}
ROOT = frozenset({"", "root", "0"})


def wanted(spec: UnitSpec) -> frozenset[str]:
    """The controllers that would hold the limits of a unit."""
    return frozenset(controller for key, controller in CONTROLLERS.items() if getattr(spec, key))


def holders(spec: UnitSpec, enabled: Iterable[str], others: Iterable[UnitSpec]) -> Mapping[str, Holder]:
    """Who holds each limit that a unit has.

    Args:
        spec: The unit.
        enabled: The controllers of the control groups of runs.
        others: All units, for whether another one has the same user; only looked at for tasks_max.
    """
    found = {}
    there = set(enabled)
    for key, controller in CONTROLLERS.items():
        if getattr(spec, key):
            by_user = key == "tasks_max" and _has_own_user(spec, others)
            found[key] = Holder.CGROUP if controller in there else Holder.RLIMIT if by_user else Holder.WATCH
    return found


def _has_own_user(spec: UnitSpec, others: Iterable[UnitSpec]) -> bool:
    if spec.user in ROOT or spec.instances != 1 or spec.limit_nproc is not None:
        return False
    return not any(other.user == spec.user and other.name != spec.name for other in others)


def contents(spec: UnitSpec, enabled: Iterable[str]) -> Mapping[str, str]:
    """What is written into which file of a run's control group; also that there is no limit any more."""
    there = set(enabled)
    return {
        FILES[key]: str(getattr(spec, key) or "max") for key, controller in CONTROLLERS.items() if controller in there
    }


def explained(cause: ExitCause, counted: Counts, spec: UnitSpec) -> ExitCause:
    """How a main process ended, with what the kernel did to its group; a clean end needs no explanation."""
    if cause.kind is ExitKind.SIGNALED and cause.number == SIGKILL and counted.oom_kills:
        limit = f", memory_max is {spec.memory_max >> 20} MiB" if spec.memory_max else ""
        return dataclasses.replace(cause, text=f"the kernel's OOM killer{limit}")
    failed = cause.kind is ExitKind.SIGNALED or (cause.kind is ExitKind.EXITED and cause.number != 0)
    if failed and counted.refused_forks:
        text = f"it was refused a new process or thread {counted.refused_forks} times, tasks_max is {spec.tasks_max}"
        return dataclasses.replace(cause, text=text)
    return cause
