"""Keeps on record what the fleet has decided, before it is done, and what came of it."""

from collections.abc import Mapping
from typing import Any

import msgspec

from parsupd.core import snapshot
from parsupd.core.fleet import Fleet
from parsupd.core.snapshot import Change, ProcessRecord, Snapshot
from parsupd.core.units import Configuration, InstanceName, UnitSpec
from parsupd.shell.state_file import StateFile

LEAST_CHANGES = 1 << 16
"""So many bytes of changes are appended, and as many as the snapshot has, before a new one is worth its time."""


class Recorder:
    """Writes whenever something has changed; the state of an earlier parsupd can be read until then."""

    def __init__(self, file: StateFile, boot_id: str, log: Any) -> None:
        self.processes: dict[InstanceName, ProcessRecord] = {}
        """The main processes of the runs that go on."""
        self.last_event = 0
        """The number of the last event that is on record."""
        self._file = file
        self._boot_id = boot_id
        self._log = log
        self._serial = 0
        self._raws: dict[str, msgspec.Raw] = {}
        self._specs: dict[str, tuple[UnitSpec, msgspec.Raw]] = {}
        self._whole: tuple[Configuration, bool] | None = None  # what the last snapshot has, besides instances
        self._room = 0  # bytes that may be appended to it
        self._failing = False

    def load(self) -> Snapshot | None:
        """The last state of an earlier parsupd; None when there is none that is of use."""
        found = [taken for parts in self._file.candidates() if (taken := snapshot.decode(parts, self._boot_id))]
        last = max(found, key=lambda taken: taken.serial, default=None)
        if last is not None:
            self._serial = last.serial
            self.last_event = last.last_event
        return last

    def save(self, fleet: Fleet, last_event: int) -> set[InstanceName]:
        """Writes what has changed since the last time; nothing when nothing has. Blocks for some 50 µs as a rule, for
        as long as a copy of everything takes when there is much to be written anew.

        Returns the instances that have.

        A state that cannot be kept is said once: units go on, and a parsupd that comes after finds their processes by
        their environment and ends them, when it does not know them.
        """
        touched = fleet.take_touched()
        if not touched and last_event == self.last_event:
            return touched
        self.last_event = last_event
        changed: dict[str, msgspec.Raw] = {}
        for instance in touched:
            name = str(instance)
            if fleet.has(instance):
                state, held = fleet.state(instance)
                process = self.processes.get(instance) if state.run is not None else None
                changed[name] = msgspec.Raw(snapshot.encode(snapshot.record(state, held, process)))
            else:
                self._raws.pop(name, None)
                self._whole = None
        self._raws |= changed
        self._serial += 1
        try:
            self._append(fleet, changed)
        except OSError as error:
            if not self._failing:
                self._log.error("state_not_saved", reason=str(error))
            self._failing = True
        else:
            self._failing = False
        return touched

    def _append(self, fleet: Fleet, changed: dict[str, msgspec.Raw]) -> None:
        """Appends the change where that is all there is to say. Raises OSError."""
        whole = self._whole
        if whole is not None and whole[0] is fleet.configuration and whole[1] == fleet.shutting_down:
            data = snapshot.encode(Change(self._serial, self.last_event, changed))
            self._room -= len(data)
            if self._room >= 0:
                try:
                    self._file.append(data)
                except OSError:  # it is full, or was removed: a new one says more of that, or helps
                    pass
                else:
                    return
        self._write_anew(fleet)

    def _write_anew(self, fleet: Fleet) -> None:
        """Raises OSError; the next time it is tried again."""
        self._whole = None
        taken = Snapshot(
            snapshot.FORMAT,
            self._boot_id,
            self._serial,
            fleet.shutting_down,
            dict(fleet.scaled),
            self._encoded(fleet.specs),
            self._raws,
            self.last_event,
        )
        data = snapshot.encode(taken)
        self._file.save(data)
        self._whole = (fleet.configuration, fleet.shutting_down)
        self._room = max(len(data), LEAST_CHANGES)

    def _encoded(self, specs: Mapping[str, UnitSpec]) -> dict[str, msgspec.Raw]:
        """Encodes the descriptions that are others than last time: with a thousand units, all take 2 ms."""
        self._specs = {
            name: known
            if (known := self._specs.get(name)) is not None and known[0] is spec
            else (spec, msgspec.Raw(snapshot.encode(spec)))
            for name, spec in specs.items()
        }
        return {name: raw for name, (_, raw) in self._specs.items()}

    def forget(self) -> None:
        """Everything is down: the next start begins from nothing."""
        self._file.remove()
