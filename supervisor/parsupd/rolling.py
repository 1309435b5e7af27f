"""Restarts units while they go on serving: carries out what `core.rolling` decides."""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from parsupd.core import rolling
from parsupd.core.events import Restart
from parsupd.core.rolling import Seen
from parsupd.core.units import InstanceName
from parsupd.executor import Executor
from parsupd.reloading import NotReloadedError, Reloader


class NotRolledError(ValueError):
    """A name stands for nothing that can be restarted in turn; the message says why."""


@dataclass(slots=True)
class Progress:
    """How far a rolling restart has come."""

    restarted: list[InstanceName] = field(default_factory=list)
    under_way: list[InstanceName] = field(default_factory=list)
    left: list[InstanceName] = field(default_factory=list)
    failed: tuple[InstanceName, str] | None = None  # the first one, and why

    def __str__(self) -> str:
        kinds = (("restarted", self.restarted), ("under way", self.under_way), ("not touched", self.left))
        return "; ".join(f"{kind}: {', '.join(map(str, names)) or 'none'}" for kind, names in kinds)


class Roller:
    """The rolling restarts of one daemon: of a unit one at a time, a second waits for the first."""

    def __init__(self, executor: Executor, reloader: Reloader) -> None:
        self._executor = executor
        self._reloader = reloader
        self._locks: dict[str, asyncio.Lock] = {}

    async def roll(self, units: Iterable[str], surge: int, progress: Progress) -> None:
        """Restarts all wanted instances of units in turn, and keeps `progress`, until one fails.

        With `surge`, so many more instances of a unit are started before, and stopped at the end, also when this fails
        or is cancelled: what is being restarted then comes up, and the others are not touched.

        Raises:
            NoSuchUnitError: There is no such unit.
            NotRolledError: A name is that of an instance, or nothing of a unit is wanted up; nothing is done.
            NotReloadedError: Everything is being stopped.
            ShuttingDownError: The same.
        """
        wanted = {unit: self._wanted(unit) for unit in units}
        progress.left = [each for instances in wanted.values() for each in instances]
        for unit, instances in wanted.items():
            async with self._locks.setdefault(unit, asyncio.Lock()):
                await self._roll_one(unit, instances, surge, progress)
            if progress.failed is not None:
                return

    def _wanted(self, unit: str) -> tuple[InstanceName, ...]:
        fleet = self._executor.fleet
        instances = fleet.instances(unit)
        if unit not in fleet.configuration.units:
            raise NotRolledError(f"{unit} is not a unit of the configuration: instances are not restarted in turn")
        wanted = tuple(instance for instance in instances if fleet.is_kept(instance) and fleet.is_wanted(instance))
        if not wanted:
            raise NotRolledError(f"nothing of {unit} is up: start it")
        return wanted

    async def _roll_one(self, unit: str, instances: tuple[InstanceName, ...], surge: int, progress: Progress) -> None:
        fleet = self._executor.fleet
        with self._surge(unit, surge) as extra:
            state = rolling.begin(instances, extra)
            while True:
                seen = {
                    name: Seen(status.sub_state, status.generation, status.reason)
                    for name in (*instances, *extra)
                    if fleet.is_kept(name)
                    for status in fleet.status(str(name))
                }
                done = len(state.restarted)
                state, turn = rolling.advance(state, seen)
                progress.restarted += state.restarted[done:]
                progress.under_way = list(state.under_way)
                progress.left = [each for each in progress.left if each not in turn]
                progress.failed = state.failed
                if state.is_over:
                    break
                for name in turn:
                    self._executor.feed(Restart(str(name), "rolling restart"))
                if not turn:
                    await self._executor.changed()
        while any(fleet.has(name) and not fleet.is_kept(name) for name in extra):
            await self._executor.changed()

    @contextmanager
    def _surge(self, unit: str, count: int) -> Iterator[tuple[InstanceName, ...]]:
        """Has so many more instances for a while."""
        if not count:
            yield ()
            return
        scaled = unit in self._executor.fleet.scaled
        extra = self._reloader.add_instances(unit, count)
        try:
            yield extra
        finally:
            with suppress(NotReloadedError):  # then everything is being stopped
                self._reloader.drop_instances(extra, scaled=scaled)
