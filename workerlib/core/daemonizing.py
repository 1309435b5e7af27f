"""daemonize_wait as a state machine: what the process that stays in the foreground knows, does, and ends with.

    launcher ── foreground F ── first child C ── session leader L ── daemon D
                      ▲   C and L exit at once; D is re-parented to F, the child subreaper   │
                      └──────────────── release pipe: "daemon D L", then "released" ─────────┘

Rules:
1. "released" is the only success: F ends with 0 once it has also reaped C and L.
2. Before it, F ends with D's own exit status, 128+signal for a signal. A daemon that ends with 0 without having
   released its caller must not look like success: F ends with 70.
3. Before D has announced itself nobody but C, L and D can hold the pipe, so that its end means that no daemon will
   come; F then ends with the status of the one that failed. After the announcement the end of the pipe means nothing:
   a grandchild may hold it open long after D died, and a daemon may close it and live.
4. An end without a release is the end of all that came of it: the shell kills what has been left to F.
5. The shell feeds what it read from the pipe before the exits that it reaped *before* reading; then a daemon that
   releases and ends at once is a success.
"""

import msgspec

from workerlib.errors import UsageError

EXIT_NOT_RELEASED = 70
"""The foreground's exit status for a daemon that ended with status 0 before it released its caller (EX_SOFTWARE)."""
EXIT_NOT_DETACHED = 71
"""The exit status of a helper process that could not detach, and so the foreground's (EX_OSERR)."""

EXIT_LAUNCHER_DIED = 137
"""The foreground's exit status when whoever launched it died before the release: as if it had been killed with it."""

LONGEST_LINE = 64


class DaemonizeError(UsageError, RuntimeError):
    """The process cannot be daemonized, or cannot be released, as it stands; the text says why."""


class Exited(msgspec.Struct, frozen=True):
    """The process ended by itself."""

    code: int

    @property
    def status(self) -> int:
        """As a shell reports it."""
        return self.code


class Killed(msgspec.Struct, frozen=True):
    """A signal ended the process."""

    signal: int
    core_dumped: bool = False

    @property
    def status(self) -> int:
        """As a shell reports it."""
        return 128 + self.signal


ExitCause = Exited | Killed


# What the daemon says on the pipe.


class Announcement(msgspec.Struct, frozen=True):
    """The daemon runs detached and dies with its foreground process; `leader` made its session."""

    daemon: int
    leader: int


class Released(msgspec.Struct, frozen=True):
    """The daemon lets its caller go."""


Message = Announcement | Released


def encode(message: Message) -> bytes:
    """One line, short enough to be written and read in one piece."""
    match message:
        case Announcement(daemon, leader):
            return b"daemon %d %d\n" % (daemon, leader)
        case Released():
            return b"released\n"


def decode(received: bytes) -> tuple[tuple[Message, ...], bytes]:
    """The whole messages at the start of `received`, and the rest. Raises ValueError for bytes that are not ours."""
    *lines, rest = received.split(b"\n")
    if len(rest) > LONGEST_LINE:
        raise ValueError(f"a line of more than {LONGEST_LINE} bytes")
    return tuple(_decode_line(line) for line in lines), rest


def _decode_line(line: bytes) -> Message:
    match line.split(b" "):
        case [b"released"]:
            return Released()
        case [b"daemon", daemon, leader] if daemon.isdigit() and leader.isdigit():
            return Announcement(int(daemon), int(leader))
        case _:
            raise ValueError(f"not a message of a daemon: {line!r}")


# Events.


class PipeRead(msgspec.Struct, frozen=True):
    """Bytes came from the release pipe."""

    data: bytes


class PipeClosed(msgspec.Struct, frozen=True):
    """Nobody holds the writing end of the release pipe any more."""


class ChildExited(msgspec.Struct, frozen=True):
    """A child was reaped: a helper, the daemon, or any orphan that was re-parented to the foreground process."""

    pid: int
    cause: ExitCause


class LauncherDied(msgspec.Struct, frozen=True):
    """Nobody waits for the foreground process any more."""


class SignalArrived(msgspec.Struct, frozen=True):
    """Somebody asked the foreground process to end."""

    signal: int


Event = PipeRead | PipeClosed | ChildExited | LauncherDied | SignalArrived


# Effects.


