"""What becomes of the instances of a parsupd that has ended."""

import msgspec
import pytest

from parsupd.core import snapshot
from parsupd.core.recovery import Fate, Found, command_of, judge, runs_command, strays
from parsupd.core.snapshot import Change, InstanceRecord, ProcessRecord, Snapshot
from parsupd.core.unit_state import Run, UnitState
from parsupd.core.units import InstanceName, SubState, UnitSpec, UnitType

NAME = InstanceName("a", 1)
PROCESS = ProcessRecord(10, 1000, 10)
LEADER = Found(20, 2000, 20, NAME, 3)
MEMBER = Found(21, 2001, 20, NAME, 3)
COMMAND = Found(30, 3000, 30, NAME, 3, "exec_stop_post:0")
START_PRE = Run(1.0, empty=True, hook=0)
OTHER_LEADER = Found(22, 2002, 22, NAME, 3)  # it has made a session of its own


def a_record(*, run: Run | None, process: ProcessRecord | None = None) -> InstanceRecord:
    sub_state = SubState.STARTING if run is not None else SubState.DEAD
    if run is not None and run.empty:
        sub_state = SubState.START_PRE if run.pid is None else SubState.STOP_POST
    state = UnitState(NAME, UnitSpec(name="a"), sub_state=sub_state, generation=3, run=run)
    return snapshot.record(state, None, process)


CASES = {
    "at rest": (None, None, UnitType.SIMPLE, [], Fate.REST, None),
    "at rest, beside a process of another time": (None, None, UnitType.SIMPLE, [LEADER], Fate.REST, None),
    "recorded": (Run(1.0, 10), PROCESS, UnitType.SIMPLE, [], Fate.ADOPT, PROCESS),
    "recorded worker": (Run(1.0, 10), PROCESS, UnitType.WORKER, [LEADER], Fate.ADOPT, PROCESS),
    "started, not recorded": (Run(1.0), None, UnitType.ONESHOT, [MEMBER, LEADER], Fate.FIND, ProcessRecord(20, 2000, 20)),
    "the first of two leaders": (
        Run(1.0), None, UnitType.SIMPLE, [OTHER_LEADER, LEADER], Fate.FIND, ProcessRecord(20, 2000, 20)
    ),
    "only a command of its own": (Run(1.0), None, UnitType.SIMPLE, [COMMAND], Fate.INTERRUPT, None),
    "its command before the start": (START_PRE, None, UnitType.SIMPLE, [COMMAND], Fate.INTERRUPT, None),
    "its command after the end": (Run(1.0, 10, empty=True, hook=0), None, UnitType.SIMPLE, [COMMAND], Fate.COMMAND, None),
    "only a child is left": (Run(1.0), None, UnitType.SIMPLE, [MEMBER], Fate.INTERRUPT, None),
    "not started": (Run(1.0), None, UnitType.SIMPLE, [], Fate.INTERRUPT, None),
    "worker before its initialisation": (Run(1.0), None, UnitType.WORKER, [LEADER], Fate.INTERRUPT, None),
}  # fmt: skip


@pytest.mark.parametrize(("run", "process", "kind", "found", "fate", "taken"), CASES.values(), ids=CASES)
def test_fate(
    run: Run | None,
    process: ProcessRecord | None,
    kind: UnitType,
    found: list[Found],
    fate: Fate,
    taken: ProcessRecord | None,
) -> None:
    """Record and processes together decide what becomes of an instance."""
    assert judge(a_record(run=run, process=process), kind, found) == (fate, taken)


def test_strays_are_those_of_no_kept_generation() -> None:
    """Processes of older generations, of unknown units and without a name are strays; escapees of a kept one are not."""
    old, unnamed = LEADER._replace(generation=2), LEADER._replace(instance=None)
    foreign = LEADER._replace(instance=InstanceName("b", 1))
    assert strays([LEADER, OTHER_LEADER, old, unnamed, foreign], [(NAME, 3)]) == [old, unnamed, foreign]


def test_a_snapshot_is_of_one_boot_and_format() -> None:
    """Bytes of another boot, of another format, and bytes that are no snapshot, are as good as none."""
    record = a_record(run=Run(1.0, 10), process=PROCESS)
    taken = Snapshot(
        snapshot.FORMAT,
        "boot",
        7,
        False,
        {},
        {"a": msgspec.Raw(snapshot.encode(UnitSpec(name="a")))},
        {"a@1": msgspec.Raw(snapshot.encode(record))},
    )
    data = snapshot.encode(taken)
    found = snapshot.decode([data], "boot")
    assert found is not None
    assert (found.serial, found.specs(), found.records()) == (7, {"a": UnitSpec(name="a")}, [record])
    assert snapshot.decode([data], "another") is None
    assert snapshot.decode([data[:-1]], "boot") is None
    assert snapshot.decode([b""], "boot") is None
    assert snapshot.decode([], "boot") is None
    assert snapshot.decode([snapshot.encode(msgspec.structs.replace(taken, format=0))], "boot") is None
    damaged = msgspec.structs.replace(taken, instances={"a@1": msgspec.Raw(snapshot.encode({"name": 1}))})
    assert snapshot.decode([snapshot.encode(damaged)], "boot") is None


def test_changes_follow_the_snapshot_that_they_were_made_after() -> None:
    """The last word about each instance counts, up to a gap: what comes after that is of an older snapshot."""

    def raw(generation: int) -> dict[str, msgspec.Raw]:
        record = msgspec.structs.replace(a_record(run=None), generation=generation)
        return {"a@1": msgspec.Raw(snapshot.encode(record))}

    units = {"a": msgspec.Raw(snapshot.encode(UnitSpec(name="a")))}
    whole = snapshot.encode(Snapshot(snapshot.FORMAT, "boot", 7, False, {}, units, raw(1), 70))
    changes = [snapshot.encode(Change(serial, serial * 10, raw(serial - 6))) for serial in (8, 9, 11)]

    def found(*parts: bytes) -> tuple[int, int, list[int]]:
        taken = snapshot.decode(parts, "boot")
        assert taken is not None
        return taken.serial, taken.last_event, [record.generation for record in taken.records()]

    assert found(whole) == (7, 70, [1])
    assert found(whole, *changes) == (9, 90, [3])
    assert found(whole, changes[1]) == (7, 70, [1])
    new = {"a@2": msgspec.Raw(snapshot.encode(msgspec.structs.replace(a_record(run=None), name="a@2")))}
    assert found(whole, snapshot.encode(Change(8, 71, new))) == (8, 71, [1, 3])


def test_a_command_is_taken_over_only_when_the_record_has_it() -> None:
    """One that was started and not recorded belongs to no state that waits for it."""
    waits = a_record(run=Run(1.0, 10, hook=0), process=PROCESS)
    assert command_of(waits, [LEADER, COMMAND]) == COMMAND
    assert command_of(waits, [LEADER]) is None
    assert runs_command(waits)
    assert command_of(a_record(run=Run(1.0, 10), process=PROCESS), [COMMAND]) is None
