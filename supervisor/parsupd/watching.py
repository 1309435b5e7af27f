"""Watches runs from outside by their probes. No decisions here.

Each probe has one timer for its next deadline. What there is nothing to watch of costs nothing.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence

import workerlib
from parsupd.core import events as told
from parsupd.core import probe as probing
from parsupd.core.probe import Ask, Failed, GiveUp, Passed, Probing, Verdict
from parsupd.core.probe_keys import Probe
from parsupd.core.units import InstanceName, UnitSpec
from parsupd.shell import probes
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


class Watchers:
    """Of all runs of one executor."""

    def __init__(self, feed: Callable[[told.FleetEvent], object]) -> None:
        self._feed = feed
        self._loop = asyncio.get_running_loop()
        self._runs: dict[tuple[InstanceName, int], Prober] = {}

    def follow(self, instance: InstanceName, generation: int, spec: UnitSpec, door: Door, *, taken_over: bool) -> None:
        """Begins to watch a run that serves; `taken_over` from an earlier parsupd, which had found nothing wrong."""
        if (instance, generation) in self._runs or spec.liveness is None:
            return

        def on_liveness(verdict: Verdict) -> None:
            if not verdict.passes:
                self._feed(told.Unhealthy(instance, generation, verdict.reason))

        begun = probing.begin(spec.liveness, self._loop.time(), passes=True if taken_over else None)
        self._runs[instance, generation] = Prober(begun, door, on_liveness)

    def forget(self, instance: InstanceName, generation: int) -> None:
        """The run ends, or has ended. Idempotent."""
        prober = self._runs.pop((instance, generation), None)
        if prober is not None:
            prober.close()

    def close(self) -> None:
        """Watches nothing any more."""
        for instance, generation in list(self._runs):
            self.forget(instance, generation)
