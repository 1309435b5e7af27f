"""Reads the configuration again and has the fleet follow it: for the control object, and for SIGHUP."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import msgspec

from parsupd.core.events import Reconfigure, Scale
from parsupd.core.fleet import ShuttingDownError
from parsupd.core.plan import Plan
from parsupd.core.unitfile import ConfigurationError
from parsupd.core.units import Configuration
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

    def _parsed(self) -> Configuration:
        try:
            return self._read()
        except (UsageError, ConfigurationError) as error:
            raise NotReloadedError(f"{error}\nnothing was changed") from None

    def _give(self, command: Reconfigure | Scale) -> None:
        if self._executor.handed_over:
            raise NotReloadedError("parsupd is being replaced by another one: ask that")
        try:
            self._executor.feed(command)
        except ShuttingDownError as error:
            raise NotReloadedError(str(error)) from None


def _id(plan: Plan, configuration: Configuration) -> str:
    """Tells plans apart: what they do, and the files that they come from."""
    return hashlib.sha256(msgspec.msgpack.encode((plan, configuration))).hexdigest()[:12]
