"""Control groups of runs, and the limits of runs, with a real parsupd in a group that looks delegated."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from control_groups import control_group, members, parsupd_in
from live_daemon import PROGRAMS, WORKER, Daemon, Info, assert_nothing_left, daemon, simple
from parsupctl_process import PARSUPCTL
from support import alive, wait_until

from parsupd.core.cgroups import LEAF
from parsupd.shell.cgroup import OWNER

# Leaves session, parent and environment behind, and ignores the stop signal.
ESCAPEE = """(setsid env -i /bin/sh -c 'trap "" TERM; sleep 1000; :' &) ; exec sleep 1000"""


@pytest.fixture
def group() -> Iterator[Path]:
    with control_group() as made:
        yield made


def started(folder: Path, group: Path, text: str) -> Daemon:
    made = Daemon(folder, text, start=False)
    made.start(*parsupd_in(group))
    return made


def in_state(*states: str) -> Any:
    return lambda status: status["sub_state"] in states


def finish(parsupd: Daemon) -> None:
    """Ends it in order; nothing of it is left."""
    parsupd.stop()
    assert_nothing_left(parsupd)


def runs(group: Path) -> set[str]:
    """The names of the groups of runs that there are."""
    return {entry.name for entry in group.iterdir() if entry.is_dir()} - {LEAF}


def unit(name: str, script: str, **keys: Any) -> str:
    return f"[unit.{name}]\n{simple(script, **keys)}\n"


def test_nobody_leaves_the_group_of_a_run(tmp_path: Path, group: Path) -> None:
    """Programs, workers and commands are in groups of their own; what has changed all that it could is ended by a stop."""
    text = unit(
        "a", ESCAPEE, timeout_stop_sec=0.3, exec_stop=["/bin/sh", "-c", f"cp /proc/self/cgroup {tmp_path}/stop"]
    )
    parsupd = started(tmp_path, group, text + f"[unit.w]\n{WORKER}\n")
    try:
        assert parsupd.process.pid in members(group / LEAF)  # with its logger
        pid = parsupd.wait_for("a@1", in_state("running"))["pid"]
        wait_until(lambda: len(members(group / "a@1.1")) == 3, what="main process, shell and sleep")
        escaped = set(members(group / "a@1.1")) - {pid}
        worker = parsupd.wait_for("w@1", in_state("running"))["pid"]
        assert worker in members(group / "w@1.1")
        assert runs(group) == {"a@1.1", "w@1.1"}
        parsupd.call("stop", ["a"])
        assert not any(map(alive, escaped))
        assert (tmp_path / "stop").read_text().splitlines()[-1].endswith("/a@1.1.command")
        assert runs(group) == {"w@1.1"}
        parsupd.call("restart", ["w"])
        assert runs(group) == {"w@1.2"}
    finally:
        finish(parsupd)
    assert runs(group) == set()


def test_a_start_that_fails_leaves_no_group(tmp_path: Path, group: Path) -> None:
    """Neither a missing program nor a worker that cannot be imported."""
    broken = WORKER.replace("workers:Sum", "workers:Missing")
    text = (
        f"[unit.a]\ntype = 'simple'\nexec = ['/does/not/exist']\nrestart = 'no'\n[unit.w]\n{broken}\nrestart = 'no'\n"
    )
    parsupd = started(tmp_path, group, text)
    try:
        for name in ("a@1", "w@1"):
            parsupd.wait_for(name, in_state("failed"))
        wait_until(lambda: not runs(group), what="no group")
    finally:
        finish(parsupd)


def test_groups_are_found_again_after_a_kill(tmp_path: Path, group: Path) -> None:
    """The next parsupd adopts a run with all in its group, and ends what is in the group of a run that it does not know."""
    parsupd = started(tmp_path, group, unit("a", ESCAPEE, timeout_stop_sec=0.3))
    try:
        pid = parsupd.wait_for("a@1", in_state("running"))["pid"]
        wait_until(lambda: len(members(group / "a@1.1")) == 3)
        escaped = set(members(group / "a@1.1")) - {pid}
        parsupd.kill()
        (group / "gone@1.4").mkdir()
        (group / "gone@1.3").mkdir()
        script = f"echo 0 >{group}/gone@1.3/cgroup.procs && exec sleep 1000"
        with subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True) as left:
            wait_until(lambda: members(group / "gone@1.3"))
            parsupd.start(*parsupd_in(group))
            assert left.wait(20) == -signal.SIGTERM
        assert parsupd.wait_for("a@1", in_state("running"))["pid"] == pid
        assert all(map(alive, escaped))
        wait_until(lambda: runs(group) == {"a@1.1"})
        assert parsupd.process.pid in members(group / LEAF)  # with its logger
        parsupd.call("reexec")
        wait_until(parsupd.answers, within_s=20)
        assert parsupd.status("a@1")["pid"] == pid
        parsupd.call("stop", ["a"])
        assert not any(map(alive, escaped))
    finally:
        finish(parsupd)
    assert runs(group) == set()


def test_what_a_unit_may_leave_is_listed_and_ends_with_parsupd(tmp_path: Path, group: Path) -> None:
    """With kill_mode = "process", others are left to themselves: `leaks` finds them in the group, without environment."""
    parsupd = started(tmp_path, group, unit("a", ESCAPEE, kill_mode="process"))
    try:
        pid = parsupd.wait_for("a@1", in_state("running"))["pid"]
        wait_until(lambda: len(members(group / "a@1.1")) == 3)
        left = set(members(group / "a@1.1")) - {pid}
        parsupd.call("stop", ["a"])
        command = [PARSUPCTL, "--socket", str(parsupd.socket), "leaks", "--json"]
        listed = json.loads(subprocess.run(command, capture_output=True, check=False, timeout=20).stdout)
        assert {(one["pid"], one["instance"], one["generation"]) for one in listed} == {(one, "a@1", 1) for one in left}
    finally:
        finish(parsupd)
    assert not any(map(alive, left))
    assert runs(group) == set()


def reason_of(parsupd: Daemon) -> str:
    (record,) = parsupd.records("no_control_groups")
    return str(record["reason"])


def test_what_is_not_delegated_is_not_touched(tmp_path: Path) -> None:
    """That parsupd could write a group is not enough."""
    with control_group(delegated=False) as group:
        parsupd = started(tmp_path, group, unit("a", "exec sleep 1000"))
        try:
            pid = parsupd.wait_for("a@1", in_state("running"))["pid"]
            assert {pid, parsupd.process.pid} <= set(members(group))
            assert [entry for entry in group.iterdir() if entry.is_dir()] == []
            assert "not marked as delegated" in reason_of(parsupd)
        finally:
            finish(parsupd)


def test_one_group_is_for_one_parsupd(tmp_path: Path, group: Path) -> None:
    """A second one that is started in the same group leaves the first one's runs alone."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = started(tmp_path / "one", group, unit("a", "exec sleep 1000"))
    try:
        pid = one.wait_for("a@1", in_state("running"))["pid"]
        two = started(tmp_path / "two", group, unit("a", "exec sleep 1000"))
        try:
            two.wait_for("a@1", in_state("running"))
            assert "is used by another parsupd" in reason_of(two)
            assert members(group / "a@1.1") == [pid]
        finally:
            finish(two)
        assert one.status("a@1")["pid"] == pid
    finally:
        finish(one)
    assert os.getxattr(group / LEAF, OWNER)


