"""A real parsupd in a process of its own, on a short-lived runtime directory, and what it leaves behind."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import wait_until

import workerlib

ROOT = Path(__file__).parents[1]
PARSUPD = str(Path(sys.executable).parent / "parsupd")


@dataclass
class Daemon:
    """One that runs."""

    process: subprocess.Popen[str]
    runtime: Path

    @property
    def socket(self) -> str:
        return str(self.runtime / "parsupd.sock")

    def ask(self, function: str, *args: Any, of: str = "parsup.Supervisor") -> Any:
        """Calls one function of the daemon."""

        async def call() -> Any:
            async with await workerlib.connect(f"PYRO:{of}@./u:{self.socket}", within_s=10) as connection:
                return await connection.call(function, *args)

        return asyncio.run(call())

    def wait_up(self) -> None:
        """Waits until the daemon accepts connections; fails with its output when it ends before."""

        def accepts() -> bool:
            with socket.socket(socket.AF_UNIX) as probe:
                return self.process.poll() is not None or probe.connect_ex(self.socket) == 0

        wait_until(accepts, what="the daemon's socket")
        assert self.process.poll() is None, self.process.communicate()[1]

    def wait_active(self, *names: str) -> list[dict[str, Any]]:
        """Waits until the named units are active; returns the status of their instances."""
        self.wait_up()
        return list(self.ask("wait", list(names), "active", 20))

    def finish(self, within_s: float = 30.0) -> tuple[int, str, str]:
        """Waits for the end; returns exit status, stdout and stderr."""
        stdout, stderr = self.process.communicate(timeout=within_s)
        return self.process.returncode, stdout, stderr

    def stop(self) -> tuple[int, str, str]:
        """Stops it as systemd would; returns exit status, stdout and stderr."""
        self.process.send_signal(signal.SIGTERM)
        return self.finish()


def processes_of(runtime: Path) -> list[int]:
    """Processes of units of the parsupd on that runtime directory, whoever is their parent now."""
    token = f"PARSUP_TOKEN=parsupd:{runtime}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environ = (entry / "environ").read_bytes()
            except OSError:
                continue
            if token in environ.split(b"\0"):
                found.append(int(entry.name))
    return found


def sockets_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_socket()]


@contextmanager
def parsupd(config: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[Daemon]:
    """Runs parsupd on the configuration; when the block is left it must have ended, or is killed with its units."""
    with tempfile.TemporaryDirectory(prefix="parsupd-") as folder:  # pytest's own are too long for a socket's path
        runtime = Path(folder) / "run"
        command = [PARSUPD, "--config", str(config), "--runtime-dir", str(runtime), "--state-dir", f"{folder}/state"]
        process = subprocess.Popen(
            [*command, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        try:
            yield Daemon(process, runtime)
        finally:
            if process.poll() is None:
                process.kill()
                for pid in processes_of(runtime):  # first: they hold the pipes that are read to their end
                    os.kill(pid, signal.SIGKILL)
                process.communicate()


def assert_nothing_left(runtime: Path) -> None:
    """No process of a unit lives, and no socket is there."""
    assert processes_of(runtime) == []
    assert sockets_in(runtime) == []
