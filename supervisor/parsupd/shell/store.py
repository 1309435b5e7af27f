"""The daemon's directories: where they are, the lock on them, and the output files of units."""

import contextlib
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path

from parsupd.core.addresses import SOCKET
from parsupd.shell.config_files import check_utf_8
from workerlib import UsageError
from workerlib.core.uri import check_socket_path
from workerlib.shell.private_dir import make_private


def runtime_dir(given: str | None, configured: str, env: Mapping[str, str]) -> Path:
    """Where the sockets are: the first of option, environment, configuration, systemd, root, XDG, here."""
    xdg = env.get("XDG_RUNTIME_DIR")
    chosen = (
        given
        or env.get("PARSUP_RUNTIME_DIR")
        or configured
        or env.get("RUNTIME_DIRECTORY")
        or ("/run/parsupd" if os.geteuid() == 0 else None)
        or (f"{xdg}/parsupd" if xdg else None)
        or ".parsupd"
    )
    return Path(chosen).absolute()


def state_dir(given: str | None, configured: str, env: Mapping[str, str], runtime: Path) -> Path:
    """Where what must survive is kept, likewise. Raises UsageError for a path that is not UTF-8."""
    xdg = env.get("XDG_STATE_HOME")
    chosen = (
        given
        or env.get("PARSUP_STATE_DIR")
        or configured
        or env.get("STATE_DIRECTORY")
        or ("/var/lib/parsupd" if os.geteuid() == 0 else None)
        or (f"{xdg}/parsupd" if xdg else None)
        or str(runtime / "state")
    )
    path = Path(chosen).absolute()
    check_utf_8(path, "state directory", "choose another --state-dir")
    return path


class Lock:
    """The exclusive lock on a runtime directory. The kernel frees it when the daemon dies, however it dies."""

    def __init__(self, folder: Path, fd: int | None = None) -> None:
        """Makes the directory and takes the lock, which `fd` may hold already.

        Raises UsageError when another daemon has it.
        """
        check_socket_path(str(folder / SOCKET))
        make_private(folder, passable=True)
        path = folder / "lock"
        if fd is None and not path.exists() and (holder := _holder_of_removed(path)) is not None:
            raise UsageError(
                f"another parsupd (pid {holder}) runs on {str(folder)!r}, though that was removed under it; "
                "stop or restart that one, or choose another --runtime-dir"
            )
        self._file = open(path, "a+", opener=_private) if fd is None else os.fdopen(fd, "a+")  # noqa: SIM115 - Path.open has no opener
        os.fchmod(self._file.fileno(), 0o600)  # else anybody could hold the lock
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            owner = self._file.read().strip() or "unknown"
            self._file.close()
            raise UsageError(
                f"another parsupd (pid {owner}) runs on {str(folder)!r}; stop it, or choose another --runtime-dir"
            ) from None
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")  # for people: the lock is the truth
        self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()

    def release(self) -> None:
        self._file.close()


def _holder_of_removed(path: Path) -> int | None:
    """A process of this user that has the file open although it was removed. Looks at all of /proc: some ten ms."""
    gone = f"{path.resolve()} (deleted)"
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is not ours
            if any(str(fd.readlink()) == gone for fd in (process / "fd").iterdir()):
                return int(process.name)
    return None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def open_output(path: str) -> int:
    """Opens a file that a unit's output is appended to. Raises OSError with the path."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY, 0o640)
