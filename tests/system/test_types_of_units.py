"""Units of each type, their commands and their ends, with real processes under a real parsupd."""

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from live_daemon import PROGRAMS, WORKER, Daemon, Info, daemon, simple
from support import alive, command_line, process_state, wait_until

from parsupd.shell import leftovers
from workerlib import blocking

NOTIFYING = str(PROGRAMS / "notifying.py")


def program(*steps: str, **keys: Any) -> str:
    """The lines of a unit that runs the program above; keys as in a unit file."""
    lines = [f"exec = {json.dumps([sys.executable, '-S', NOTIFYING, *steps])}"]
    return "\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in {"type": "notify", **keys}.items())])


def up(status: Info) -> bool:
    return bool(status["sub_state"] == "running")


def last_cause(running: Daemon, unit: str) -> str:
    runs = running.call("why", unit)[0]["incarnations"]
    return str(runs[-1]["cause"]) if runs else ""


def ended(running: Daemon, unit: str) -> str:
    """Waits for the end of a first run; returns its cause."""
    return wait_until(lambda: last_cause(running, unit), within_s=20, what=f"{unit} has ended")


def test_notify_is_ready_when_it_says_so(tmp_path: Path) -> None:
    """Not before; its STATUS is shown, without what would move a cursor; a unit that requires it waits."""
    go = tmp_path / "go"
    steps = ("send:STATUS=warming \x1b[2Jup", f"wait:{go}", "send:READY=1,STATUS=serving", "barrier")
    config = f"[unit.n]\n{program(*steps)}\n[unit.user]\n{simple('sleep 600', requires=['n'])}"
    with daemon(tmp_path, config) as running:
        first = running.wait_for("n@1", lambda status: bool(status["status_text"]))
        assert (first["sub_state"], first["status_text"]) == ("starting", "warming  [2Jup")
        assert running.status("user@1")["sub_state"] == "waiting"
        go.touch()
        assert running.wait_for("n@1", up)["status_text"] == "serving"
        running.wait_for("user@1", up)
    assert not (running.runtime / "notify" / "n@1").exists()


def test_only_the_main_process_is_believed_unless_all_are(tmp_path: Path) -> None:
    """A child's READY counts with notify_access = "all" alone; the other way it is said once that it was refused."""
    steps = ("child-send:READY=1", "child-send:READY=1", f"append:{tmp_path}/done:x")
    config = f"[unit.main]\n{program(*steps)}\n[unit.all]\n{program(*steps, notify_access='all')}"
    with daemon(tmp_path, config) as running:
        running.wait_for("all@1", up)
        wait_until(
            lambda: (tmp_path / "done").exists() and (tmp_path / "done").read_text() == "x\nx\n", what="both said so"
        )
        assert running.status("main@1")["sub_state"] == "starting"
        assert [record["unit"] for record in running.records("notice_refused")] == ["main@1"]


def test_a_stranger_is_not_believed(tmp_path: Path) -> None:
    """A process of no unit sends READY=1 to a unit's socket: nothing happens, whatever the unit's access is."""
    with daemon(tmp_path, f"[unit.n]\n{program(notify_access='all')}") as running:
        running.wait_for("n@1", lambda status: status["sub_state"] == "starting" and status["pid"] is not None)
        path = running.runtime / "notify" / "n@1"
        assert path.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(str(path))
            sock.send(b"READY=1")
            sock.send(b"\xff" * 4000)
            sock.send(b"MAINPID=1\nSTATUS=mine")
        wait_until(lambda: running.records("notice_refused"), what="it was refused")
        assert (running.status("n@1")["sub_state"], running.status("n@1")["status_text"]) == ("starting", "")


