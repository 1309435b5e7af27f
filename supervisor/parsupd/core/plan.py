"""What a new configuration would do to each unit, before it is done: the plan that `reload` follows. Layer 1.

The schema's own table decides: `Live` in `unit_keys` says which keys need no restart. Where a unit stands in the files,
and in which of them, is no difference.

* A new unit comes up when it is enabled, with what it requires and wants. One that is gone is stopped and forgotten.
* Another number of instances starts or stops those at the end. New ones follow the others: they stay down when all of
  the unit is down.
* A change that needs a restart restarts the instances that are wanted, also those that had failed. What is down by
  request stays down and has the change at its next start.
* A restart also restarts what requires the unit, or is part of it, and runs, or had failed.
* A start stops what the unit conflicts with, and what depends on that.
* A unit that names another one anew has that one started, when it is itself wanted.
* A unit that becomes enabled is started. One that no longer is keeps running: `enabled` is about the next start of all.
"""

import dataclasses
import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from parsupd.core import graph
from parsupd.core.attributes import INFINITY, Limit
from parsupd.core.cron import Cron
from parsupd.core.probe_keys import Probe, probe_table
from parsupd.core.tally import SERVING
from parsupd.core.unit_keys import DAEMON_KEYS, GROUP_KEYS, UNIT_KEYS, Live, field_of
from parsupd.core.units import (
    SIGNAL_NAMES,
    Configuration,
    DaemonSettings,
    Dependency,
    Hook,
    InstanceName,
    Output,
    OutputKind,
    SubState,
    UnitSpec,
)
from parsupd.core.wiring import Wiring


class Present(NamedTuple):
    """An instance as a plan finds it."""

    wanted: bool  # it is to be up
    sub_state: SubState


class Action(enum.Enum):
    """What happens to a unit; the first of several that applies."""

    ADD = "add"
    REMOVE = "remove"
    RESTART = "restart"
    SCALE = "scale"
    START = "start"
    STOP = "stop"
    CHANGE = "change"  # live, or while it is down
    UNTOUCHED = "untouched"


@dataclass(frozen=True, slots=True)
class KeyChange:
    """A key that differs; its values as a unit file would have them, None where it was or will not be set.

    Of `environment` and `init`, each entry is one change, `environment.TZ`.
    """

    key: str
    old: Any
    new: Any
    live: bool


