"""Worker classes for the tests of spawning."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from workerlib import (
    DirectWriter,
    Handle,
    Redirect,
    Session,
    ShutdownOn,
    Worker,
    current_session,
    direct_pipe,
    one_way,
    pipe,
    reverse_pipe,
    rpc,
)


class Hanging(Worker):
    """Holds its own loop up."""

    @one_way
    async def hang(self) -> None:
        time.sleep(600)


class Sum(Worker):
    async def init(self, start: int = 0, note: str = "") -> None:
        print("init writes to stdout", flush=True)
        print(f"init writes to stderr {note}", file=sys.stderr, flush=True)
        self.total = start
        self.seen: list[str] = []

    async def connected(self, session: Session, who: str = "") -> str:
        if who == "nobody":
            raise PermissionError("nobody may connect")
        return who

    @rpc
    async def add(self, n: int) -> int:
        self.total += n
        return self.total

    @rpc
    def add_in_thread(self, n: int) -> int:
        self.total += n
        return self.total

    @one_way
    async def note(self, text: str) -> None:
        self.seen.append(text)

    @rpc
    async def notes(self) -> list[str]:
        return self.seen

    @rpc
    async def who(self) -> str:
        return str(current_session().state)

    @pipe
    async def squares(self, below: int) -> AsyncIterator[int]:
        for n in range(below):
            yield n * n

    @reverse_pipe
    async def add_all(self, updates: AsyncIterator[int]) -> int:
        async for n in updates:
            self.total += n
        return self.total

    @rpc
    async def pid(self) -> int:
        return os.getpid()

    @rpc
    async def facts(self) -> dict[str, str]:
        umask = os.umask(0)
        os.umask(umask)
        return {
            "pid": str(os.getpid()),
            "ppid": str(os.getppid()),
            "cwd": os.getcwd(),
            "umask": oct(umask),
            "home": os.environ.get("FAVOURITE", ""),
            "marker": os.environ.get("WORKERLIB_WORKER", "cleared"),
            "stdin": os.readlink("/proc/self/fd/0"),
            "argv": Path("/proc/self/cmdline").read_text().replace("\0", " "),
            "fds": " ".join(sorted(os.listdir("/proc/self/fd"), key=int)),
        }

    @rpc
    async def add_at(self, other: Handle["Sum"], n: int) -> tuple[int, Handle["Sum"]]:
        async with await other.connect() as connection:
            return await connection.run(Sum.add, n), other

    @rpc
    async def wait_for_ever(self) -> None:
        await asyncio.Event().wait()

    @rpc
    async def favourite(self) -> str:
        return os.environb[b"FAVOURITE"].hex()

    @rpc
    async def write(self, text: str) -> None:
        print(text, flush=True)
        print(text, file=sys.stderr, flush=True)

    @rpc
    async def raise_value_error(self) -> int:
        raise ValueError("not this value", 3)

    @rpc
    async def result_that_cannot_travel(self) -> object:
        return object()

    @rpc
    async def raise_later(self) -> str:
        asyncio.get_running_loop().call_soon(self._raise)
        return "returned before it"

    def _raise(self) -> None:
        raise RuntimeError("after the function had returned")

    @rpc
    async def spawn_another(self) -> Handle["Sum"]:
        null = Redirect.dev_null()
        return await Sum.spawn(
            self.total,
            shutdown_on=ShutdownOn.HEARTBEATER_CONNECTION_TIMEOUT,
            redirect_stdout=null,
            redirect_stderr=null,
        )


class Link(Worker):
    """One of a chain of workers, each spawned by the one before."""

    async def init(self, more: int) -> None:
        self.next = None
        if more:
            null = Redirect.dev_null()
            self.next = await Link.spawn(
                more - 1,
                shutdown_on=ShutdownOn.CONNECTION_CLOSED,
                redirect_stdout=null,
                redirect_stderr=null,
                connection_timeout_s=100,
            )

    @rpc
    async def pids(self) -> list[int]:
        """Of this one and of those behind it."""
        return [os.getpid(), *(await self.next.run(Link.pids) if self.next is not None else [])]


class RaisesInInit(Worker):
    async def init(self) -> None:
        raise ValueError("init does not like today")


class NeverInitialised(Worker):
    async def init(self, pid_file: str) -> None:
        Path(pid_file).write_text(str(os.getpid()))
        await asyncio.Event().wait()


class BlocksInInit(Worker):
    async def init(self, pid_file: str) -> None:
        Path(pid_file).write_text(str(os.getpid()))
        time.sleep(600)


class Impolite(Worker):
    @rpc
    async def take_bad_type(self, callback: "Unknown") -> None: ...  # type: ignore[name-defined]  # noqa: F821


class Ticker(Worker):
    """Keeps the writers of those who subscribed, and forgets the ones whose reader has gone."""

    async def init(self) -> None:
        self.writers: list[DirectWriter[int]] = []
        self.ticked = 0

    @direct_pipe
    async def ticks(self, out: DirectWriter[int]) -> None:
        self.writers.append(out)

    @direct_pipe
    async def count(self, out: DirectWriter[int], below: int) -> None:
        async def write() -> None:
            for n in range(below):
                out.write(n)
                if not n % 1000:
                    await out.flushed()
            out.close()

        self.writing = asyncio.create_task(write())

    @rpc
    async def pid(self) -> int:
        return os.getpid()

    @rpc
    async def tick(self, count: int) -> None:
        for _ in range(count):
            self.ticked += 1
            for out in self.writers:
                out.write(self.ticked)

    @rpc
    async def subscribers(self) -> int:
        self.writers = [out for out in self.writers if out.closed is None]
        return len(self.writers)


class Forker(Worker):
    """Forks in the middle of a call."""

    async def init(self) -> None:
        self.notes: list[str] = []

    @rpc
    async def fork(self, how: str) -> int:
        """The child's pid; the child ends by SystemExit, or by an error, or returns and goes on as a copy of this."""
        child = os.fork()
        if child:
            return child
        if how == "exit":
            sys.exit(0)
        if how == "raise":
            raise RuntimeError("in the child")
        if how == "wait":
            signal.pause()
        return 0

    @rpc
    async def from_thread(self) -> str:
        """Needs the loop to be woken up by another thread."""
        return await asyncio.get_running_loop().run_in_executor(None, lambda: "woken up")

    @rpc
    async def pid(self) -> int:
        return os.getpid()
