"""parsupctl reexec: another version in the same process, and units, callers and listeners notice nothing."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import live_daemon
import pytest
from live_daemon import Daemon
from parsupctl_process import PARSUPCTL
from support import alive, open_fds, wait_until

from workerlib import blocking

WEB = '[unit.web]\ntype = "simple"\nexec = ["/bin/sleep", "1000"]\nstdout = "null"\n'


def config(port: int) -> str:
    listener = "import socket, time; s = socket.socket(fileno=3)\\nwhile True: s.accept()[0].sendall(b'x')"
    return (
        f"{WEB}[unit.adder]\n{live_daemon.WORKER}\n"
        f'[unit.server]\ntype = "simple"\nexec = [{json.dumps(sys.executable)}, "-c", "{listener}"]\n'
        f'sockets = ["127.0.0.1:{port}"]\nstdout = "null"\n'
        '[unit.down]\ntype = "simple"\nexec = ["/bin/sleep", "1000"]\nenabled = false\n'
    )


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with live_daemon.daemon(tmp_path, config(port)) as running:
        running.call("wait", ["web", "adder", "server"], "active", 20)
        running.port = port  # type: ignore[attr-defined]
        yield running


def ctl(daemon: Daemon, *args: str) -> subprocess.CompletedProcess[str]:
    command = [PARSUPCTL, "--socket", str(daemon.socket), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def identities(daemon: Daemon) -> list[tuple[Any, ...]]:
    keys = ("name", "pid", "generation", "state", "restarts", "target")
    return [tuple(info[key] for key in keys) for info in daemon.call("status")]


def test_everything_goes_on_in_the_same_process(daemon: Daemon) -> None:
    """The same pid of parsupd and of all units, no restart; what was stopped stays down; exits are seen exactly."""
    before, started, fds = identities(daemon), daemon.call("info")["started"], len(open_fds(daemon.process.pid))
    for _ in range(2):
        done = ctl(daemon, "reexec", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["pid"] == daemon.process.pid
        assert identities(daemon) == before
    assert daemon.call("info")["started"] > started
    wait_until(lambda: "adder@1" in daemon.names())
    wait_until(lambda: len(open_fds(daemon.process.pid)) <= fds + 1, what="no descriptor is left from one to the next")
    web = daemon.status("web")
    os.kill(web["pid"], signal.SIGSEGV)
    daemon.wait_for("web", lambda info: info["generation"] == 2 and info["state"] == "active")
    assert daemon.call("why", "web")[0]["incarnations"][-1]["signal"] == "SIGSEGV"
    assert daemon.stop() == 0


def test_nobody_is_refused_meanwhile(daemon: Daemon) -> None:
    """Connections to parsupd, calls of a worker, and connections to a unit's socket, all the while."""
    troubles: list[str] = []
    counts = dict.fromkeys(("control", "worker", "socket"), 0)
    over = threading.Event()
    uri = daemon.status("adder")["uri"]

    def control() -> None:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(daemon.socket))

    def tcp() -> None:
        with socket.create_connection(("127.0.0.1", daemon.port), 20) as probe:  # type: ignore[attr-defined]
            assert probe.recv(1) == b"x"

    def repeat(what: str, act: Any) -> None:
        while not over.is_set():
            try:
                act()
                counts[what] += 1
            except Exception as error:
                troubles.append(f"{what}: {error!r}")
                return

    with blocking.connect(uri, "") as worker:
        acts = {"control": control, "worker": lambda: worker.call("add", 1), "socket": tcp}
        threads = [threading.Thread(target=repeat, args=each) for each in acts.items()]
        for thread in threads:
            thread.start()
        try:
            done = ctl(daemon, "reexec")
            seen = dict(counts)
            wait_until(lambda: all(counts[what] > seen[what] for what in counts) or troubles)
        finally:
            over.set()
            for thread in threads:
                thread.join()
    assert (done.returncode, troubles) == (0, [])


def test_a_version_that_cannot_take_over_changes_nothing(daemon: Daemon, tmp_path: Path) -> None:
    """One that does not start, one that is no parsupd, one that refuses the configuration: the running one goes on."""
    before, started = identities(daemon), daemon.call("info")["started"]
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho it is broken >&2\nexit 1\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    cases = {
        str(fake): "it is broken",
        str(tmp_path / "nothing"): "No such file",
        "/bin/true": "/bin/true runs no parsupd",
    }
    for python, said in cases.items():
        done = ctl(daemon, "reexec", "--python", python)
        assert done.returncode == 1
        assert said in done.stderr
        assert "the running parsupd goes on" in done.stderr
    (tmp_path / "parsupd.toml").write_text("[unit.x]\n")
    done = ctl(daemon, "reexec")
    assert done.returncode == 1
    assert "needs a type" in done.stderr
    assert identities(daemon) == before
    assert daemon.call("info")["started"] == started


def test_signals_that_come_meanwhile_are_not_lost(daemon: Daemon) -> None:
    """SIGTERM right after the answer: parsupd stops all units and ends, whichever program got it."""
    pids = [info["pid"] for info in daemon.call("status") if info["pid"]]
    daemon.call("reexec")
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(30) == 0
    assert not any(map(alive, pids))
