"""The daemon with real units: states, restarts, dependencies, stops, the name server, signals, bad input."""

import os
import signal
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from live_daemon import PARSUPD, WORKER, Daemon, daemon, simple
from support import alive, wait_until

from workerlib import blocking

# The daemon itself


def test_sockets_and_directories_are_private(tmp_path: Path) -> None:
    """The runtime directory has mode 0700, the control socket and each worker's 0600."""
    with daemon(tmp_path, f"[unit.w]\n{WORKER}") as running:
        running.wait_for("w@1", lambda s: s["state"] == "active")
        assert stat.S_IMODE(running.runtime.stat().st_mode) == 0o700
        assert stat.S_IMODE(running.socket.stat().st_mode) == 0o600
        (worker,) = (running.runtime / "workers").iterdir()
        assert stat.S_IMODE(worker.stat().st_mode) == 0o600


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_everything_and_the_exit_status_is_0(signum: int, tmp_path: Path) -> None:
    """SIGTERM and SIGINT stop all units; nothing is left; the exit status is 0."""
    config = f"[unit.a]\n{simple('sleep 600')}\n[unit.w]\n{WORKER}"
    with daemon(tmp_path, config) as running:
        running.wait_for("a@1", lambda s: s["sub_state"] == "running")
        running.wait_for("w@1", lambda s: s["sub_state"] == "running")
        assert running.stop(signum) == 0


def test_a_signal_while_units_are_starting(tmp_path: Path) -> None:
    """SIGTERM during the start of a worker ends the start, and nothing is left."""
    config = f"[unit.w]\n{WORKER.replace('workers:Sum', 'hanging_module:Any')}\ninstances = 2"
    with daemon(tmp_path, config) as running:
        wait_until(lambda: "importing in" in running.log.read_text(), what="the module is being imported")
        assert running.stop() == 0


