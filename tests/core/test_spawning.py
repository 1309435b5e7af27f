"""The spawn machine: histories of (event or instant, effects), one for each way that a spawn can go."""

import pytest

from workerlib.core.spawning import (
    KEPT_LINES,
    Broken,
    Connected,
    Effect,
    Event,
    ForegroundExited,
    Initialised,
    Registered,
    Spawn,
    Wrote,
    next_deadline,
    start,
    step,
    tick,
)
from workerlib.errors import Stage

RELEASED = ForegroundExited(released=True, cause="exited with 0")
DIED = ForegroundExited(released=False, cause="was killed by SIGKILL")
FAIL = (Effect.KILL, Effect.FAIL)


def new(*, wants_connection: bool = True) -> Spawn:
    return start(100.0, connection_timeout_s=10, spawn_timeout_s=20, wants_connection=wants_connection)


def play(spawn: Spawn, history: list[tuple[Event | float, tuple[Effect, ...]]]) -> Spawn:
    """Feeds events and instants, and compares the effects of each."""
    for entry, expected in history:
        spawn, effects = tick(spawn, entry) if isinstance(entry, float) else step(spawn, entry)
        assert effects == expected, (entry, spawn)
    return spawn


HISTORIES = {
    "the normal way, with a connection": (
        True,
        [
            (Registered(), ()),
            (RELEASED, (Effect.INITIALISE,)),
            (Initialised(), (Effect.CONNECT,)),
            (Connected(), (Effect.SUCCEED,)),
        ],
        Stage.READY,
        None,
    ),
    "the normal way, without a connection": (
        False,
        [(Registered(), ()), (RELEASED, (Effect.INITIALISE,)), (Initialised(), (Effect.SUCCEED,))],
        Stage.READY,
        None,
    ),
    "the release is seen before the registration": (
        False,
        [(RELEASED, ()), (Registered(), (Effect.INITIALISE,)), (Initialised(), (Effect.SUCCEED,))],
        Stage.READY,
        None,
    ),
    "it dies before it registers": (True, [(DIED, FAIL)], Stage.LAUNCHED, "was killed by SIGKILL"),
    "it dies before its release": (
        True,
        [(Registered(), ()), (DIED, FAIL)],
        Stage.REGISTERED,
        "was killed by SIGKILL",
    ),
    "it never registers": (
        True,
        [(109.9, ()), (110.0, FAIL)],
        Stage.LAUNCHED,
        "did not register within 10 s",
    ),
    "it is never released": (
        True,
        [(Registered(), ()), (110.0, FAIL)],
        Stage.REGISTERED,
        "was not released within 10 s",
    ),
    "init never returns": (
        True,
        [(Registered(), ()), (RELEASED, (Effect.INITIALISE,)), (119.9, ()), (120.0, FAIL)],
        Stage.REGISTERED,
        "did not return from init within 20 s of its launch",
    ),
    "init raises": (
        True,
        [(Registered(), ()), (RELEASED, (Effect.INITIALISE,)), (Broken("raised ValueError in init: no"), FAIL)],
        Stage.REGISTERED,
        "raised ValueError in init: no",
    ),
    "the connection cannot be made in time": (
        True,
        [(Registered(), ()), (RELEASED, (Effect.INITIALISE,)), (Initialised(), (Effect.CONNECT,)), (120.0, FAIL)],
        Stage.INITIALISED,
        "could not be connected to within 20 s of its launch",
    ),
    "what comes after the end changes nothing": (
        True,
        [(DIED, FAIL), (Registered(), ()), (RELEASED, ()), (Initialised(), ()), (Broken("late"), ()), (500.0, ())],
        Stage.LAUNCHED,
        "was killed by SIGKILL",
    ),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_history(name: str) -> None:
    """Each history ends in its stage with its cause, and a spawn that is over waits for no deadline."""
    wants_connection, history, stage, failure = HISTORIES[name]
    spawn = play(new(wants_connection=wants_connection), history)
    assert (spawn.stage, spawn.failure) == (stage, failure)
    assert spawn.over
    assert next_deadline(spawn) is None


def test_the_deadline_is_that_of_the_present_stage() -> None:
    """Until the release the connection timeout counts, afterwards the spawn timeout."""
    spawn = new()
    assert next_deadline(spawn) == 110
    spawn, _ = step(spawn, Registered())
    assert next_deadline(spawn) == 110
    spawn, _ = step(spawn, RELEASED)
    assert next_deadline(spawn) == 120


def test_the_last_lines_are_kept_also_after_the_end() -> None:
    """stderr lines are noted in order, bounded, and still after the spawn has failed: the end of a traceback may be late."""
    spawn = play(new(), [(Wrote(str(number)), ()) for number in range(KEPT_LINES + 10)])
    spawn = play(spawn, [(DIED, FAIL), (Wrote("last"), ())])
    assert len(spawn.lines) == KEPT_LINES
    assert spawn.lines[0] == "11"
    assert spawn.lines[-1] == "last"


def test_the_shorter_deadline_is_the_one_that_is_told() -> None:
    """A whole spawn may have less time than a registration would."""
    spawn = start(100.0, connection_timeout_s=10, spawn_timeout_s=2, wants_connection=True)
    assert play(spawn, [(101.9, ()), (102.0, FAIL)]).failure == "did not register within 2 s"


def test_a_worker_in_the_foreground_has_nobody_to_release() -> None:
    """It is initialised when it has registered, and any end of its process is the spawn's."""
    spawn = start(100.0, connection_timeout_s=10, spawn_timeout_s=20, wants_connection=False, released=True)
    spawn = play(spawn, [(Registered(), (Effect.INITIALISE,))])
    assert play(spawn, [(Initialised(), (Effect.SUCCEED,))]).stage is Stage.READY
    assert play(spawn, [(DIED, FAIL)]).failure == "was killed by SIGKILL"
