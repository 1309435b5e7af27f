"""The foreground side of daemonize_wait, as histories: events in, effects out."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerlib.core.daemonizing import (
    EXIT_LAUNCHER_DIED,
    EXIT_NOT_DETACHED,
    EXIT_NOT_RELEASED,
    LONGEST_LINE,
    Announcement,
    ChildExited,
    Effect,
    Event,
    Exited,
    Finish,
    Foreground,
    Killed,
    LauncherDied,
    PassOn,
    PipeClosed,
    PipeRead,
    Released,
    SignalArrived,
    WatchDaemon,
    decode,
    encode,
    step,
)
from workerlib.redirects import Redirect, Target

TERM, HUP, KILL = 15, 1, 9
FIRST, LEADER, DAEMON, BYSTANDER, ORPHAN = 10, 11, 12, 5, 99

ANNOUNCED = PipeRead(encode(Announcement(DAEMON, LEADER)))
RELEASED = PipeRead(encode(Released()))
FIRST_DONE = ChildExited(FIRST, Exited(0))
LEADER_DONE = ChildExited(LEADER, Exited(0))
WATCH = WatchDaemon(DAEMON)
SILENT_END = Finish(EXIT_NOT_RELEASED, "the daemon ended with status 0 before it released its caller")


def died(pid: int, status: int) -> ChildExited:
    return ChildExited(pid, Exited(status))


HISTORIES: dict[str, list[tuple[Event, tuple[Effect, ...]]]] = {
    "released": [
        (FIRST_DONE, ()),
        (LEADER_DONE, ()),
        (ANNOUNCED, (WATCH,)),
        (RELEASED, (Finish(0),)),
    ],
    "the launcher died before the daemon was announced": [
        (FIRST_DONE, ()),
        (LauncherDied(), (Finish(EXIT_LAUNCHER_DIED),)),
        (ANNOUNCED, ()),
    ],
    "the launcher died before the release": [
        (ANNOUNCED, (WATCH,)),
        (LauncherDied(), (Finish(EXIT_LAUNCHER_DIED),)),
        (RELEASED, ()),
    ],
    "the launcher died after the release: the daemon has been let go": [
        (ANNOUNCED, (WATCH,)),
        (RELEASED, ()),
        (LauncherDied(), ()),
        (LEADER_DONE, ()),
        (FIRST_DONE, (Finish(0),)),
    ],
    "released before the helpers were reaped: waits for both": [
        (ANNOUNCED, (WATCH,)),
        (RELEASED, ()),
        (LEADER_DONE, ()),
        (FIRST_DONE, (Finish(0),)),
    ],
    "released and ended at once: the release, written first, wins": [
        (FIRST_DONE, ()),
        (PipeRead(ANNOUNCED.data + RELEASED.data), (WATCH,)),
        (PipeClosed(), ()),
        (died(DAEMON, 3), ()),
        (LEADER_DONE, (Finish(0),)),
    ],
    "messages come in pieces": [
        (FIRST_DONE, ()),
        (LEADER_DONE, ()),
        (PipeRead(ANNOUNCED.data[:9]), ()),
        (PipeRead(ANNOUNCED.data[9:] + RELEASED.data[:1]), (WATCH,)),
        (PipeRead(RELEASED.data[1:-1]), ()),
        (PipeRead(b"\n"), (Finish(0),)),
    ],
    "the daemon exits before it releases: its status": [
        (FIRST_DONE, ()),
        (LEADER_DONE, ()),
        (ANNOUNCED, (WATCH,)),
        (died(DAEMON, 7), (Finish(7),)),
    ],
    "the highest status is not cut": [(ANNOUNCED, (WATCH,)), (died(DAEMON, 255), (Finish(255),))],
    "the daemon is killed before it releases: 128 + signal": [
        (ANNOUNCED, (WATCH,)),
        (ChildExited(DAEMON, Killed(KILL)), (Finish(137),)),
    ],
    "status 0 before the release is no success": [(ANNOUNCED, (WATCH,)), (died(DAEMON, 0), (SILENT_END,))],
    "the daemon's exit is known before its announcement": [
        (FIRST_DONE, ()),
        (LEADER_DONE, ()),
        (died(DAEMON, 7), ()),
        (ANNOUNCED, (WATCH, Finish(7))),
    ],
    "after the announcement the end of the pipe means nothing": [
        (FIRST_DONE, ()),
        (LEADER_DONE, ()),
        (ANNOUNCED, (WATCH,)),
        (PipeClosed(), ()),
        (died(DAEMON, 4), (Finish(4),)),
    ],
    "orphans are not the daemon": [
        (FIRST_DONE, ()),
        (LEADER_DONE, ()),
        (ANNOUNCED, (WATCH,)),
        (died(ORPHAN, 9), ()),
        (RELEASED, (Finish(0),)),
    ],
    "children from before are nobody": [
        (died(BYSTANDER, 9), ()),
        (FIRST_DONE, ()),
        (LEADER_DONE, ()),
        (ANNOUNCED, (WATCH,)),
        (RELEASED, (Finish(0),)),
    ],
    "the first child cannot detach": [
        (PipeClosed(), ()),
        (died(FIRST, EXIT_NOT_DETACHED), (Finish(EXIT_NOT_DETACHED),)),
    ],
    "the session leader cannot go on": [
        (FIRST_DONE, ()),
        (died(LEADER, EXIT_NOT_DETACHED), ()),
        (PipeClosed(), (Finish(EXIT_NOT_DETACHED),)),
    ],
    "the session leader is killed, and the daemon comes nevertheless": [
        (FIRST_DONE, ()),
        (ChildExited(LEADER, Killed(KILL)), ()),
        (ANNOUNCED, (WATCH,)),
        (RELEASED, (Finish(0),)),
    ],
    "the daemon is killed before it announces itself": [
        (FIRST_DONE, ()),
        (LEADER_DONE, ()),
        (PipeClosed(), ()),
        (ChildExited(DAEMON, Killed(KILL)), (Finish(137),)),
    ],
    "the daemon ends before it announces itself, without a reason": [
        (FIRST_DONE, ()),
        (LEADER_DONE, ()),
        (PipeClosed(), ()),
        (died(DAEMON, 0), (SILENT_END,)),
    ],
    "a signal is passed on, and the daemon decides how to end": [
        (ANNOUNCED, (WATCH,)),
        (SignalArrived(TERM), (PassOn(DAEMON, TERM),)),
        (SignalArrived(TERM), (PassOn(DAEMON, TERM),)),
        (died(DAEMON, 5), (Finish(5),)),
    ],
    "signals before the announcement are held, each once, in order": [
        (SignalArrived(TERM), ()),
        (SignalArrived(HUP), ()),
        (SignalArrived(TERM), ()),
        (ANNOUNCED, (WATCH, PassOn(DAEMON, TERM), PassOn(DAEMON, HUP))),
        (ChildExited(DAEMON, Killed(TERM)), (Finish(143),)),
    ],
    "foreign bytes on the pipe end it": [
        (PipeRead(b"hello\n"), (Finish(70, "release pipe: not a message of a daemon: b'hello'"),))
    ],
    "nothing happens after the end": [
        (died(FIRST, 71), (Finish(71),)),
        (ANNOUNCED, ()),
        (SignalArrived(TERM), ()),
        (PipeRead(b"hello\n"), ()),
        (died(DAEMON, 1), ()),
    ],
}


@pytest.mark.parametrize("name", HISTORIES)
def test_history(name: str) -> None:
    """Each event of the history has exactly the effects that stand beside it."""
    state = Foreground(FIRST, frozenset({BYSTANDER}))
    for number, (event, expected) in enumerate(HISTORIES[name]):
        state, effects = step(state, event)
        assert effects == expected, f"after event {number}, {event}"
        known = {child.pid for child in state.exits} <= {FIRST, LEADER, DAEMON}
        assert known or state.announced is None, "a daemon may have any number of orphans"


@given(
    st.data(),
    st.lists(st.integers(1, 40), max_size=6),
    st.sampled_from([None, Exited(0), Exited(7), Exited(255), Killed(KILL)]),
)
def test_the_order_of_arrival_does_not_change_the_end(
    data: st.DataObject, cuts: list[int], cause: Exited | Killed | None
) -> None:
    """However the pipe's bytes are cut and the exits come among them, the end is the same, and comes exactly once."""
    text = ANNOUNCED.data + (RELEASED.data if cause is None else b"")
    edges = [0, *sorted({cut for cut in cuts if cut < len(text)}), len(text)]
    pipe: list[Event] = [PipeRead(text[a:b]) for a, b in pairwise(edges)] + [PipeClosed()]
    exits: list[Event] = [FIRST_DONE, LEADER_DONE, died(ORPHAN, 9)]
    if cause is not None:
        exits.append(ChildExited(DAEMON, cause))
    # An orphan of the daemon can only exist after the announcement; everything else may come in any order.
    queues = [pipe, data.draw(st.permutations(exits))]
    state, ends = Foreground(FIRST), []
    while any(queues):
        queue = data.draw(st.sampled_from([queue for queue in queues if queue]))
        if queue[0] == died(ORPHAN, 9) and state.announced is None:
            queue = pipe
        state, effects = step(state, queue.pop(0))
        ends += [effect for effect in effects if isinstance(effect, Finish)]
    if cause is None:
        assert ends == [Finish(0)]
    else:
        assert ends == [SILENT_END if cause == Exited(0) else Finish(cause.status)]


