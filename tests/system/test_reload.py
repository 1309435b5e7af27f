"""A real parsupd follows its files: reload, plan, apply, scale, by parsupctl and by SIGHUP."""

import fcntl
import json
import os
import signal
import subprocess
import termios
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import parsupd_process
import pytest
from parsupctl_process import Controlled
from support import alive, wait_until

SLEEP = 'type = "simple"\nexec = ["sleep", "1000"]\n'
STUBBORN = 'type = "simple"\nexec = ["sh", "-c", "trap \'\' TERM; sleep 1000 & wait; wait"]\ntimeout_stop_sec = 60\n'


class Edited(Controlled):
    """A parsupd whose files a test edits."""

    def __init__(self, daemon: parsupd_process.Daemon, folder: Path) -> None:
        super().__init__(daemon)
        self.folder = folder

    def write(self, *, main: str | None = None, **units: str | None) -> None:
        """Writes `units.d/NAME.toml` with the one unit, or removes it."""
        if main is not None:
            (self.folder / "parsupd.toml").write_text(main)
        for name, text in units.items():
            path = self.folder / "units.d" / f"{name}.toml"
            if text is None:
                path.unlink()
            else:
                path.write_text(f"[unit.{name}]\n{text}")

    def change(self, **units: str | None) -> dict[str, Any]:
        """Edits and reloads; returns the plan that was done."""
        self.write(**units)
        return self.json("reload", "--json")

    def json(self, *args: str) -> Any:
        done = self.ctl(*args)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def runs(self) -> dict[str, tuple[int, int]]:
        """Pid and generation of everything that is up."""
        return {one["name"]: (one["pid"], one["generation"]) for one in self.daemon.ask("status") if one["pid"]}

    def states(self) -> dict[str, str]:
        return {one["name"]: one["sub_state"] for one in self.daemon.ask("status")}


@pytest.fixture
def edited(tmp_path: Path) -> Iterator[Edited]:
    """A parsupd with the units `a`, and `b` which requires it."""
    (tmp_path / "units.d").mkdir()
    (tmp_path / "parsupd.toml").write_text("")
    (tmp_path / "units.d" / "a.toml").write_text(f"[unit.a]\n{SLEEP}")
    (tmp_path / "units.d" / "b.toml").write_text(f'[unit.b]\n{SLEEP}requires = ["a"]\n')
    with parsupd_process.parsupd(tmp_path / "parsupd.toml", "--log", "json") as daemon:
        daemon.wait_active("a", "b")
        yield Edited(daemon, tmp_path)
        if daemon.process.poll() is None:
            daemon.stop()
        parsupd_process.assert_nothing_left(daemon.runtime)


def actions(plan: dict[str, Any]) -> dict[str, str]:
    return {unit["unit"]: unit["action"] for unit in plan["units"]}


def test_a_reload_changes_only_what_differs(edited: Edited) -> None:
    """One unit each is added, removed, restarted, changed live, scaled up and down; 50 others keep pid and number."""
    main = "".join(f"[unit.other{number}]\n{SLEEP}" for number in range(50))
    up, down = f"{SLEEP}instances = 1\n", f"{SLEEP}instances = 3\n"
    edited.write(main=main, live=SLEEP, gone=SLEEP, up=up, down=down)
    assert len(edited.json("reload", "--json")["instances"]) == 56
    before = edited.runs()
    edited.write(main="# a comment\n" + main)
    plan = edited.change(
        live=f"{SLEEP}restart_sec = 5\ndescription = 'x'\n",
        gone=None,
        up=up.replace("1\n", "3\n"),
        down=down.replace("3\n", "1\n"),
        b=f'{SLEEP}requires = ["a"]\nenvironment = {{ A = "1" }}\n',
        new=f'{SLEEP}requires = ["off"]\n',
        off=f"{SLEEP}enabled = false\n",
    )
    assert actions(plan) == {
        "b": "restart", "down": "scale", "live": "change", "new": "add", "off": "add", "up": "scale", "gone": "remove",
    }  # fmt: skip
    assert len(plan["untouched"]) == 51
    after = edited.runs()
    kept = before.keys() - {"gone@1", "down@2", "down@3"}
    assert {name for name in kept if after[name] != before[name]} == {"b@1"}
    assert after.keys() == kept | {"new@1", "off@1", "up@2", "up@3"}
    assert after["b@1"][1] == 2
    for name in ("gone@1", "down@3"):
        assert not alive(before[name][0])
    assert edited.daemon.ask("status", ["live"])[0]["description"] == "x"
    assert edited.ctl("status", "gone").returncode == 4
    assert edited.json("plan", "--json")["units"] == []


