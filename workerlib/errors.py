"""All errors that workerlib raises, so that a user can catch `WorkerlibError` and miss none."""

import enum


class Stage(enum.Enum):
    """How far a spawn had come."""

    LAUNCHED = "launched"
    REGISTERED = "registered"
    INITIALISED = "initialised"
    READY = "ready"


class WorkerlibError(Exception):
    """Base class of every error of workerlib itself; errors of a worker's own code arrive as themselves."""


class ProtocolError(WorkerlibError):
    """The peer sent bytes that are not a valid Pyro5 502 message, or a message that its state does not allow."""


class HandshakeError(WorkerlibError):
    """The worker refused the connection; the text says why (unknown worker id, wrong argument, `connected` raised)."""


class FunctionsDiffer(HandshakeError):  # noqa: N818 - reads as what happened
    """This program and the worker disagree about functions or their types; the text names those that differ.

    Raised when connecting if the worker's class was given, else when such a function is run for the first time.
    """


class ConnectionLost(WorkerlibError):  # noqa: N818 - reads as what happened, like builtin ConnectionResetError's family
    """The connection ended while it was needed; `reason` says how, in words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StreamAborted(WorkerlibError):  # noqa: N818 - same
    """One end gave up a stream before its end; the text is the reason that end gave."""


class StreamOverflow(WorkerlibError):  # noqa: N818 - same
    """The reader of a stream that its pace does not slow down was too slow; the text says how many items it missed."""


class ArgumentError(WorkerlibError, TypeError):
    """An argument did not fit the function's types; the text names the function and the path of the offending value.

    The worker raises it before any user code runs. A stock Pyro5 client sees it as `TypeError`.
    """


class ResultError(WorkerlibError, TypeError):
    """A worker function returned a value that cannot be encoded; the text names the function and the type."""


class NotTrusted(WorkerlibError):  # noqa: N818 - reads as what is wrong
    """Pickled values are exchanged only on Unix sockets between processes of one user; the text says what this is.

    Raised before anything is unpickled: by `run`, before anything is sent, and by the worker for every other client. A
    stock Pyro5 client gets it for functions with numpy arrays as well, which it has no way to send.
    """


class UnknownFunction(WorkerlibError, AttributeError):  # noqa: N818 - same
    """The worker has no function of that name; the text offers the nearest one."""


class RemoteError(WorkerlibError):
    """A worker function raised an error that is neither builtin nor declared with `errors=(...)`.

    `remote_type` is the qualified name of the original class, `remote_traceback` the text of its traceback.
    """

    def __init__(self, message: str, remote_type: str = "", remote_traceback: str = "") -> None:
        super().__init__(message)
        self.remote_type = remote_type
        self.remote_traceback = remote_traceback


class SpawnError(WorkerlibError):
    """A worker could not be brought up; no process of it is left.

    `stage` is the last stage it had reached, `cause` says how it ended ("exited with 1", "killed by SIGKILL", "timed
    out after 10 s", ...), `stderr` holds the last lines that it wrote before it was released.
    """

    def __init__(self, name: str, stage: Stage, cause: str, stderr: tuple[str, ...] = ()) -> None:
        lines = "".join(f"\n  {line}" for line in stderr)
        after = f"; its last lines on stderr:{lines}" if stderr else ""
        super().__init__(f"worker {name!r} {cause} (stage reached: {stage.value}){after}")
        self.name = name
        self.stage = stage
        self.cause = cause
        self.stderr = stderr


class UsageError(WorkerlibError):
    """A call of workerlib that cannot work where it stands (called twice, in the wrong process, too late, ...)."""


class MapError(WorkerlibError):
    """A map or reduction could not be carried out: workers were lost again and again."""


class ItemError(MapError):
    """One item of a map failed; nothing after it is begun.

    `index` counts the items from 0, `item` is the item itself. `__cause__` is what the function raised, with the remote
    traceback, or why it gave no result: an argument of the wrong type, a result that cannot travel, TimeoutError for a
    deadline, MapError for workers that were lost with it.
    """

    def __init__(self, index: int, item: object, why: str) -> None:
        super().__init__(f"item {index} ({_short(item)}): {why}")
        self.index = index
        self.item = item


LONGEST_SHOWN = 100
"""Characters of an item in the text of an error."""


def _short(item: object) -> str:
    try:
        text = repr(item)
    except Exception as error:  # noqa: BLE001 - user code
        text = f"<{type(item).__qualname__}: its repr raises {type(error).__name__}>"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
