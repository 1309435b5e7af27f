"""One run of the daemon: everything is put together, recovered, served, and taken down again."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from parsupd.adoption import Adoption
from parsupd.control import Supervisor
from parsupd.core import events as told
from parsupd.core.addresses import SOCKET, SUPERVISOR
from parsupd.core.units import Configuration, LogFormat
from parsupd.executor import Doors, Executor, Place
from parsupd.masters import Masters
from parsupd.outputs import Outputs
from parsupd.recorder import Recorder
from parsupd.reloading import NotReloadedError, Reloader
from parsupd.replacing import Replacing
from parsupd.shell import cgroup, leftovers, nameserver, replacement
from parsupd.shell.cgroup import Tree
from parsupd.shell.children import Children
from parsupd.shell.journal_stream import JournalStreams
from parsupd.shell.kept_processes import KeptProcesses
from parsupd.shell.log_pipes import LogPipes
from parsupd.shell.notify_socket import Notifier
from parsupd.shell.state_file import StateFile
from parsupd.shell.terminal import has_terminal
from parsupd.shell.unit_sockets import UnitSockets
from parsupd.systemd import ServiceManager
from parsupd.transients import Transients
from workerlib import RpcSettings, __version__
from workerlib.core.uri import UnixLocation, Uri
from workerlib.server import Server
from workerlib.shell import process
from workerlib.shell.environment import effective_settings
from workerlib.shell.listening import bind_unix, inherit_unix

MASTER = "parsup.Master"

HAND_OVER = signal.SIGUSR2
"""End, but let what runs go on, for the next parsupd to adopt: what systemd sends for a restart."""

DRAIN_S = 0.5
"""How long calls that are under way may still take when this daemon is replaced; who calls later waits for the next."""

LAST_ANSWERS_S = 0.2
"""How long those who wait for the end may take to hear of it."""

LAST_WORDS_S = 5.0
"""How long the logger may take to write what the units have said last."""

CONTROL_FD, STATE_FD = "control", "state"
"""Names of what the service manager keeps over our end: the control socket, and the state."""
OWN_CONTROL_FD = "own-control"
"""The control socket, when an earlier program of this process has made it: its file is ours to remove."""


class Successor(NamedTuple):
    """A program, and the descriptors that it is to find."""

    argv: list[str]
    fds: dict[str, int]


@dataclass
class Daemon:
    """One run of the daemon."""

    configuration: Configuration
    read: Callable[[], Configuration]
    """Reads the configuration's files again."""
    place: Place
    notifier: Notifier
    inherited: Mapping[str, int]
    """Descriptors that the service manager has kept or opened, by name."""
    log: Any
    log_format: LogFormat
    """How the log goes where; the output of units goes the same way, unless nobody would look there."""
    successor: Successor | None = None
    """What this process is to become once `run` has returned, with units going on."""
    _handing_over: asyncio.Task[None] | None = None
    _listening: socket.socket | None = None
    _owns_file: bool = False
    """Whether the control socket's file is ours to remove."""
    _has_terminal: bool = False

    async def run(self) -> int:
        """Runs until everything is down, or handed over; returns the exit status."""
        runtime = self.place.runtime_dir
        token = leftovers.token_of(runtime)
        self._has_terminal = has_terminal()
        early: list[str] = []
        self._follow_signals(early.append, ())  # before all that takes time: the default action leaves things behind
        recorder = Recorder(StateFile(runtime / "state", self._state_memfd()), process.boot_id(), self.log)
        tree = self._tree(token)
        adoption = Adoption(recorder.load(), token, tree, self.log)
        children = Children(tree=tree)
        server = Server(effective_settings(RpcSettings()))
        location = UnixLocation(str(runtime / SOCKET))
        masters = Masters(server, Uri(MASTER, location), runtime, children.watch)
        try:
            names = nameserver.Names()
            fleet = adoption.fleet(self.configuration)
            outputs = self._outputs(token, children)
            sockets, kept = UnitSockets(self.notifier, self.inherited), KeptProcesses(self.notifier, self.inherited)
            doors = Doors(children, kept, names, masters, sockets, outputs, tree)
            executor = Executor(fleet, doors, recorder, self.place, self.log)
            manager = ServiceManager(self.notifier, executor)
            reloader = Reloader(executor, self.read, manager.reloading, self.log)
            transients = Transients(executor, reloader)
            replacing = Replacing(children, executor, partial(self._replace, executor, server, sockets))
            control = Supervisor(executor, reloader, transients, replacing, runtime)
            _offer(server, location, names, control)
            outputs.recover(executor.specs())
            adoption.take_over(executor)
            await self._listen(server, location)
            executor.note("started", version=__version__, pid=os.getpid(), socket=location.path)
            self._follow_signals(partial(self._on_signal, executor, server, reloader), early)
            await adoption.finish(executor)
            async with transients.removed_when_ended():
                status = await executor.done
            if not executor.handed_over:
                await self._end_rest(children, token, tree, outputs)
                recorder.forget()
                await server.drain(LAST_ANSWERS_S)
            executor.close()
            manager.close(replaced=self.successor is not None)
        finally:
            await server.close()
            await masters.close()
            children.close()
        if self._owns_file and not executor.handed_over:
            Path(location.path).unlink(missing_ok=True)
        if tree is not None and self.successor is None:
            tree.release()
        self.log.info("handed_over" if executor.handed_over else "stopped", status=status)
        return status

    def _tree(self, token: str) -> Tree | None:
        """Control groups for runs, where they are parsupd's to make."""
        try:
            tree = cgroup.delegated(token)
            tree.settle(token)
        except (cgroup.NotDelegatedError, OSError) as error:
            self.log.info("no_control_groups", reason=str(error))
            return None
        self.log.info("control_groups", path=str(tree.path))
        return tree

    async def _end_rest(self, children: Children, token: str, tree: Tree | None, outputs: Outputs) -> None:
        """All units are down: ends what they have left, then the logger."""
        for pid in await children.end_strays(lambda pid: leftovers.carries(pid, token), within_s=2.0):
            self.log.warning("stray_ended", pid=pid, reason="it had left its unit's process group")
        if tree is not None:
            await tree.end(within_s=1.0)
        await outputs.pipes.end(within_s=LAST_WORDS_S)

    def _outputs(self, token: str, children: Children) -> Outputs:
        logs = self.place.state_dir / "logs"
        limit = self.configuration.daemon.all_logs_size
        return Outputs(
            logs,
            JournalStreams(self.log) if self.log_format is LogFormat.JOURNAL else None,
            LogPipes(self.place.runtime_dir, logs, limit, token, children.watch, self.log),
            # The first process of a container writes to where its logs are read.
            has_readers=self.log_format is LogFormat.CONSOLE or os.getpid() == 1,
        )

    def _on_signal(self, executor: Executor, server: Server, reloader: Reloader, name: str) -> None:
        if self.successor is not None:
            signal.raise_signal(signal.Signals[name])  # it came before they were held: now it waits, too
        if self._handing_over is not None:
            return
        if name == HAND_OVER.name:
            executor.note("handing_over", reason=f"{name} received")
            self._handing_over = asyncio.get_running_loop().create_task(self._hand_over(executor, server))
        elif name == signal.SIGHUP.name and self._has_terminal == has_terminal():
            with contextlib.suppress(NotReloadedError):  # it is in the log
                reloader.reload()
        else:
            executor.feed(told.ShutdownRequested(f"{name} received"))

    def _replace(self, executor: Executor, server: Server, sockets: UnitSockets, argv: list[str]) -> None:
        """Ends this run as a hand-over does; the same process goes on as another program."""
        if self._handing_over is not None or executor.fleet.shutting_down:
            return
        replacement.hold_signals()
        executor.note("replacing", program=" ".join(argv))
        assert self._listening is not None
        control = OWN_CONTROL_FD if self._owns_file else CONTROL_FD
        held = {**sockets.held(), control: self._listening.fileno()}
        if STATE_FD in self.inherited:
            held[STATE_FD] = self.inherited[STATE_FD]
        self.successor = Successor(argv, replacement.duplicate(held))
        self._handing_over = asyncio.get_running_loop().create_task(self._hand_over(executor, server))

    async def _hand_over(self, executor: Executor, server: Server) -> None:
        await executor.hand_over(server.drain(DRAIN_S))

    def _follow_signals(self, on_signal: Callable[[str], None], early: Iterable[str]) -> None:
        """Gives the names of signals to `on_signal`, those that came early first; replaces an earlier one."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, HAND_OVER):
            # SIGHUP: a reload, unless the terminal that it was started on has been closed, which must not leave units
            # behind. The kernel takes a closed terminal from its processes before it sends the signal.
            loop.add_signal_handler(signum, on_signal, signal.Signals(signum).name)
        for name in early:
            on_signal(name)
        replacement.let_signals_come()  # an earlier program of this process may have held them

    # What the service manager keeps for the next one

    def _state_memfd(self) -> int:
        if not self.notifier.listens:
            return -1
        if (kept := self.inherited.get(STATE_FD)) is None:
            kept = os.memfd_create("parsupd-state", os.MFD_CLOEXEC)
            self.notifier.store(STATE_FD, kept)
        return kept

    async def _listen(self, server: Server, location: UnixLocation) -> None:
        """Listens with the socket that the service manager has kept, or gives it a new one to keep.

        So nobody who calls while this daemon is being replaced is refused: he waits in the socket's queue.
        """
        kept, own = self.inherited.get(CONTROL_FD), self.inherited.get(OWN_CONTROL_FD)
        handed = own if kept is None else kept
        sock = None if handed is None else inherit_unix(handed, location.path)
        self._owns_file = sock is None or handed == own
        if sock is None:
            # None was kept, or its file has gone: by a stop that became a restart, or by somebody who tidied up.
            sock = bind_unix(location.path)
            self.notifier.unstore(CONTROL_FD)
            self.notifier.store(CONTROL_FD, sock.fileno())
        self._listening = sock
        await server.listen(location, sock=sock)


def _offer(server: Server, location: UnixLocation, names: nameserver.Names, control: Supervisor) -> None:
    """The daemon's own objects, which the name server knows, too."""
    for name, thing in ((nameserver.OBJECT, names), (SUPERVISOR, control)):
        server.add(name, thing)
        names.publish(name, str(Uri(name, location)), ["kind:parsupd"])
