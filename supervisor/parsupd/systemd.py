"""Keeps the service manager informed: ready, status, signs of life, reloads, the end. Without one it does nothing."""

import asyncio
import contextlib
from collections.abc import Iterator

from parsupd.core.summary import is_started, summary
from parsupd.executor import Executor
from parsupd.shell.notify_socket import BARRIER_S, Notifier

STATUS_EVERY_S = 0.1
"""Changes within this time are told in one message."""
EXTENSION_S = 30.0
"""How long a start may stand still before the service manager gives it up; asked for anew while the loop lives."""


class ServiceManager:
    """Watches one executor. All of it runs in the event loop, so that a loop that is stuck gives no sign of life."""

    def __init__(self, notifier: Notifier, executor: Executor) -> None:
        self._notifier = notifier
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._ready = False
        self._ending = False
        self._said = ""
        if notifier.listens:
            executor.on_change = self._changed
            self._extend_start()
            if notifier.watchdog_s is not None:
                self._beat(notifier.watchdog_s / 2)

    def _changed(self) -> None:
        at_once = not self._ready or (self._executor.fleet.shutting_down and not self._ending)
        if at_once:
            self._stop_timer("status")
        if "status" not in self._timers:
            self._timers["status"] = self._loop.call_later(0 if at_once else STATUS_EVERY_S, self._tell)

    def _tell(self) -> None:
        """Says what is new, if anything is."""
        self._timers.pop("status", None)
        statuses = self._executor.fleet.status()
        lines = []
        if self._executor.fleet.shutting_down and not self._ending:
            self._ending = True
            lines.append("STOPPING=1")
        if not self._ready and not self._ending and is_started(statuses):
            self._ready = True
            self._stop_timer("extend")
            lines.append("READY=1")
        storm = self._executor.fleet.storm
        text = f"{summary(statuses)}; {storm}" if storm else summary(statuses)
        if lines or text != self._said:
            self._said = text
            self._notifier.send(*lines, f"STATUS={text}")

    def _beat(self, every_s: float) -> None:
        self._notifier.send("WATCHDOG=1")
        self._timers["watchdog"] = self._loop.call_later(every_s, self._beat, every_s)

    def _extend_start(self) -> None:
        """As long as units are starting, this service is too: each of them has its own timeout."""
        self._notifier.send(f"EXTEND_TIMEOUT_USEC={EXTENSION_S * 1e6:.0f}")
        self._timers["extend"] = self._loop.call_later(EXTENSION_S / 3, self._extend_start)

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """A reload is under way."""
        self._notifier.reloading()
        try:
            yield
        finally:
            self._notifier.send("READY=1")

    def close(self, *, replaced: bool = False) -> None:
        """The last words; returns when the service manager has taken all that was said, or does not listen.

        One that is `replaced` in its process is not stopping: to the service manager that is a reload, which ends when
        the next one is ready.
        """
        for name in list(self._timers):
            self._stop_timer(name)
        if self._notifier.listens:
            self._tell()
            if replaced:
                self._notifier.reloading()
            elif not self._ending:  # it hands over
                self._notifier.send("STOPPING=1")
            self._notifier.barrier(BARRIER_S)

    def _stop_timer(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()