class WatchDaemon(msgspec.Struct, frozen=True):
    """From now on wake up when this process exits."""

    pid: int


class PassOn(msgspec.Struct, frozen=True):
    """Send the signal to the daemon."""

    pid: int
    signal: int


class Finish(msgspec.Struct, frozen=True):
    """End the foreground process with this status; a message goes to stderr first."""

    status: int
    message: str = ""


Effect = WatchDaemon | PassOn | Finish


class Foreground(msgspec.Struct, frozen=True):
    """What the foreground process knows. Made once the first child is forked."""

    first_child: int
    bystanders: frozenset[int] = frozenset()
    """Children that the process had before; their exits mean nothing."""
    announced: Announcement | None = None
    released: bool = False
    pipe_closed: bool = False
    unread: bytes = b""
    """The start of a message whose end has not come yet."""
    exits: tuple[ChildExited, ...] = ()
    """Of the first child, session leader and daemon; before the announcement, of all that may be one of them."""
    held_signals: tuple[int, ...] = ()
    """To be passed on to the daemon as soon as it is known."""
    finished: bool = False


def step(state: Foreground, event: Event) -> tuple[Foreground, tuple[Effect, ...]]:
    """Takes one event in. Once it has answered Finish, later events change nothing."""
    if state.finished:
        return state, ()
    if isinstance(event, LauncherDied) and not state.released:
        return msgspec.structs.replace(state, finished=True), (Finish(EXIT_LAUNCHER_DIED),)
    try:
        state, effects = _take(state, event)
    except ValueError as error:
        return msgspec.structs.replace(state, finished=True), (Finish(EXIT_NOT_RELEASED, f"release pipe: {error}"),)
    end = _end(state)
    if end is None:
        return state, effects
    return msgspec.structs.replace(state, finished=True), (*effects, end)


def _take(state: Foreground, event: Event) -> tuple[Foreground, tuple[Effect, ...]]:
    match event:
        case PipeRead(data):
            messages, unread = decode(state.unread + data)
            state = msgspec.structs.replace(state, unread=unread)
            effects: tuple[Effect, ...] = ()
            for message in messages:
                state, more = _hear(state, message)
                effects += more
            return state, effects
        case PipeClosed():
            return msgspec.structs.replace(state, pipe_closed=True), ()
        case ChildExited(pid):
            return (msgspec.structs.replace(state, exits=(*state.exits, event)) if _matters(state, pid) else state), ()
        case LauncherDied():
            return state, ()
        case SignalArrived(signal):
            if state.announced is not None:
                return state, (PassOn(state.announced.daemon, signal),)
            held = state.held_signals
            return msgspec.structs.replace(state, held_signals=held if signal in held else (*held, signal)), ()


def _hear(state: Foreground, message: Message) -> tuple[Foreground, tuple[Effect, ...]]:
    match message:
        case Announcement(daemon, leader):
            known = tuple(gone for gone in state.exits if gone.pid in {state.first_child, leader, daemon})
            signals = tuple(PassOn(daemon, signal) for signal in state.held_signals)
            state = msgspec.structs.replace(state, announced=message, exits=known, held_signals=())
            return state, (WatchDaemon(daemon), *signals)
        case Released():
            return msgspec.structs.replace(state, released=True), ()


def _matters(state: Foreground, pid: int) -> bool:
    if state.announced is None:
        return pid not in state.bystanders
    return pid in {state.first_child, state.announced.leader, state.announced.daemon}


def _end(state: Foreground) -> Finish | None:
    """How the foreground process ends, once that is decided."""
    gone = {child.pid: child.cause.status for child in state.exits}
    if state.released:
        helpers = {state.first_child} | ({state.announced.leader} if state.announced else set())
        return Finish(0) if helpers <= gone.keys() else None
    if state.announced is not None:
        status = gone.get(state.announced.daemon)
        return None if status is None else _end_of_unreleased(status)
    if gone.get(state.first_child):
        return Finish(gone[state.first_child])
    others = [status for pid, status in gone.items() if pid != state.first_child]
    if state.pipe_closed and (any(others) or len(others) == 2):
        return _end_of_unreleased(next((status for status in others if status), 0))
    return None


def _end_of_unreleased(status: int) -> Finish:
    if status:
        return Finish(status)
    return Finish(EXIT_NOT_RELEASED, "the daemon ended with status 0 before it released its caller")
