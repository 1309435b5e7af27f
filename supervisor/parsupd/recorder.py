"""Keeps on record what the fleet has decided, before it is done, and what came of it."""

from collections.abc import Mapping
from typing import Any

import msgspec

from parsupd.core import snapshot
from parsupd.core.fleet import Fleet
from parsupd.core.snapshot import ProcessRecord, Snapshot
from parsupd.core.units import InstanceName, UnitSpec
from parsupd.shell.state_file import StateFile


class Recorder:
    """Writes a snapshot whenever something has changed; the one of an earlier parsupd can be read until then."""

    def __init__(self, file: StateFile, boot_id: str, log: Any) -> None:
        self.processes: dict[InstanceName, ProcessRecord] = {}
        """The main processes of the runs that go on."""
        self.last_event = 0
        """The number of the last event that is on record."""
        self._file = file
        self._boot_id = boot_id
        self._log = log
        self._serial = 0
        self._raws: dict[InstanceName, msgspec.Raw] = {}
        self._specs: dict[str, tuple[UnitSpec, msgspec.Raw]] = {}
        self._failing = False

    def load(self) -> Snapshot | None:
        """The last snapshot of an earlier parsupd; None when there is none that is of use."""
        found = [taken for data in self._file.candidates() if (taken := snapshot.decode(data, self._boot_id))]
        last = max(found, key=lambda taken: taken.serial, default=None)
        if last is not None:
            self._serial = last.serial
            self.last_event = last.last_event
        return last

    def save(self, fleet: Fleet, last_event: int) -> set[InstanceName]:
        """Writes what has changed since the last time; nothing when nothing has. Blocks for well under a millisecond.

        Returns the instances that have.

        A state that cannot be kept is said once: units go on, and a parsupd that comes after finds their processes by
        their environment and ends them, when it does not know them.
        """
        touched = fleet.take_touched()
        if not touched and last_event == self.last_event:
            return touched
        self.last_event = last_event
        for instance in touched:
            if fleet.has(instance):
                state, held = fleet.state(instance)
                process = self.processes.get(instance) if state.run is not None else None
                self._raws[instance] = msgspec.Raw(snapshot.encode(snapshot.record(state, held, process)))
            else:
                self._raws.pop(instance, None)
        self._serial += 1
        taken = Snapshot(
            snapshot.FORMAT,
            self._boot_id,
            self._serial,
            fleet.shutting_down,
            dict(fleet.scaled),
            self._encoded(fleet.specs),
            list(self._raws.values()),
            last_event,
        )
        try:
            self._file.save(snapshot.encode(taken))
        except OSError as error:
            if not self._failing:
                self._log.error("state_not_saved", reason=str(error))
            self._failing = True
        else:
            self._failing = False
        return touched

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
