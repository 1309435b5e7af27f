"""The connection to the daemon: where it is, how to reach it, and what each failure means for the exit status."""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from parsupd.core.addresses import SOCKET, SUPERVISOR

if TYPE_CHECKING:
    from workerlib.blocking import Connection

FAILED = 1
NOT_ACTIVE = 3
NO_SUCH_UNIT = 4
UNREACHABLE = 69
"""EX_UNAVAILABLE of sysexits.h."""
INTERRUPTED = 130
"""What a shell reports for a program that SIGINT has ended."""

ANSWER_S = 30.0
"""How long the daemon may take to answer what it has at hand."""

LATER_S = 5.0
"""How much longer than its own deadline the daemon may take to say that it has passed."""

COMPLETION_S = 0.5
"""How long the daemon may take to answer while somebody waits for a word to be completed."""


class Failure(Exception):  # noqa: N818 - the end of a command is not always an error
    """The end of a command: what is said on stderr, and the exit status."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class Options(NamedTuple):
    """The global options. Not a dataclass: that module is imported by nothing else on the way to `--help`."""

    socket: str | None = None
    runtime_dir: str | None = None
    timeout_s: float = 5.0


def candidates(options: Options, env: Mapping[str, str], *, root: bool) -> list[str]:
    """The sockets where the daemon may listen: the one that was named, or the places where parsupd puts it itself."""
    if options.socket:
        return [options.socket]
    named = options.runtime_dir
    if not named and (socket := env.get("PARSUP_SOCKET")):
        return [socket]
    if named := named or env.get("PARSUP_RUNTIME_DIR"):
        return [f"{named.rstrip('/')}/{SOCKET}"]
    folders = [
        env.get("RUNTIME_DIRECTORY"),  # in a unit that systemd started beside or below parsupd
        "/run/parsupd" if root else None,
        f"{env['XDG_RUNTIME_DIR']}/parsupd" if env.get("XDG_RUNTIME_DIR") else None,
        ".parsupd",
    ]
    return [f"{folder}/{SOCKET}" for folder in folders if folder]


def _why_not(path: str) -> str | None:
    """Why a path is no socket, or None when it is one."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - pathlib alone costs 10 ms to import
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None if stat.S_ISSOCK(mode) else "not a socket"


def find_socket(options: Options) -> str:
    """The first candidate that is a socket. Raises Failure that lists what was tried."""
    tried = []
    for path in candidates(options, os.environ, root=os.geteuid() == 0):
        why = _why_not(path)
        if why is None:
            return path
        tried.append(f"  {path}: {why}")
    raise Failure(
        "no parsupd found; tried\n" + "\n".join(tried) + "\nIs it running? Name its socket with --socket PATH or "
        "PARSUP_SOCKET, or its directory with --runtime-dir DIR or PARSUP_RUNTIME_DIR.",
        UNREACHABLE,
    )


def connect(options: Options) -> "Connection":
    """A connection to the daemon's control object. Raises Failure with status 69."""
    from workerlib import WorkerlibError, blocking  # noqa: PLC0415 - `--help` does not pay for it

    path = find_socket(options)
    try:
        return blocking.connect(f"PYRO:{SUPERVISOR}@./u:{os.path.abspath(path)}", within_s=options.timeout_s)  # noqa: PTH100 - as above
    except ConnectionRefusedError:
        raise Failure(f"{path}: nobody listens there; the daemon that made this socket has gone", UNREACHABLE) from None
    except OSError as error:
        raise Failure(f"{path}: {error.strerror or error}", UNREACHABLE) from None
    except WorkerlibError as error:
        raise Failure(f"{path}: {error}", UNREACHABLE) from None


@contextmanager
def daemon(context: click.Context, timeout_s: float | None = ANSWER_S) -> Iterator["Connection"]:
    """The daemon, for one command. What goes wrong with it inside becomes a Failure.

    `timeout_s` is for each call; None for commands that tell the daemon itself how long they want to wait.
    """
    from workerlib import ConnectionLost, ProtocolError, WorkerlibError  # noqa: PLC0415 - as above

    options = context.find_object(Options) or Options()
    with connect(options) as connection:
        connection.timeout_s = timeout_s
        try:
            yield connection
        except (ConnectionLost, ProtocolError) as error:
            raise Failure(f"the connection to the daemon was lost: {error}", UNREACHABLE) from None
        except LookupError as error:
            raise Failure(str(error.args[0]) if error.args else str(error), NO_SUCH_UNIT) from None
        except (WorkerlibError, RuntimeError, TimeoutError, ValueError) as error:
            raise Failure(str(error)) from None
        except Exception as error:
            if not hasattr(error, "remote_traceback"):
                raise  # a bug in here, not in the daemon
            raise Failure(f"the daemon raised {type(error).__name__}: {error}") from None


@contextmanager
def patient(context: click.Context, timeout_s: float | None, work: str) -> Iterator["Connection"]:
    """As `daemon`, for what the daemon does and is waited for: Ctrl-C ends the waiting, and says so.

    Without a limit, too, a daemon that hangs is noticed: the connection asks it for signs of life.
    """
    try:
        with daemon(context, None if timeout_s is None else timeout_s + LATER_S) as connection:
            yield connection
    except KeyboardInterrupt:
        raise Failure(f"interrupted; {work}", INTERRUPTED) from None


def complete_unit(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Names of units and instances that begin so; none when the daemon cannot be asked at once."""
    root = context.find_root().params
    options = Options(root.get("socket"), root.get("runtime_dir"), timeout_s=COMPLETION_S)
    try:
        with connect(options) as connection:
            connection.timeout_s = COMPLETION_S
            found: list[dict[str, Any]] = connection.call("status")
    except Exception:  # noqa: BLE001 - completion stays silent whatever is wrong
        return []
    names = dict.fromkeys([*(entry["unit"] for entry in found), *(entry["name"] for entry in found)])
    return [name for name in names if name.startswith(incomplete)]
