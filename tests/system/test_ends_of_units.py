"""How units are ended: to whom which signal goes, what is left when it may not be killed, and who has run long enough."""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from live_daemon import PROGRAMS, Daemon, daemon, simple
from support import alive, children, process_state, wait_until

IMPATIENT = str(PROGRAMS / "impatient_parsupd.py")
FREEZER = Path("/sys/fs/cgroup/freezer")


def noting(file: Path, *more: str, name: str = "a", **keys: Any) -> str:
    argv = json.dumps([sys.executable, "-S", str(PROGRAMS / "signals_noted.py"), str(file), *more])
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    return "\n".join([f"[unit.{name}]", "type = 'simple'", f"exec = {argv}", "stdout = 'null'", *lines, ""])


def noted(file: Path) -> set[str]:
    return set(file.read_text().splitlines()) if file.exists() else set()


def up(running: Daemon, file: Path, name: str = "a") -> tuple[int, int]:
    """The pids of the main process and its child, which have both begun to note."""
    wait_until(lambda: noted(file) == {"main up", "child up"}, what="both are up")
    main = running.status(f"{name}@1")["pid"]
    return main, children(main).pop()


MODES = [
    ("group", "SIGTERM", {"main SIGTERM", "child SIGTERM"}, False),
    ("group", "SIGUSR1", {"main SIGUSR1", "child SIGUSR1"}, False),
    ("process", "SIGTERM", {"main SIGTERM"}, True),
    ("process", "SIGINT", {"main SIGINT"}, True),
    ("mixed", "SIGTERM", {"main SIGTERM"}, False),
    ("mixed", "SIGUSR1", {"main SIGUSR1"}, False),
]


def test_who_gets_the_stop_signal(tmp_path: Path) -> None:
    """All, or the main process alone; then the child is killed, or lives on until parsupd ends."""
    files = {f"{mode}-{signum}": tmp_path / f"{mode}-{signum}" for mode, signum, *_ in MODES}
    units = [
        noting(files[f"{mode}-{signum}"], name=f"{mode}-{signum}", kill_mode=mode, kill_signal=signum)
        for mode, signum, *_ in MODES
    ]
    found = []
    with daemon(tmp_path, "\n".join(units)) as running:
        for mode, signum, got, child_lives in MODES:
            name = f"{mode}-{signum}"
            _, child = up(running, files[name], name)
            found.append(child)
            (status,) = running.call("stop", [name])
            assert status["sub_state"] == "dead"
            assert noted(files[name]) - {"main up", "child up"} == got
            assert alive(child) is child_lives
            assert running.call("why", name)[0]["incarnations"][-1]["cause"] == "exited with 0"
    assert not any(map(alive, found))


def test_what_is_not_to_be_killed_stays_and_that_is_said(tmp_path: Path) -> None:
    """With send_sigkill = false it becomes `unkillable`: no command hangs, no second copy is started, all is well when
    it ends after all.
    """
    file = tmp_path / "noted"
    keys = {"send_sigkill": False, "timeout_stop_sec": 0.2, "restart": "always", "restart_sec": 0}
    with daemon(tmp_path, noting(file, "stay", **keys)) as running:
        main, child = up(running, file)
        for command in ("restart", "stop", "start"):
            with pytest.raises(RuntimeError, match=r"unkillable: .* no second copy is started while it lives"):
                running.call(command, ["a"])
        status = running.status("a@1")
        assert (status["sub_state"], status["pid"], status["generation"]) == ("unkillable", main, 1)
        assert len(running.records("unit_unkillable")) == 1
        os.kill(main, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
        second = running.wait_for("a@1", lambda now: now["sub_state"] == "running" and now["generation"] == 2)["pid"]
        running.call("stop", ["a"], False)
        with contextlib.suppress(ProcessLookupError):  # it may have got the stop signal before it could ignore it
            os.killpg(second, signal.SIGKILL)
        running.wait_for("a@1", lambda now: now["sub_state"] == "dead")


@pytest.mark.skipif(
    not os.access(FREEZER / "cgroup.procs", os.W_OK),
    reason=f"no cgroup at {FREEZER} can be written: nothing else here makes a process that SIGKILL does not end",
)
def test_what_cannot_be_killed(tmp_path: Path) -> None:
    """A process that stands in a frozen cgroup does not end by SIGKILL: that is said, nothing hangs, other units are
    served, and when it is thawed, its unit is down.
    """
    cage = FREEZER / f"parsupd-test-{os.getpid()}"
    cage.mkdir()
    running = Daemon(tmp_path, f"[unit.a]\n{simple('exec sleep 600', timeout_stop_sec=0.2)}\n"
                     f"[unit.b]\n{simple('exec sleep 600')}", start=False)  # fmt: skip
    try:
        running.start(sys.executable, IMPATIENT)
        pid = running.wait_for("a@1", lambda status: status["sub_state"] == "running")["pid"]
        (cage / "cgroup.procs").write_text(str(pid))
        (cage / "freezer.state").write_text("FROZEN")
        wait_until(lambda: (cage / "freezer.state").read_text().strip() == "FROZEN", what="it is frozen")
        with pytest.raises(RuntimeError, match=r"a@1 is unkillable: something of it is left 0\.3 s after SIGKILL"):
            running.call("stop", ["a"])
        assert process_state(pid) == "D"
        (other,) = running.call("restart", ["b"])
        assert other["sub_state"] == "running"
        (cage / "freezer.state").write_text("THAWED")
        running.wait_for("a@1", lambda now: now["sub_state"] == "dead")
        assert running.stop() == 0
    finally:
        (cage / "freezer.state").write_text("THAWED")
        running.stop()
        wait_until(lambda: not (cage / "cgroup.procs").read_text(), what="it has gone")
        cage.rmdir()


def test_a_stopped_unit_hears_the_stop_signal(tmp_path: Path) -> None:
    """SIGCONT follows: it ends by the stop signal, not by SIGKILL after its time."""
    file = tmp_path / "noted"
    with daemon(tmp_path, noting(file)) as running:
        main, child = up(running, file)
        os.killpg(main, signal.SIGSTOP)
        wait_until(lambda: process_state(main) == process_state(child) == "T", what="both are stopped")
        (status,) = running.call("stop", ["a"])
        assert status["sub_state"] == "dead"
        assert noted(file) >= {"main SIGTERM", "child SIGTERM"}


def test_who_has_run_long_enough(tmp_path: Path) -> None:
    """runtime_max_sec is a failure by timeout, after that time, and for each instance of a spread another one."""
    keys = {"runtime_max_sec": 0.2, "runtime_max_spread_sec": 0.6, "instances": 3, "restart": "no"}
    with daemon(tmp_path, f"[unit.a]\n{simple('exec sleep 600', **keys)}") as running:
        names = ["a@1", "a@2", "a@3"]
        for name in names:
            running.wait_for(name, lambda status: status["sub_state"] == "failed")
        lives = [found["incarnations"][-1] for found in running.call("why", "a")]
    assert {life["cause"].split(":")[0] for life in lives} == {"timed out"}
    lasted = [life["ended_at"] - life["ready_at"] for life in lives]
    assert min(lasted) >= 0.199  # instants are shown to the millisecond
    assert len({round(each, 2) for each in lasted}) == 3
