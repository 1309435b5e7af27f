"""One spawn, as its master sees it: LAUNCHED -> REGISTERED -> INITIALISED -> READY, or FAILED(stage, cause).

The process that was launched stays in the foreground until the daemon behind it is released; its exit status is the
worker's until then. After the release it is the connection to the worker that tells of its end.
"""

import enum

import msgspec

from workerlib.errors import Stage

KEPT_LINES = 50
"""Lines of a worker's stderr that are kept for the error."""


class Registered(msgspec.Struct, frozen=True):
    """The worker has called its master with the right id and token."""


class ForegroundExited(msgspec.Struct, frozen=True):
    """The launched process has ended: `released` when the daemon let it go, else `cause` tells how it ended."""

    released: bool
    cause: str


class Wrote(msgspec.Struct, frozen=True):
    """A line on the worker's stderr."""

    line: str


class Initialised(msgspec.Struct, frozen=True):
    """The worker's `init` has returned."""


class Connected(msgspec.Struct, frozen=True):
    """The connection that `spawn` returns is open."""


class Broken(msgspec.Struct, frozen=True):
    """The worker was lost, or refused, after its release."""

    cause: str


Event = Registered | ForegroundExited | Wrote | Initialised | Connected | Broken


class Effect(enum.Enum):
    """What the shell shall do."""

    INITIALISE = "call the worker's init"
    CONNECT = "open the connection that spawn returns"
    KILL = "end every process of the spawn"
    SUCCEED = "return from spawn"
    FAIL = "raise SpawnError"


class Spawn(msgspec.Struct, frozen=True):
    """State of one spawn; instants in seconds of one monotonic clock."""

    register_by: float
    ready_by: float
    connection_timeout_s: float
    spawn_timeout_s: float
    wants_connection: bool
    stage: Stage = Stage.LAUNCHED
    released: bool = False
    failure: str | None = None
    lines: tuple[str, ...] = ()

    @property
    def over(self) -> bool:
        return self.stage is Stage.READY or self.failure is not None


def start(
    now: float,
    *,
    connection_timeout_s: float,
    spawn_timeout_s: float,
    wants_connection: bool,
    released: bool = False,
) -> Spawn:
    """A spawn whose process has just been launched; `released` for one that is the worker itself, not a daemon's."""
    return Spawn(
        now + connection_timeout_s,
        now + spawn_timeout_s,
        connection_timeout_s,
        spawn_timeout_s,
        wants_connection,
        released=released,
    )


def next_deadline(spawn: Spawn) -> float | None:
    if spawn.over:
        return None
    waits_for_worker = spawn.stage is Stage.LAUNCHED or not spawn.released
    return min(spawn.register_by, spawn.ready_by) if waits_for_worker else spawn.ready_by


def _fail(spawn: Spawn, cause: str) -> tuple[Spawn, tuple[Effect, ...]]:
    return msgspec.structs.replace(spawn, failure=cause), (Effect.KILL, Effect.FAIL)


def tick(spawn: Spawn, now: float) -> tuple[Spawn, tuple[Effect, ...]]:
    """Judges the deadlines at `now`."""
    by = next_deadline(spawn)
    if by is None or now < by:
        return spawn, ()
    within_s = min(spawn.connection_timeout_s, spawn.spawn_timeout_s)
    match spawn.stage:
        case Stage.LAUNCHED:
            return _fail(spawn, f"did not register within {within_s:g} s")
        case Stage.REGISTERED if not spawn.released:
            return _fail(spawn, f"was not released within {within_s:g} s")
        case Stage.REGISTERED:
            return _fail(spawn, f"did not return from init within {spawn.spawn_timeout_s:g} s of its launch")
        case _:
            return _fail(spawn, f"could not be connected to within {spawn.spawn_timeout_s:g} s of its launch")


def step(spawn: Spawn, event: Event) -> tuple[Spawn, tuple[Effect, ...]]:
    """Takes one event. After the end of the spawn only stderr lines are still noted."""
    if isinstance(event, Wrote):
        return msgspec.structs.replace(spawn, lines=(*spawn.lines, event.line)[-KEPT_LINES:]), ()
    if spawn.over:
        return spawn, ()
    match event:
        case Registered():
            spawn = msgspec.structs.replace(spawn, stage=Stage.REGISTERED)
            return spawn, (Effect.INITIALISE,) if spawn.released else ()
        case ForegroundExited(released=True):
            spawn = msgspec.structs.replace(spawn, released=True)
            return spawn, (Effect.INITIALISE,) if spawn.stage is Stage.REGISTERED else ()
        case ForegroundExited(cause=cause) | Broken(cause):
            return _fail(spawn, cause)
        case Initialised() if spawn.wants_connection:
            return msgspec.structs.replace(spawn, stage=Stage.INITIALISED), (Effect.CONNECT,)
        case Initialised() | Connected():
            return msgspec.structs.replace(spawn, stage=Stage.READY), (Effect.SUCCEED,)