def test_a_broken_file_changes_nothing_and_says_so(edited: Edited) -> None:
    """Exit status 1, with file, line and key of every mistake; the good changes beside it wait, too."""
    before = edited.runs()
    edited.write(a=f"{SLEEP}restart_sce = 1\n", c=f'{SLEEP}requires = ["d"]\n')
    for command in (["reload"], ["plan"], ["apply", "0123"], ["reload", "--json"]):
        done = edited.ctl(*command)
        assert done.returncode == 1
        assert f"{edited.folder}/units.d/a.toml:4: unit.a.restart_sce: unknown key; did you mean" in done.stderr
        assert "units.d/c.toml:4: unit.c.requires[0]: there is no unit 'd'" in done.stderr
        assert "nothing was changed" in done.stderr
        assert "Traceback" not in done.stderr
    assert edited.runs() == before
    (edited.folder / "parsupd.toml").unlink()
    assert "cannot be read: No such file" in edited.ctl("reload").stderr
    assert edited.runs() == before


def test_exactly_the_plan_that_was_shown(edited: Edited) -> None:
    """`apply` does it; when files or states have changed since, it is refused and nothing happens."""
    before = edited.runs()
    edited.write(a=f"{SLEEP}umask = '027'\n")
    shown = edited.ctl("plan").stdout
    assert 'umask: (unset) -> "027"' in shown
    assert "it requires a, which is restarted" in shown
    plan_id = edited.json("plan", "--json")["id"]
    assert f"do this: parsupctl apply {plan_id}" in shown
    edited.ctl("stop", "b")
    refused = edited.ctl("apply", plan_id)
    assert (refused.returncode, edited.runs()) == (1, {"a@1": before["a@1"]})
    assert "does not hold any more" in refused.stderr
    plan_id = edited.json("plan", "--json")["id"]
    edited.write(c=SLEEP)
    assert edited.ctl("apply", plan_id).returncode == 1
    plan_id = edited.json("plan", "--json")["id"]
    assert actions(edited.json("apply", plan_id, "--json")) == {"a": "restart", "c": "add"}
    assert {name: run[1] for name, run in edited.runs().items()} == {"a@1": 2, "c@1": 1}
    assert edited.ctl("apply", plan_id).returncode == 1


def test_scale_counts_until_the_next_reload(edited: Edited) -> None:
    """Instances come and go while the others go on; the files win at a reload, and the plan says so."""
    first = edited.runs()
    assert edited.ctl("scale", "a=3").returncode == 0
    assert edited.runs().keys() == {"a@1", "a@2", "a@3", "b@1"}
    assert edited.ctl("scale", "a=2", "b=2").returncode == 0
    assert edited.runs().keys() == {"a@1", "a@2", "b@1", "b@2"}
    assert actions(edited.change()) == {"a": "scale", "b": "scale"}
    assert edited.runs() == first
    for arguments, status, message in (
        (["aa=2"], 4, "did you mean 'a'"),
        (["a"], 2, "write UNIT=NUMBER"),
        (["a=99999"], 1, "a: instances must be a whole number"),
    ):
        done = edited.ctl("scale", *arguments)
        assert (done.returncode, message in done.stderr) == (status, True), done.stderr
    assert edited.runs() == first


def test_a_unit_that_does_not_come_up_fails_the_command(edited: Edited) -> None:
    """Exit status 1 with the reason, also for --timeout; the reload itself is done. --no-wait says nothing of it."""
    edited.write(c='type = "simple"\nexec = ["/no/such/program"]\nrestart = "no"\n')
    done = edited.ctl("reload")
    assert done.returncode == 1
    assert "c@1 is failed" in done.stderr
    edited.write(a=STUBBORN)
    assert edited.ctl("reload").returncode == 0
    edited.write(a=None, b=None)
    done = edited.ctl("reload", "--timeout", "0.3")
    assert (done.returncode, "not within 0.3 s: a@1" in done.stderr) == (1, True), done.stderr
    os.killpg(edited.runs()["a@1"][0], signal.SIGKILL)


def test_what_is_being_removed_comes_back(edited: Edited) -> None:
    """A unit that is added again while it is still stopping is up again when it was down; commands wait for it."""
    edited.change(a=STUBBORN, b=None)
    pid = edited.runs()["a@1"][0]
    edited.write(a=None)
    assert edited.ctl("reload", "--no-wait").returncode == 0
    assert edited.states() == {"a@1": "stopping"}
    refused = edited.ctl("start", "a")
    assert (refused.returncode, "is being removed" in refused.stderr) == (4, True)
    with ThreadPoolExecutor(1) as pool:
        edited.write(a=SLEEP)
        coming = pool.submit(edited.ctl, "reload")
        wait_until(lambda: edited.daemon.ask("status")[0]["target"] == "up")
        os.killpg(pid, signal.SIGKILL)
        assert coming.result().returncode == 0
    assert edited.runs()["a@1"][1] == 3


