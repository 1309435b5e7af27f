"""Two worlds in which the same things happen to processes: a real one, and one that is a table."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Protocol

import pytest
from fake_kernel import SOMEBODY, FakeKernel
from support import children as own_children
from support import wait_until

from parsupd.core.units import InstanceName
from parsupd.shell import leftovers
from parsupd.shell.children import Child, Children
from parsupd.shell.kernel import Kernel
from parsupd.shell.leftovers import Tag
from workerlib.core.daemonizing import Exited

PUPPET = [sys.executable, "-S", "-E", str(Path(__file__).parent / "puppet.py")]
TICKS = os.sysconf("SC_CLK_TCK")
TOKEN = f"contract:{os.getpid()}"
OURS = Tag(TOKEN, InstanceName("unit", 1), 1)
OTHERS = Tag(TOKEN, InstanceName("other", 1), 1)


class World(Protocol):
    """What happens to processes. Each call returns when it has happened, but for the end of a process."""

    kernel: Kernel

    def unit(self, children: Children) -> Child:
        """A process that the daemon starts, with the tag of the unit, and in a group of its own."""

    def foreign(self) -> int:
        """The same, started by somebody else, who reaps nothing by himself."""

    def fork(self, pid: int) -> int: ...
    def setsid(self, pid: int) -> None: ...
    def ignore(self, pid: int, signum: int) -> None: ...
    def exit(self, pid: int, code: int) -> None: ...

    def reap(self, pid: int) -> None:
        """A process that somebody else has started has ended, and is reaped."""

    def take(self, pid: int, after: int = 0) -> None:
        """A pid that is free becomes that of a stranger, who leads a group; later than the start time `after`."""

    def thread(self) -> int:
        """The number of a thread of somebody else."""

    def close(self) -> None: ...


class FakeWorld:
    """Happens in a table."""

    def __init__(self) -> None:
        self.kernel: FakeKernel = FakeKernel()
        self.fork, self.setsid, self.ignore = self.kernel.fork, self.kernel.setsid, self.kernel.ignore
        self.reap, self.thread = self.kernel.reap_of, self.kernel.thread

    def unit(self, children: Children) -> Child:
        self.kernel.start(100, parent=self.kernel.pid, tag=OURS)
        return children.adopt(100, OURS)

    def foreign(self) -> int:
        self.kernel.start(200, parent=SOMEBODY, tag=OURS)
        return 200

    def exit(self, pid: int, code: int) -> None:
        self.kernel.end(pid, Exited(code))

    def take(self, pid: int, after: int = 0) -> None:
        self.kernel.start(pid, parent=SOMEBODY)

    def close(self) -> None: ...


class RealWorld:
    """Happens to puppets. The somebody else is a puppet, too."""

    def __init__(self) -> None:
        self.kernel: Kernel = Kernel()
        self._folder = tempfile.TemporaryDirectory(prefix="contract-")
        self._path = f"{self._folder.name}/s"
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(self._path)
        self._listening.listen()
        self._listening.settimeout(20)
        self._strings: dict[int, socket.socket] = {}
        self._before = own_children()
        subprocess.Popen([*PUPPET, self._path]).returncode = 0  # the one that reaps waits for it, not its destructor
        self._somebody = self._welcome()

    def _welcome(self) -> int:
        string, _ = self._listening.accept()
        string.settimeout(20)
        pid = int(string.recv(64))
        if (old := self._strings.pop(pid, None)) is not None:
            old.close()
        self._strings[pid] = string
        return pid

    def _tell(self, pid: int, line: str) -> str:
        self._strings[pid].sendall(line.encode())
        return self._strings[pid].recv(256).decode().strip()

    @staticmethod
    def _environment(tag: Tag) -> dict[str, str]:
        return {
            leftovers.TOKEN: tag.token,
            "PARSUP_UNIT": tag.instance.unit,
            "PARSUP_INSTANCE": str(tag.instance.number),
            "PARSUP_GENERATION": str(tag.generation),
        }

    def _words(self, tag: Tag) -> str:
        return " ".join(f"{name}={value}" for name, value in self._environment(tag).items())

    def unit(self, children: Children) -> Child:
        command = [*PUPPET, self._path]
        child = children.spawn(command, env=self._environment(OURS), cwd="/", umask=None, stdout=2, stderr=2, tag=OURS)
        assert self._welcome() == child.pid
        return child

    def foreign(self) -> int:
        assert self._tell(self._somebody, f"start {self._words(OURS)}") == "ok"
        return self._welcome()

    def fork(self, pid: int) -> int:
        self._tell(pid, "fork")
        return self._welcome()

    def setsid(self, pid: int) -> None:
        self._tell(pid, "setsid")

    def ignore(self, pid: int, signum: int) -> None:
        self._tell(pid, f"ignore {signum}")

    def exit(self, pid: int, code: int) -> None:
        assert self._tell(pid, f"exit {code}") == ""

    def reap(self, pid: int) -> None:
        self._tell(self._somebody, "reap")

    def take(self, pid: int, after: int = 0) -> None:
        wait_until(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) * TICKS >= after + 2, what="another start time")
        answer = self._tell(self._somebody, f"take {pid} {self._words(OTHERS)}")
        if answer == "Operation not permitted":
            pytest.skip("no pid can be chosen: that needs CAP_CHECKPOINT_RESTORE, see clone3(2)")
        assert answer == "ok", answer
        assert self._welcome() == pid

    def thread(self) -> int:
        return int(self._tell(self._somebody, "thread"))

    def close(self) -> None:
        for string in self._strings.values():
            string.close()  # at which its puppet ends
        self._listening.close()
        self._folder.cleanup()
        while left := own_children() - self._before:  # each may leave more
            os.waitpid(left.pop(), 0)
