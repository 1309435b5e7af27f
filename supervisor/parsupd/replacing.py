"""Replaces the running daemon by another version of it in place: same process, children, sockets and state.

A version that does not start, cannot read the configuration or the state, is refused before anything is given up.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Any

from parsupd.executor import Executor
from parsupd.shell import replacement
from parsupd.shell.children import Children

CHECK = "takeover"
"""The command by which a version says whether it could take over."""
NAMES_ITSELF = "parsupd "
"""How its answer begins, with its version after it."""
CHECK_S = 30.0
SPAWNS_S = 5.0
"""How long what is being started may take to be so; after that, it is started anew by the next version."""
MOST_SAID = 4000


class NotReplacedError(Exception):
    """The running daemon goes on; the message says why."""


class Replacing:
    """For one daemon."""

    def __init__(self, children: Children, executor: Executor, start: Callable[[list[str]], Any]) -> None:
        """`start` begins the hand-over to a command."""
        self._children = children
        self._executor = executor
        self._start = start
        self._under_way = False

    async def replace(self, python: str) -> str:
        """Checks a version, and has it take over once this call has been answered; returns what it calls itself.

        Raises NotReplacedError.
        """
        if self._under_way:
            raise NotReplacedError("parsupd is being replaced already")
        self._under_way = True
        try:
            argv = replacement.same_command(python)
            version = await self._check(argv)
            loop = asyncio.get_running_loop()
            give_up_at = loop.time() + SPAWNS_S
            while self._executor.is_spawning and loop.time() < give_up_at:  # noqa: ASYNC110 - spawns have no common event
                await asyncio.sleep(0.02)
        except BaseException:
            self._under_way = False
            raise
        loop.call_soon(self._start, argv)
        return version

    async def _check(self, argv: list[str]) -> str:
        said = os.memfd_create("parsupd-check", os.MFD_CLOEXEC)
        try:
            try:
                child = self._children.spawn(
                    [*argv, CHECK], env=os.environ, cwd="", umask=None, stdout=said, stderr=said
                )
            except OSError as error:
                raise NotReplacedError(f"{argv[0]}: {error.strerror}; the running parsupd goes on") from None
            try:
                async with asyncio.timeout(CHECK_S):
                    cause = await asyncio.shield(child.exited)
            except TimeoutError:
                self._children.signal_all(child, 9)
                raise NotReplacedError(
                    f"{argv[0]} has not said within {CHECK_S:g} s that it could take over; the running parsupd goes on"
                ) from None
            text = os.pread(said, MOST_SAID, 0).decode(errors="backslashreplace").strip()
        finally:
            os.close(said)
        if cause is None or cause.status != 0:
            raise NotReplacedError(f"the other version cannot take over; the running parsupd goes on. It says:\n{text}")
        version = text.splitlines()[-1] if text else ""
        if not version.startswith(NAMES_ITSELF):  # exit status 0 is what many a program says to whatever it is asked
            raise NotReplacedError(f"{argv[0]} runs no parsupd; the running parsupd goes on. It says:\n{text}")
        return version