def test_a_second_daemon_on_the_same_runtime_directory_is_refused(tmp_path: Path) -> None:
    """The lock is held by the first; the second exits with 2 and names its pid and the way out."""
    with daemon(tmp_path, "") as running:
        second = subprocess.run(
            [*PARSUPD, "--config", tmp_path / "parsupd.toml", "--runtime-dir", running.runtime],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert second.returncode == 2
        assert f"another parsupd (pid {running.process.pid}) runs on" in second.stderr
        assert "--runtime-dir" in second.stderr
        assert running.call("info")["pid"] == running.process.pid


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    """A socket file that a killed daemon left does not keep a new one from starting."""
    first = Daemon(tmp_path, "")
    first.process.kill()
    first.process.wait()
    assert first.socket.exists()
    with daemon(tmp_path, "") as second:
        wait_until(lambda: second.records("started"), what="started")
        assert second.call("info")["pid"] == second.process.pid


# Simple units


def test_kill_9_of_a_simple_unit_restarts_it_with_a_reason(tmp_path: Path) -> None:
    """on-failure: a killed program is started again as a new generation; why tells cause, decision and reason."""
    with daemon(tmp_path, f"[unit.a]\n{simple('sleep 600', restart='on-failure', restart_sec=0)}") as running:
        first = running.wait_for("a@1", lambda s: s["sub_state"] == "running")
        os.kill(first["pid"], signal.SIGKILL)
        second = running.wait_for("a@1", lambda s: s["sub_state"] == "running" and s["pid"] != first["pid"])
        assert second["generation"] == first["generation"] + 1
        assert second["restarts"] == 1
        (why,) = running.call("why", "a@1")
        (incarnation,) = why["incarnations"]
        assert incarnation["cause"] == "was killed by SIGKILL"
        assert incarnation["restarted"] is True
        assert incarnation["reason"] == "restart=on-failure and it was killed by SIGKILL"


def test_a_clean_exit_is_not_restarted_on_failure(tmp_path: Path) -> None:
    """restart=on-failure: exit 0 leaves the unit dead, not failed."""
    with daemon(tmp_path, f"[unit.a]\n{simple('exit 0', restart='on-failure')}") as running:
        status = running.wait_for("a@1", lambda s: s["sub_state"] == "dead" and s["generation"] == 1)
        assert status["state"] == "inactive"


def test_the_start_limit_ends_a_restart_loop(tmp_path: Path) -> None:
    """A program that dies at once is started start_limit_burst times, then failed, with the limit as its reason."""
    keys = {"restart": "always", "restart_sec": 0, "restart_steps": 0, "start_limit_burst": 3}
    with daemon(tmp_path, f"[unit.a]\n{simple('exit 1', **keys)}") as running:
        status = running.wait_for("a@1", lambda s: s["sub_state"] == "failed")
        assert status["generation"] == 3
        assert "start limit" in status["reason"]
        assert running.call("start", ["a"], wait=False)[0]["generation"] == 4  # a manual start has a fresh limit


def test_stop_waits_until_the_group_is_empty_and_kills_what_ignores_it(tmp_path: Path) -> None:
    """A grandchild that ignores SIGTERM is killed after timeout_stop_sec; stop returns when nobody is left."""
    ignores = r"trap '' TERM; echo \$\$ >&2; while :; do sleep 1; done"  # its pid, not the outer shell's
    script = f'trap "exit 0" TERM; sh -c "{ignores}" & wait'
    with daemon(tmp_path, f"[unit.a]\n{simple(script, timeout_stop_sec=0.5, stderr='inherit')}") as running:
        running.wait_for("a@1", lambda s: s["sub_state"] == "running")
        wait_until(lambda: [line for line in running.log.read_text().splitlines() if line.isdigit()], what="its pid")
        (grandchild,) = [int(line) for line in running.log.read_text().splitlines() if line.isdigit()]
        (status,) = running.call("stop", ["a"])
        assert status["sub_state"] == "dead"
        assert not alive(grandchild)
        assert running.changes("a@1")[-3:] == ["stopping", "killing", "dead"]


def test_restart_of_what_cannot_start_returns(tmp_path: Path) -> None:
    """A restart whose dependency fails has no new generation to wait for: it returns the failure, and does not hang."""
    bad = "type = 'simple'\nexec = ['/nonexistent/program']\nrestart = 'no'"
    with daemon(tmp_path, f"[unit.bad]\n{bad}\n[unit.child]\n{simple('sleep 600', requires=['bad'])}") as running:
        running.wait_for("child@1", lambda s: s["state"] == "failed")
        (found,) = running.call("restart", ["child"], timeout_s=10)
        assert found["state"] == "failed"
        assert found["reason"].startswith("it requires bad")


SLOW_TO_STOP = "trap 'sleep 0.5; exit 0' TERM; echo up; while :; do sleep 0.05; done"


def test_a_stop_that_another_command_overrides_says_so(tmp_path: Path) -> None:
    """A restart during a stop wins, and whoever waits for the stop is told, instead of waiting for ever."""
    with daemon(tmp_path, f"[unit.a]\n{simple(SLOW_TO_STOP, stdout='inherit')}") as running:
        wait_until(lambda: "up" in running.log.read_text().splitlines(), what="its trap is set")
        with ThreadPoolExecutor(1) as pool:
            stop = pool.submit(running.call, "stop", ["a"], timeout_s=10)
            running.wait_for("a@1", lambda s: s["sub_state"] == "stopping")
            (found,) = running.call("restart", ["a"], timeout_s=10)
            with pytest.raises(RuntimeError, match="a@1 was started again before it was down"):
                stop.result(15)
        assert found["state"] == "active"


def test_a_restart_that_a_stop_overrides_returns(tmp_path: Path) -> None:
    """A stop during a restart wins, and whoever waits for the restart sees that it is down."""
    with daemon(tmp_path, f"[unit.a]\n{simple(SLOW_TO_STOP, stdout='inherit')}") as running:
        wait_until(lambda: "up" in running.log.read_text().splitlines(), what="its trap is set")
        with ThreadPoolExecutor(1) as pool:
            restart = pool.submit(running.call, "restart", ["a"], timeout_s=10)
            running.wait_for("a@1", lambda s: s["sub_state"] == "stopping")
            running.call("stop", ["a"], timeout_s=10)
            assert restart.result(15)[0]["state"] == "inactive"


def test_stop_start_and_restart_are_idempotent(tmp_path: Path) -> None:
    """Stop of what is down and start of what is up do nothing and succeed; restart makes a new generation."""
    with daemon(tmp_path, f"[unit.a]\n{simple('sleep 600')}") as running:
        (first,) = running.call("start", ["a"])
        assert running.call("start", ["a"])[0]["pid"] == first["pid"]
        (again,) = running.call("restart", ["a"])
        assert again["generation"] == first["generation"] + 1
        assert running.call("stop", ["a"])[0]["sub_state"] == "dead"
        assert running.call("stop", ["a"])[0]["sub_state"] == "dead"
        (third,) = running.call("start", ["a"])
        assert third["sub_state"] == "running"


def test_environment_directory_umask_and_output(tmp_path: Path) -> None:
    """A program sees its environment, its files' variables, directory and umask; its output goes where it should."""
    (tmp_path / "env").write_text("# from a file\nFROM_FILE='two words'\nBOTH=file\n")
    script = 'echo "$FROM_FILE|$BOTH|$PARSUP_UNIT|$PARSUP_INSTANCE|$PARSUP_GENERATION"; pwd; umask; echo oops >&2'
    keys = {
        "type": "oneshot",
        "environment": "TABLE",
        "environment_file": [str(tmp_path / "env")],
        "working_directory": str(tmp_path),
        "umask": "0027",
        "stdout": f"append:{tmp_path}/out",
        "stderr": "file",
    }
    config = f"[unit.a]\n{simple(script, **keys)}".replace('"TABLE"', '{ BOTH = "unit" }')
    with daemon(tmp_path, config, "--state-dir", str(tmp_path / "state")) as running:
        running.wait_for("a@1", lambda s: s["sub_state"] == "exited")
    assert (tmp_path / "out").read_text() == f"two words|unit|a|1|1\n{tmp_path}\n0027\n"
    assert (tmp_path / "state" / "logs" / "a@1.log").read_text().endswith("Z 1 stderr oops\n")


# Workers


def test_names_live_and_die_with_readiness(tmp_path: Path) -> None:
    """Each ready worker is in the name server as unit@N, and no other; a stopped or killed one is not."""
    own = {"Pyro.NameServer", "parsup.Supervisor"}
    config = f"[unit.w]\n{WORKER}\ninstances = 2\nrestart_sec = 0\ninit = {{ start = 40 }}"
    with daemon(tmp_path, config) as running:
        running.call("start", ["w"])
        assert running.names() == own | {"w@1", "w@2"}
        status = running.status("w@1")
        with blocking.connect(status["uri"]) as worker:
            assert worker.call("add", 2) == 42
        running.call("stop", ["w@2"])
        assert running.names() == own | {"w@1"}
        os.kill(status["pid"], signal.SIGKILL)
        wait_until(lambda: running.status("w@1")["pid"] != status["pid"], what="the kill is seen")
        after = running.wait_for("w@1", lambda s: s["sub_state"] == "running")
        assert after["uri"] != status["uri"]
        assert after["generation"] == status["generation"] + 1
        assert running.names() == own | {"w@1"}


def test_workers_of_units_are_children_with_their_lineage(tmp_path: Path) -> None:
    """A unit's worker is a detached child of parsupd, named unit@N in its command line; its exit is seen exactly."""
    with daemon(tmp_path, f"[unit.w]\n{WORKER}\nrestart = 'no'") as running:
        (status,) = running.call("start", ["w"])
        with blocking.connect(status["uri"]) as worker:
            facts = worker.call("facts")
        assert int(facts["ppid"]) == running.process.pid
        assert facts["argv"].endswith(f"workers:Sum child-of-{running.process.pid}@{os.uname().nodename} w@1 ")
        os.kill(status["pid"], signal.SIGSEGV)
        running.wait_for("w@1", lambda s: s["sub_state"] == "failed")
        (why,) = running.call("why", "w")
        assert why["incarnations"][-1]["cause"] == "was killed by SIGSEGV"


def test_a_worker_that_cannot_start_tells_why(tmp_path: Path) -> None:
    """The traceback of a broken module is in the log live, and in `why` with the stage that was reached."""
    config = f"[unit.w]\n{WORKER.replace('workers:Sum', 'broken_module:Never')}\nrestart = 'no'"
    with daemon(tmp_path, config) as running:
        running.wait_for("w@1", lambda s: s["sub_state"] == "failed")
        (why,) = running.call("why", "w")
        incarnation = why["incarnations"][-1]
        assert incarnation["cause"] == "could not be started: exited with 1 (stage reached: launched)"
        assert incarnation["lines"][-1] == "RuntimeError: this module is broken on purpose"
        assert running.records("[WORKER w@1 STDERR]: RuntimeError: this module is broken on purpose")


def test_init_arguments_are_checked_by_the_worker(tmp_path: Path) -> None:
    """A wrong init argument in the unit file fails the unit with the path of the value."""
    with daemon(tmp_path, f"[unit.w]\n{WORKER}\nrestart = 'no'\ninit = {{ start = 'forty' }}") as running:
        status = running.wait_for("w@1", lambda s: s["sub_state"] == "failed")
        assert "argument start: Expected `int`, got `str`" in status["reason"]


def test_a_worker_that_is_stuck_in_init_is_ended_after_timeout_start_sec(tmp_path: Path) -> None:
    """timeout_start_sec bounds the whole start of a worker."""
    worker = WORKER.replace("workers:Sum", "workers:BlocksInInit")
    config = f"[unit.w]\n{worker}\nrestart = 'no'\ntimeout_start_sec = 1.5\ninit = {{ pid_file = '{tmp_path}/pid' }}"
    with daemon(tmp_path, config) as running:
        running.wait_for("w@1", lambda s: s["sub_state"] == "failed")
        assert not alive(int((tmp_path / "pid").read_text()))


# Dependencies


def test_requires_waits_for_readiness_and_stops_run_in_reverse(tmp_path: Path) -> None:
    """A unit starts when all instances that it requires are ready; at the end it is down before they are stopped."""
    config = (
        f"[unit.base]\n{WORKER}\ninstances = 2\n"
        f"[unit.top]\n{simple('sleep 600', requires=['base'])}\n"
        f"[unit.after]\n{simple('sleep 600', after=['top'])}\n"
    )
    with daemon(tmp_path, config) as running:
        running.wait_for("after@1", lambda s: s["sub_state"] == "running")
        assert running.stop() == 0
        order = [(record["unit"], record["new"]) for record in running.records("unit_changed")]
        for base in ("base@1", "base@2"):
            assert order.index((base, "running")) < order.index(("top@1", "starting"))
            assert order.index(("top@1", "dead")) < order.index((base, "stopping"))
        assert order.index(("top@1", "running")) < order.index(("after@1", "starting"))
        assert order.index(("after@1", "dead")) < order.index(("top@1", "stopping"))


def test_a_failed_requirement_fails_its_dependants_with_the_reason(tmp_path: Path) -> None:
    """When a required unit cannot become ready, the unit that waits for it fails, and says for whom."""
    config = f"[unit.base]\n{simple('exit 3', type='oneshot')}\n[unit.top]\n{simple('sleep 600', requires=['base'])}\n"
    with daemon(tmp_path, config) as running:
        status = running.wait_for("top@1", lambda s: s["sub_state"] == "failed")
        assert "base" in status["reason"]


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137)])
def test_exit_with_ends_everything_with_its_status(script: str, code: int, tmp_path: Path) -> None:
    """When a unit with exit_with ends, all others are stopped and parsupd exits with its status."""
    config = (
        f"[unit.a]\n{simple('sleep 600')}\n[unit.job]\n{simple(script, type='oneshot', exit_with=True, after=['a'])}\n"
    )
    with daemon(tmp_path, config) as running:
        assert running.process.wait(30) == code


