"""A parsupd on a test's own directory, which can be killed and started again there."""

import contextlib
import json
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support import wait_until

from parsupd.shell import leftovers, log_pipes
from workerlib import WorkerlibError, blocking

PARSUPD = [sys.executable, "-m", "parsupd"]
PROGRAMS = Path(__file__).parent / "system" / "programs"

Info = dict[str, Any]


class Daemon:
    """A running parsupd, controlled through its own socket."""

    def __init__(self, folder: Path, config: str, *options: str, start: bool = True) -> None:
        self.folder = folder
        self.runtime = folder / "run"
        self.state = folder / "state"
        self.socket = self.runtime / "parsupd.sock"
        self.log = folder / "log"
        path = folder / "parsupd.toml"
        path.write_text(config)
        places = ["--runtime-dir", self.runtime, "--state-dir", self.state]
        self.command = ["--config", path, *places, "--log", "json", *options]
        if start:
            self.start()

    def start(self, *program: str, wait: bool = True) -> None:
        """Starts it, or after its end another one in its place; `program` instead of parsupd's own entry."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*(program or PARSUPD), *self.command], stdout=log, stderr=log)
        if wait:
            self.wait_up()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def wait_up(self) -> None:
        wait_until(lambda: self.answers() or self.process.poll() is not None, within_s=20, what="parsupd is up")

    def answers(self) -> bool:
        try:
            return bool(self.call("info")["pid"] == self.process.pid)
        except (OSError, WorkerlibError):
            return False

    def call(self, function: str, *args: Any, **kwargs: Any) -> Any:
        with blocking.connect(f"PYRO:parsup.Supervisor@./u:{self.socket}", within_s=10) as connection:
            return connection.call(function, *args, **kwargs)

    def status(self, name: str) -> Info:
        (info,) = self.call("status", [name])
        return dict(info)

    def wait_for(self, name: str, condition: Callable[[Info], bool], what: str = "") -> Info:
        """Waits until the instance's status fulfils the condition, and returns it."""

        def look() -> Info | None:
            status = self.status(name)
            return status if condition(status) else None

        found = wait_until(look, within_s=20, what=what or f"{name}: {self.status(name)}")
        assert found is not None
        return found

    def names(self) -> set[str]:
        with blocking.connect(f"PYRO:Pyro.NameServer@./u:{self.socket}", within_s=10) as connection:
            return set(connection.call("list"))

    def records(self, event: str = "") -> list[Info]:
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [record for record in map(json.loads, lines) if not event or record["event"] == event]

    def changes(self, unit: str) -> list[str]:
        """The states that an instance went through, from the log."""
        return [record["new"] for record in self.records("unit_changed") if record["unit"] == unit]

    def stop(self, signum: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(30)


@contextmanager
def daemon(folder: Path, config: str, *options: str) -> Iterator[Daemon]:
    """A parsupd for the time of a test; afterwards nothing of it is left."""
    running = Daemon(folder, config, *options)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.terminate()
            try:
                running.process.wait(20)
            except subprocess.TimeoutExpired:
                running.process.kill()
                running.process.wait()
    assert_nothing_left(running)


def assert_nothing_left(running: Daemon) -> None:
    token = leftovers.token_of(running.runtime)
    wait_until(lambda: not leftovers.find(token), what=f"no process left: {leftovers.find(token)}")
    wait_until(lambda: not loggers(running.runtime), what="no logger left")
    left = [str(path) for path in running.runtime.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]
    assert not left


def loggers(runtime: Path) -> list[int]:
    """Pids of the loggers of the parsupd on that directory, whoever is their parent."""
    mark = f"{log_pipes.MARK}={leftovers.token_of(runtime)}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def simple(script: str, **keys: Any) -> str:
    """The lines of a unit that runs a shell script."""
    keys.setdefault("type", "simple")
    lines = [f"exec = ['/bin/sh', '-c', {json.dumps(script)}]"]
    return "\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in keys.items())])


WORKER = (
    f"type = 'worker'\nworker = 'workers:Sum'\nworking_directory = {str(PROGRAMS)!r}\nstderr = 'null'\nstdout = 'null'"
)
