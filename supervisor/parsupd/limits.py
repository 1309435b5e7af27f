"""Has the limits of runs held: by the kernel, for their control groups or users; else by looking. No decisions.

One timer serves all runs that have to be looked at; where there are none, nothing is done.
"""

import asyncio
import contextlib
import resource
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from signal import SIGKILL
from typing import Any

from parsupd.core import bounds, limits
from parsupd.core import events as told
from parsupd.core.attributes import Holder, Limit
from parsupd.core.bounds import Bound, Taken
from parsupd.core.fleet import Fleet
from parsupd.core.tally import SERVING
from parsupd.core.unit_state import UnitState
from parsupd.core.units import ExitCause, InstanceName, MaxRssAction, UnitSpec
from parsupd.shell import usage
from parsupd.shell.cgroup import Tree
from parsupd.shell.children import Child, Children
from parsupd.shell.leftovers import Tag
from parsupd.shell.preparing import Step, limit_step


@dataclass(eq=False, slots=True)
class _Run:
    """One that is held to its limits."""

    generation: int
    main: Child
    spec: UnitSpec
    held: Mapping[str, Holder]
    watched: tuple[Bound, ...]
    since: float
    look_at: float
    above: frozenset[str] = frozenset()
    """The keys of the bounds that it was found above of; said already."""


class Limits:
    """Of all runs of one executor."""

    def __init__(
        self,
        fleet: Fleet,
        children: Children,
        tree: Tree | None,
        main: Callable[[InstanceName, int], Child | None],
        feed: Callable[[told.FleetEvent], object],
        log: Any,
    ) -> None:
        """`tree` is where runs have control groups, `main` what knows their main processes."""
        self._fleet = fleet
        self._children = children
        self._tree = tree
        self._main = main
        self._feed = feed
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._runs: dict[InstanceName, _Run] = {}
        self._timer: asyncio.TimerHandle | None = None

    def starting(self, tag: Tag, spec: UnitSpec) -> AbstractContextManager[None]:
        """For as long as a process of the unit is being started: it comes to be in its control group, if it has one.

        That of a run gets its limits. What fails leaves nothing in there. Raises OSError.
        """
        if self._tree is None:
            return nullcontext()
        limited = bool(limits.wanted(spec)) and not tag.hook
        return self._tree.starting(tag.group, limits.contents(spec, self._enabled(spec)) if limited else {})

    @property
    def tree(self) -> str:
        """The path of the tree of control groups; empty where there is none."""
        return "" if self._tree is None else str(self._tree.path)

    def abandon(self, tag: Tag) -> None:
        """What was started has failed: nothing of it shall be left in its control group."""
        if self._tree is not None:
            self._tree.abandon(tag.group)

    def steps(self, spec: UnitSpec) -> list[Step]:
        """What a process that begins a run does itself about its limits."""
        if self._holders(spec, self._enabled(spec)).get("tasks_max") is not Holder.RLIMIT:
            return []
        return [limit_step("limit_nproc", Limit(spec.tasks_max, spec.tasks_max))]

    def _enabled(self, spec: UnitSpec) -> frozenset[str]:
        """The controllers of control groups, with those that the unit wants where they can be had."""
        return frozenset() if self._tree is None else self._tree.enable(limits.wanted(spec))

    def _holders(self, spec: UnitSpec, enabled: frozenset[str]) -> Mapping[str, Holder]:
        return limits.holders(spec, enabled, self._fleet.specs.values() if spec.tasks_max else ())

    def follow(self, instance: InstanceName) -> None:
        """Sees to an instance whose processes have come to be, whose state or whose description has changed."""
        state = self._fleet.state(instance)[0] if self._fleet.has(instance) else None
        main = None if state is None else self._main(instance, state.generation)
        if state is None or main is None or state.sub_state not in SERVING:
            self._runs.pop(instance, None)
            return
        run, spec = self._runs.get(instance), state.spec
        if run is None or run.generation != state.generation:
            if limits.wanted(spec) or spec.max_rss:
                self._begin(state, main, changed=False)
        elif run.spec is not spec:
            self._begin(state, main, changed=True)

    def _begin(self, state: UnitState, main: Child, *, changed: bool) -> None:
        spec, group = state.spec, main.cgroup
        # What an earlier parsupd has started, which knew no groups, has none.
        enabled = frozenset[str]() if group is None else self._enabled(spec)
        if group is not None:
            with contextlib.suppress(OSError):  # it has just gone, with all that was in it
                group.limit(limits.contents(spec, enabled))
        held = self._holders(spec, enabled)
        if changed and held.get("tasks_max") is Holder.RLIMIT and not self._limit_user(main, spec.tasks_max):
            held = {**held, "tasks_max": Holder.WATCH}
        watched, now = bounds.bounds(spec, held), self._loop.time()
        self._runs[state.instance] = _Run(state.generation, main, spec, held, watched, now, now)
        if watched:
            self._arm()

    def explain(self, instance: InstanceName, main: Child, cause: ExitCause) -> ExitCause:
        """How a main process ended, with what the kernel has done to its group."""
        if main.cgroup is None:
            return cause
        return limits.explained(cause, main.cgroup.counts(), self._fleet.spec(instance))

    def shown(self, instance: InstanceName) -> dict[str, str]:
        """Who holds which limit of an instance that runs."""
        run = self._runs.get(instance)
        return {} if run is None else {key: holder.value for key, holder in run.held.items()}

    def close(self) -> None:
        """Looks at nothing any more."""
        self._runs.clear()
        self._arm()

    @staticmethod
    def _limit_user(main: Child, tasks: int) -> bool:
        """Gives each process of a run this limit; False when parsupd lacks CAP_SYS_RESOURCE for that."""
        for pid, group in usage.groups().group_of.items():
            if group in main.groups:
                try:
                    resource.prlimit(pid, resource.RLIMIT_NPROC, (tasks, tasks))
                except ProcessLookupError:
                    continue
                except PermissionError:
                    return False
        return True

    # By looking

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = min((run.look_at for run in self._runs.values() if run.watched), default=None)
        if at is not None:
            self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        found = usage.groups()
        for instance, run in list(self._runs.items()):
            if run.watched:  # one look tells of all: those that are due later are judged, too
                used = usage.of(found, run.main.pid)
                taken = Taken(used.rss, used.tasks)
                run.look_at = now + bounds.interval_s(taken, run.watched, now - run.since)
                self._judge(instance, run, taken)
        self._arm()

    def _judge(self, instance: InstanceName, run: _Run, taken: Taken) -> None:
        complaints = {bound: text for bound in run.watched if (text := bounds.complaint(taken, bound))}
        before, run.above = run.above, frozenset(bound.key for bound in complaints)
        for bound, text in complaints.items():
            if bound.key in before:
                continue
            self._log.warning("unit_takes_too_much", unit=str(instance), generation=run.generation, reason=text)
            match bound.action:
                case MaxRssAction.RESTART:
                    self._feed(told.Unhealthy(instance, run.generation, text))
                case MaxRssAction.STOP:
                    self._feed(told.Stop(str(instance), text))
                case MaxRssAction.LOG:
                    pass
            if bound.kills:
                self._children.signal_all(run.main, SIGKILL)
