"""Bounds on a run that parsupd watches itself: when to look next, and whether it is above one. Layer 1.

Nobody tells when a process takes more memory, or has more children, so that it must be looked at: rarely while it is
far from its bounds, and often when it is near. A run that doubles between two looks is found late by one interval.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from parsupd.core.attributes import CONTROLLERS, Holder
from parsupd.core.units import MaxRssAction, UnitSpec

NEAR_S, FAR_S = 0.5, 10.0
"""Between two looks: at the bound, and far below it."""


class Bound(NamedTuple):
    """What a run may have of something."""

    key: str
    limit: int
    action: MaxRssAction = MaxRssAction.RESTART
    kills: bool = False
    """Whether it is killed at once, in place of the kernel, instead of being asked to end."""


class Taken(NamedTuple):
    """What a run has."""

    rss: int = 0
    tasks: int = 0

    def of(self, key: str) -> int:
        return self.tasks if key == "tasks_max" else self.rss


def bounds(spec: UnitSpec, held: Mapping[str, Holder]) -> tuple[Bound, ...]:
    """What has to be watched of a unit whose limits are held like that."""
    found = [Bound(key, getattr(spec, key), kills=True) for key, holder in held.items() if holder is Holder.WATCH]
    if spec.max_rss:
        found.append(Bound("max_rss", spec.max_rss, spec.max_rss_action))
    return tuple(found)


def interval_s(taken: Taken, watched: Iterable[Bound], age_s: float) -> float:
    """How long to wait until the next look at a run that has so much, `age_s` after its first one.

    Whoever has just begun takes more from moment to moment: it is looked at as late again as it is old, at most.
    """
    free = min(max(0.0, 1 - taken.of(bound.key) / bound.limit) for bound in watched)
    return min(NEAR_S + (FAR_S - NEAR_S) * min(1.0, 2 * free * free), max(NEAR_S, age_s))


def complaint(taken: Taken, bound: Bound) -> str:
    """Why a run has too much; empty when it has not."""
    has = taken.of(bound.key)
    if has <= bound.limit:
        return ""
    instead = (
        f"; killed by parsupd, as no {CONTROLLERS[bound.key]} controller is delegated to it" if bound.kills else ""
    )
    if bound.key == "tasks_max":
        return f"it has {has} processes and threads, and tasks_max is {bound.limit}{instead}"
    return f"it takes {has >> 20} MiB of memory, and {bound.key} is {bound.limit >> 20} MiB{instead}"
