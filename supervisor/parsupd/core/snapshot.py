"""What a parsupd leaves to the one that comes after it, however it ended. Layer 1: values, and their bytes.

Instants are of the monotonic clock, which goes on over the end of a process but not over that of the boot: a snapshot
of another boot is of no use, and neither are the pids in it. Incarnations are kept, the story of an instance is not.

A snapshot has everything, and changes follow it: with a thousand units, all of them are as much as a transition costs
otherwise, and more once they have a history.
"""

from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from parsupd.core.events import DependencyFailed, RestartOrder, StopOrder
from parsupd.core.unit_state import Run, UnitState
from parsupd.core.units import Failure, Incarnation, InstanceName, SubState, Target, UnitSpec

FORMAT = 2
"""Raised when bytes of an older parsupd cannot be read any more; those are then as good as none."""

Held = StopOrder | RestartOrder | DependencyFailed
HELD: dict[str, Callable[[str], Held]] = {
    "stop": StopOrder,
    "restart": RestartOrder,
    "follow": partial(RestartOrder, fresh=False),
    "dependency": DependencyFailed,
}
"""Names of the orders that dependants can hold back."""


class ProcessRecord(msgspec.Struct, frozen=True):
    """The main process of a run, as the one who comes after finds it again."""

    pid: int
    started: int  # clock ticks since boot; with the pid, it names one process
    group: int
    worker_id: str = ""  # of a worker, with the secret by which it proves to be it
    token: str = ""
    uri: str = ""  # of the worker, before and after it is ready too


class InstanceRecord(msgspec.Struct, frozen=True):
    """One instance; the fields are those of `UnitState`."""

    name: str
    target: Target
    sub_state: SubState
    reason: str
    since: float
    deadline_at: float | None
    generation: int
    run: Run | None
    restarts: int
    restarts_in_row: int
    starts: tuple[float, ...]
    incarnations: tuple[Incarnation, ...]
    held: tuple[str, str] | None = None  # an order that waits for dependants: its name in HELD, and its reason
    process: ProcessRecord | None = None
    spec: UnitSpec | None = None  # that of the run, when the unit's has changed since
    failure: Failure | None = None


class Snapshot(msgspec.Struct, frozen=True):
    """Everything. `serial` grows with each one, and each change, that is written: the highest is the last."""

    format: int
    boot_id: str
    serial: int
    shutting_down: bool
    scaled: dict[str, int]
    units: dict[str, msgspec.Raw]
    """Encoded `UnitSpec`s by name, of all units that have instances or are configured."""
    instances: dict[str, msgspec.Raw]
    """Encoded `InstanceRecord`s by name. Most are the same in each snapshot, as specs are, and are encoded once."""
    last_event: int = 0
    """The number of the last event that somebody may have been told of: no number is used twice."""

    def specs(self) -> dict[str, UnitSpec]:
        """The descriptions of the units, decoded."""
        return {name: _decode_spec(raw) for name, raw in self.units.items()}

    def records(self) -> list[InstanceRecord]:
        """The instances, decoded."""
        return [_decode_instance(raw) for raw in self.instances.values()]


class Change(msgspec.Struct, frozen=True):
    """What is different from the snapshot, or change, with the serial before this one: nothing but some instances."""

    serial: int
    last_event: int
    instances: dict[str, msgspec.Raw]


def record(state: UnitState, held: Held | None, process: ProcessRecord | None) -> InstanceRecord:
    """What is kept of one instance."""
    return InstanceRecord(
        name=str(state.instance),
        target=state.target,
        sub_state=state.sub_state,
        reason=state.reason,
        since=state.since,
        deadline_at=state.deadline_at,
        generation=state.generation,
        run=state.run,
        restarts=state.restarts,
        restarts_in_row=state.restarts_in_row,
        starts=state.starts,
        incarnations=state.incarnations,
        held=None if held is None else (_name_of(held), held.reason),
        process=process,
        spec=None if state.next_spec is None else state.spec,
        failure=state.failure,
    )


def state_of(record: InstanceRecord, spec: UnitSpec) -> UnitState:
    """The state that the record was made from, without its story; `spec` is the unit's."""
    return UnitState(
        instance=InstanceName.parse(record.name),
        spec=record.spec or spec,
        next_spec=None if record.spec is None else spec,
        target=record.target,
        sub_state=record.sub_state,
        reason=record.reason,
        since=record.since,
        deadline_at=record.deadline_at,
        generation=record.generation,
        run=record.run,
        restarts=record.restarts,
        restarts_in_row=record.restarts_in_row,
        starts=record.starts,
        incarnations=record.incarnations,
        failure=record.failure,
    )


def held_of(record: InstanceRecord) -> Held | None:
    """The order that dependants held back, if there was one."""
    if record.held is None:
        return None
    name, reason = record.held
    return HELD[name](reason)


def _name_of(order: Held) -> str:
    return next(name for name, make in HELD.items() if make(order.reason) == order)


encode = msgspec.msgpack.Encoder().encode
_decode_spec = msgspec.msgpack.Decoder(UnitSpec).decode
_decode_instance = msgspec.msgpack.Decoder(InstanceRecord).decode
_decode = msgspec.msgpack.Decoder(Snapshot).decode
_decode_change = msgspec.msgpack.Decoder(Change).decode


def decode(parts: Sequence[bytes], boot_id: str) -> Snapshot | None:
    """The snapshot in the first of these parts, with the changes in the others.

    Changes that do not follow it are of an earlier one. None for bytes of another boot or format, and for what is none
    at all.
    """
    try:
        snapshot = _decode(parts[0])
        instances = dict(snapshot.instances)
        serial, last_event = snapshot.serial, snapshot.last_event
        for change in map(_decode_change, parts[1:]):
            if change.serial != serial + 1:
                break
            serial, last_event = change.serial, change.last_event
            instances |= change.instances
        snapshot = msgspec.structs.replace(snapshot, serial=serial, last_event=last_event, instances=instances)
        snapshot.specs()
        snapshot.records()
    except (IndexError, msgspec.MsgspecError):
        return None
    return snapshot if snapshot.format == FORMAT and snapshot.boot_id == boot_id else None
