"""kill -9 of parsupd beside units of the types notify, forking and oneshot, and beside the commands of units."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from live_daemon import PROGRAMS, Daemon, Info, assert_nothing_left, daemon, simple
from support import alive, wait_until

from parsupd.shell import leftovers

DYING = str(Path(__file__).parent / "dying_parsupd.py")


def program(*steps: str, kind: str, **keys: object) -> str:
    argv = json.dumps([sys.executable, "-S", str(PROGRAMS / "notifying.py"), *steps])
    return "\n".join(
        [f"type = '{kind}'", f"exec = {argv}", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    )


UNITS = f"""
[unit.n]
{program("send:READY=1", kind="notify", timeout_start_sec=8, exec_start_pre=["true"], exec_start_post=["true"])}
[unit.d]
{program("daemon", kind="forking", timeout_start_sec=8, requires=["n"])}
[unit.o]
{simple("sleep 0.2", type="oneshot", requires=["d"], exec_stop=["true"])}
"""
UP = {"n@1": "running", "d@1": "running", "o@1": "exited"}


def states(running: Daemon) -> dict[str, str]:
    return {info["name"]: info["sub_state"] for info in running.call("status")}


def mains(running: Daemon) -> list[str]:
    """The units of all processes that are there, each as often as there are processes."""
    return sorted(str(one.instance) for one in leftovers.find(leftovers.token_of(running.runtime)))


@pytest.mark.parametrize("effect", range(1, 20, 3))
def test_kill_9_at_an_effect_of_a_start(effect: int, tmp_path: Path) -> None:
    """Whenever parsupd is killed while it brings its units up, the next one brings up exactly one of each."""
    running = Daemon(tmp_path, UNITS, start=False)
    running.start(sys.executable, DYING, str(effect), "after", wait=False)
    assert running.process.wait(30) == -signal.SIGKILL
    try:
        running.start()
        wait_until(lambda: states(running) == UP, within_s=40, what="all units are up")
        wait_until(lambda: mains(running) == ["d@1", "n@1"], what="one process each: a daemon may fork twice")
    finally:
        assert running.stop() == 0
    assert_nothing_left(running)


def test_all_types_are_adopted(tmp_path: Path) -> None:
    """The same processes go on: the daemon as the forking unit's main process, whose end is seen; STATUS still counts."""
    steps = ("on-hup:STATUS=still here", "send:READY=1")
    config = UNITS.replace('"send:READY=1"', ", ".join(map(json.dumps, steps)))
    with daemon(tmp_path, config) as running:
        wait_until(lambda: states(running) == UP, within_s=20, what="all units are up")
        before = {info["name"]: (info["pid"], info["generation"]) for info in running.call("status")}
        running.kill()
        running.start()
        assert {info["name"]: (info["pid"], info["generation"]) for info in running.call("status")} == before
        os.kill(before["n@1"][0], signal.SIGHUP)
        running.wait_for("n@1", lambda status: bool(status["status_text"] == "still here"))
        os.kill(before["d@1"][0], signal.SIGKILL)
        running.wait_for("d@1", lambda status: status["generation"] == 2 and status["sub_state"] == "running")
        assert "SIGKILL" in running.call("why", "d")[0]["incarnations"][-1]["cause"]


@pytest.mark.parametrize("stage", ["exec_start_post", "exec_stop", "exec_stop_post"])
@pytest.mark.parametrize("lives", [True, False], ids=["it lives", "it has ended meanwhile"])
def test_a_command_is_adopted(stage: str, lives: bool, tmp_path: Path) -> None:
    """It runs once, to its end, and the unit waits for that; one whose end nobody saw keeps nobody waiting."""
    go, said = tmp_path / "go", tmp_path / "said"
    script = f"echo begun >> {said}; while ! test -e {go}; do sleep 0.05; done; echo done >> {said}"
    config = f"[unit.u]\n{simple('exec sleep 600', restart='no')}\n{stage} = {json.dumps(['/bin/sh', '-c', script])}"

    def there(status: Info) -> bool:
        return bool(status["sub_state"] in {"start-post", "exec-stop", "stop-post"})

    with daemon(tmp_path, config) as running:
        if stage != "exec_start_post":
            running.wait_for("u@1", lambda status: status["sub_state"] == "running")
            running.call("stop", ["u"], False)
        running.wait_for("u@1", there)
        wait_until(lambda: said.exists(), what="the command has begun")
        running.kill()
        if not lives:
            go.touch()
            wait_until(lambda: said.read_text() == "begun\ndone\n", what="the command is done")
            wait_until(
                lambda: not any(one.hook for one in leftovers.find(leftovers.token_of(running.runtime))), what="gone"
            )
        running.start()
        if lives:
            assert there(running.status("u@1"))
            assert len(running.records("command_adopted")) == 1
            go.touch()
        expected = "running" if stage == "exec_start_post" and lives else None
        final = running.wait_for(
            "u@1",
            lambda status: (
                status["sub_state"] == expected or (expected is None and status["state"] in {"failed", "inactive"})
            ),
        )
        assert said.read_text() == "begun\ndone\n"
        assert final["generation"] == 1
        assert expected is not None or not [
            one for one in leftovers.find(leftovers.token_of(running.runtime)) if alive(one.pid)
        ]
