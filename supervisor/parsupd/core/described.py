"""What the control object says, as plain values under stable names: any client understands them. Layer 3.

A name that is given here is promised to scripts: it stays, and means the same.
"""

from collections.abc import Callable, Iterable
from typing import Any

from parsupd.core.event_ring import Entry
from parsupd.core.plan import Action, KeyChange, Plan, shown
from parsupd.core.status import InstanceStatus, Why
from parsupd.core.unit_keys import ONLY_FOR, UNIT_KEYS, field_of
from parsupd.core.unitfile import defaults_of
from parsupd.core.units import SIGNAL_NAMES, ExitKind, Incarnation, InstanceName, UnitSpec, UnitType

Info = dict[str, Any]

Wall = Callable[[float | None], float | None]
"""An instant of the monotonic clock as Unix time, for people: nothing is decided by it."""


def instance(status: InstanceStatus, wall: Wall, status_text: str = "") -> Info:
    """One instance, as `status` has it; `status_text` is what it has said of itself."""
    return {
        "name": status.name,
        "unit": status.unit,
        "type": status.type.value,
        "description": status.description,
        "target": status.target.value,
        "state": status.active_state.value,
        "sub_state": status.sub_state.value,
        "pid": status.pid,
        "generation": status.generation,
        "restarts": status.restarts,
        "since": wall(status.since),
        "uri": status.uri,
        "reason": status.reason,
        "status_text": status_text,
    }


def why(found: Why, wall: Wall) -> Info:
    """One instance with what happened to it."""
    return {
        **instance(found.status, wall),
        "next_attempt_at": wall(found.next_attempt_at),
        "incarnations": [incarnation(each, wall) for each in found.incarnations],
        "story": [
            {"at": wall(entry.now), "event": type(entry.event).__name__, "reason": entry.reason}
            for entry in found.story
        ],
    }


def roll(
    restarted: Iterable[InstanceName],
    left: Iterable[InstanceName],
    failed: tuple[InstanceName, str] | None,
    instances: Iterable[Info],
) -> Info:
    """How far a rolling restart has come, with the status of each instance."""
    return {
        "restarted": [str(name) for name in restarted],
        "left": [str(name) for name in left],
        "failed": None if failed is None else {"name": str(failed[0]), "reason": failed[1]},
        "instances": list(instances),
    }


def incarnation(ended: Incarnation, wall: Wall) -> Info:
    """One run that is over: how it ended, as a sentence and in its parts, and what was decided."""
    cause = ended.cause
    signal = SIGNAL_NAMES.get(cause.number, str(cause.number)) if cause.kind is ExitKind.SIGNALED else None
    return {
        "generation": ended.generation,
        "pid": ended.pid,
        "started_at": wall(ended.started_at),
        "ready_at": wall(ended.ready_at),
        "ended_at": wall(ended.ended_at),
        "duration_s": round(ended.ended_at - ended.started_at, 3),
        "cause": str(cause),
        "kind": cause.kind.value,
        "code": cause.number if cause.kind is ExitKind.EXITED else None,
        "signal": signal,
        "core_dumped": cause.core_dumped,
        "oom_killed": ended.oom_killed,
        "restarted": ended.decision.restart,
        "reason": ended.decision.reason,
        "next_attempt_at": wall(ended.next_attempt_at),
        "lines": list(ended.lines),
        "stack": list(ended.stack),
    }


def unit(spec: UnitSpec, instances: Iterable[Info]) -> Info:
    """The description of a unit, key by key, and the status of its instances."""
    plain = defaults_of(spec.type)
    keys = [key for key in UNIT_KEYS if spec.type in ONLY_FOR.get(key, set(UnitType))]
    values = {key: getattr(spec, field_of(key)) for key in keys}
    return {
        "unit": spec.name,
        "source": spec.source,
        "transient": spec.transient,
        "keys": {key: shown(key, value) for key, value in values.items()},
        "defaults": [key for key, value in values.items() if key != "type" and value == getattr(plain, field_of(key))],
        "instances": list(instances),
    }


def run(name: str, instances: Iterable[Info], ended: Why | None, wall: Wall) -> Info:
    """What came of a unit that was run."""
    last = ended.incarnations[-1] if ended is not None and ended.incarnations else None
    return {
        "unit": name,
        "instances": list(instances),
        "ended": None if ended is None else why(ended, wall),
        "exit_status": None if ended is None else 1 if last is None else last.cause.exit_status,
    }


def event(entry: Entry) -> Info:
    """One event; what belongs to its kind comes after what all have."""
    return {
        "number": entry.number,
        "at": round(entry.at, 3),
        "event": entry.event,
        "unit": entry.unit,
        "instance": entry.instance,
        **entry.fields,
    }


def gap(number: int, lost: int) -> Info:
    """Events up to this number that are not kept any more, in place of them."""
    return {"number": number, "at": None, "event": "gap", "unit": "", "instance": "", "lost": lost}


def plan(plan_id: str, found: Plan) -> Info:
    """What a reload would do, or has done."""
    return {
        "id": plan_id,
        "units": [
            {
                "unit": each.unit,
                "action": each.action.value,
                "reason": each.reason,
                "keys": [_key(change) for change in each.keys],
                "starts": [str(name) for name in each.starts],
                "stops": [str(name) for name in each.stops],
                "restarts": [str(name) for name in each.restarts],
            }
            for each in found.touched
        ],
        "untouched": [each.unit for each in found.units if each.action is Action.UNTOUCHED],
        "groups": [_key(change) for change in found.groups],
        "daemon": [_key(change) for change in found.daemon],
    }


def _key(change: KeyChange) -> Info:
    return {"key": change.key, "old": change.old, "new": change.new, "live": change.live}
