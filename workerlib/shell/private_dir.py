"""Directories for sockets: mode 0700, owned by this user, swept of what dead processes left in them."""

import contextlib
import os
import stat
from pathlib import Path

from workerlib.errors import UsageError
from workerlib.shell import process
from workerlib.shell.listening import remove_stale_socket


def make_private(path: Path, *, passable: bool = False) -> Path:
    """Makes the directory with mode 0700 if it is missing. A `passable` one may stay 0711: its entries are private.

    Raises UsageError when it is not ours alone, or not writable.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise UsageError(f"the directory {str(path)!r} cannot be made: {error.strerror}; choose another one") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise UsageError(f"{str(path)!r} is not a directory of user {os.geteuid()}: remove it or choose another one")
    if status.st_mode & (0o066 if passable else 0o077):
        path.chmod(0o700)
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(f"the directory {str(path)!r} is not writable for user {os.geteuid()}; choose another one")
    return path


def base_dir() -> Path:
    """Where the sockets of this user's workers live: $XDG_RUNTIME_DIR/workerlib, else below the temporary directory.

    Raises UsageError.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK | os.X_OK):
        return make_private(Path(runtime) / "workerlib")
    import tempfile  # noqa: PLC0415 - it loads four compression libraries, and a login session has no need of it

    return make_private(Path(tempfile.gettempdir()) / f"workerlib-{os.geteuid()}")


def process_dir() -> Path:
    """A directory for the sockets of this process and of its workers; leftovers of dead processes are removed.

    Its name is the pid and start time of this process, so that nobody takes it for his own after pid reuse.
    """
    base = base_dir()
    for sibling in base.iterdir():
        _sweep(sibling)
    return make_private(base / f"{os.getpid()}-{process.start_time(os.getpid())}")


def is_of_one_process(folder: str) -> bool:
    """Whether it was made by `process_dir`, so that nobody has a use for it after that process and its workers."""
    pid, _, started = folder.rpartition("/")[2].partition("-")
    return pid.isdigit() and started.isdigit()


def _sweep(folder: Path) -> None:
    if not is_of_one_process(str(folder)):
        return
    pid, _, started = folder.name.partition("-")
    with contextlib.suppress(ProcessLookupError):
        if process.start_time(int(pid)) == int(started):
            return
    remove_sockets(folder)


def remove_sockets(folder: Path) -> None:
    """Removes the sockets that nobody listens on, and the directory when it is empty then. A worker may outlive its
    master, so a living socket stays.
    """
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            remove_stale_socket(str(entry))
        folder.rmdir()
