"""What is known of one instance. Layer 0: values only; `unit_machine` alone makes new ones.

Structs rather than dataclasses: a step replaces them several times, and `dataclasses.replace` took half of its time.
"""

import enum
from typing import NamedTuple

import msgspec

from parsupd.core.events import UnitEvent
from parsupd.core.units import ExitCause, Failure, Incarnation, InstanceName, SubState, Target, UnitSpec


class Ending(enum.Enum):
    """Who ends, or will have ended, a run."""

    ITSELF = "itself"  # nobody asked: the restart policy decides
    REQUEST = "request"  # an order: the target decides
    DEPENDENCY = "dependency"  # a required unit failed


class Run(msgspec.Struct, frozen=True):
    """One generation, from its Spawn until nothing of it is left."""

    started_at: float
    pid: int | None = None
    uri: str = ""
    ready_at: float | None = None
    ready_s: float = 0.0  # how long it was ready
    ending: Ending = Ending.ITSELF
    ending_reason: str = ""
    verdict: ExitCause | None = None  # why we ended it: timeout, watchdog, failed spawn
    symptom: bool = False  # the verdict may only show what the exit of the main process will explain
    exit: ExitCause | None = None  # how its main process ended
    empty: bool = False  # no process of it is left, or has come to be; its commands do not count
    hook: int | None = None  # of the stage's commands, the one that runs
    wound_up: bool = False  # exec_stop_post is done
    reload_told: bool = False  # it has said that it reloads, and not yet that it is ready
    unready: str = ""  # why its readiness probe fails, or has not passed yet; empty while nobody says so
    watchdog_at: float | None = None  # when its signs of life are looked at
    over_at: float | None = None  # when it has run long enough
    reload_until: float | None = None
    lines: tuple[str, ...] = ()
    stack: tuple[str, ...] = ()
    oom_killed: bool = False

    @property
    def reloads(self) -> bool:
        """Whether it reads its configuration again while it is up: exec_reload runs, or it has said so."""
        return self.hook is not None or self.reload_told

    @property
    def published(self) -> str:
        """Where its name in the name server leads; empty while it has none there."""
        return "" if self.ready_at is None or self.unready else self.uri


class StoryEntry(NamedTuple):
    """One line of the story: what was given, what came of it, and why."""

    now: float
    event: UnitEvent
    decision: str
    reason: str


class UnitState(msgspec.Struct, frozen=True):
    """Everything that is known of one instance. Instants are of the clock that `now` comes from."""

    instance: InstanceName
    spec: UnitSpec  # of the run, while there is one
    next_spec: UnitSpec | None = None  # what the description has become meanwhile, from the next run on
    target: Target = Target.DOWN
    sub_state: SubState = SubState.DEAD
    reason: str = "not started yet"  # of the last change
    since: float = 0.0  # the last change; 0: none yet
    deadline_at: float | None = None
    generation: int = 0  # of the last Spawn
    run: Run | None = None
    restarts: int = 0  # by policy, since the last start by order
    restarts_in_row: int = 0  # without a stable run: for the backoff
    starts: tuple[float, ...] = ()  # for the start limit
    incarnations: tuple[Incarnation, ...] = ()
    failure: Failure | None = None  # of another one, for which it was started
    story: tuple[StoryEntry, ...] = ()


class InvalidTransitionError(Exception):
    """An event came that cannot come in this state: a bug in whoever gave it. The message tells the story."""

    def __init__(self, state: UnitState, event: UnitEvent, why: str) -> None:
        lines = [f"{entry.now:.3f} {entry.event} {entry.decision}: {entry.reason}" for entry in state.story]
        head = f"{state.instance} is {state.sub_state.value}, generation {state.generation}: {why}: {event}"
        super().__init__("\n  ".join([head, *lines]))
