"""What a master tells a worker before it does anything: the configuration on its standard input."""

import msgspec

from workerlib.errors import UsageError
from workerlib.redirects import Redirect
from workerlib.spec import RpcSettings, ShutdownOn

MARKER = "WORKERLIB_WORKER"
"""The environment variable that tells a program that it was spawned as a worker, and by which version's rules."""

MARKER_VALUE = "1"
MAX_SIZE = 1 << 20

ID_VARIABLE = "WORKERLIB_ID"
"""The environment variable with the worker's id, by which a failed spawn finds what is left of it."""

SCRIPT_MODULE = "__workerlib_main__"
"""What a script is called while it is loaded for the worker class in it, so that its main part does not run."""
CONTROL = "workerlib.Control"
"""Id of the object in each worker with what all workers offer, and through which a master initialises it."""


class WorkerCommand(msgspec.Struct, frozen=True):
    """How a program starts its workers as itself; who started whom is added to it."""

    argv: tuple[str, ...]
    cwd: str | None = None
    """Where it was started itself, so that it finds its script or module again; None: it was removed since."""
    pass_name: bool = True
    """Whether the worker's name follows."""


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that a spawned process needs to become the worker that its master expects."""

    worker: str
    """`module:Class`, or `/path/to/script.py:Class` for a class that was defined in the master's own script."""
    worker_id: str
    name: str
    token: str
    """Proves to the worker that a call to initialise it comes from its master, and to the master who registers."""
    master: str
    """URI of the master's registration object."""
    location: str
    """Where the worker shall listen: `./u:/path` or `host:port`."""
    shutdown_on: ShutdownOn
    daemonize: bool = True
    """False: the launched process is the worker, a child of its master with pipes for stdout and stderr."""
    worker_command: WorkerCommand | None = None
    """With what the worker starts workers of its own: what its master does; None: with the generic entry."""
    cd: str
    umask: int | None
    stdout: Redirect
    stderr: Redirect
    connection_timeout_s: float
    lease_s: float
    """How long the worker goes on without its master, and tries to reach it again; 0: it ends with the connection."""
    settings: RpcSettings
    sys_path: list[str] | None
    parent_pid: int | None
    """The launching process, when the worker is its child; None when something else, like ssh, is in between."""


def encode_config(config: WorkerConfig) -> bytes:
    """Raises UsageError for a text that is none: a file name, say, that is not UTF-8."""
    try:
        return msgspec.msgpack.encode(config)
    except UnicodeEncodeError as error:
        raise UsageError(f"a worker cannot be told {error.object!r}: it is not UTF-8") from None


def decode_config(data: bytes) -> WorkerConfig:
    """Raises UsageError when `data` is not a configuration."""
    if len(data) > MAX_SIZE:
        raise UsageError(f"the worker configuration on stdin has more than {MAX_SIZE} bytes")
    try:
        return msgspec.msgpack.decode(data, type=WorkerConfig)
    except msgspec.MsgspecError as error:
        raise UsageError(
            f"no worker configuration on stdin ({error}): was stdin read before worker_init_before_async()?"
        ) from None


def split_reference(reference: str) -> tuple[str, str]:
    """`module:Class` or `/path/script.py:Class` in its two parts. Raises UsageError."""
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"{reference!r} does not name a worker class as module:Class")
    return place, name
