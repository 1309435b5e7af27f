"""Start-up as recovery: takes over what an earlier parsupd left, whether it handed over, crashed, or never ran."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from parsupd.core import events as told
from parsupd.core.fleet import Fleet
from parsupd.core.recovery import ENDING, Fate, Found, Verdict, command_of, judge, runs_command, strays
from parsupd.core.snapshot import InstanceRecord, Snapshot, held_of, state_of
from parsupd.core.unitfile import ConfigurationError
from parsupd.core.units import Configuration, ExitCause, InstanceName
from parsupd.executor import Executor
from parsupd.reloading import with_transients
from parsupd.shell import leftovers
from parsupd.shell.cgroup import Tree


class Adoption:
    """One recovery. First `fleet`, then `take_over`, then `finish` once the daemon can be called."""

    def __init__(self, taken: Snapshot | None, token: str, tree: Tree | None, log: Any) -> None:
        self._records = [] if taken is None else taken.records()
        self._units = {} if taken is None else taken.specs()
        self._scaled = {} if taken is None else taken.scaled
        # Else what is wanted is on record: what somebody has stopped stays down. Without a unit nothing is.
        self._begins_anew = taken is None or taken.shutting_down or not self._records
        self._token = token
        self._tree = tree
        self._found = leftovers.find(token, tree)
        self._kept: list[tuple[InstanceName, int]] = []
        self._log = log
        self._interrupted: list[tuple[InstanceName, int]] = []
        self._events: list[told.FleetEvent] = []

    def fleet(self, current: Configuration) -> Fleet:
        """The fleet as it was, with the daemon's own settings as they are now.

        `finish` then puts the `current` configuration in force as a reload does, so that there is one way to change
        what runs. Numbers of instances that were set by hand stay.
        """
        if not self._records:
            return Fleet(current)
        try:
            current = with_transients(current, self._units)
        except ConfigurationError as error:
            self._log.warning("transients_not_kept", reason=str(error))  # they are stopped as what was removed
        scaled = {name: count for name, count in self._scaled.items() if name in current.units}
        units = {name: replace(current.units[name], instances=count) for name, count in scaled.items()}
        self._events.append(told.Reconfigure(replace(current, units={**current.units, **units})))
        restored = [
            (state_of(record, self._units[InstanceName.parse(record.name).unit]), held_of(record))
            for record in self._records
        ]
        return Fleet(Configuration(current.daemon, self._units), restored, scaled)

    def take_over(self, executor: Executor) -> None:
        """Follows the processes that live, and publishes the workers among them."""
        own: dict[tuple[InstanceName | None, int], list[Found]] = {}
        for one in self._found:
            own.setdefault((one.instance, one.generation), []).append(one)
        for record in self._records:
            name = InstanceName.parse(record.name)
            verdict = judge(record, self._units[name.unit].type, own.get((name, record.generation), ()))
            match verdict.fate:
                case Fate.ADOPT | Fate.FIND:
                    self._kept.append((name, record.generation))
                    self._adopt(executor, record, name, verdict)
                    self._adopt_command(executor, record, name, own.get((name, record.generation), ()))
                case Fate.COMMAND:
                    self._kept.append((name, record.generation))
                    self._adopt_command(executor, record, name, own.get((name, record.generation), ()))
                case Fate.INTERRUPT:
                    self._interrupted.append((name, record.generation))

    def _adopt(self, executor: Executor, record: InstanceRecord, name: InstanceName, verdict: Verdict) -> None:
        process = verdict.process
        assert process is not None
        assert record.run is not None
        if verdict.fate is Fate.FIND:
            self._events.append(told.Spawned(name, record.generation, process.pid))
        self._log.info("unit_adopted", unit=str(name), generation=record.generation, pid=process.pid)
        if record.sub_state in ENDING:
            self._events.append(told.EndInterrupted(name, record.generation))
        executor.adopt(name, record.generation, process, record.run.published)

    def _adopt_command(
        self, executor: Executor, record: InstanceRecord, name: InstanceName, found: Iterable[Found]
    ) -> None:
        """Its end is waited for as if it had been started here; one that has gone meanwhile has ended somehow."""
        command = command_of(record, found)
        if command is not None:
            self._log.info("command_adopted", unit=str(name), command=command.hook, pid=command.pid)
            executor.adopt_command(name, command)
        elif runs_command(record):
            cause = ExitCause.unknown("while no parsupd was there to see it")
            self._events.append(told.HookEnded(name, record.generation, cause))

    async def finish(self, executor: Executor) -> None:
        """Ends what belongs to nobody, then lets the fleet go on: not before, so that nothing runs twice."""
        left = strays(self._found, self._kept)
        if left:
            pids = [one.pid for one in left]
            self._log.warning("ending_leftovers", pids=pids, reason="an earlier parsupd on this directory left them")
            for pid in await leftovers.end_all(
                left, lambda: strays(leftovers.find(self._token, self._tree), self._kept)
            ):
                self._log.warning("leftover_ended", pid=pid, reason="an earlier parsupd on this directory left it")
        if self._tree is not None:
            for group in self._tree.groups():
                if (group.name.instance, group.name.generation) not in self._kept:
                    self._tree.drop(group)
        for name, generation in self._interrupted:
            self._events.append(told.SpawnInterrupted(name, generation))
        executor.open(self._events, begin=self._begins_anew)
