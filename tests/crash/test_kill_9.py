"""kill -9 of parsupd at every point: the next one adopts what lives, targets are met, nothing runs twice or is left."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from live_daemon import WORKER, Daemon, Info, assert_nothing_left, daemon, simple
from support import alive, process_state, wait_until

from parsupd.core import snapshot
from parsupd.shell import leftovers, state_file
from workerlib import WorkerlibError, blocking
from workerlib.shell import process

DYING = str(Path(__file__).parent / "dying_parsupd.py")
UNITS = f"""
[unit.program]
{simple("sleep 600")}
[unit.worker]
{WORKER}
instances = 2
requires = ["program"]
[unit.job]
{simple("sleep 0.2", type="oneshot", requires=["worker"])}
"""
EFFECTS = 14
"""At least as many as it takes to bring these units up."""
STOP_EFFECTS = 14
RELOAD_EFFECTS = 30
"""As many as an undisturbed stop, and reload, has."""


def processes(running: Daemon) -> dict[str, set[int]]:
    """Which process groups there are of each instance, by the token in the environment of their processes."""
    found: dict[str, set[int]] = {}
    for one in leftovers.find(leftovers.token_of(running.runtime)):
        found.setdefault(str(one.instance), set()).add(one.group)
    return found


def settled(running: Daemon) -> bool:
    states = {info["name"]: info["sub_state"] for info in running.call("status")}
    return states == {
        "program@1": "running",
        "worker@1": "running",
        "worker@2": "running",
        "job@1": "exited",
    }


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("effect", range(1, EFFECTS + 1))
def test_kill_9_at_each_effect_of_a_start(effect: int, when: str, tmp_path: Path) -> None:
    """Whenever parsupd is killed while it brings its units up, the next one brings up exactly one of each."""
    running = Daemon(tmp_path, UNITS, start=False)
    running.start(sys.executable, DYING, str(effect), when, wait=False)
    assert running.process.wait(30) == -signal.SIGKILL
    try:
        running.start()
        wait_until(lambda: settled(running), within_s=20, what="all units are up")
        assert {name: len(groups) for name, groups in processes(running).items()} == {
            "program@1": 1,
            "worker@1": 1,
            "worker@2": 1,
        }
    finally:
        assert running.stop() == 0
    assert_nothing_left(running)


@contextmanager
def killed_later(tmp_path: Path, effect: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A parsupd whose units are up; it is killed after so many effects from now on, and leaving the context waits for
    that. Then another one is started.
    """
    begin = tmp_path / "begin"
    monkeypatch.setenv("COUNTED_FROM", str(begin))
    running = Daemon(tmp_path, UNITS, start=False)
    running.start(sys.executable, DYING, str(effect), "after")
    monkeypatch.delenv("COUNTED_FROM")
    wait_until(lambda: settled(running), within_s=20, what="all units are up")
    begin.touch()
    yield running
    assert running.process.wait(30) == -signal.SIGKILL
    running.start()


