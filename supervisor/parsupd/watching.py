"""Watches runs from outside by their probes. No decisions here.

Each probe has one timer for its next deadline. What there is nothing to watch of costs nothing.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import workerlib
from parsupd.core import events as told
from parsupd.core import probe as probing
from parsupd.core.fleet import Fleet
from parsupd.core.probe import Ask, Failed, GiveUp, Passed, Probing, StillFails, Verdict
from parsupd.core.probe_keys import Probe
from parsupd.core.unit_state import UnitState
from parsupd.core.units import AT_WORK, InstanceName, SubState
from parsupd.shell import probes
from parsupd.shell.children import Children
from parsupd.surroundings import Surroundings
from workerlib.core.uri import Uri, parse_uri
from workerlib.server import DAEMON

STARTED = AT_WORK | {SubState.START_PROBE, SubState.START_POST}


class ProbeDoor:
    """Asks a unit's probes, in the surroundings of the unit."""

    def __init__(self, children: Children, uri: str, surroundings: Callable[[], Surroundings]) -> None:
        self._children = children
        self._uri = uri
        self._surroundings = surroundings

    async def __call__(self, probe: Probe) -> None:
        """Returns for a good answer, and raises for any other. When it is cancelled, nothing is left."""
        if probe.exec:
            spec, _, variables, steps = self._surroundings()
            # Not as a process of the run: a parsupd that comes after ends it instead of adopting it.
            apart = {"PARSUP_PROBED": variables["PARSUP_INSTANCE"], "PARSUP_INSTANCE": ""}
            await probes.ask_program(
                self._children,
                probe.exec,
                env={**os.environ, **variables, **apart},
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

    def __init__(self, state: Probing, door: Door, on_news: Callable[[Verdict | StillFails], object]) -> None:
        self._state = state
        self._door = door
        self._on_news = on_news
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self._arm()

    @property
    def probe(self) -> Probe:
        """What is asked."""
        return self._state.probe

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
                case Verdict() | StillFails():
                    self._on_news(effect)

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

    generation: int
    door: Door
    readiness: Prober | None = None
    liveness: Prober | None = None

    def close(self) -> None:
        for prober in (self.readiness, self.liveness):
            if prober is not None:
                prober.close()


class Watchers:
    """Of all runs of one executor."""

    def __init__(
        self,
        fleet: Fleet,
        door: Callable[[InstanceName, int, str], Door],
        feed: Callable[[told.FleetEvent], object],
    ) -> None:
        """`door` makes what asks the probes of a generation, which serves at the URI if it is a worker."""
        self._fleet = fleet
        self._door = door
        self._feed = feed
        self._loop = asyncio.get_running_loop()
        self._runs: dict[InstanceName, _Watched] = {}

    def follow(self, instance: InstanceName, *, known: bool = False) -> None:
        """Sees to an instance whose state or whose description has changed; nothing to do when all is as it should be.

        Whether it is ready is asked from when its type says that it is started, whether it lives from when it is ready.
        A run that is `known` was found alive before: by an earlier parsupd, or while its description said otherwise.
        """
        state = self._fleet.state(instance)[0] if self._fleet.has(instance) else None
        run = self._runs.get(instance)
        if run is not None and (state is None or state.sub_state not in STARTED or run.generation != state.generation):
            run.close()
            del self._runs[instance]
            run = None
        if state is None or state.run is None or state.sub_state not in STARTED:
            return
        if run is None:
            if not (state.spec.readiness or state.spec.liveness):
                return
            door = self._door(instance, state.generation, state.run.uri)
            run = self._runs[instance] = _Watched(state.generation, door)
        self._ask_ready(run, state, unready=bool(state.run.unready))
        if state.sub_state in AT_WORK:
            self._ask_alive(run, state, known=known)

    def close(self) -> None:
        """Watches nothing any more."""
        for run in self._runs.values():
            run.close()
        self._runs.clear()

    def _ask_ready(self, run: _Watched, state: UnitState, *, unready: bool) -> None:
        """Asks whether it is ready; what is known of that is in its state."""

        def on_news(news: Verdict | StillFails) -> None:
            passes = isinstance(news, Verdict) and news.passes
            report = told.FoundReady if passes else told.FoundUnready
            self._feed(report(state.instance, state.generation, news.reason))

        def begun(probe: Probe) -> Prober:
            if state.sub_state is SubState.START_PROBE:
                return Prober(probing.begin(probe, state.since, eager=True), run.door, on_news)
            return Prober(probing.begin(probe, self._loop.time(), passes=not unready), run.door, on_news)

        run.readiness = _replaced(run.readiness, state.spec.readiness, begun)

    def _ask_alive(self, run: _Watched, state: UnitState, *, known: bool) -> None:
        """Asks whether it is alive."""

        def on_news(news: Verdict | StillFails) -> None:
            if isinstance(news, Verdict) and not news.passes:
                self._feed(told.Unhealthy(state.instance, state.generation, news.reason))

        def begun(probe: Probe) -> Prober:
            return Prober(probing.begin(probe, self._loop.time(), passes=True if known else None), run.door, on_news)

        run.liveness = _replaced(run.liveness, state.spec.liveness, begun)


def _replaced(now: Prober | None, probe: Probe | None, begun: Callable[[Probe], Prober]) -> Prober | None:
    """What asks a probe: the one that does so now, unless the probe is another one."""
    if now is not None:
        if now.probe == probe:
            return now
        now.close()
    return None if probe is None else begun(probe)