# Bad input


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[unit.a]\ntype = 'simple'\nexek = ['x']", ":3: unit.a.exek"),
        ("[unit.a]\ntype = 'simple'\nexec = 'x'", ":3: unit.a.exec"),
        ("[unit.a]\ntype = 'worker'", ":1: unit.a"),
        ("[unit.a]\ntype = 'simple'\nexec = ['x']\nrequires = ['b']", ":4: unit.a.requires"),
        ("[unit.a]\ntype = 'simple'\nexec = ['x']\nrequires = ['a']", "a -> a"),
        ("[unit.a", "parsupd.toml:1"),
    ],
)
def test_a_bad_configuration_is_refused_with_its_place(config: str, message: str, tmp_path: Path) -> None:
    """parsupd and --check exit with 2 and name file, line and key; no traceback, nothing started."""
    path = tmp_path / "parsupd.toml"
    path.write_text(config)
    for option in ([], ["--check"]):
        result = subprocess.run(
            [*PARSUPD, "--config", path, "--runtime-dir", tmp_path / "run", *option],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert result.returncode == 2
        assert message in result.stderr
        assert str(path) in result.stderr
        assert "Traceback" not in result.stderr


def test_directories_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """A runtime directory that is a file, too long for a socket, or missing its configuration: exit 2, named."""
    config = tmp_path / "parsupd.toml"
    config.write_text("")
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (["--config", config, "--runtime-dir", tmp_path / "file"], str(tmp_path / "file")),
        (["--config", config, "--runtime-dir", tmp_path / ("d" * 100)], "choose a shorter directory"),
        (["--config", tmp_path / "none.toml"], "none.toml"),
    ):
        result = subprocess.run([*PARSUPD, *arguments], capture_output=True, text=True, timeout=30, check=False)
        assert result.returncode == 2
        assert message in result.stderr
        assert "Traceback" not in result.stderr


