"""Units that fork without end, leave zombies by the thousand, hold pipes open, or run away: nothing of them is left."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from live_daemon import Daemon, daemon, simple
from support import alive, children, process_state, wait_until

from parsupd.shell import leftovers


def program(code: str, **keys: Any) -> str:
    keys = {"stdout": "null", **keys}
    argv = json.dumps([sys.executable, "-S", "-c", code])
    return "\n".join(
        ["[unit.a]", "type = 'simple'", f"exec = {argv}", *(f"{k} = {json.dumps(v)}" for k, v in keys.items())]
    )


def of_unit(running: Daemon) -> list[int]:
    return [one.pid for one in leftovers.find(leftovers.token_of(running.runtime))]


BOMB = """
import os, signal
for depth in range(8):
    if os.fork() == 0:
        if depth % 2:
            os.setsid()
        if depth % 3:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.pause()
"""


def test_a_fork_bomb(tmp_path: Path) -> None:
    """256 processes that fork each other, many in sessions of their own, many deaf to SIGTERM: a stop ends them all."""
    with daemon(tmp_path, program(BOMB, timeout_stop_sec=0.2)) as running:
        found = wait_until(lambda: pids if len(pids := of_unit(running)) == 256 else None, what="all are there")
        (status,) = running.call("stop", ["a"])
        assert status["sub_state"] == "dead"
        assert not [pid for pid in found if alive(pid)]


HYDRA = """
import os, signal
def again(*_):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
    else:
        os._exit(0)
signal.signal(signal.SIGTERM, again)
signal.pause()
while True:
    signal.pause()
"""


def test_one_that_answers_a_stop_with_a_fork(tmp_path: Path) -> None:
    """Each time it is asked to end it leaves a daemon that does the same: SIGKILL ends the last one."""
    with daemon(tmp_path, program(HYDRA, timeout_stop_sec=0.3)) as running:
        running.wait_for("a@1", lambda status: status["sub_state"] == "running")
        (status,) = running.call("stop", ["a"])
        assert status["sub_state"] == "dead"
        assert not of_unit(running)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user, and root has no such limit")
def test_a_limit_of_processes_holds(tmp_path: Path) -> None:
    """limit_nproc of a user's unit: its forks fail, parsupd and other units have their own."""
    tmp_path.chmod(0o755)
    code = "import os, signal\nfor _ in range(100):\n    try:\n        pid = os.fork()\n    except BlockingIOError:\n        break\n    if pid == 0:\n        break\nsignal.pause()"
    python = "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable
    text = program(code, user="nobody", limit_nproc=20, working_directory="/").replace(sys.executable, python)
    with daemon(tmp_path, text) as running:
        running.wait_for("a@1", lambda status: status["sub_state"] == "running")
        count = wait_until(lambda: len(of_unit(running)) > 1 and len(of_unit(running)), what="it has forked")
        assert count <= 20
        (status,) = running.call("stop", ["a"])
        assert status["sub_state"] == "dead"


ZOMBIES = """
import os, signal, time
out, into = os.pipe()
if os.fork() == 0:
    for _ in range(2000):
        if os.fork() == 0:
            os.close(into)
            os.read(out, 1)
            os._exit(7)
    os._exit(0)
os.wait()
os.kill(os.getpid(), signal.SIGSTOP)
os.close(into)
signal.pause()
"""


def test_zombies_by_the_thousand(tmp_path: Path) -> None:
    """2000 orphans become parsupd's children, and end at once: all are reaped, and meanwhile it answers."""
    with daemon(tmp_path, program(ZOMBIES)) as running:
        main = running.wait_for("a@1", lambda status: status["sub_state"] == "running")["pid"]
        wait_until(lambda: process_state(main) == "T", within_s=30, what="it has left all of them")
        wait_until(lambda: len(children(running.process.pid)) >= 2001, what="they are parsupd's")
        os.kill(main, 18)  # SIGCONT
        slowest = 0.0
        while len(children(running.process.pid)) > 1:
            begun = time.monotonic()
            assert running.status("a@1")["pid"] == main
            slowest = max(slowest, time.monotonic() - begun)
        assert slowest < 5.0
        assert children(running.process.pid) == {main}
        (status,) = running.call("stop", ["a"])
        assert status["sub_state"] == "dead"


def test_pipes_that_are_held_open(tmp_path: Path) -> None:
    """Grandchildren that keep a unit's stdout keep nobody waiting: it is restarted, their lines arrive, a stop is one."""
    script = "(setsid sh -c 'echo late; exec sleep 600' &) ; exit 1"
    keys = {"kill_mode": "process", "restart_sec": 0, "start_limit_burst": 3, "restart_steps": 0, "stdout": "file"}
    with daemon(tmp_path, f"[unit.a]\n{simple(script, **keys)}") as running:
        running.wait_for("a@1", lambda status: status["sub_state"] == "failed")
        log = running.state / "logs" / "a@1.log"
        wait_until(lambda: log.exists() and log.read_text().count(" stdout late\n") == 3, what="what they say")
        assert len(of_unit(running)) == 3
        begun = running.process.pid
        assert running.stop() == 0
        assert not alive(begun)


ESCAPE = """
import os, signal
for clear in (False, True):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        with open(f"{FOLDER}/{'cleared' if clear else 'kept'}", "w") as file:
            file.write(str(os.getpid()))
        if clear:
            os.execve("/bin/sleep", ["sleep", "600"], {})
        os.execv("/bin/sleep", ["sleep", "600"])
signal.pause()
"""


def test_those_that_run_away(tmp_path: Path) -> None:
    """A daemon in a session of its own ends with its unit; one that has also cleared its environment with parsupd."""
    code = ESCAPE.replace("{FOLDER}", str(tmp_path))
    with daemon(tmp_path, program(code)) as running:
        kept, cleared = (
            int(wait_until(lambda name=name: (tmp_path / name).exists() and (tmp_path / name).read_text()))
            for name in ("kept", "cleared")
        )
        wait_until(lambda: {kept, cleared} <= children(running.process.pid), what="they are parsupd's")
        try:
            (status,) = running.call("stop", ["a"])
            assert status["sub_state"] == "dead"
            assert not alive(kept)
            assert running.stop() == 0
            assert not alive(cleared)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(cleared, 9)