@pytest.mark.parametrize("effect", range(1, STOP_EFFECTS + 1))
def test_kill_9_at_each_effect_of_a_stop(effect: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever parsupd is killed while it stops a unit and what requires it, the next one goes on with that."""
    with killed_later(tmp_path, effect, monkeypatch) as running, contextlib.suppress(OSError, WorkerlibError):
        running.call("stop", ["program"], False)  # one order: what comes after it may not have been heard any more
    try:
        down = {"program@1": "dead", "worker@1": "dead", "worker@2": "dead", "job@1": "exited"}
        wait_until(
            lambda: {info["name"]: info["sub_state"] for info in running.call("status")} == down, what="all is down"
        )
        assert processes(running) == {}
        assert {info["generation"] for info in running.call("status")} == {1}, "something was started"
    finally:
        assert running.stop() == 0
    assert_nothing_left(running)


@pytest.mark.parametrize("effect", range(1, RELOAD_EFFECTS + 1))
def test_kill_9_at_each_effect_of_a_reload(effect: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever parsupd is killed while it reloads, the next one has what the file says, each process once."""
    with killed_later(tmp_path, effect, monkeypatch) as running:
        config = UNITS.replace("sleep 600", "sleep 700").replace("instances = 2", "instances = 3")
        (tmp_path / "parsupd.toml").write_text(config)
        running.process.send_signal(signal.SIGHUP)
    try:
        once = {"program@1": 1, "worker@1": 1, "worker@2": 1, "worker@3": 1}
        wait_until(
            lambda: (
                {name: len(groups) for name, groups in processes(running).items()} == once
                and all(info["state"] == "active" or info["type"] == "oneshot" for info in running.call("status"))
            ),
            within_s=20,
            what="each unit is up once",
        )
        assert running.call("show", "program")["keys"]["exec"][-1].endswith("sleep 700")
        (pid,) = processes(running)["program@1"]
        wait_until(lambda: b"700" in Path(f"/proc/{pid}/cmdline").read_bytes(), what="it is the new one")
    finally:
        assert running.stop() == 0
    assert_nothing_left(running)


def test_living_units_are_adopted(tmp_path: Path) -> None:
    """After kill -9 the same processes go on, under the same generation and names, and are stopped with the new one."""
    with daemon(tmp_path, UNITS) as running:
        wait_until(lambda: settled(running), within_s=20, what="all units are up")
        before = {info["name"]: (info["pid"], info["generation"], info["uri"]) for info in running.call("status")}
        running.kill()
        running.start()
        after = {info["name"]: (info["pid"], info["generation"], info["uri"]) for info in running.call("status")}
        assert after == before
        assert {"worker@1", "worker@2"} <= running.names()
        assert len(running.records("unit_adopted")) == 3
        with blocking.connect(before["worker@1"][2]) as connection:
            assert connection.call("add", 1) == 1
    assert not any(alive(pid) for pid, _, _ in before.values() if pid)


def test_a_second_crash_finds_what_the_first_left(tmp_path: Path) -> None:
    """What was adopted and has not changed since is on record for the next one, too."""
    with daemon(tmp_path, UNITS) as running:
        wait_until(lambda: settled(running), within_s=20, what="all units are up")
        before = {info["name"]: (info["pid"], info["generation"]) for info in running.call("status")}
        for _ in range(3):
            running.kill()
            running.start()
            assert {info["name"]: (info["pid"], info["generation"]) for info in running.call("status")} == before
        assert not running.records("leftover_ended")


def test_a_changed_configuration_takes_effect_at_the_next_start(tmp_path: Path) -> None:
    """A parsupd that adopts units puts its configuration in force as a reload does: what differs, and nothing else."""
    kept, changed, gone = simple("sleep 600"), simple("sleep 601"), simple("sleep 602")
    with daemon(tmp_path, f"[unit.kept]\n{kept}\n[unit.changed]\n{changed}\n[unit.gone]\n{gone}") as running:
        before = {name: running.wait_for(f"{name}@1", up)["pid"] for name in ("kept", "changed", "gone")}
        running.kill()
        (tmp_path / "parsupd.toml").write_text(
            f"[unit.kept]\n{kept}\n[unit.changed]\n{simple('sleep 611')}\n[unit.new]\n{simple('sleep 603')}"
        )
        running.start()
        assert running.wait_for("changed@1", lambda status: up(status) and status["generation"] == 2)
        assert running.wait_for("new@1", up)
        assert running.status("kept@1")["pid"] == before["kept"]
        wait_until(lambda: process_state(before["gone"]) in {None, "Z"}, what="the removed unit is stopped")
        wait_until(lambda: len(running.call("status")) == 3, what="it is forgotten")


def up(status: Info) -> bool:
    return bool(status["sub_state"] == "running")


def test_a_connection_to_a_worker_outlives_parsupd(tmp_path: Path) -> None:
    """Calls to a worker go on while its parsupd is dead, and its state with them."""
    with daemon(tmp_path, UNITS) as running:
        wait_until(lambda: settled(running), within_s=20, what="all units are up")
        uri = running.status("worker@1")["uri"]
        with blocking.connect(uri) as connection:
            assert connection.call("add", 5) == 5
            running.kill()
            assert connection.call("add", 5) == 10
            running.start()
            assert connection.call("add", 5) == 15
        with blocking.connect(uri) as connection:
            assert connection.call("add", 5) == 20


@pytest.mark.parametrize(("end", "cause"), [("exit 7", "exited with 7"), ("kill -9 $$", "was killed by SIGKILL")])
def test_the_exit_status_of_an_adopted_process_is_exact(end: str, cause: str, tmp_path: Path) -> None:
    """An adopted process is no child of the new parsupd; how it ends is known nevertheless."""
    os.mkfifo(tmp_path / "go")
    config = f"[unit.a]\n{simple(f'read line <{tmp_path}/go; {end}', restart='no')}"
    with daemon(tmp_path, config) as running:
        running.wait_for("a@1", lambda status: status["sub_state"] == "running")
        running.kill()
        running.start()
        (tmp_path / "go").write_text("\n")
        status = running.wait_for("a@1", lambda status: status["sub_state"] == "failed")
        assert cause in status["reason"]


def test_what_ended_meanwhile_is_restarted_by_its_policy(tmp_path: Path) -> None:
    """A process that ends while no parsupd is there has an unknown cause, for which its restart policy decides."""
    config = f"[unit.again]\n{simple('exec sleep 600')}\n[unit.once]\n{simple('exec sleep 600', restart='no')}"
    with daemon(tmp_path, config) as running:
        pids = [
            running.wait_for(f"{name}@1", lambda s: s["sub_state"] == "running")["pid"] for name in ("again", "once")
        ]
        running.kill()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)  # the tests are where orphans go
        running.start()
        status = running.wait_for("again@1", lambda s: s["sub_state"] == "running" and s["pid"] != pids[0])
        assert (status["generation"], status["restarts"]) == (2, 1)
        assert "unknown" in running.wait_for("once@1", lambda s: s["sub_state"] == "failed")["reason"]


