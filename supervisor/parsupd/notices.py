"""What units say on their NOTIFY_SOCKETs, checked, and passed on as reports. No decisions but whom to believe.

A sign of life is only noted, and a status text only kept: neither costs the machines a step.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parsupd.core import events as told
from parsupd.core.notification import Notification, parse
from parsupd.core.units import InstanceName, NotifyAccess, UnitSpec, UnitType
from parsupd.shell.children import Child, Children
from parsupd.shell.notice_socket import Notice, NoticeSocket
from workerlib.shell.private_dir import make_private


@dataclass(slots=True)
class _Listener:
    socket: NoticeSocket
    generation: int
    access: NotifyAccess
    announces: bool
    """Whether what it says about its state counts, and not only its signs of life."""
    last_sign_at: float
    status: str = ""
    complained: bool = False


class Notices:
    """The sockets of all instances that are given one."""

    def __init__(
        self,
        folder: Path,
        children: Children,
        main_of: Callable[[InstanceName, int], Child | None],
        feed: Callable[[told.FleetEvent], None],
        log: Any,
    ) -> None:
        """`main_of` names the process that a generation's messages must come from."""
        self.on_main_changed: Callable[[InstanceName, int, int], bool] = lambda *_: False
        """Told the pid of a new main process; returns whether it is one of the unit's."""
        self._loop = asyncio.get_running_loop()
        self._folder = folder
        self._children = children
        self._main_of = main_of
        self._feed = feed
        self._log = log
        self._listeners: dict[InstanceName, _Listener] = {}

    def open(self, instance: InstanceName, generation: int, spec: UnitSpec, user: int | None) -> dict[str, str]:
        """Listens to a generation; returns what its environment needs. Raises OSError, and UsageError.

        `user`: whose processes are to reach the socket, when that is not the daemon's own.
        """
        old = self._listeners.get(instance)
        foreign = user is not None and user != os.geteuid()
        folder = make_private(self._folder, passable=True)
        socket = old.socket if old is not None else NoticeSocket(folder, str(instance))
        if user is not None and foreign:
            for each in (folder, folder.parent):
                each.chmod(0o711)
            socket.give_to(user)
        announces = spec.type is UnitType.NOTIFY
        if old is None:
            self._loop.add_reader(socket.fileno(), self.take, instance)
        now = self._loop.time()
        self._listeners[instance] = _Listener(socket, generation, spec.notify_access, announces, now)
        watched = spec.watchdog_s != float("inf")
        return {
            "NOTIFY_SOCKET": socket.path,
            **({"WATCHDOG_USEC": str(round(spec.watchdog_s * 1e6))} if watched else {}),
        }

    def close(self, instance: InstanceName) -> None:
        """Nothing of the instance runs any more; nothing to do for one that has no socket."""
        listener = self._listeners.pop(instance, None)
        if listener is not None:
            self._loop.remove_reader(listener.socket.fileno())
            listener.socket.close()

    def close_all(self, *, keep_files: bool) -> None:
        """At the end of the daemon; the files stay for one that takes the units over."""
        for instance, listener in list(self._listeners.items()):
            if keep_files:
                self._loop.remove_reader(listener.socket.fileno())
                listener.socket.socket.close()
            else:
                self.close(instance)

    def status_text(self, instance: InstanceName) -> str:
        """What it has said of itself last; empty when nothing."""
        listener = self._listeners.get(instance)
        return "" if listener is None else listener.status

    def last_sign_at(self, instance: InstanceName) -> float:
        """When its last sign of life came, those included that nobody has read yet."""
        self.take(instance)
        listener = self._listeners.get(instance)
        return self._loop.time() if listener is None else listener.last_sign_at

    def take(self, instance: InstanceName) -> None:
        """Reads what is there."""
        listener = self._listeners.get(instance)
        if listener is None:
            return
        for notice in listener.socket.take():
            refused = self._refusal(instance, listener, notice)
            if not refused:
                self._pass_on(instance, listener, parse(notice.data))
            elif not listener.complained:  # once a generation: who is not believed may go on for ever
                listener.complained = True
                self._log.warning("notice_refused", unit=str(instance), pid=notice.pid, reason=refused)

    def _refusal(self, instance: InstanceName, listener: _Listener, notice: Notice) -> str:
        """Why a message does not count; empty when it does."""
        child = self._main_of(instance, listener.generation)
        if child is None:
            return "nothing of the unit runs"
        if notice.pid == child.pid:
            return ""
        if listener.access is NotifyAccess.MAIN:
            return "it does not come from the main process, and notify_access is main"
        return "" if self._children.owns(child, notice.pid) else "its sender is no process of the unit, or has gone"

    def _pass_on(self, instance: InstanceName, listener: _Listener, said: Notification) -> None:
        names = (instance, listener.generation)
        if said.alive:
            listener.last_sign_at = self._loop.time()
        if said.status is not None:
            listener.status = said.status
        if said.main_pid is not None and listener.announces:
            child = self._main_of(*names)
            if child is None or said.main_pid != child.pid:
                if self.on_main_changed(*names, said.main_pid):
                    self._feed(told.MainChanged(*names, said.main_pid))
                else:
                    self._log.warning(
                        "main_pid_refused", unit=str(instance), pid=said.main_pid, reason="it is no process of the unit"
                    )
        if said.extend_s is not None:
            self._feed(told.Extended(*names, said.extend_s))
        if said.trigger:
            self._feed(told.WatchdogFired(*names, "it says so itself (WATCHDOG=trigger)"))
        if listener.announces:
            if said.reloading:
                self._feed(told.ReloadBegun(*names))
            if said.ready:
                self._feed(told.Ready(*names))
            if said.stopping:
                self._feed(told.StopBegun(*names))
