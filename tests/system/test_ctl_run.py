"""parsupctl run: units that no file has, from their start to their removal."""

import json
import os
import signal
from pathlib import Path

import live_daemon
import pytest
from parsupctl_process import Controlled, StartDaemon
from parsupd_process import processes_of
from support import alive, wait_until

PROGRAMS = Path(__file__).parent / "programs"
NULL = ("-p", "stdout=null")


@pytest.fixture(scope="module")
def running(daemon: StartDaemon) -> Controlled:
    return daemon('[unit.web]\ntype = "simple"\nexec = ["/bin/sleep", "1000"]\nstdout = "null"\n')


def listed(running: Controlled) -> set[str]:
    return {info["unit"] for info in running.daemon.ask("status")}


def test_a_program_runs_until_it_is_stopped(running: Controlled) -> None:
    """It is in list, status, show and why as any other; once stopped, nothing is left of it."""
    done = running.ctl("run", "--name", "mine", *NULL, "-E", "A=b", "--", "/bin/sleep", "1000")
    assert (done.returncode, done.stdout) == (0, "mine@1 active (running)\n")
    assert "mine" in running.ctl("list").stdout
    assert running.ctl("status", "mine").returncode == 0
    shown = json.loads(running.ctl("show", "mine", "--json").stdout)
    assert (shown["transient"], shown["keys"]["environment"]) == (True, {"A": "b"})
    assert running.ctl("stop", "mine").returncode == 0
    wait_until(lambda: listed(running) == {"web"})
    assert running.ctl("status", "mine").returncode == 4


def test_waiting_ends_with_the_status_of_the_unit(running: Controlled) -> None:
    """Its code, or 128 + the signal; what has ended well is removed, what has failed stays until it is stopped."""
    assert running.ctl("run", "--wait", *NULL, "--", "true").returncode == 0
    wait_until(lambda: listed(running) == {"web"})
    assert running.ctl("run", "--wait", "--name", "seven", *NULL, "--", "sh", "-c", "exit 7").returncode == 7
    assert "exited with 7" in running.ctl("why", "seven").stdout
    assert running.ctl("run", "--wait", "--name", "killed", *NULL, "--", "sh", "-c", "kill -KILL $$").returncode == 137
    assert running.ctl("stop", "seven", "killed").returncode == 0
    wait_until(lambda: listed(running) == {"web"})
    done = running.ctl("run", "--wait", *NULL, "--json", "--", "/no/such/program")
    found = json.loads(done.stdout)
    assert (done.returncode, found["exit_status"], found["ended"]["state"]) == (1, 1, "failed")
    assert running.ctl("stop", found["unit"]).returncode == 0


def test_ctrl_c_leaves_the_unit(running: Controlled) -> None:
    """Status 130, the unit goes on, and how to see it is said; so it is when the waiting takes too long."""
    with running.start_ctl("run", "--wait", "--name", "long", *NULL, "--", "sleep", "1000") as waiting:
        wait_until(lambda: "long" in listed(running))
        wait_until(lambda: processes_of(running.runtime))
        waiting.send_signal(signal.SIGINT)
        _, said = waiting.communicate(timeout=10)
    assert (waiting.returncode, said) == (
        130, "parsupctl: interrupted; the unit goes on: see `parsupctl status long`\n",
    )  # fmt: skip
    done = running.ctl("run", "--wait", "--name", "long", *NULL, "--timeout", "0.1", "--", "sleep", "1000")
    assert (done.returncode, done.stderr) == (1, "parsupctl: not within 0.1 s: long@1 (starting)\n")
    assert running.ctl("stop", "long").returncode == 0


def test_a_worker_is_run_with_its_arguments(running: Controlled) -> None:
    """It can be called, as any worker of a file."""
    done = running.ctl(
        "run", "--name", "spare", "--worker", "workers:Sum", "--init", '{"start": 40}', *NULL,
        "-p", f"working_directory={PROGRAMS}",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert running.ctl("call", "spare", "add", "2").stdout == "42\n"
    assert running.ctl("stop", "spare").returncode == 0


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["--name", "web", "--", "true"], 1, "there is a unit 'web' already"),
        (["--name", "a b", "--", "true"], 1, "unit.a b: a unit's name has letters"),
        (["-p", "restrat=no", "--", "true"], 1, "unknown key; did you mean 'restart'?"),
        (["-p", "requires=['nope']", "--", "true"], 1, "there is no unit 'nope'"),
        (["--type", "wroker", "--", "true"], 1, "must be one of"),
        (["-p", "instances=2", "--wait", "--", "true"], 1, "only the end of one instance"),
        (["-p", "requires=['nope'", "--", "true"], 2, "is no value of TOML"),
        (["--init", "{", "--worker", "m:C"], 2, "--init is not JSON"),
        ([], 2, "give either a COMMAND"),
        (["--worker", "m:C", "--", "true"], 2, "give either a COMMAND"),
        (["-E", "A", "--", "true"], 2, "write NAME=VALUE"),
        (["-p", "environment=3", "-E", "A=1", "--", "true"], 2, "--set environment: must be a table of strings, not 3"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_unit_that_cannot_be_is_refused(running: Controlled, args: list[str], status: int, said: str) -> None:
    """With the same words as a file's, and nothing is left of it."""
    done = running.ctl("run", *args)
    assert done.returncode == status
    assert said in done.stderr
    assert listed(running) == {"web"}


def test_a_first_start_that_fails_is_told(running: Controlled) -> None:
    """At once, with status 1 and the reason: nobody waits for the retries, which go on until the unit is stopped."""
    done = running.ctl("run", "--name", "nowhere", *NULL, "--", "/no/such/program")
    assert done.returncode == 1
    assert "No such file or directory: '/no/such/program'; next start in" in done.stderr
    assert running.ctl("stop", "nowhere").returncode == 0


def test_a_unit_of_a_template_is_run_once(running: Controlled) -> None:
    """A name with an @ in it has an end, too."""
    done = running.ctl("run", "--wait", "--name", "job@eu", *NULL, "--json", "--", "true")
    assert (done.returncode, json.loads(done.stdout)["ended"]["name"]) == (0, "job@eu@1")


def test_a_transient_unit_survives_parsupd_and_reloads(tmp_path: Path) -> None:
    """kill -9 and a new parsupd: the same process and generation; plan and reload do not see it; then it is stopped."""
    config = '[unit.web]\ntype = "simple"\nexec = ["/bin/sleep", "1000"]\nstdout = "null"\n'
    with live_daemon.daemon(tmp_path, config) as daemon:
        keys = {"type": "simple", "exec": ["/bin/sleep", "1000"], "stdout": "null", "after": ["web"]}
        found = daemon.call("run", "mine", keys)
        (before,) = found["instances"]
        assert daemon.call("run", "mine", keys)["instances"] == [before], "the same once more is no error"
        daemon.kill()
        assert alive(before["pid"])
        daemon.start()
        now = daemon.status("mine")
        assert (now["pid"], now["generation"], now["state"]) == (before["pid"], before["generation"], "active")
        assert daemon.call("plan")["units"] == []
        (tmp_path / "parsupd.toml").write_text(config.replace("1000", "1001"))
        assert [each["unit"] for each in daemon.call("reload")["units"]] == ["web"]
        assert daemon.status("mine")["pid"] == before["pid"]
        os.kill(before["pid"], signal.SIGKILL)
        daemon.wait_for("mine", lambda info: info["generation"] > before["generation"])
        daemon.call("stop", ["mine"])
        wait_until(lambda: [info["unit"] for info in daemon.call("status")] == ["web"])