def test_a_missing_program_is_a_failed_unit_not_a_failed_daemon(tmp_path: Path) -> None:
    """A unit whose program, directory or environment file is missing fails with the path; the daemon goes on."""
    config = (
        "[unit.a]\ntype = 'simple'\nexec = ['/no/such/program']\nrestart = 'no'\n"
        f"[unit.b]\n{simple('sleep 1', working_directory='/no/such/dir', restart='no')}\n"
        f"[unit.c]\n{simple('sleep 1', environment_file=['/no/such/env'], restart='no')}\n"
        f"[unit.d]\n{simple('sleep 1', stdout='append:/no/such/out/x', restart='no')}\n"
    )
    with daemon(tmp_path, config) as running:
        for unit, path in (
            ("a", "/no/such/program"),
            ("b", "/no/such/dir"),
            ("c", "/no/such/env"),
            ("d", "/no/such/out"),
        ):
            status = running.wait_for(f"{unit}@1", lambda s: s["sub_state"] == "failed")
            assert path in status["reason"]


def test_a_full_disk_under_the_log_stops_nothing(tmp_path: Path) -> None:
    """With every write of the log failing, units are supervised on; the daemon ends normally."""
    config = tmp_path / "parsupd.toml"
    config.write_text(f"[unit.a]\n{simple('sleep 600', restart_sec=0, stderr='null')}")
    runtime = tmp_path / "run"
    places = ["--config", config, "--runtime-dir", runtime, "--state-dir", tmp_path / "state"]
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen([*PARSUPD, *places, "--log", "json"], stdout=full, stderr=full)
    wait_until(lambda: (runtime / "parsupd.sock").exists(), what="parsupd is up")
    with blocking.connect(f"PYRO:parsup.Supervisor@./u:{runtime}/parsupd.sock") as supervisor:
        (first,) = supervisor.call("start", ["a"])
        os.kill(first["pid"], signal.SIGKILL)
        wait_until(lambda: supervisor.call("status", ["a"])[0]["restarts"] == 1, what="restarted")
    process.terminate()
    assert process.wait(20) == 0