def test_a_reload_in_every_state(edited: Edited) -> None:
    """Backing off: tried at once. Starting: cancelled and started anew. Stopping by request: stays down."""
    failing = 'type = "simple"\nexec = ["false"]\nrestart_sec = 1000\n'
    starting = 'type = "oneshot"\nexec = ["sleep", "1000"]\n'
    edited.write(backing=failing, starting=starting, stopping=STUBBORN)
    assert edited.ctl("reload", "--no-wait").returncode == 0
    wanted = {"backing@1": "backoff", "starting@1": "starting", "stopping@1": "running"}
    wait_until(lambda: wanted.items() <= edited.states().items())
    assert edited.ctl("stop", "stopping", "--no-wait").returncode == 0
    pid = edited.runs()["stopping@1"][0]
    plan = edited.change(
        backing=SLEEP, starting=starting.replace('"sleep", "1000"', '"true"'), stopping=STUBBORN + "umask = '077'\n"
    )
    assert {unit["unit"]: (unit["action"], unit["restarts"]) for unit in plan["units"]} == {
        "backing": ("restart", ["backing@1"]),
        "starting": ("restart", ["starting@1"]),
        "stopping": ("change", []),
    }
    expected = {"backing@1": "running", "starting@1": "exited", "stopping@1": "stopping"}
    assert expected.items() <= edited.states().items()
    os.killpg(pid, signal.SIGKILL)
    wait_until(lambda: edited.states()["stopping@1"] == "dead")


def test_reloads_beside_other_commands(edited: Edited) -> None:
    """Starts, stops and reloads at the same time, each answered; what the files say is true in the end."""
    with ThreadPoolExecutor(4) as pool:
        for number in range(3):
            edited.write(**{f"n{number}": SLEEP, "a": f"{SLEEP}umask = '02{number}'\n"})
            commands = [["reload"], ["stop", "b"], ["start", "b"], ["reload"]]
            for done in pool.map(lambda command: edited.ctl(*command), commands):
                assert done.returncode in {0, 1}, done.stderr
                assert "Traceback" not in done.stderr
    assert edited.ctl("reload").returncode == 0
    assert edited.ctl("start", "a", "b").returncode == 0
    assert set(edited.states().values()) == {"running"}
    assert edited.states().keys() == {"a@1", "b@1", "n0@1", "n1@1", "n2@1"}


def test_a_reload_during_a_shutdown_is_refused(edited: Edited) -> None:
    """The end of everything is not made longer by new units."""
    edited.change(a=STUBBORN, b=None)
    pid = edited.runs()["a@1"][0]
    assert edited.ctl("shutdown").returncode == 0
    edited.write(c=SLEEP)
    done = edited.ctl("reload")
    assert (done.returncode, "being shut down" in done.stderr) == (1, True)
    os.killpg(pid, signal.SIGKILL)
    edited.daemon.finish()


def test_what_waits_for_a_start_of_parsupd_is_said(edited: Edited) -> None:
    """Settings of the daemon itself are not changed under it."""
    edited.write(main='[parsupd]\nlog = "console"\n')
    plan = edited.json("reload", "--json")
    assert plan["daemon"] == [{"key": "log", "old": "auto", "new": "console", "live": False}]
    assert 'counts when parsupd is restarted: log: "auto" -> "console"' in edited.ctl("plan").stdout


def test_sighup_is_a_reload(edited: Edited) -> None:
    """Its result is in the log, a broken file with its place; units go on."""
    before = edited.runs()
    edited.write(c=SLEEP)
    edited.daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: edited.states().get("c@1") == "running")
    edited.write(c="type = 'nonsense'\n")
    edited.daemon.process.send_signal(signal.SIGHUP)
    edited.daemon.ask("status")
    assert before.items() <= edited.runs().items()
    _, _, log = edited.daemon.stop()
    records = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    (done,) = [record for record in records if record["event"] == "reloaded"]
    (failed,) = [record for record in records if record["event"] == "reload_failed"]
    assert done["changes"] == {"c": "add"}
    assert f"{edited.folder}/units.d/c.toml:2: unit.c.type" in failed["reason"]


def test_a_closed_terminal_ends_units_and_sighup_on_an_open_one_does_not(tmp_path: Path) -> None:
    """parsupd in the foreground of a terminal: SIGHUP reloads; when the terminal goes away, nothing stays behind."""
    config = tmp_path / "parsupd.toml"
    config.write_text(f"[unit.a]\n{SLEEP}")
    master, terminal = os.openpty()
    runtime = Path(os.environ.get("TMPDIR", "/tmp")) / f"parsupd-tty-{os.getpid()}"
    places = ["--config", config, "--runtime-dir", runtime, "--state-dir", tmp_path / "state"]
    process = subprocess.Popen(
        [parsupd_process.PARSUPD, *places, "--log", "json"],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    daemon = parsupd_process.Daemon(process, runtime)
    try:
        daemon.wait_active("a")
        config.write_text(f"[unit.a]\n{SLEEP}[unit.b]\n{SLEEP}")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(daemon.ask("status")) == 2)
    finally:
        os.close(master)
        status, _, log = daemon.finish()
    assert status == 0, log
    assert "SIGHUP received" in log
    parsupd_process.assert_nothing_left(runtime)
