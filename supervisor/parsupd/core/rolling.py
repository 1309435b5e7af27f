"""A rolling restart: one instance after the other, or a few at once, each awaited before the next. Layer 1.

`advance` is asked again whenever something has changed, and says which instances are to be restarted now. The first one
that does not come up ends it: what has not had its turn is not touched.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from parsupd.core.tally import DOWN
from parsupd.core.units import InstanceName, SubState

UP = frozenset({SubState.RUNNING, SubState.EXITED})


class Seen(NamedTuple):
    """An instance as it is."""

    sub_state: SubState
    generation: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rolling:
    """How far one rolling restart has come."""

    left: tuple[InstanceName, ...]  # to have their turn, in this order
    at_once: int = 1
    extra: tuple[InstanceName, ...] = ()  # were added for the time of the restart; must be up before it begins
    under_way: Mapping[InstanceName, int | None]  # the generation before its restart; None for an extra one
    restarted: tuple[InstanceName, ...] = ()
    failed: tuple[InstanceName, str] | None = None  # the first one, and why

    @property
    def is_over(self) -> bool:
        return self.failed is not None or not (self.left or self.under_way)


def begin(instances: tuple[InstanceName, ...], extra: tuple[InstanceName, ...] = ()) -> Rolling:
    """All instances of a unit; with extra ones, as many at once as those can stand in for."""
    return Rolling(left=instances, at_once=max(1, len(extra)), extra=extra, under_way=dict.fromkeys(extra))


def advance(rolling: Rolling, seen: Mapping[InstanceName, Seen]) -> tuple[Rolling, tuple[InstanceName, ...]]:
    """What has become of those under way, and which are to be restarted now.

    Args:
        rolling: How far it had come.
        seen: All instances that there are.
    """
    waiting: dict[InstanceName, int | None] = {}
    restarted = rolling.restarted
    for instance, before in rolling.under_way.items():
        failure = _failure(seen.get(instance), before)
        if failure:
            return replace(rolling, failed=(instance, failure), restarted=restarted), ()
        if not _is_up(seen[instance], before):
            waiting[instance] = before
        elif before is not None:
            restarted = (*restarted, instance)
    rolling = replace(rolling, under_way=waiting, restarted=restarted)
    if waiting or not rolling.left:
        return rolling, ()
    batch, left = rolling.left[: rolling.at_once], rolling.left[rolling.at_once :]
    gone = next((instance for instance in batch if instance not in seen), None)
    if gone is not None:
        return replace(rolling, failed=(gone, REMOVED)), ()
    return replace(rolling, left=left, under_way={each: seen[each].generation for each in batch}), batch


REMOVED = "it was removed from the configuration meanwhile"


def _is_up(seen: Seen, before: int | None) -> bool:
    return seen.sub_state in UP and (before is None or seen.generation > before)


def _failure(seen: Seen | None, before: int | None) -> str:
    """Why an instance that is under way will not come up as it should; empty when it may, or has."""
    if seen is None:
        return REMOVED
    started = before is None or seen.generation > before
    ended_again = seen.sub_state is SubState.BACKOFF and started
    if seen.sub_state in DOWN or ended_again or (before is not None and seen.generation > before + 1):
        return seen.reason
    return ""