def test_a_reused_pid_is_neither_adopted_nor_signalled(tmp_path: Path) -> None:
    """When the recorded pid belongs to another process by now, that one is left alone, and the unit starts anew."""
    with daemon(tmp_path, f"[unit.a]\n{simple('exec sleep 600')}") as running:
        old = running.wait_for("a@1", lambda status: status["sub_state"] == "running")["pid"]
        running.kill()
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: process_state(old) in {None, "Z"}, what="it has ended")
        # Start times are told in hundredths of a second, in which no kernel comes to the same pid again.
        now = time.monotonic()
        wait_until(lambda: time.monotonic() > now + 0.02, what="two ticks of the kernel's clock")
        stranger = subprocess.Popen(["sleep", "600"])
        try:
            give_pid_to(running.runtime / "state", old, stranger.pid)
            running.start()
            assert running.wait_for("a@1", lambda s: s["sub_state"] == "running" and s["generation"] == 2)
            assert running.stop() == 0
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()


def give_pid_to(state: Path, old: int, new: int) -> None:
    """Rewrites the record as if the kernel had given the old process's pid to another one."""
    taken = snapshot.decode(state_file.split(state.read_bytes()), process.boot_id())
    assert taken is not None
    records = [
        msgspec.structs.replace(
            record,
            run=msgspec.structs.replace(record.run, pid=new),
            process=msgspec.structs.replace(record.process, pid=new, group=new),
        )
        for record in taken.records()
    ]
    assert old in [record.process.pid for record in taken.records()]
    raws = {record.name: msgspec.Raw(snapshot.encode(record)) for record in records}
    state.write_bytes(state_file.joined(snapshot.encode(msgspec.structs.replace(taken, instances=raws))))


def test_hand_over(tmp_path: Path) -> None:
    """SIGUSR2 ends parsupd at once and leaves the units; the next one goes on with them, a stopped one stays down."""
    config = UNITS + f"[unit.stopped]\n{simple('sleep 600')}"
    with daemon(tmp_path, config) as running:
        wait_until(lambda: running.status("job@1")["sub_state"] == "exited", within_s=20, what="all units are up")
        running.call("stop", ["stopped"])
        before = {info["name"]: (info["pid"], info["generation"]) for info in running.call("status")}
        running.process.send_signal(signal.SIGUSR2)
        assert running.process.wait(20) == 0
        assert running.records("handed_over")
        assert processes(running).keys() == {"program@1", "worker@1", "worker@2"}
        running.start()
        assert {info["name"]: (info["pid"], info["generation"]) for info in running.call("status")} == before
        assert running.status("stopped@1")["sub_state"] == "dead"


def test_without_a_record_what_was_left_is_ended_first(tmp_path: Path) -> None:
    """Processes of units that no record explains are ended before anything is started."""
    with daemon(tmp_path, f"[unit.a]\n{simple('exec sleep 600')}") as running:
        old = running.wait_for("a@1", lambda status: status["sub_state"] == "running")["pid"]
        running.kill()
        (running.runtime / "state").unlink()
        running.start()
        new = running.wait_for("a@1", lambda status: status["sub_state"] == "running")["pid"]
        assert process_state(old) in {None, "Z"}
        assert new != old
        assert old in [record["pid"] for record in running.records("leftover_ended")]


def test_sigterm_while_leftovers_are_ended(tmp_path: Path) -> None:
    """SIGTERM in the first seconds, while what was left is still being ended: that is finished, nothing starts, exit 0."""
    config = f"[unit.a]\n{simple('trap : TERM; echo ready >&2; while :; do sleep 1; done', stderr='inherit')}"
    running = Daemon(tmp_path, config)
    wait_until(lambda: "ready" in running.log.read_text(), what="the unit ignores SIGTERM")
    old = running.status("a@1")["pid"]
    running.kill()
    (running.runtime / "state").unlink()
    running.start(wait=False)
    wait_until(lambda: running.records("ending_leftovers"), what="leftovers are being ended")
    running.process.terminate()
    assert running.process.wait(30) == 0
    assert process_state(old) in {None, "Z"}
    assert_nothing_left(running)