def test_commands_for_unknown_units_and_during_shutdown(tmp_path: Path) -> None:
    """An unknown name is a LookupError with the nearest one; nothing is done for the other names of the command."""
    with daemon(tmp_path, f"[unit.pricing]\n{simple('sleep 600', enabled=False)}") as running:
        with pytest.raises(LookupError, match="did you mean 'pricing'"):
            running.call("start", ["pricing", "princing"])
        assert running.status("pricing@1")["sub_state"] == "dead"
        with pytest.raises(ValueError, match="there is no state 'up'"):
            running.call("wait", ["pricing"], "up")
        with pytest.raises(TimeoutError, match="pricing@1 \\(dead\\)"):
            running.call("wait", ["pricing"], "active", 0.1)


def test_a_thousand_idle_seconds_cost_no_wakeups(tmp_path: Path) -> None:
    """An idle daemon with running units does not wake: no context switch of its own within half a second."""
    with daemon(tmp_path, f"[unit.a]\n{simple('sleep 600')}\ninstances = 5") as running:
        running.wait_for("a@5", lambda s: s["sub_state"] == "running")
        path = Path(f"/proc/{running.process.pid}/status")

        def switches() -> int:
            lines = [line for line in path.read_text().splitlines() if line.startswith("voluntary_ctxt_switches")]
            return int(lines[0].split()[1])

        quiet_since, count = time.monotonic(), switches()
        give_up_at = quiet_since + 20
        while time.monotonic() - quiet_since < 0.5:
            assert time.monotonic() < give_up_at, "it never became quiet"
            if switches() != count:
                quiet_since, count = time.monotonic(), switches()
