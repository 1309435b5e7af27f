"""The masters with which workers register: the daemon's own, and one for each other user that workers run as.

A worker of another user can reach neither the daemon's socket nor the directory of its workers, and must not: who may
call the control object is root. So each user has a socket with nothing behind it but a registry, and a directory of its
own for the sockets of its workers:

    RUNTIME            0711, from the first such worker on: others may pass through it, and list or open nothing in it
    RUNTIME/users      0711, root's
    RUNTIME/users/UID.sock  0600, that user's: the registry
    RUNTIME/users/UID  0700, that user's: its workers listen there

Rejected: a group that all share, by which one user's workers could be called by another's; and access lists, which not
every file system has. Nothing of a user's directory is trusted: who answers in it can pretend to be a worker, which is
that user's own.
"""

import asyncio
import os
import stat
from collections.abc import Callable
from pathlib import Path

from workerlib import Master, RpcSettings, UsageError
from workerlib.core.uri import Location, UnixLocation, Uri
from workerlib.launchers.local import LocalLauncher, Watch
from workerlib.server import Server
from workerlib.shell.environment import effective_settings
from workerlib.shell.listening import bind_unix
from workerlib.shell.private_dir import make_private, remove_sockets
from workerlib.shell.transport import Peer

USERS = "users"


class Masters:
    """Of one daemon."""

    def __init__(self, server: Server, uri: Uri, runtime: Path, watch: Watch) -> None:
        """The daemon's own master is served by `server` at `uri`. Raises UsageError for an unusable directory."""
        workers = make_private(runtime / "workers")
        self._own = Master(server, uri, workers, launcher=LocalLauncher(watch))
        self._target = uri.target
        self._runtime = runtime
        self._watch = watch
        self._others: dict[int, Master] = {}
        self._listening: dict[int, asyncio.Task[Location]] = {}

    async def of(self, uid: int) -> Master:
        """The master for workers of that user, made when there is none; it listens. Raises OSError and UsageError."""
        if uid == os.geteuid():
            return self._own
        if uid not in self._others:
            self._others[uid] = self._make(uid)
        await asyncio.shield(self._listening[uid])
        return self._others[uid]

    def at(self, location: Location) -> Master:
        """The master of a worker that lives and listens there, for which it will be called in a moment."""
        folder = Path(location.path).parent if isinstance(location, UnixLocation) else self._runtime
        if folder.parent != self._runtime / USERS or not folder.name.isdigit():
            return self._own
        uid = int(folder.name)
        if uid not in self._others:
            self._others[uid] = self._make(uid)
        return self._others[uid]

    def _make(self, uid: int) -> Master:
        users = make_private(self._runtime / USERS, passable=True)
        for folder in (users, self._runtime):
            folder.chmod(0o711)
        folder = users / str(uid)
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in {uid, os.geteuid()}:
            raise UsageError(f"{str(folder)!r} is not a directory of user {uid}: remove it")
        os.chown(folder, uid, -1, follow_symlinks=False)
        location = UnixLocation(f"{folder}.sock")
        sock = bind_unix(location.path)  # 0600 from the first moment on: nobody comes before its owner is known
        try:
            os.chown(location.path, uid, -1, follow_symlinks=False)
        except OSError:
            sock.close()
            raise
        server = Server(effective_settings(RpcSettings()), authorize=_only(uid))
        self._listening[uid] = asyncio.get_running_loop().create_task(server.listen(location, sock=sock))
        return Master(server, Uri(self._target, location), folder, launcher=LocalLauncher(self._watch))

    async def close(self) -> None:
        """Ends them; workers that live on come back to those of the next daemon. Idempotent."""
        for uid, master in self._others.items():
            await asyncio.gather(self._listening[uid], return_exceptions=True)
            await master.server.close()
            Path(f"{master.folder}.sock").unlink(missing_ok=True)
            remove_sockets(master.folder)
        self._others.clear()
        self._listening.clear()
        remove_sockets(self._own.folder)


def _only(uid: int) -> Callable[[Peer], str | None]:
    def authorize(peer: Peer) -> str | None:
        if peer.uid in {uid, os.geteuid()}:
            return None
        return f"user {peer.uid} may not register a worker of user {uid}"

    return authorize