GROWING = f"exec {sys.executable} -c 'import time; kept = bytearray(80 << 20); time.sleep(600)'"
WATCHED = [
    ("memory_max", "60M", GROWING, "it takes 8", "no memory controller is delegated"),
    ("tasks_max", 5, "for i in 1 2 3 4 5 6; do sleep 1000 & done; wait", "processes and threads, and tasks_max is 5", "no pids controller"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "script", "found", "why"), WATCHED)
def test_limits_are_watched_where_the_kernel_cannot_hold_them(
    tmp_path: Path, key: str, value: Any, script: str, found: str, why: str
) -> None:
    """A run above them is killed, as the kernel would do it, and the reason says who did that and why; so does status."""
    text = unit("a", script, restart_sec=600, timeout_stop_sec=600, **{key: value})
    with daemon(tmp_path, text + unit("b", "exec sleep 1000", **{key: "1G" if key == "memory_max" else 50})) as parsupd:
        assert parsupd.wait_for("b@1", in_state("running"))["limits"] == {key: "watched"}
        reason = parsupd.wait_for("a@1", in_state("backoff"))["reason"]
        assert found in reason
        assert why in reason
        assert parsupd.status("b@1")["sub_state"] == "running"


def test_a_limit_changes_while_the_unit_runs(tmp_path: Path) -> None:
    """A lower one is enforced from the reload on, without a restart for its sake; nothing else is touched."""
    text = unit("a", GROWING, restart_sec=600) + unit("b", "exec sleep 1000")
    with daemon(tmp_path, text) as parsupd:
        pid = parsupd.wait_for("b@1", in_state("running"))["pid"]
        parsupd.wait_for("a@1", in_state("running"))
        (tmp_path / "parsupd.toml").write_text(text.replace("[unit.a]", "[unit.a]\nmemory_max = '60M'"))
        assert [one["action"] for one in parsupd.call("reload")["units"]] == ["change"]
        parsupd.wait_for("a@1", in_state("backoff"))
        assert parsupd.status("b@1")["pid"] == pid