@pytest.mark.parametrize("message", [Announcement(1, 2), Announcement(4194304, 4194303), Released()])
def test_messages_survive_the_pipe(message: Announcement | Released) -> None:
    """What is encoded is decoded whole, byte by byte, and with the next message's start behind it."""
    line = encode(message)
    assert len(line) <= LONGEST_LINE
    assert decode(line) == ((message,), b"")
    assert decode(line + b"rel") == ((message,), b"rel")
    assert all(decode(line[:end]) == ((), line[:end]) for end in range(len(line)))


@pytest.mark.parametrize(
    "line", [b"\n", b"daemon 1\n", b"daemon -1 2\n", b"daemon 1 2 3\n", b"Released\n", b"x" * (LONGEST_LINE + 1)]
)
def test_foreign_bytes_are_refused(line: bytes) -> None:
    """A line that no daemon writes, and one that never ends, raise ValueError."""
    with pytest.raises(ValueError, match=r"line of more|not a message"):
        decode(line)


def test_a_redirect_is_a_value_that_cannot_be_half_made() -> None:
    """Redirects compare by what they mean; a file needs a path and the null device takes none."""
    assert Redirect.append("/a") == Redirect(Target.APPEND, "/a") != Redirect.truncate("/a")
    assert Redirect.dev_null() == Redirect(Target.DEV_NULL)
    with pytest.raises(ValueError, match="append needs a path"):
        Redirect.append("")
    with pytest.raises(ValueError, match="dev_null takes no path"):
        Redirect(Target.DEV_NULL, "/a")
