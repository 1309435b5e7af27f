"""Reads the configuration again and has the fleet follow it: for the control object, and for SIGHUP."""

import hashlib
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import msgspec

from parsupd.core.events import Reconfigure, Scale
from parsupd.core.fleet import ShuttingDownError
from parsupd.core.plan import Plan
from parsupd.core.unitfile import ConfigurationError, check_edges, with_made
from parsupd.core.units import Configuration, InstanceName, UnitSpec
from parsupd.executor import Executor
from workerlib import UsageError


class NotReloadedError(Exception):
    """The configuration stays as it was; the message says why, with the place where there is one."""


class Reloader:
    """Reloads of one daemon. Reading the files blocks for a moment; nothing else does."""

    def __init__(
        self,
        executor: Executor,
        read: Callable[[], Configuration],
        announced: Callable[[], AbstractContextManager[None]],
        log: Any,
    ) -> None:
        """`announced` is entered for as long as a reload takes, so that the service manager is told of it."""
        self._executor = executor
        self._read = read
        self._announced = announced
        self._log = log

    def plan(self) -> tuple[str, Plan]:
        """What a reload would do now, and the id by which exactly that can be asked for. Raises NotReloadedError."""
        configuration = self._parsed()
        plan = self._executor.fleet.plan(configuration)
        return _id(plan, configuration), plan

    def reload(self, expected: str | None = None) -> tuple[str, Plan]:
        """Does what `plan` says; with `expected`, only if its id is this one.

        Raises:
            NotReloadedError: The files are broken, the plan is another one by now, or everything is being stopped.
        """
        with self._announced():
            try:
                configuration = self._parsed()
                plan = self._executor.fleet.plan(configuration)
                found = _id(plan, configuration)
                if expected not in {None, found}:
                    raise NotReloadedError(
                        f"plan {expected} does not hold any more: the files or the state of units have changed since "
                        f"(now it would be {found}); look at `parsupctl plan` again"
                    )
                self._give(Reconfigure(configuration))
            except NotReloadedError as error:
                self._log.error("reload_failed", reason=str(error))
                raise
        touched = {each.unit: each.action.value for each in plan.touched}
        waiting = [change.key for change in plan.daemon if not change.live]
        self._executor.note("reloaded", changes=touched, needs_restart_of_parsupd=waiting)
        return found, plan

    def scale(self, numbers: Mapping[str, int]) -> Plan:
        """Sets numbers of instances, until the next reload. Raises NoSuchUnitError and NotReloadedError."""
        plan = self._executor.fleet.plan(self._executor.fleet.with_instances(numbers))
        for name, instances in numbers.items():
            self._give(Scale(name, instances))
        self._executor.note("scaled", instances=dict(numbers))
        return plan

    def add_instances(self, unit: str, count: int) -> tuple[InstanceName, ...]:
        """Gives a unit more instances for a while; what was scaled by hand is forgotten until `drop_instances`.

        A parsupd that comes after has the number of the files again, whatever happened to this one.
        """
        fleet = self._executor.fleet
        number = fleet.configuration.units[unit].instances
        self._give(Reconfigure(fleet.with_instances({unit: number + count})))
        return fleet.configuration.units[unit].instance_names[number:]

    def drop_instances(self, extra: tuple[InstanceName, ...], *, scaled: bool) -> None:
        """Takes them away again, unless somebody has set another number meanwhile. Raises NotReloadedError."""
        fleet, unit, number = self._executor.fleet, extra[0].unit, extra[0].number - 1
        spec = fleet.configuration.units.get(unit)
        if spec is not None and spec.instances == extra[-1].number:
            self._give(Scale(unit, number) if scaled else Reconfigure(fleet.with_instances({unit: number})))

    def add(self, spec: UnitSpec) -> None:
        """Adds a unit that no file has, and starts it. Raises NotReloadedError."""
        now = self._executor.fleet.configuration
        self._give(Reconfigure(replace(now, units={**now.units, spec.name: spec})))

    def make(self, name: str) -> None:
        """Adds a unit made from a template, with those that it names; nothing is started. Raises NotReloadedError."""
        try:
            configuration = with_made(self._executor.fleet.configuration, name)
        except ConfigurationError as error:
            raise NotReloadedError(str(error)) from None
        self._give(Reconfigure(configuration))

    def drop(self, names: Collection[str]) -> None:
        """Removes units that no file has. Raises NotReloadedError."""
        now = self._executor.fleet.configuration
        units = {name: spec for name, spec in now.units.items() if name not in names}
        self._give(Reconfigure(replace(now, units=units)))

    def _parsed(self) -> Configuration:
        """What the files say, and the units that no file has; where both have a name, the file goes first."""
        try:
            return with_transients(self._read(), self._executor.fleet.configuration.units)
        except (UsageError, ConfigurationError) as error:
            raise NotReloadedError(f"{error}\nnothing was changed") from None

    def _give(self, command: Reconfigure | Scale) -> None:
        if self._executor.handed_over:
            raise NotReloadedError("parsupd is being replaced by another one: ask that")
        try:
            self._executor.feed(command)
        except ShuttingDownError as error:
            raise NotReloadedError(str(error)) from None


def with_transients(read: Configuration, present: Mapping[str, UnitSpec]) -> Configuration:
    """What was read, with those of the present units that no file has and that can stay.

    Raises:
        ConfigurationError: One of them depends on what is not there any more.
    """
    kept = {name: spec for name, spec in present.items() if spec.transient and name not in read.units}
    check_edges({**read.units, **kept})
    return replace(read, units={**read.units, **kept})


def _id(plan: Plan, configuration: Configuration) -> str:
    """Tells plans apart: what they do, and the files that they come from."""
    return hashlib.sha256(msgspec.msgpack.encode((plan, configuration))).hexdigest()[:12]