def test_another_process_becomes_the_main_one(tmp_path: Path) -> None:
    """MAINPID names a child; the first process ends; the unit runs on, and the child's exit is the unit's."""
    config = f"[unit.n]\n{program('main', 'send:READY=1', restart='no')}"
    with daemon(tmp_path, config) as running:
        status = running.wait_for("n@1", up)
        wait_until(lambda: running.status("n@1")["pid"] != status["pid"] or running.status("n@1")["pid"], what="a pid")
        pid = running.status("n@1")["pid"]
        assert command_line(pid)[-1] == "send:READY=1"
        assert running.status("n@1")["restarts"] == 0
        os.kill(pid, signal.SIGKILL)
        assert ended(running, "n") == "was killed by SIGKILL"


def test_a_main_pid_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """MAINPID=1, or that of parsupd: it could have parsupd signal a stranger."""
    with daemon(
        tmp_path, f"[unit.n]\n{program('send:MAINPID=1', f'send:MAINPID={os.getpid()}', 'send:READY=1')}"
    ) as running:
        pid = running.wait_for("n@1", up)["pid"]
        assert NOTIFYING in command_line(pid)
        assert [record["pid"] for record in running.records("main_pid_refused")] == [1, os.getpid()]


def test_reload_by_the_unit_itself_and_by_command(tmp_path: Path) -> None:
    """exec_reload sends SIGHUP; the unit tells RELOADING and READY; parsupctl's command waits for that."""
    steps = ("on-hup:RELOADING=1;STATUS=read again,READY=1", "send:READY=1")
    config = f"[unit.n]\n{program(*steps, exec_reload=['/bin/sh', '-c', 'kill -HUP $MAINPID'])}\n[unit.s]\n{simple('sleep 600')}"
    with daemon(tmp_path, config) as running:
        pid = running.wait_for("n@1", up)["pid"]
        (status,) = running.call("reload_units", ["n"])
        assert status["sub_state"] == "running"
        running.wait_for("n@1", lambda now: now["status_text"] == "read again" and now["pid"] == pid and up(now))
        with pytest.raises(ValueError, match="s has no exec_reload"):
            running.call("reload_units", ["s"])


def test_more_time_is_granted_to_who_asks_for_it(tmp_path: Path) -> None:
    """EXTEND_TIMEOUT_USEC: when another one with the same timeout_start_sec has failed, it may still become ready."""
    asking = program("send:EXTEND_TIMEOUT_USEC=60000000", f"wait:{tmp_path}/go", "send:READY=1", timeout_start_sec=1)
    silent = program(timeout_start_sec=1, restart="no")
    with daemon(tmp_path, f"[unit.asking]\n{asking}\n[unit.silent]\n{silent}") as running:
        assert ended(running, "silent") == "timed out: not ready within 1 s"
        assert running.status("asking@1")["sub_state"] == "starting"
        (tmp_path / "go").touch()
        assert running.wait_for("asking@1", up)["generation"] == 1


def test_stopping_by_itself(tmp_path: Path) -> None:
    """STOPPING=1 takes it out of the way before it ends, and its exit status is its own."""
    config = f"[unit.n]\n{program('send:READY=1', 'send:STOPPING=1', 'barrier', f'wait:{tmp_path}/go', 'exit:3', restart='no')}"
    with daemon(tmp_path, config) as running:
        running.wait_for("n@1", lambda status: status["sub_state"] == "stopping")
        (tmp_path / "go").touch()
        assert ended(running, "n") == "exited with 3"


def test_a_watchdog_that_is_not_fed(tmp_path: Path) -> None:
    """WATCHDOG=1 keeps a unit alive; without it the process gets SIGABRT, and the policy on-watchdog starts it anew."""
    fed = program("send:READY=1", "beat:0.1", watchdog_sec=1)
    starved = program(f"append:{tmp_path}/usec:x", "send:READY=1", watchdog_sec=0.3, restart="on-watchdog")
    with daemon(tmp_path, f"[unit.fed]\n{fed}\n[unit.starved]\n{starved}") as running:
        running.wait_for("fed@1", up)
        assert ended(running, "starved").startswith("gave no sign of life: none for 0.3")
        assert running.changes("starved@1")[:6] == ["waiting", "starting", "running", "aborting", "stopping", "backoff"]
        running.wait_for("starved@1", lambda status: status["generation"] > 2)
        assert (running.status("fed@1")["generation"], running.status("fed@1")["sub_state"]) == (1, "running")


