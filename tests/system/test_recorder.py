"""What the daemon keeps on record of its fleet: as little as possible at each transition, and never less than all."""

from itertools import pairwise
from pathlib import Path

import structlog
from structlog.testing import capture_logs

from parsupd.core.events import (
    Exited,
    FleetEvent,
    GroupEmpty,
    Reconfigure,
    Scale,
    ShutdownRequested,
    Spawned,
    Start,
    StartDefault,
    Stop,
)
from parsupd.core.fleet import Fleet
from parsupd.core.snapshot import Snapshot, held_of, state_of
from parsupd.core.units import Configuration, DaemonSettings, ExitCause, InstanceName, UnitSpec, UnitType
from parsupd.recorder import LEAST_CHANGES, Recorder
from parsupd.shell.state_file import StateFile

INSTANCES = 200
ONE = InstanceName("a", 1)


def a_configuration(*names: str) -> Configuration:
    kind, instances = UnitType.SIMPLE, INSTANCES
    return Configuration(
        DaemonSettings(), {name: UnitSpec(name=name, type=kind, exec=("x",), instances=instances) for name in names}
    )


class Record:
    """A fleet with its record, and a look at that from outside after each event."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state"
        self.recorder = Recorder(StateFile(self.path), "boot", structlog.get_logger())
        self.fleet = Fleet(a_configuration("a", "b"))
        self.events = 0

    def give(self, event: FleetEvent) -> None:
        self.fleet.handle(event, 1.0)
        self.events += 1
        self.recorder.save(self.fleet, self.events)

    def found(self) -> Snapshot:
        """What the next parsupd would find; it knows the same as this one."""
        taken = Recorder(StateFile(self.path), "boot", structlog.get_logger()).load()
        assert taken is not None
        assert taken.last_event == self.events
        specs = taken.specs()
        assert specs == self.fleet.specs
        for record in taken.records():
            name = InstanceName.parse(record.name)
            state, held = self.fleet.state(name)
            assert state_of(record, specs[name.unit]).sub_state is state.sub_state
            assert (record.generation, record.run, held_of(record)) == (state.generation, state.run, held)
        return taken


def test_the_record_follows_the_fleet(tmp_path: Path) -> None:
    """Through starts, ends, other numbers of instances, another configuration, and the end of everything."""
    record = Record(tmp_path)
    record.give(StartDefault())
    assert len(record.found().instances) == 2 * INSTANCES
    for event in (
        Spawned(ONE, 1, 100),
        Stop("a@1"),
        Exited(ONE, 1, ExitCause.exited(0)),
        GroupEmpty(ONE, 1),
        Scale("b", 1),
        Reconfigure(a_configuration("a", "c")),
        ShutdownRequested("SIGTERM"),
    ):
        record.give(event)
        found = record.found()
        assert found.shutting_down == record.fleet.shutting_down
        assert found.scaled == record.fleet.scaled


def test_a_transition_costs_what_has_changed(tmp_path: Path) -> None:
    """Not what there is: the file grows by some hundred bytes, and is written anew when it has doubled."""
    record = Record(tmp_path)
    record.give(StartDefault())
    sizes = [record.path.stat().st_size]
    for generation in range(1, 1000):
        record.give(Spawned(ONE, generation, 100))
        record.give(Stop("a@1"))
        record.give(Exited(ONE, generation, ExitCause.exited(0)))
        record.give(GroupEmpty(ONE, generation))
        record.give(Start("a@1"))
        sizes.append(record.path.stat().st_size)
        if sizes[-1] < sizes[-2]:
            break
    assert max(b - a for a, b in pairwise(sizes)) < sizes[0] / 4
    assert max(sizes) < 2 * max(sizes[0], LEAST_CHANGES) < 2 * max(sizes)
    assert sizes[-1] < sizes[-2]
    record.found()


def test_a_file_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    """As soon as it can be again, all of it is there."""
    folder = tmp_path / "run"
    folder.mkdir()
    record = Record(folder)
    record.give(StartDefault())
    away = folder.rename(tmp_path / "away")
    with capture_logs() as logs:
        record.give(Spawned(ONE, 1, 100))
        record.give(Stop("a@1"))
    assert [entry["event"] for entry in logs] == ["state_not_saved"]
    away.rename(folder)
    record.give(Exited(ONE, 1, ExitCause.exited(0)))
    record.found()
    record.path.unlink()
    record.give(GroupEmpty(ONE, 1))
    record.found()