@dataclass(frozen=True, slots=True)
class UnitPlan:
    """What happens to one unit, and to which instances."""

    unit: str
    action: Action
    reason: str = ""  # empty when the keys say it
    keys: tuple[KeyChange, ...] = ()
    starts: tuple[InstanceName, ...] = ()
    stops: tuple[InstanceName, ...] = ()  # and forgets, when the configuration does not have them any more
    restarts: tuple[InstanceName, ...] = ()

    @property
    def why(self) -> str:
        """The reason that its orders are given with."""
        keys = ", ".join(change.key for change in self.keys)
        return self.reason or (f"the configuration has changed: {keys}" if keys else "it is new in the configuration")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a configuration would do: the units in its order, then those that it does not have any more."""

    units: tuple[UnitPlan, ...]
    groups: tuple[KeyChange, ...]  # all of them live
    daemon: tuple[KeyChange, ...]  # settings of parsupd itself; what is not live waits for its next start

    @property
    def touched(self) -> tuple[UnitPlan, ...]:
        """The units that something happens to."""
        return tuple(unit for unit in self.units if unit.action is not Action.UNTOUCHED)

    @property
    def is_empty(self) -> bool:
        return not (self.touched or self.groups or self.daemon)


def differences(old: UnitSpec, new: UnitSpec) -> tuple[KeyChange, ...]:
    """The keys in which two descriptions of a unit differ."""
    return _differences(UNIT_KEYS, old, new)


def settings_in_force(old: DaemonSettings, new: DaemonSettings) -> DaemonSettings:
    """What a running parsupd takes over of its own settings."""
    fields = [field_of(key) for key, reader in DAEMON_KEYS.items() if isinstance(reader, Live)]
    return dataclasses.replace(old, **{name: getattr(new, name) for name in fields})


def plan(old: Configuration, new: Configuration, present: Mapping[InstanceName, Present]) -> Plan:
    """Compares two configurations.

    Args:
        old: The one in force.
        new: The one that would be.
        present: All instances of `old`, as they are.
    """
    drafts = {name: _draft(old.units.get(name), spec, present) for name, spec in new.units.items()}
    wiring = Wiring(new.units, new.groups.values())
    _restart_dependants(drafts, wiring, present)
    _pull_in(drafts, wiring, old, present)
    _make_way(drafts, wiring, present)
    kept = tuple(draft.finished() for draft in drafts.values())
    gone = tuple(
        UnitPlan(name, Action.REMOVE, "it is not in the configuration any more", stops=spec.instance_names)
        for name, spec in old.units.items()
        if name not in new.units
    )
    return Plan((*kept, *gone), _group_changes(old, new), _differences(DAEMON_KEYS, old.daemon, new.daemon))


def _group_changes(old: Configuration, new: Configuration) -> tuple[KeyChange, ...]:
    """Which groups differ; of one that is new or gone, its units."""
    found: list[KeyChange] = []
    for name in dict.fromkeys((*old.groups, *new.groups)):
        before, after = old.groups.get(name), new.groups.get(name)
        if before is not None and after is not None:
            changes = _differences(GROUP_KEYS, before, after)
            found += [dataclasses.replace(change, key=f"{name}.{change.key}", live=True) for change in changes]
        else:
            was, will = ([*group.units] if group is not None else None for group in (before, after))
            found.append(KeyChange(f"{name}.units", was, will, live=True))
    return tuple(found)


@dataclass(slots=True)
class _Draft:
    """The plan of one unit while it is made."""

    spec: UnitSpec
    action: Action
    keys: tuple[KeyChange, ...] = ()
    reason: str = ""
    starts: list[InstanceName] = field(default_factory=list)
    stops: list[InstanceName] = field(default_factory=list)
    restarts: list[InstanceName] = field(default_factory=list)

    def finished(self) -> UnitPlan:
        moves = tuple(map(tuple, (self.starts, self.stops, self.restarts)))
        return UnitPlan(self.spec.name, self.action, self.reason, self.keys, *moves)


def _draft(before: UnitSpec | None, spec: UnitSpec, present: Mapping[InstanceName, Present]) -> _Draft:
    """The plan of a unit by itself."""
    if before is None:
        reason = "its schedule starts it" if spec.is_scheduled else ""
        reason = reason if spec.enabled else "it is not enabled: nothing starts it"
        starts = [*spec.instance_names] if spec.in_default_target else []
        return _Draft(spec, Action.ADD, reason=reason, starts=starts)
    keys = differences(before, spec)
    draft = _Draft(spec, Action.CHANGE if keys else Action.UNTOUCHED, keys)
    was, now = before.instance_names, spec.instance_names
    wanted = [instance for instance in was if present[instance].wanted]
    draft.stops += was[len(now) :]
    if wanted if was else spec.in_default_target:
        draft.starts += now[len(was) :]
    elif spec.in_default_target and not before.in_default_target:
        draft.action = Action.START
        draft.starts += now
    if any(not change.live for change in keys):
        draft.restarts += [instance for instance in wanted if instance in now]
    if draft.restarts:
        draft.action = Action.RESTART
    elif len(was) != len(now):
        draft.action = Action.SCALE
    if keys and not wanted and not draft.starts:
        draft.reason = "it is down: this counts when it is started"
    elif before.enabled and not spec.enabled:
        draft.reason = "it goes on: enabled counts when parsupd starts"
    return draft


def _restart_dependants(drafts: dict[str, _Draft], wiring: Wiring, present: Mapping[InstanceName, Present]) -> None:
    """A unit that requires one that is restarted is restarted with it, as by the command."""
    concerned = SERVING | {SubState.FAILED}
    for name in [name for name, draft in drafts.items() if draft.restarts]:
        for other in graph.closure(wiring.restarted_with[name], wiring.restarted_with):
            draft = drafts[other]
            if not draft.restarts:
                draft.restarts += [
                    instance
                    for instance in draft.spec.instance_names
                    if (is_now := present.get(instance)) and is_now.wanted and is_now.sub_state in concerned
                ]
                if draft.restarts:
                    draft.action = Action.RESTART
                    draft.reason = f"it {wiring.tie(other, name)} {name}, which is restarted"


def _pull_in(
    drafts: dict[str, _Draft], wiring: Wiring, old: Configuration, present: Mapping[InstanceName, Present]
) -> None:
    """Starts what those need that are started, and what those newly name that are up."""
    for name in wiring.order:
        before = old.units.get(name)
        named = set(wiring.pulls_in[name])
        if before is not None and drafts[name].action is not Action.START:
            named -= set(before.needed)
            if not any(present[instance].wanted for instance in before.instance_names):
                continue
        elif not drafts[name].starts:
            continue
        for other in wiring.in_order(graph.closure(named, wiring.pulls_in)):
            _need(drafts[other], name, present)


def _need(draft: _Draft, by: str, present: Mapping[InstanceName, Present]) -> None:
    missing = [
        instance
        for instance in draft.spec.instance_names
        if instance not in draft.starts and not ((is_now := present.get(instance)) and is_now.wanted)
    ]
    if missing:
        draft.starts += missing
        draft.reason = f"{by} needs it"
        if draft.action in {Action.UNTOUCHED, Action.CHANGE}:
            draft.action = Action.START


def _make_way(drafts: dict[str, _Draft], wiring: Wiring, present: Mapping[InstanceName, Present]) -> None:
    """Stops what units that are started conflict with, as by the command."""
    for name in [name for name, draft in drafts.items() if draft.starts]:
        for other in wiring.conflicts[name]:
            _halt(drafts[other], f"it conflicts with {name}, which is started", present)
            if drafts[other].action is Action.STOP:
                for third in graph.closure(wiring.restarted_with[other], wiring.restarted_with):
                    _halt(drafts[third], f"it {wiring.tie(third, other)} {other}, which is stopped", present)


def _halt(draft: _Draft, reason: str, present: Mapping[InstanceName, Present]) -> None:
    wanted = [each for each in draft.spec.instance_names if (is_now := present.get(each)) and is_now.wanted]
    if wanted and not draft.starts and draft.action is not Action.STOP:
        draft.action, draft.reason = Action.STOP, reason
        draft.stops += wanted
        draft.restarts.clear()


def _differences(keys: Iterable[str], old: Any, new: Any) -> tuple[KeyChange, ...]:
    table = {**UNIT_KEYS, **GROUP_KEYS, **DAEMON_KEYS}
    found: list[KeyChange] = []
    for key in keys:
        before, after, live = getattr(old, field_of(key)), getattr(new, field_of(key)), isinstance(table[key], Live)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += [
                KeyChange(f"{key}.{name}", before.get(name), after.get(name), live)
                for name in dict.fromkeys((*before, *after))
                if before.get(name) != after.get(name)
            ]
        else:
            found.append(KeyChange(key, shown(key, before), shown(key, after), live))
    return tuple(found)


def shown(key: str, value: Any) -> Any:
    """A value of a spec as a unit file would have it."""
    match value:
        case enum.Enum():
            return value.value
        case Output():
            return f"append:{value.path}" if value.kind is OutputKind.APPEND else value.kind.value
        case Hook():
            table = {"exec": list(value.exec), "timeout_sec": value.timeout_s, "ignore_failure": value.ignore_failure}
            return {name: content for name, content in table.items() if content is not None and content is not False}
        case Dependency():
            return f"{value.unit}:completed" if value.completed else value.unit
        case Limit():
            soft, hard = ("infinity" if one == INFINITY else one for one in value)
            return soft if soft == hard else [soft, hard]
        case Cron():
            return value.text
        case Probe():
            return probe_table(value)
        case tuple():
            return [shown(key, one) for one in value]
        case int() if key.endswith("signal"):
            return SIGNAL_NAMES[value]
        case int() if key == "umask":
            return f"{value:03o}"
        case float() if value == float("inf"):
            return "inf"
        case _:
            return value
