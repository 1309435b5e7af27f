"""The control object, `parsup.Supervisor` on the daemon's socket: what parsupctl and other clients call.

Commands are idempotent and concern the named unit only; each can wait for its result, and a client that goes away
cancels nothing but its own waiting. Values are plain, so that any Pyro5 client can use them.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path

from parsupd.chronicle import WallClock
from parsupd.core import described
from parsupd.core import events as told
from parsupd.core.described import Info
from parsupd.core.event_ring import Entry
from parsupd.core.fleet import Fleet, ShuttingDownError
from parsupd.core.plan import Plan
from parsupd.core.readers import BadValueError
from parsupd.core.roster import NoSuchUnitError
from parsupd.core.status import InstanceStatus
from parsupd.core.tally import DOWN, UP
from parsupd.core.templates import template_of
from parsupd.core.unit_keys import UNIT_KEYS
from parsupd.core.units import SIGNAL_NAMES, ActiveState, InstanceName, SubState, Target
from parsupd.executor import Executor
from parsupd.reloading import NotReloadedError, Reloader
from parsupd.replacing import NotReplacedError, Replacing
from parsupd.rolling import NotRolledError, Progress, Roller
from parsupd.shell import leftovers
from parsupd.transients import BadUnitError, Transients
from workerlib import __version__, pipe, rpc

ENDS = "shutting_down"
"""The event by which those who follow know that there is no more to come."""
ONCE_TRIED = UP | DOWN | {SubState.BACKOFF}
MOST_SURGE = 1000
"""So many instances a rolling restart may add."""


class Supervisor:
    """Serves one daemon's control functions."""

    def __init__(
        self, executor: Executor, reloader: Reloader, transients: Transients, replacing: Replacing, runtime_dir: Path
    ) -> None:
        self._executor = executor
        self._transients = transients
        self._replacing = replacing
        self._reloader = reloader
        self._runtime_dir = runtime_dir
        self._roller = Roller(executor, reloader)
        self._started_at = asyncio.get_running_loop().time()
        self._wall = WallClock()

    @property
    def _fleet(self) -> Fleet:
        return self._executor.fleet

    @rpc
    async def info(self) -> Info:
        """The daemon itself: version, pid, runtime_dir, started (Unix time), last_event (its number), token (what its
        units' processes have in PARSUP_TOKEN), control_groups (the directory of those of runs, or empty).
        """
        return {
            "version": __version__,
            "pid": os.getpid(),
            "runtime_dir": str(self._runtime_dir),
            "token": leftovers.token_of(self._runtime_dir),
            "control_groups": self._executor.limits.tree,
            "started": self._wall(self._started_at),
            "restart_storm": self._fleet.storm,
            "last_event": self._executor.chronicle.events.last,
        }

    @rpc
    async def status(self, names: list[str] | None = None) -> list[Info]:
        """One entry an instance, of the named units and instances or of all. Raises LookupError for an unknown name."""
        return [self._described(status) for status in self._statuses(names)]

    @rpc
    async def why(self, name: str) -> list[Info]:
        """What happened to each instance: its last incarnations with cause, decision and reason. Raises LookupError."""
        try:
            whys = self._fleet.why(name)
            return [{**described.why(why, self._wall), **self._described(why.status)} for why in whys]
        except NoSuchUnitError as error:
            raise LookupError(str(error)) from None

    @pipe
    async def events(
        self, since: int | None = None, follow: bool = False, names: list[str] | None = None, last: int | None = None
    ) -> AsyncIterator[Info]:
        """What has happened, oldest first: number, at, event, unit, instance, and what belongs to that event.

        Args:
            since: Only events with greater numbers. Those that are not kept any more are one item, event `gap` with
                `lost`, so that nothing is missed silently: also when its reader is slower than what happens.
            follow: Go on with what comes, until parsupd ends.
            names: Only events of these units or instances, and that everything is being stopped.
            last: Only so many of those that are kept.

        Raises LookupError for a name that neither a unit nor an event has, except to who follows: he may wait for it.
        """
        ring = self._executor.chronicle.events
        if names and not follow:
            _, kept = ring.since(ring.oldest)
            seen = {name for entry in kept for name in (entry.unit, entry.instance)}
            for name in names:
                if name not in seen:
                    self._statuses([name])
        at = ring.oldest if since is None else since
        if at > ring.last:  # it is of a parsupd that this one knows nothing of
            at = 0
        while True:
            lost, entries = ring.since(at)
            at = ring.last
            if lost:
                yield described.gap(at - len(entries), lost)
            found = [entry for entry in entries if _concerns(entry, names)]
            for entry in found if last is None else found[len(found) - min(last, len(found)) :]:
                yield described.event(entry)
            last = None
            if not follow or (self._executor.done.done() and ring.last == at):
                return
            if ring.last == at:
                await self._executor.changed()

    @rpc
    async def outputs(self, names: list[str] | None = None) -> list[Info]:
        """Where the output of each instance is kept: name, journal (whether there), logs, files.

        `logs` is the directory of its log files, or empty; `files` are others. Raises LookupError.
        """
        found = []
        for status in self._statuses(names):
            journal, logs, files = self._executor.outputs(InstanceName.parse(status.name))
            found.append({"name": status.name, "journal": journal, "logs": logs, "files": files})
        return found

    @rpc
    async def start(self, names: list[str], wait: bool = True, timeout_s: float | None = None) -> list[Info]:
        """Starts units with what they require. With `wait`, returns when each is up, or has failed.

        Raises LookupError for an unknown name, RuntimeError while everything is being stopped, TimeoutError.
        """
        await self._ready()
        self._make(names)
        self._command([told.Start(name) for name in names])
        return await self._until(names, lambda status: status.sub_state in UP | DOWN, wait, timeout_s)

    @rpc
    async def stop(self, names: list[str], wait: bool = True, timeout_s: float | None = None) -> list[Info]:
        """Stops units, first those that require them. With `wait`, returns when each is down.

        Raises as `start`, and RuntimeError when somebody starts one again before it was seen down.
        """
        await self._ready()
        self._command([told.Stop(name) for name in names])

        def done(status: InstanceStatus) -> bool:
            if status.sub_state not in DOWN and status.target is Target.UP:
                raise RuntimeError(f"{status.name} was started again before it was down")
            return status.sub_state in DOWN

        return await self._until(names, done, wait, timeout_s, gone_is_done=True)

    @rpc
    async def restart(self, names: list[str], wait: bool = True, timeout_s: float | None = None) -> list[Info]:
        """Stops and starts units. With `wait`, returns when each is up again, has failed, or was stopped by another.

        Raises as `start`.
        """
        await self._ready()
        self._make(names)
        before = {status.name: status.generation for status in self._statuses(names)}
        self._command([told.Restart(name) for name in names])

        def done(status: InstanceStatus) -> bool:
            # At rest without a new generation: what it requires has failed, or somebody stopped it meanwhile.
            return status.sub_state in DOWN or (status.sub_state in UP and status.generation > before[status.name])

        return await self._until(names, done, wait, timeout_s)

    @rpc
    async def roll(self, names: list[str], surge: int = 0, timeout_s: float | None = None) -> Info:
        """Restarts units while they go on serving: one instance after the other, each when the one before is ready.

        Args:
            names: Units; one after the other.
            surge: So many more instances of a unit are started first, and stopped at the end; as many are restarted
                at once then.
            timeout_s: How long that may take.

        Returns:
            restarted, left (names), failed (null; or name and reason of the first that did not come up, after which
            nothing else was touched), instances (their status).

        Raises LookupError, ValueError, RuntimeError as `start`, TimeoutError. Who goes away or raises TimeoutError
        ends it: what is being restarted comes up, what is left is not touched.
        """
        await self._ready()
        progress = Progress()
        try:
            if not 0 <= surge <= MOST_SURGE:
                raise NotRolledError(f"surge must be from 0 to {MOST_SURGE}, not {surge}")
            async with asyncio.timeout(timeout_s):
                await self._roller.roll(names, surge, progress)
        except NoSuchUnitError as error:
            raise LookupError(str(error)) from None
        except NotRolledError as error:
            raise ValueError(str(error)) from None
        except (NotReloadedError, ShuttingDownError) as error:
            raise RuntimeError(str(error)) from None
        except TimeoutError:
            raise TimeoutError(f"not within {timeout_s:g} s; {progress}") from None
        instances = map(self._described, self._statuses(names))
        return described.roll(progress.restarted, progress.left, progress.failed, instances)

    @rpc
    async def reload_units(self, names: list[str], wait: bool = True, timeout_s: float | None = None) -> list[Info]:
        """Has units read their own configuration again, by exec_reload. With `wait`, returns when each has, or has not.

        Raises LookupError for an unknown name, ValueError for a unit without exec_reload, TimeoutError.
        """
        for status in self._statuses(names):
            if not self._fleet.spec(InstanceName.parse(status.name)).exec_reload:
                raise ValueError(f"{status.unit} has no exec_reload: nothing tells it to reload")
        self._command([told.ReloadUnit(name) for name in names])
        reloading = self._fleet.is_reloading
        return await self._until(names, lambda one: not reloading(InstanceName.parse(one.name)), wait, timeout_s)

    @rpc
    async def wait(self, names: list[str], state: str = "active", timeout_s: float | None = None) -> list[Info]:
        """Waits until every instance is in an ActiveState.

        Raises LookupError, ValueError, TimeoutError; RuntimeError as soon as one has failed for good instead: without
        a limit this would wait for ever.
        """
        await self._ready()
        try:
            wanted = ActiveState(state)
        except ValueError:
            known = ", ".join(one.value for one in ActiveState)
            raise ValueError(f"there is no state {state!r}; states are {known}") from None

        def done(status: InstanceStatus) -> bool:
            if status.sub_state is SubState.FAILED and wanted is not ActiveState.FAILED:
                raise RuntimeError(f"{status.name} has failed for good: {status.reason}")
            return status.active_state is wanted

        return await self._until(names, done, True, timeout_s)

    @rpc
    async def plan(self) -> Info:
        """What `reload` would do now, with the id that `apply` takes. Raises ValueError for a broken configuration."""
        await self._ready()
        try:
            return described.plan(*self._reloader.plan())
        except NotReloadedError as error:
            raise ValueError(str(error)) from None

    @rpc
    async def reload(self, wait: bool = True, timeout_s: float | None = None) -> Info:
        """Reads the configuration again and changes what differs. With `wait`, returns when each instance concerned is
        up, has failed, or is gone.

        Returns the plan that was done, with `instances`: the status of those that were started or restarted. Raises
        ValueError, and changes nothing, when the configuration is broken or everything is being stopped; TimeoutError.
        """
        await self._ready()
        return await self._reload(None, wait, timeout_s)

    @rpc
    async def apply(self, plan: str, wait: bool = True, timeout_s: float | None = None) -> Info:
        """As `reload`, but does only the plan with this id. Raises ValueError when that does not hold any more."""
        await self._ready()
        return await self._reload(plan, wait, timeout_s)

    @rpc
    async def scale(self, instances: dict[str, int], wait: bool = True, timeout_s: float | None = None) -> Info:
        """Sets how many instances units have, until the next reload. Waits and returns as `reload` does.

        Raises LookupError for an unknown unit, ValueError for a number that cannot be, TimeoutError.
        """
        await self._ready()
        before = self._generations()
        try:
            for name, number in instances.items():
                _check_number(name, number)
            plan = self._reloader.scale(instances)
        except NoSuchUnitError as error:
            raise LookupError(str(error)) from None
        except NotReloadedError as error:
            raise ValueError(str(error)) from None
        return await self._done("", plan, before, wait, timeout_s)

    @rpc
    async def show(self, name: str) -> Info:
        """All that a unit's description says: unit, source, transient, keys, defaults, instances. Raises LookupError.

        `keys` has every key that its type can have, with the value in force as a unit file has it; `defaults` the names
        of those that are as they are without a line in a file.
        """
        statuses = self._statuses([name])
        unit = statuses[0].unit if statuses else name
        return described.unit(self._fleet.specs[unit], map(self._described, statuses))

    @rpc
    async def kill(self, names: list[str], signal: int, main_only: bool = False) -> list[Info]:
        """Sends a signal to the processes of units, or to the main ones only; their policies decide what follows.

        Returns the status of each instance as it was, with `signalled`: whether there was a process. Raises
        LookupError, and ValueError for what is no signal.
        """
        if signal not in SIGNAL_NAMES:
            raise ValueError(f"there is no signal {signal}")
        found = []
        for status in self._statuses(names):
            signalled = self._executor.kill(InstanceName.parse(status.name), status.generation, signal, main_only)
            found.append({**self._described(status), "signalled": signalled})
        return found

    @rpc
    async def run(
        self, name: str, keys: Info, folder: str = "/", wait: str = "ready", timeout_s: float | None = None
    ) -> Info:
        """Starts a unit that no file has, which lasts until it is stopped or has ended.

        Args:
            name: Its name; empty: one is made.
            keys: As in a unit file.
            folder: What relative paths are relative to.
            wait: Until it is `ready`, or a start has failed, whatever its policy does then; until its `end`; or `no`.
            timeout_s: How long to wait at most; the unit goes on.

        Returns:
            unit, instances (their status), ended (as `why` has it; null as long as it runs), exit_status.

        Raises ValueError for a unit that cannot be, RuntimeError while everything is being stopped, TimeoutError.
        """
        await self._ready()
        try:
            spec = self._transients.add(name, keys, folder)
        except (BadUnitError, NotReloadedError) as error:
            raise ValueError(str(error)) from None
        if wait == "end" and spec.instances != 1:
            raise ValueError(f"{spec.name}: only the end of one instance can be waited for, not of {spec.instances}")
        try:
            async with asyncio.timeout(timeout_s):
                while wait != "no":
                    end = self._transients.end_of(spec.name)
                    statuses = statuses_of(self._fleet, spec.name)
                    if end is not None or not statuses:
                        break
                    if wait == "ready" and all(status.sub_state in ONCE_TRIED for status in statuses):
                        break
                    await self._executor.changed()
        except TimeoutError:
            raise _late(self._fleet.status(spec.name), timeout_s) from None
        instances = map(self._described, statuses_of(self._fleet, spec.name))
        return described.run(spec.name, instances, self._transients.end_of(spec.name), self._wall)

    @rpc
    async def reexec(self, python: str = "") -> Info:
        """Replaces the running daemon by the version that is installed now, in the same process, with units going on.

        `python` names another interpreter (its path), and so another installation. Returns `version` and `pid` once it
        was found that it can take over; it does so then. Raises ValueError when it cannot, and nothing is changed.
        """
        try:
            return {"version": await self._replacing.replace(python), "pid": os.getpid()}
        except NotReplacedError as error:
            raise ValueError(str(error)) from None

    @rpc
    async def shutdown(self, exit_code: int = 0) -> None:
        """Stops everything in reverse order; the daemon exits then. Returns at once."""
        self._command([told.ShutdownRequested("shutdown requested", exit_code)])

    # How

    async def _reload(self, expected: str | None, wait: bool, timeout_s: float | None) -> Info:
        before = self._generations()
        try:
            plan_id, plan = self._reloader.reload(expected)
        except NotReloadedError as error:
            raise ValueError(str(error)) from None
        return await self._done(plan_id, plan, before, wait, timeout_s)

    def _generations(self) -> dict[str, int]:
        return {status.name: status.generation for status in self._fleet.status()}

    async def _done(
        self, plan_id: str, plan: Plan, before: Mapping[str, int], wait: bool, timeout_s: float | None
    ) -> Info:
        """Waits until a plan has come true, as far as it can."""
        coming = [name for each in plan.touched for name in (*each.starts, *each.restarts)]
        going = [name for each in plan.touched for name in each.stops]

        def found(names: Iterable[InstanceName]) -> list[InstanceStatus]:
            return [status for name in names if self._fleet.has(name) for status in self._fleet.status(str(name))]

        def is_down(status: InstanceStatus) -> bool:  # and kept in the configuration, else it is not found any more
            return status.sub_state in DOWN and self._fleet.is_kept(InstanceName.parse(status.name))

        def pending() -> list[InstanceStatus]:
            late = [
                status
                for status in found(coming)
                if not (
                    status.sub_state in DOWN | {SubState.UNKILLABLE}
                    or (status.sub_state in UP and status.generation > before.get(status.name, -1))
                )
            ]
            return late + [
                status
                for status in found(going)
                if status.target is Target.DOWN and status.sub_state is not SubState.UNKILLABLE and not is_down(status)
            ]

        try:
            async with asyncio.timeout(timeout_s):
                while wait and pending():
                    await self._executor.changed()
        except TimeoutError:
            raise _late(pending(), timeout_s) from None
        instances = [self._described(status) for status in found(coming)]
        return {**described.plan(plan_id, plan), "instances": instances}

    async def _ready(self) -> None:
        """Waits until a start has ended what an earlier parsupd left: before that, nothing is decided."""
        await self._executor.opened.wait()
        if self._executor.handed_over:
            raise RuntimeError("parsupd is being replaced by another one: ask that")

    def _make(self, names: Iterable[str]) -> None:
        """Makes what is not there, and what there is a template for."""
        for name in names:
            if template_of(name) in self._fleet.configuration.templates and name not in self._fleet.specs:
                try:
                    self._reloader.make(name)
                except NotReloadedError as error:
                    raise ValueError(str(error)) from None

    def _command(self, commands: list[told.Command]) -> None:
        try:
            for command in commands:
                if isinstance(command, (told.Start, told.Stop, told.Restart, told.ReloadUnit)):
                    self._fleet.instances(command.name)  # all names are known before anything is done
            for command in commands:
                self._executor.feed(command)
        except NoSuchUnitError as error:
            raise LookupError(str(error)) from None
        except ShuttingDownError as error:
            raise RuntimeError(str(error)) from None

    def _described(self, status: InstanceStatus) -> Info:
        name = InstanceName.parse(status.name)
        found = described.instance(status, self._wall, self._executor.notices.status_text(name))
        return self._with_next_run({**found, "limits": self._executor.limits.shown(name)})

    def _with_next_run(self, info: Info) -> Info:
        at = self._executor.schedules.next_run_at(info["unit"])
        if at is not None:
            info["reason"] += f"; next run at {datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M:%S %z}"
        return {**info, "next_run_at": at}

    def _statuses(self, names: list[str] | None) -> list[InstanceStatus]:
        try:
            if not names:
                return self._fleet.status()
            return [status for name in names for status in self._fleet.status(name)]
        except NoSuchUnitError as error:
            raise LookupError(str(error)) from None

    async def _until(
        self,
        names: list[str],
        done: Callable[[InstanceStatus], bool],
        wait: bool,
        timeout_s: float | None,
        *,
        gone_is_done: bool = False,
    ) -> list[Info]:
        with self._executor.watches.open() as watch:
            statuses = {status.name: status for status in self._statuses(names)}
            pending = {name for name, status in statuses.items() if not done(status)}
            try:
                async with asyncio.timeout(timeout_s):
                    while wait and pending:
                        _refuse_unkillable(statuses[name] for name in pending)
                        for instance in await watch.changed():
                            if (name := str(instance)) in statuses:
                                pending.discard(name)
                                if self._look_again(statuses, instance, gone_is_done) and not done(statuses[name]):
                                    pending.add(name)
            except TimeoutError:
                raise _late((status for name, status in statuses.items() if name in pending), timeout_s) from None
        return [self._described(status) for status in statuses.values()]

    def _look_again(self, statuses: dict[str, InstanceStatus], instance: InstanceName, gone_is_done: bool) -> bool:
        """Brings the status of an instance up to date; whether it is still there. A reload may have removed it."""
        name = str(instance)
        if self._fleet.has(instance):
            (statuses[name],) = self._fleet.status(name)
            return True
        if not gone_is_done:
            raise RuntimeError(f"{name}: removed from the configuration meanwhile")
        del statuses[name]
        return False


def statuses_of(fleet: Fleet, name: str) -> list[InstanceStatus]:
    """Of a unit that may have been removed meanwhile."""
    return fleet.status(name) if name in fleet.specs else []


def _concerns(entry: Entry, names: list[str] | None) -> bool:
    return not names or entry.event == ENDS or entry.unit in names or entry.instance in names


def _late(statuses: Iterable[InstanceStatus], timeout_s: float | None) -> TimeoutError:
    late = ", ".join(f"{status.name} ({status.sub_state.value})" for status in statuses)
    return TimeoutError(f"not within {timeout_s:g} s: {late}")


def _check_number(unit: str, number: int) -> None:
    try:
        UNIT_KEYS["instances"](number)
    except BadValueError as error:
        raise ValueError(f"{unit}: instances {error}") from None


def _refuse_unkillable(statuses: Iterable[InstanceStatus]) -> None:
    """Raises RuntimeError for what may not end before the machine does: nobody can be asked to wait for that."""
    for status in statuses:
        if status.sub_state is SubState.UNKILLABLE:
            raise RuntimeError(f"{status.name} is unkillable: {status.reason}")
