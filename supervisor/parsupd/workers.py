"""Worker units: their processes are spawned by a workerlib master of parsupd's, or were by that of an earlier parsupd.

No decisions: what comes of it is reported to the fleet.
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from parsupd.core import events as told
from parsupd.core.fleet import Fleet
from parsupd.core.snapshot import ProcessRecord
from parsupd.core.units import ExitCause, InstanceName, SubState
from parsupd.limits import Limits
from parsupd.lives import Lives
from parsupd.masters import Masters
from parsupd.outputs import Outputs, Redirects
from parsupd.shell.children import Child, Children
from parsupd.shell.leftovers import Tag
from parsupd.shell.preparing import PreparedLauncher, Step
from parsupd.shell.store import open_output
from parsupd.surroundings import Surroundings
from workerlib import Master, Redirect, ShutdownOn, SpawnError, UsageError
from workerlib.core.uri import parse_uri
from workerlib.redirects import Target
from workerlib.spawn_options import SpawnOptions, WorkerRecord


class Workers:
    """Those of one executor: what is under way with them until they serve."""

    def __init__(
        self,
        fleet: Fleet,
        children: Children,
        masters: Masters,
        outputs: Outputs,
        lives: Lives,
        limits: Limits,
        processes: dict[InstanceName, ProcessRecord],
        feed: Callable[[told.FleetEvent], None],
        log: Any,
    ) -> None:
        """`processes` is what is on record of main processes: how to reach a worker is noted there."""
        self._fleet = fleet
        self._children = children
        self._masters = masters
        self._outputs = outputs
        self._lives = lives
        self._limits = limits
        self._processes = processes
        self._feed = feed
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._under_way: dict[tuple[InstanceName, int], asyncio.Task[None]] = {}

    @property
    def any_under_way(self) -> bool:
        """Whether a worker is just being started, or waited for."""
        return bool(self._under_way)

    def cancel(self, instance: InstanceName, generation: int) -> None:
        """Gives up a start that is under way; that is reported as a failed one."""
        if (task := self._under_way.get((instance, generation))) is not None:
            task.cancel()

    async def cancel_all(self) -> None:
        """The same for all of them; returns when they have ended."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Spawning

    def spawn(self, tag: Tag, around: Surroundings) -> None:
        """Begins to spawn a run's worker. Raises UsageError for what no worker can be given, and OSError."""
        streams = self._outputs.redirects(around.spec, tag.instance, tag.generation)
        try:
            options = self._options(tag.instance, around, streams)
        except UsageError:
            streams.close()
            raise
        uid = os.geteuid() if around.uid is None else around.uid
        task = self._loop.create_task(self._spawn(tag, options, uid, around.steps))
        task.add_done_callback(partial(self._spawned, tag, streams))
        self._under_way[tag.instance, tag.generation] = task

    def _options(self, instance: InstanceName, around: Surroundings, streams: Redirects) -> SpawnOptions:
        spec = around.spec
        by_name = isinstance(spec.init, Mapping)
        return SpawnOptions(
            reference=spec.worker,
            name=str(instance),
            args=() if by_name else list(spec.init),
            kwargs=dict(spec.init) if by_name else {},
            shutdown_on=ShutdownOn.HEARTBEATER_CONNECTION_TIMEOUT,
            stdout=streams.stdout,
            stderr=streams.stderr,
            cd=spec.working_directory or "/",
            umask=spec.umask,
            env=around.variables,
            python=spec.python or None,
            connection_timeout_s=spec.timeout_start_s,
            spawn_timeout_s=spec.timeout_start_s,
            lease_s=self._fleet.configuration.daemon.lease_s,
            on_stderr=lambda name, line: self._log.warning(f"[WORKER {name} STDERR]: {line}", unit=name),
            on_failure=lambda error: self._log.error("worker_failed", unit=str(instance), error=str(error)),
        )

    def _spawned(self, tag: Tag, streams: Redirects, task: "asyncio.Task[None]") -> None:
        streams.close()
        self._under_way.pop((tag.instance, tag.generation), None)
        if task.cancelled():  # before it had begun
            self._failed(tag, ExitCause.spawn_failed("cancelled"))

    def _failed(self, tag: Tag, cause: ExitCause, lines: tuple[str, ...] = ()) -> None:
        self._feed(told.SpawnFailed(tag.instance, tag.generation, cause, lines))

    async def _spawn(self, tag: Tag, options: SpawnOptions, uid: int, steps: Sequence[Step]) -> None:
        instance, generation = tag.instance, tag.generation
        adopted: list[Child] = []
        opened: list[int] = []
        try:
            options = msgspec.structs.replace(
                options, on_registered=lambda record: adopted.append(self._children.adopt(record.pid, tag))
            )
            if steps or self._limits.tree:
                spec = self._fleet.spec(instance)
                launcher = PreparedLauncher(self._children.watch, steps, lambda: self._limits.starting(tag, spec))
                options = _prepared(options, launcher, opened)
            record, _ = await (await self._masters.of(uid)).spawn(options)
        except (SpawnError, UsageError, OSError) as error:
            self._forget(adopted, tag)
            self._failed(tag, *_told_by(error))
        except asyncio.CancelledError:
            self._forget(adopted, tag)
            self._failed(tag, ExitCause.spawn_failed("cancelled"))
        except Exception as error:  # noqa: BLE001 - whatever it is, a unit must not stay `starting` for ever
            self._log.exception("spawn_crashed", unit=str(instance))
            self._forget(adopted, tag)
            self._failed(tag, ExitCause.spawn_failed(repr(error)))
        else:
            child = adopted[0]
            self._processes[instance] = ProcessRecord(
                child.pid, child.started, child.group, record.worker_id, record.token, str(record.uri)
            )
            self._feed(told.Spawned(instance, generation, child.pid))
            self._feed(told.Ready(instance, generation, str(record.uri)))
            self._lives.follow(instance, generation, child)
            self._limits.follow(instance)
            self._watch_connection(tag, record, child)
        finally:
            for fd in opened:
                os.close(fd)

    def _forget(self, adopted: list[Child], tag: Tag) -> None:
        for child in adopted:
            self._children.disown(child)
        self._limits.abandon(tag)

    def _watch_connection(self, tag: Tag, record: WorkerRecord, child: Child) -> None:
        """A worker is ready as long as it is connected to its master."""
        lost = record.lost
        assert lost is not None

        def on_lost(future: "asyncio.Future[str]") -> None:
            if not child.exited.done():
                self._feed(told.ReadinessLost(tag.instance, tag.generation, future.result()))

        lost.add_done_callback(on_lost)

    # Adoption

    def expect(self, tag: Tag, process: ProcessRecord, child: Child) -> bool:
        """Waits for a worker that an earlier parsupd has spawned: it has its lease's time to register here.

        False when it has ended just now, which is about to be seen.
        """
        location = parse_uri(process.uri).location
        master = self._masters.at(location)
        try:
            record = master.expect(process.worker_id, str(tag.instance), process.token, location, process.pid)
        except ProcessLookupError:
            return False
        self._under_way[tag.instance, tag.generation] = self._loop.create_task(
            self._await_registration(tag, master, record, child)
        )
        return True

    async def _await_registration(self, tag: Tag, master: Master, record: WorkerRecord, child: Child) -> None:
        """Waits for it, or for the worker's end."""
        instance, generation = tag.instance, tag.generation
        assert record.registered is not None
        lease_s = self._fleet.configuration.daemon.lease_s
        try:
            either: set[asyncio.Future[Any]] = {record.registered, child.exited}
            await asyncio.wait(either, timeout=lease_s, return_when=asyncio.FIRST_COMPLETED)
            if child.exited.done():
                master.forget(record)
                return
            starting = self._fleet.state(instance)[0].sub_state is SubState.STARTING
            if record.registered.done():
                if starting:
                    self._feed(told.Ready(instance, generation, str(record.uri)))
                self._watch_connection(tag, record, child)
            elif not starting:  # a start has its own timeout
                why = f"it has not registered within {lease_s:g} s"
                self._feed(told.ReadinessLost(instance, generation, why))
        finally:
            self._under_way.pop((instance, generation), None)


def _prepared(options: SpawnOptions, launcher: PreparedLauncher, opened: list[int]) -> SpawnOptions:
    """The options for a worker that may become another user: its files are opened here, as nobody else might."""
    streams: dict[str, Redirect] = {}
    for name, redirect in (("stdout", options.stdout), ("stderr", options.stderr)):
        if redirect.target is Target.APPEND:
            opened.append(open_output(redirect.path))
            streams[name] = Redirect.descriptor(opened[-1])
    return msgspec.structs.replace(options, launcher=launcher, **streams)


def _told_by(error: SpawnError | UsageError | OSError) -> tuple[ExitCause, tuple[str, ...]]:
    if isinstance(error, SpawnError):
        return ExitCause.spawn_failed(f"{error.cause} (stage reached: {error.stage.value})"), error.stderr
    return ExitCause.spawn_failed(str(error)), ()
