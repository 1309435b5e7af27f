"""Watches runs from outside: probes, and the memory that they take. No decisions here.

Each probe has one timer for its next deadline, and so has the memory of all units together. What there is nothing to
watch of costs nothing.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import workerlib
from parsupd.core import events as told
from parsupd.core import probe as probing
from parsupd.core import rss_watch
from parsupd.core.probe import Ask, Failed, GiveUp, Passed, Probing, Verdict
from parsupd.core.probe_keys import Probe
from parsupd.core.units import InstanceName, MaxRssAction, UnitSpec
from parsupd.shell import probes, usage
from parsupd.shell.children import Children
from parsupd.shell.preparing import Step
from workerlib.core.uri import Uri, parse_uri
from workerlib.server import DAEMON

Surroundings = tuple[UnitSpec, Mapping[str, str], Sequence[Step]]
"""What a process of the unit is started with; see the executor."""


class ProbeDoor:
    """Asks a unit's probes, in the surroundings of the unit."""

    def __init__(self, children: Children, uri: str, surroundings: Callable[[], Surroundings]) -> None:
        self._children = children
        self._uri = uri
        self._surroundings = surroundings

    async def __call__(self, probe: Probe) -> None:
        """Returns for a good answer, and raises for any other. When it is cancelled, nothing is left."""
        if probe.exec:
            spec, environment, steps = self._surroundings()
            # Not as a process of the run: a parsupd that comes after ends it instead of adopting it.
            variables = {**os.environ, **environment, "PARSUP_INSTANCE": ""}
            await probes.ask_program(
                self._children,
                probe.exec,
                env=variables,
                cwd=spec.working_directory,
                umask=spec.umask,
                steps=steps,
            )
        elif probe.tcp:
            await probes.ask_tcp(probe.tcp)
        elif probe.http:
            await probes.ask_http(probe.http)
        else:
            await _ask_worker(self._uri, probe.rpc)


async def _ask_worker(uri: str, function: str) -> None:
    """Calls a function without arguments; `ping` of the process itself, so that no user code is asked for it."""
    asked = parse_uri(uri) if function != "ping" else Uri(DAEMON, parse_uri(uri).location)
    connection = await workerlib.connect(str(asked))
    try:
        answer = await connection.call(function)
    finally:
        connection.abort()  # nobody waits for a worker that does not answer
    if answer is False:
        raise probes.ProbeFailedError(f"{function} returned False")


Door = Callable[[Probe], Awaitable[None]]
"""Asks once; returns for a good answer, and raises for any other."""


class Prober:
    """Drives one probe."""

    def __init__(self, state: Probing, door: Door, on_verdict: Callable[[Verdict], object]) -> None:
        self._state = state
        self._door = door
        self._on_verdict = on_verdict
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self._arm()

    def close(self) -> None:
        """Asks no more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._give_up()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        at = probing.next_deadline(self._state)
        assert at is not None
        # One turn of the loop later than the deadline: an answer that is at hand is taken before it is judged.
        self._timer = self._loop.call_at(at, self._loop.call_soon, self._step, probing.Due())

    def _step(self, event: probing.Event) -> None:
        if self._timer is None:
            return  # closed
        self._state, effects = probing.step(self._state, event, self._loop.time())
        self._arm()
        for effect in effects:
            match effect:
                case Ask(attempt):
                    self._asking = self._loop.create_task(self._ask(attempt))
                case GiveUp():
                    self._give_up()
                case Verdict():
                    self._on_verdict(effect)

    def _give_up(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

    async def _ask(self, attempt: int) -> None:
        answer: probing.Event = Passed(attempt)
        try:
            await self._door(self._state.probe)
        except Exception as error:  # noqa: BLE001 - whatever it is, that was no good answer
            answer = Failed(attempt, str(error) or type(error).__name__)
        self._asking = None
        self._step(answer)


@dataclass(eq=False, slots=True)
class _Watched:
    """One run."""

    spec: UnitSpec
    pid: int
    liveness: Prober | None = None
    too_much: bool = False  # said already
    look_at: float = 0.0


class Watchers:
    """Of all runs of one executor."""

    def __init__(self, feed: Callable[[told.FleetEvent], object], log: Any) -> None:
        self._feed = feed
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._runs: dict[tuple[InstanceName, int], _Watched] = {}
        self._timer: asyncio.TimerHandle | None = None

    def follow(
        self,
        instance: InstanceName,
        generation: int,
        spec: UnitSpec,
        pid: int,
        door: Door,
        *,
        taken_over: bool,
    ) -> None:
        """Begins to watch a run that serves; `taken_over` from an earlier parsupd, which had found nothing wrong."""
        if (instance, generation) in self._runs or not (spec.liveness or spec.max_rss):
            return
        run = self._runs[instance, generation] = _Watched(spec, pid)
        now = self._loop.time()

        def on_liveness(verdict: Verdict) -> None:
            if not verdict.passes:
                self._feed(told.Unhealthy(instance, generation, verdict.reason))

        if spec.liveness is not None:
            passes = True if taken_over else None
            run.liveness = Prober(probing.begin(spec.liveness, now, passes=passes), door, on_liveness)
        if spec.max_rss:
            run.look_at = now
            self._arm()

    def forget(self, instance: InstanceName, generation: int) -> None:
        """The run ends, or has ended. Idempotent."""
        run = self._runs.pop((instance, generation), None)
        if run is not None and run.liveness is not None:
            run.liveness.close()

    def close(self) -> None:
        """Watches nothing any more."""
        for instance, generation in list(self._runs):
            self.forget(instance, generation)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Memory

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = min((run.look_at for run in self._runs.values() if run.spec.max_rss), default=None)
        if at is not None:
            self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        found = usage.groups()
        for (instance, generation), run in list(self._runs.items()):
            if limit := run.spec.max_rss:  # one look tells of all: those that are due later are judged, too
                rss = usage.of(found, run.pid).rss
                run.look_at = now + rss_watch.interval_s(rss, limit)
                self._judge(instance, generation, run, rss_watch.complaint(rss, limit))
        self._arm()

    def _judge(self, instance: InstanceName, generation: int, run: _Watched, complaint: str) -> None:
        if complaint and not run.too_much:
            self._log.warning("unit_takes_too_much", unit=str(instance), generation=generation, reason=complaint)
            match run.spec.max_rss_action:
                case MaxRssAction.RESTART:
                    self._feed(told.Unhealthy(instance, generation, complaint))
                case MaxRssAction.STOP:
                    self._feed(told.Stop(str(instance), complaint))
                case MaxRssAction.LOG:
                    pass
        run.too_much = bool(complaint)