def test_a_process_that_stands_still_is_killed(tmp_path: Path) -> None:
    """Stopped by SIGSTOP it sees no SIGTERM: SIGCONT follows each signal, so that it ends as if it ran."""
    config = f"[unit.n]\n{program('send:READY=1', watchdog_sec=600, restart='no', timeout_stop_sec=600)}"
    with daemon(tmp_path, config) as running:
        pid = running.wait_for("n@1", up)["pid"]
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: process_state(pid) == "T", what="it is stopped")
        running.call("stop", ["n"], True, 20)
        assert not alive(pid)


def test_forking_without_a_pid_file(tmp_path: Path) -> None:
    """A daemon that forks twice is found among the orphans; its crash is seen and it is started again."""
    config = f"[unit.d]\n{program('daemon', f'append:{tmp_path}/pids:%p', type='forking')}"
    with daemon(tmp_path, config) as running:
        pids = tmp_path / "pids"
        pid = int(wait_until(lambda: pids.exists() and pids.read_text(), what="the daemon has begun") or 0)
        running.wait_for("d@1", lambda status: up(status) and status["pid"] == pid)
        os.kill(pid, signal.SIGKILL)
        again = running.wait_for("d@1", lambda status: status["generation"] == 2 and up(status))
        assert ended(running, "d") == "was killed by SIGKILL"
        wait_until(
            lambda: running.status("d@1")["pid"] == int((tmp_path / "pids").read_text().split()[-1]), what="found"
        )
        assert again["pid"] != pid
        running.call("stop", ["d"], True, 20)
        assert not alive(int((tmp_path / "pids").read_text().split()[-1]))


def test_forking_with_a_pid_file_that_comes_late(tmp_path: Path) -> None:
    """It is waited for; one that names somebody else, or nobody, is not believed; each process but the main may live."""
    path = tmp_path / "d.pid"
    path.write_text("1\n")
    steps = ("daemon", f"touch:{tmp_path}/begun", f"wait:{tmp_path}/go", f"pid:{path}", f"append:{tmp_path}/pids:%p")
    with daemon(tmp_path, f"[unit.d]\n{program(*steps, type='forking', pid_file=str(path))}") as running:
        wait_until(lambda: (tmp_path / "begun").exists(), what="the daemon has begun")
        path.write_text("nonsense")
        assert running.status("d@1")["sub_state"] == "starting"
        (tmp_path / "go").touch()
        status = running.wait_for("d@1", up)
        assert status["pid"] == int(path.read_text())


def test_forking_that_leaves_nothing(tmp_path: Path) -> None:
    """The program exits with 0 and no process is left: it has not been started."""
    config = f"[unit.d]\n{program('exit:0', type='forking', restart='no')}\n[unit.e]\n{program('exit:4', type='forking', restart='no')}"
    with daemon(tmp_path, config) as running:
        assert ended(running, "d") == "could not be started: its program ended and left no process behind"
        assert ended(running, "e") == "exited with 4"
        assert running.status("d@1")["state"] == "failed"


def test_commands_of_a_unit(tmp_path: Path) -> None:
    """In order, with the main process's pid while there is one, and its end after it; what they leave is killed."""
    log = tmp_path / "said"

    def say(word: str) -> list[str]:
        return ["/bin/sh", "-c", f"echo {word} ${{MAINPID:+main}} $EXIT_CODE $EXIT_STATUS $SERVICE_RESULT >> {log}"]

    pre = [{"exec": ["/bin/sh", "-c", f"sleep 600 & setsid sleep 600 & echo pre >> {log}"]}, {"exec": say("pre2")}]
    keys = {
        "exec_start_pre": "[" + ", ".join("{ exec = " + json.dumps(each["exec"]) + " }" for each in pre) + "]",
        "exec_start_post": json.dumps(say("post")),
        "exec_stop": json.dumps(say("stop")),
        "exec_stop_post": json.dumps(say("stop-post")),
    }
    extra = "\n".join(f"{key} = {value}" for key, value in keys.items())
    with daemon(tmp_path, f"[unit.u]\n{simple('exec sleep 601')}\n{extra}") as running:
        pid = running.wait_for("u@1", up)["pid"]
        assert {one.pid for one in leftovers.find(leftovers.token_of(running.runtime))} == {pid}
        os.kill(pid, signal.SIGKILL)
        running.wait_for("u@1", lambda status: status["generation"] == 2 and up(status))
        assert log.read_text().splitlines()[:6] == [
            "pre",
            "pre2",
            "post main",
            "stop killed KILL signal",
            "stop-post killed KILL signal",
            "pre",
        ]
        running.call("stop", ["u"], True, 20)
        assert log.read_text().splitlines()[-2:] == ["stop main", "stop-post killed TERM signal"]