def test_workers_end_when_no_parsupd_comes(tmp_path: Path) -> None:
    """Without a new parsupd within lease_sec, workers end by themselves: they are never leaked."""
    running = Daemon(tmp_path, f"[parsupd]\nlease_sec = 0.5\n[unit.w]\n{WORKER}")
    worker = running.wait_for("w@1", lambda status: status["sub_state"] == "running")["pid"]
    running.kill()
    wait_until(lambda: process_state(worker) in {None, "Z"}, what="the worker's lease is over")
    running.start()
    assert running.wait_for("w@1", lambda status: status["sub_state"] == "running")["generation"] == 2
    assert running.stop() == 0
    assert_nothing_left(running)


def test_sweep_ends_what_a_stop_left_and_nothing_else(tmp_path: Path) -> None:
    """`parsupd sweep` leaves units that were handed over alone, and ends those whose parsupd was ending them."""
    running = Daemon(tmp_path, f"[unit.a]\n{simple('trap : TERM; while :; do sleep 1; done', timeout_stop_sec=60)}")
    old = running.wait_for("a@1", lambda status: status["sub_state"] == "running")["pid"]
    sweep = [sys.executable, "-m", "parsupd", *running.command, "sweep"]
    running.kill()
    subprocess.run(sweep, check=True)
    assert alive(old)
    running.start()
    running.process.terminate()
    running.wait_for("a@1", lambda status: status["sub_state"] == "stopping")
    running.kill()
    assert alive(old)
    subprocess.run(sweep, check=True, stderr=subprocess.DEVNULL)
    wait_until(lambda: process_state(old) in {None, "Z"}, what="it has ended")
    assert leftovers.find(leftovers.token_of(running.runtime)) == []
    (running.runtime / "parsupd.sock").unlink()


def test_a_directory_that_was_removed_is_not_taken_from_a_living_parsupd(tmp_path: Path) -> None:
    """A second parsupd does not start there, and says who has it; the first goes on, and a restart makes all anew."""
    with daemon(tmp_path, f"[unit.a]\n{simple('exec sleep 600')}") as running:
        unit = running.wait_for("a@1", up)["pid"]
        first = running.process
        shutil.rmtree(running.runtime)
        running.start(wait=False)
        try:
            assert running.process.wait(20) == 2
        finally:
            running.process, second = first, running.process
        assert second is not first
        assert f"another parsupd (pid {first.pid}) runs on '{running.runtime}'" in running.log.read_text()
        assert alive(unit)
        assert running.stop(signal.SIGUSR2) == 0
        running.start()
        # Whether the first has put its record into the new directory or not: it does not run twice.
        assert running.wait_for("a@1", up)["pid"] == unit or not alive(unit)


def test_a_command_waits_until_leftovers_are_ended(tmp_path: Path) -> None:
    """What is asked of a parsupd that is still ending what was left is done after that, and answered then."""
    config = f"[unit.a]\n{simple('trap : TERM; echo ready >&2; while :; do sleep 1; done', stderr='inherit')}"
    with daemon(tmp_path, config) as running:
        wait_until(lambda: "ready" in running.log.read_text(), what="the unit ignores SIGTERM")
        old = running.status("a@1")["pid"]
        running.kill()
        (running.runtime / "state").unlink()
        running.start()
        assert running.records("ending_leftovers")
        assert alive(old)
        (started,) = running.call("start", ["a"])
        assert started["sub_state"] == "running"
        assert not alive(old)
        os.kill(started["pid"], signal.SIGKILL)


def test_a_hand_over_while_leftovers_are_ended(tmp_path: Path) -> None:
    """A parsupd that is replaced before it has begun starts nothing any more; the next one does."""
    config = f"[unit.a]\n{simple('trap : TERM; echo ready >&2; while :; do sleep 1; done', stderr='inherit')}"
    with daemon(tmp_path, config) as running:
        wait_until(lambda: "ready" in running.log.read_text(), what="the unit ignores SIGTERM")
        running.kill()
        (running.runtime / "state").unlink()
        running.start()
        changes = len(running.records("unit_changed"))
        assert running.stop(signal.SIGUSR2) == 0
        assert running.records("handed_over")
        assert len(running.records("unit_changed")) == changes
        running.start()
        os.kill(running.wait_for("a@1", up)["pid"], signal.SIGKILL)


def test_the_first_units_come_with_a_restart(tmp_path: Path) -> None:
    """A parsupd that had no units yet is replaced: what the configuration has by then is started."""
    with daemon(tmp_path, "[parsupd]\n") as running:
        assert running.stop(signal.SIGUSR2) == 0
        (tmp_path / "parsupd.toml").write_text(f"[unit.a]\n{simple('exec sleep 600')}")
        running.start()
        assert running.wait_for("a@1", up)
