"""Units that no file has: made by `parsupctl run`, they last until they are stopped, also over restarts of parsupd.

They are part of the configuration in force, and on record with it; a reload leaves them alone.
"""

import asyncio
import contextlib
import itertools
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from parsupd.core.status import Why
from parsupd.core.tally import AT_REST
from parsupd.core.unitfile import ConfigurationError, edges_of, parse_one
from parsupd.core.units import SubState, Target, UnitSpec
from parsupd.executor import Executor
from parsupd.reloading import Reloader

MOST = 4096
"""So many there may be."""
REMEMBERED = 256
"""The ends of so many are known after they were removed: for those who wait for them."""


class BadUnitError(ValueError):
    """A unit that cannot be; the message says why, with the key where there is one."""


class Transients:
    """Those of one daemon."""

    def __init__(self, executor: Executor, reloader: Reloader) -> None:
        self._executor = executor
        self._reloader = reloader
        self._ended: OrderedDict[tuple[str, int], Why] = OrderedDict()

    def add(self, name: str, keys: Mapping[str, Any], folder: str) -> UnitSpec:
        """Adds and starts a unit.

        Args:
            name: Its name; empty: one is made from what it runs.
            keys: As in a unit file.
            folder: What relative paths are relative to.

        Raises:
            BadUnitError: The keys are wrong, or another unit has the name. The same unit once more is no error.
            NotReloadedError: Everything is being stopped.
        """
        units = self._executor.fleet.specs
        name = name or self._free_name(keys)
        try:
            spec = parse_one(name, keys, f"{folder}/(parsupctl run)", units)
        except ConfigurationError as error:
            raise BadUnitError("\n".join(f"{problem.key}: {problem.message}" for problem in error.problems)) from None
        spec = replace(spec, transient=True)
        if (known := units.get(name)) is not None:
            if known == spec:
                return spec
            raise BadUnitError(f"there is a unit {name!r} already: stop it, or choose another --name")
        if len(units) >= MOST and sum(unit.transient for unit in units.values()) >= MOST:
            raise BadUnitError(f"there are {MOST} transient units already")
        self._reloader.add(spec)
        self._executor.note("transient_added", transient=name)
        return spec

    def _free_name(self, keys: Mapping[str, Any]) -> str:
        program = keys.get("exec") or [keys.get("worker", "")]
        word = str(program[0]) if isinstance(program, list) and program else ""
        stem = PurePath(word.rpartition(":")[2] if "worker" in keys else word).name
        stem = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in stem)[:40].strip("-")
        while (name := f"run-{stem}-{os.urandom(3).hex()}".replace("--", "-")) in self._executor.fleet.specs:
            pass
        return name

    @contextlib.asynccontextmanager
    async def removed_when_ended(self) -> AsyncIterator[None]:
        """For the time of the block, those that are over are removed."""
        removing = asyncio.get_running_loop().create_task(self._remove_ended())
        try:
            yield
        finally:
            removing.cancel()

    async def _remove_ended(self) -> None:
        while True:
            self._sweep()
            await self._executor.changed()

    def _sweep(self) -> None:
        fleet = self._executor.fleet
        if fleet.shutting_down or self._executor.handed_over:
            return
        names = [name for name, spec in fleet.configuration.units.items() if spec.transient]
        over = [name for name in names if self._is_over(name)]
        if over:
            others = [edges_of(spec) for spec in fleet.configuration.units.values()]
            needed = {edge.unit for edges in others for edge in itertools.chain(*edges.values())}
            over = [name for name in over if name not in needed]
        for name in over:
            for why in fleet.why(name):
                self._ended[why.status.name, why.status.generation] = why
            while len(self._ended) > REMEMBERED:
                self._ended.popitem(last=False)
        if over:
            self._reloader.drop(over)

    def _is_over(self, name: str) -> bool:
        """Whether all of it has ended well, or was stopped: what has failed stays, to be looked at, until then."""
        return all(
            status.sub_state in AT_REST and not (status.sub_state is SubState.FAILED and status.target is Target.UP)
            for status in self._executor.fleet.status(name)
        )

    def end_of(self, name: str) -> Why | None:
        """How a unit of one instance has ended, also when it was removed since; None as long as it has not."""
        fleet = self._executor.fleet
        if name in fleet.specs and (whys := fleet.why(name)):
            status = whys[0].status
            begun = status.generation > 0 or status.sub_state is SubState.FAILED
            return whys[0] if status.sub_state in AT_REST and begun else None
        return next((why for (one, _), why in reversed(self._ended.items()) if one.rpartition("@")[0] == name), None)