def test_a_command_fails_or_hangs(tmp_path: Path) -> None:
    """Before the start it makes the start fail, unless that is ignored; one that hangs is ended at its own time."""
    config = (
        f"[unit.bad]\n{simple('sleep 600', restart='no', exec_start_pre=['/bin/sh', '-c', 'exit 7'])}\n"
        f"[unit.none]\n{simple('sleep 600', restart='no', exec_start_pre=['/no/such/program'])}\n"
        f"[unit.fine]\n{simple('sleep 600')}\nexec_start_pre = [{{ exec = ['false'], ignore_failure = true }}]\n"
        f"[unit.slow]\n{simple('sleep 600', restart='no')}\nexec_start_post = [{{ exec = ['sleep', '600'], timeout_sec = 0.3 }}]\n"
    )
    with daemon(tmp_path, config) as running:
        running.wait_for("fine@1", up)
        assert ended(running, "bad") == "could not be started: exec_start_pre[0] (/bin/sh) exited with 7"
        assert "No such file" in ended(running, "none")
        assert ended(running, "slow") == "timed out: exec_start_post[0] (sleep) took more than 0.3 s"
        assert [running.status(f"{name}@1")["state"] for name in ("bad", "none", "slow")] == ["failed"] * 3


def test_a_oneshot_undoes_what_it_has_done(tmp_path: Path) -> None:
    """exec_stop of a oneshot runs when it is stopped, after what requires it, and when parsupd ends."""
    mark, log = tmp_path / "mark", tmp_path / "said"
    undo = ["/bin/sh", "-c", f"rm {mark}; echo undone >> {log}"]
    user = simple(f"trap 'echo user down >> {log}; exit' TERM; while :; do sleep 0.1; done", requires=["one"])
    config = f"[unit.one]\n{simple(f'touch {mark}', type='oneshot', exec_stop=undo)}\n[unit.user]\n{user}"
    with daemon(tmp_path, config) as running:
        running.wait_for("user@1", up)
        assert mark.exists()
        running.call("stop", ["one"], True, 20)
        assert log.read_text() == "user down\nundone\n"
        running.call("start", ["user"], True, 20)
        assert mark.exists()
    assert log.read_text() == "user down\nundone\n" * 2
    assert not mark.exists()


def test_a_worker_that_hangs_leaves_its_stack(tmp_path: Path) -> None:
    """Its loop stands still: SIGABRT has it write where it is, which `why` shows; then it is started anew."""
    with daemon(tmp_path, f"[unit.w]\n{WORKER.replace('Sum', 'Hanging')}\nwatchdog_sec = 1") as running:
        status = running.wait_for("w@1", up)
        assert running.wait_for("w@1", lambda now: now["generation"] == 1 and up(now))
        with blocking.connect(status["uri"]) as connection:
            connection.call("hang")
        running.wait_for("w@1", lambda now: now["generation"] == 2 and up(now), what="it was started anew")
        (run,) = running.call("why", "w")[0]["incarnations"]
        assert run["kind"] == "watchdog"
        assert any("hang" in line for line in run["stack"]), run["stack"]
        assert [path.name for path in (running.runtime / "stacks").iterdir()] == ["w@1.2"]