def test_limits_of_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written when a run starts and when a reload changes them; `why` tells what the kernel did about them."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "cgroup.controllers").write_text("cpu memory pids")
    (tree / "cgroup.subtree_control").touch()
    monkeypatch.setenv("PARSUPD_TEST_TREE", str(tree))
    text = unit("a", "exec sleep 1000", memory_max="64M", tasks_max=50, exec_start_pre=["/bin/true"])
    parsupd = Daemon(tmp_path, text + unit("b", "exec sleep 1000"), start=False)
    parsupd.start(sys.executable, str(PROGRAMS / "parsupd_on_files.py"))
    try:
        status = parsupd.wait_for("a@1", in_state("running"))
        assert status["limits"] == {"memory_max": "cgroup", "tasks_max": "cgroup"}
        assert parsupd.call("show", "a")["instances"][0]["limits"] == status["limits"]
        parsupd.wait_for("b@1", in_state("running"))
        assert [(tree / name / "memory.max").read_text() for name in ("a@1.1", "b@1.1")] == [str(64 << 20), ""]
        (tmp_path / "parsupd.toml").write_text(
            text.replace("64M", "32M").replace("tasks_max = 50", "") + unit("b", "exec sleep 1000")
        )
        parsupd.call("reload")
        assert (tree / "a@1.1/memory.max").read_text() == str(32 << 20)
        assert (tree / "a@1.1/pids.max").read_text() == "max"
        (tree / "a@1.1/memory.events").write_text("oom_kill 1")
        os.kill(status["pid"], signal.SIGKILL)
        parsupd.wait_for("a@1", lambda now: now["sub_state"] == "running" and now["generation"] == 2)
        (why,) = parsupd.call("why", "a")
        (run,) = why["incarnations"]
        assert run["cause"] == "was killed by SIGKILL: the kernel's OOM killer, memory_max is 32 MiB"
        assert run["oom_killed"]
        assert runs(tree) == {"a@1.2", "b@1.1"}
    finally:
        finish(parsupd)
    assert runs(tree) == set()


CAP_SYS_RESOURCE = 24


def max_processes(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line for line in lines if line.startswith("Max processes")).split()[2:4]


def test_tasks_of_a_user_of_its_own(tmp_path: Path) -> None:
    """The kernel holds tasks_max for a unit whose user no other has; a reload sets another limit for all that runs."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a unit as another user")
    text = unit("a", "sleep 1000 & wait", user="games", tasks_max=200)
    with daemon(tmp_path, text) as parsupd:
        status: Info = parsupd.wait_for("a@1", in_state("running"))
        assert status["limits"] == {"tasks_max": "rlimit"}
        assert max_processes(status["pid"]) == ["200", "200"]
        (tmp_path / "parsupd.toml").write_text(text.replace("200", "100"))
        parsupd.call("reload")
        may = int(Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0], 16) >> CAP_SYS_RESOURCE & 1
        assert max_processes(status["pid"]) == (["100", "100"] if may else ["200", "200"])
        after = parsupd.status("a@1")
        assert after["limits"] == {"tasks_max": "rlimit" if may else "watched"}
        assert after["pid"] == status["pid"]
