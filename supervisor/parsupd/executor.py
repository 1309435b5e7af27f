"""Carries out what the fleet decides, and reports to it what happens. No decisions here.

Every report and command goes through `feed`, which decides at once; what follows is done in its turn.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from parsupd.chronicle import Chronicle
from parsupd.core import effects as do
from parsupd.core import events as told
from parsupd.core.fleet import Fleet
from parsupd.core.recovery import Found
from parsupd.core.roster import NoSuchUnitError
from parsupd.core.snapshot import ProcessRecord
from parsupd.core.tally import AT_REST
from parsupd.core.unitfile import ConfigurationError
from parsupd.core.units import (
    SIGNAL_NAMES,
    ExitCause,
    InstanceName,
    SubState,
    Target,
    UnitSpec,
    UnitType,
)
from parsupd.hooks import Hooks
from parsupd.limits import Limits
from parsupd.lives import Lives
from parsupd.masters import Masters
from parsupd.notices import Notices
from parsupd.outputs import Outputs
from parsupd.recorder import Recorder
from parsupd.scheduling import Schedules
from parsupd.shell.accounts import AccountError
from parsupd.shell.cgroup import Tree
from parsupd.shell.children import Child, Children
from parsupd.shell.kept_processes import KeptProcesses
from parsupd.shell.leftovers import HOOK, Tag, token_of
from parsupd.shell.nameserver import Names
from parsupd.shell.stack_files import StackFiles
from parsupd.shell.unit_sockets import UnitSockets
from parsupd.surroundings import Finder, Surroundings
from parsupd.turns import Turns
from parsupd.watches import Watches
from parsupd.watching import ProbeDoor, Watchers
from parsupd.workers import Workers
from workerlib import UsageError


@dataclass(frozen=True, slots=True)
class Place:
    """Directories and files of this daemon."""

    runtime_dir: Path
    state_dir: Path


@dataclass(frozen=True, slots=True)
class Doors:
    """What the executor acts through."""

    children: Children
    kept: KeptProcesses
    names: Names
    masters: Masters
    sockets: UnitSockets
    outputs: Outputs
    tree: Tree | None = None


class Executor:
    """Drives the fleet in the running event loop."""

    def __init__(
        self,
        fleet: Fleet,
        doors: Doors,
        recorder: Recorder,
        place: Place,
        log: Any,
    ) -> None:
        """Nothing is done until `open` is called: events that are fed before that wait."""
        self.fleet = fleet
        self.on_change: Callable[[], object] = _nothing
        """Called whenever something may have changed."""
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """Done with the exit code when everything is down, or handed over."""
        self.opened = asyncio.Event()
        """Set when events are no longer kept waiting."""
        self.handed_over = False
        """Whether units go on without this executor."""
        self.watches = Watches()
        self.chronicle = Chronicle(log, recorder.last_event)
        self._loop = asyncio.get_running_loop()
        self._turns = Turns(self._save, self._loop.call_soon, time.monotonic)
        self._children = doors.children
        self._kept = doors.kept
        self._names = doors.names
        self._token = token_of(place.runtime_dir)
        self._inherited = dict(os.environ)  # of which each look at each variable takes a microsecond
        self._surroundings = Finder(fleet, doors.outputs, place.runtime_dir, self._token)
        self._recorder = recorder
        self._sockets = doors.sockets
        self._log = log
        self._outputs = doors.outputs
        self.schedules = Schedules(fleet, self.feed, log)
        self._waiting: list[told.FleetEvent] = []
        self._held = True  # until `open`
        self._timer: asyncio.TimerHandle | None = None
        self._armed_at = 0.0
        runtime = place.runtime_dir
        self._stacks = StackFiles(runtime / "stacks")
        self._lives = Lives(doors.children, doors.kept, recorder.processes, self._stacks, self.feed, log)
        self.notices = Notices(runtime / "notify", doors.children, self._lives.main, self.feed, log)
        self.notices.on_main_changed = self._lives.change_main
        self.limits = Limits(fleet, doors.children, doors.tree, self._lives.main, self.feed, log)
        self._lives.explain = self.limits.explain
        self._workers = Workers(
            fleet,
            doors.children,
            doors.masters,
            doors.outputs,
            self._lives,
            self.limits,
            recorder.processes,
            self.feed,
            log,
        )
        self._lives.on_exit = self.notices.take
        self._watchers = Watchers(fleet, self._probe_door, self.feed)
        self._hooks = Hooks(doors.children, self._spawn_hook, self.feed)
        self._changed: list[asyncio.Future[None]] = []
        self._untold: Counter[InstanceName] = Counter()  # decisions about it that are not carried out yet

    # Events

    def feed(self, event: told.FleetEvent) -> None:
        """Has the fleet decide about an event, and puts that on record; what follows is done in the turns that come.

        Raises what the fleet raises for a bad command.
        """
        if self._held:
            self._waiting.append(event)
            return
        effects = self.fleet.handle(event, self._loop.time())
        touched = self._save()
        self._untold.update(touched)
        if isinstance(event, told.Reconfigure):
            self._redescribe()
        self.schedules.follow()
        self._arm()
        # Last, those who wait: who hears that a unit is down shall not find its sockets open.
        self._turns.add([*(partial(self._carry_out, effect) for effect in effects), partial(self._done, touched)])

    def _redescribe(self) -> None:
        """Descriptions have changed, or were read for the first time: then there may be runs of an earlier parsupd."""
        specs = self.specs()
        self._outputs.configure(specs)
        for instance in specs:
            self.limits.follow(instance)
            self._watchers.follow(instance, known=True)

    def _done(self, touched: Collection[InstanceName]) -> None:
        """All is done that a decision led to. Who waits for an instance is told when that is so of the last one."""
        self._untold.subtract(touched)
        told_now = [instance for instance in touched if not self._untold[instance]]
        for instance in told_now:
            del self._untold[instance]
        self._tell(told_now)

    def open(self, events: Iterable[told.FleetEvent], *, begin: bool) -> None:
        """Starts the work, with these events before any that have been fed meanwhile.

        With `begin`, the default target is started then, unless an end was asked for.
        """
        if self.handed_over:  # before it came to this: all of it is for the next one
            return
        self._kept.drop_the_rest()
        self._held = False
        for event in (*events, told.DeadlineReached(), *self._waiting):
            self.feed(event)
        if begin and not self.fleet.shutting_down:
            self.feed(told.StartDefault())
        self.opened.set()

    @property
    def is_spawning(self) -> bool:
        """Whether a worker is just being started."""
        return self._workers.any_under_way

    async def hand_over(self, last_answers: Awaitable[None]) -> None:
        """Ends this executor's work but no unit: what runs goes on, for a parsupd that adopts it. `done` gives 0.

        Nothing more is decided, while the last answers are given to those who have asked.
        """
        self._turns.finish()
        self._held = True  # and for ever: what is seen from now on is for the next one to see
        self.handed_over = True
        self.opened.set()
        self.close()
        await self._workers.cancel_all()
        await last_answers
        if not self.done.done():
            self.done.set_result(0)

    def note(self, event: str, **fields: Any) -> None:
        """Something about parsupd itself, for the log and the events."""
        self.chronicle.note(event, **fields)
        self._tell(self._save())

    def _arm(self) -> None:
        at = self.fleet.next_deadline()
        if self._timer is not None:
            if at == self._armed_at:
                return
            self._timer.cancel()
            self._timer = None
        if at is not None:
            # One turn of the loop later than the deadline: reports that are at hand are fed before it is judged.
            self._armed_at, self._timer = at, self._loop.call_at(at, self._loop.call_soon, self._due)

    def _due(self) -> None:
        self._timer = None
        self.feed(told.DeadlineReached())

    async def changed(self) -> None:
        """Waits until something about any instance has changed."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._changed.append(waiter)
        await waiter

    def _save(self) -> set[InstanceName]:
        """What has changed since the last time."""
        return self._recorder.save(self.fleet, self.chronicle.events.last)

    def _tell(self, touched: Collection[InstanceName]) -> None:
        self.watches.tell(touched)
        waiters, self._changed = self._changed, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.on_change()

    # Effects

    def _carry_out(self, effect: do.Effect) -> None:
        match effect:
            case do.Spawn(instance, generation):
                self._spawn(instance, generation)
            case do.CancelSpawn(instance, generation):
                self._workers.cancel(instance, generation)
            case do.SignalGroup() | do.SignalMain() | do.EndHook():
                self._signal(effect)
            case do.RunHook():
                self._run_hook(effect)
            case do.FindMain(instance, generation):
                self._lives.find_main(instance, generation, self.fleet.spec(instance))
            case do.CheckLife(instance, generation):
                self.feed(told.LastSign(instance, generation, self.notices.last_sign_at(instance)))
            case do.Escalate():
                pass  # the fleet has done it
            case do.Publish(instance, generation, uri):
                tags = {
                    f"unit:{instance.unit}",
                    f"instance:{instance.number}",
                    f"generation:{generation}",
                    "state:running",
                }
                self._names.publish(str(instance), uri, tags)
            case do.Withdraw(instance):
                self._names.withdraw(str(instance))
            case do.Changed():
                self.chronicle.tell(effect)
                self._follow_change(effect)
            case do.AllDown(exit_code):
                self.done.set_result(exit_code)
            case _:
                self.chronicle.tell(effect)

    def _signal(self, effect: do.SignalGroup | do.SignalMain | do.EndHook) -> None:
        instance, generation, signum = effect.instance, effect.generation, effect.signal
        main = self._lives.main(instance, generation)
        match effect:
            case do.EndHook():
                self._hooks.signal(instance, generation, signum)
            case do.SignalGroup() if main is not None:
                self._children.signal_all(main, signum, resume=True)
            case do.SignalMain() if main is not None:
                self._children.signal_main(main, signum, resume=True)

    def _spawn(self, instance: InstanceName, generation: int) -> None:
        tag = self._tag(instance, generation)
        try:
            around = self._surroundings(instance, generation)
            around = around._replace(
                variables=around.variables | self._told_to(instance, generation, around),
                steps=[*self.limits.steps(around.spec), *around.steps],
            )
            if around.spec.type is UnitType.WORKER:
                self._workers.spawn(tag, around)
                return
            child = self._start_program(tag, around.spec.exec, around)
        except (OSError, UsageError, ConfigurationError, AccountError) as error:
            self.feed(told.SpawnFailed(instance, generation, ExitCause.spawn_failed(str(error))))
            return
        self._lives.follow(instance, generation, child, launcher=around.spec.type is UnitType.FORKING)
        self.feed(told.Spawned(instance, generation, child.pid))  # on record with the process
        self.limits.follow(instance)

    def _tag(self, instance: InstanceName, generation: int, hook: str = "") -> Tag:
        return Tag(self._token, instance, generation, hook)

    def _told_to(self, instance: InstanceName, generation: int, around: Surroundings) -> dict[str, str]:
        """Where it may say how it is."""
        if not around.spec.listens_for_notices:
            return {}
        found = self.notices.open(instance, generation, around.spec, around.uid)
        if around.spec.type is UnitType.WORKER:
            found["PARSUP_STACK_FILE"] = self._stacks.path(instance, generation)
        return found

    def _run_hook(self, effect: do.RunHook) -> None:
        instance, generation = effect.instance, effect.generation
        main = self._lives.main(instance, generation)
        main_pid = None if main is None or main.exited.done() else main.pid
        try:
            self._hooks.run(effect, self.fleet.spec(instance), main_pid)
        except (OSError, UsageError, ConfigurationError, AccountError) as error:
            self.feed(told.HookEnded(instance, generation, ExitCause.spawn_failed(str(error))))

    def _spawn_hook(self, effect: do.RunHook, argv: tuple[str, ...], variables: Mapping[str, str]) -> Child:
        """As its main process is started: for the same user, with the same limits."""
        around = self._surroundings(effect.instance, effect.generation)
        around = around._replace(variables={**around.variables, **variables})
        tag = self._tag(effect.instance, effect.generation, variables[HOOK])
        return self._start_program(tag, argv, around)

    def _follow_change(self, change: do.Changed) -> None:
        """What runs is watched; what is at rest needs nothing more."""
        instance = change.instance
        if change.new in AT_REST:
            self.notices.close(instance)
            self._close_sockets(instance.unit)
            self.schedules.ended(instance.unit)
        self._watchers.follow(instance)
        self.limits.follow(instance)

    def _probe_door(self, instance: InstanceName, generation: int, uri: str) -> ProbeDoor:
        """Programs of probes are started as those of the unit are."""
        return ProbeDoor(self._children, uri, partial(self._surroundings, instance, generation))

    def _start_program(self, tag: Tag, argv: tuple[str, ...], around: Surroundings) -> Child:
        spec, instance = around.spec, tag.instance
        with ExitStack() as opened:
            stdout = self._outputs.open(spec, instance, tag.generation, 1)
            opened.callback(os.close, stdout)
            stderr = self._outputs.open(spec, instance, tag.generation, 2)
            opened.callback(os.close, stderr)
            opened.enter_context(self.limits.starting(tag, spec))
            return self._children.spawn(
                argv,
                env={**self._inherited, **around.variables},
                cwd=spec.working_directory,
                umask=spec.umask,
                stdout=stdout,
                stderr=stderr,
                listen_fds=() if tag.hook else self._sockets.fds(instance.unit, spec.sockets),
                steps=around.steps,
                tag=tag,
            )

    def kill(self, instance: InstanceName, generation: int, signal: int, main_only: bool) -> bool:
        """Sends a signal that somebody asked for; whether there is a process."""
        child = self._lives.main(instance, generation)
        if child is None or child.group_empty.done():
            return False
        self.note("signalled", instance=str(instance), signal=SIGNAL_NAMES[signal], main_only=main_only)
        if main_only:
            return self._children.signal_main(child, signal)
        self._children.signal_all(child, signal)
        return True

    def _close_sockets(self, unit: str) -> None:
        """Who connects to a unit that was stopped shall be refused, not wait for ever."""
        if not self._sockets.is_open(unit):
            return  # most units: to look at all instances at the end of each would be too much
        try:
            statuses = self.fleet.status(unit)
        except NoSuchUnitError:  # it was removed from the configuration
            statuses = []
        if all(status.sub_state in AT_REST and status.target is Target.DOWN for status in statuses):
            self._sockets.close(unit)

    def specs(self) -> dict[InstanceName, UnitSpec]:
        """What each instance is to be, as of now."""
        return {instance: spec for spec in self.fleet.specs.values() for instance in self.fleet.instances(spec.name)}

    def outputs(self, instance: InstanceName) -> tuple[bool, str, list[str]]:
        """Where what an instance writes is: in the journal, in a directory of log files, in files of its own."""
        return self._outputs.kept(self.fleet.spec(instance))

    # Adoption

    def adopt(self, instance: InstanceName, generation: int, process: ProcessRecord, published: str) -> None:
        """Takes over the main process of a run that an earlier parsupd has started, `published` if it had a name.

        A worker among them goes on being called; it has its lease's time to register here.
        """
        self._recorder.processes[instance] = process
        tag, spec = self._tag(instance, generation), self.fleet.spec(instance)
        kept = self._kept.take(process.pid, process.started)
        child = self._children.take_over(process.pid, process.started, process.group, kept, tag)
        state = self.fleet.state(instance)[0]
        launcher = spec.type is UnitType.FORKING and state.sub_state is SubState.STARTING
        launched = state.run.exit if launcher and state.run is not None else None
        self._lives.follow(instance, generation, child, launcher=launcher, launched=launched)
        self.limits.follow(instance)
        if spec.listens_for_notices:
            self.notices.open(instance, generation, spec, None if child.exited.done() else _owner(process.pid))
        if not process.worker_id or child.exited.done():
            return
        if self._workers.expect(tag, process, child) and published:
            self._carry_out(do.Publish(instance, generation, published))

    def adopt_command(self, instance: InstanceName, found: Found) -> None:
        """Takes over one of the unit's commands that an earlier parsupd has started."""
        tag = self._tag(instance, found.generation, found.hook)
        child = self._children.take_over(found.pid, found.started, found.group, None, tag)
        self._hooks.follow(instance, found.generation, child)

    def close(self) -> None:
        """Stops the timer and lets go of the streams. Only after `done`."""
        if self._timer is not None:
            self._timer.cancel()
        self._watchers.close()
        self.limits.close()
        self.schedules.close()
        self.notices.close_all(keep_files=self.handed_over)
        self._lives.close()
        self._sockets.release()
        self._outputs.close()


def _owner(pid: int) -> int | None:
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:  # it has gone, and nobody will send anything
        return None


def _nothing() -> None: ...
