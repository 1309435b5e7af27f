"""Readiness probes with real programs and workers: who waits, who has a name, and that nothing is ended for it."""

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from live_daemon import Daemon, daemon, simple

QUICK = {"interval_sec": 0.05, "timeout_sec": 5, "failure_threshold": 2}

SERVER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if os.path.exists(sys.argv[2]) else 503)
        self.end_headers()
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
WORKER = """
import os, workerlib
class Shop(workerlib.Worker):
    @workerlib.rpc
    async def is_open(self) -> bool:
        return os.path.exists(FLAG)
"""


def probe(unit: str, key: str = "readiness", **keys: Any) -> str:
    return "\n".join(
        [f"[unit.{unit}.{key}]", *(f"{name} = {json.dumps(it)}" for name, it in {**QUICK, **keys}.items())]
    )


def unit(name: str, script: str = "sleep 600", **keys: Any) -> str:
    return f"[unit.{name}]\n{simple(script, **keys)}"


def flag_probe(name: str, flag: Path, **keys: Any) -> str:
    return probe(name, exec=["/usr/bin/test", "-e", str(flag)], **keys)


def is_in(state: str) -> Any:
    return lambda status: status["sub_state"] == state


def wait_all(parsupd: Daemon, names: str, state: str) -> dict[str, Any]:
    return {name: parsupd.wait_for(f"{name}@1", is_in(state)) for name in names.split()}


@contextmanager
def listening(path: Path) -> Iterator[None]:
    """Somebody accepts at a path for the time of the block."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(64)
        yield
    path.unlink()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_a_unit_is_ready_while_its_probe_passes(tmp_path: Path) -> None:
    """By exec, tcp, http and rpc: dependants wait, and stay later; a name comes and goes; nothing is restarted."""
    flag, sock, port = tmp_path / "flag", tmp_path / "sock", free_port()
    (tmp_path / "shop.py").write_text(WORKER.replace("FLAG", repr(str(flag))))
    server = json.dumps([sys.executable, "-c", SERVER, str(port), str(flag)])
    text = [
        unit("e"), flag_probe("e", flag), probe("e", "liveness", exec=["/bin/true"]),
        unit("t"), probe("t", tcp=str(sock)),
        f"[unit.h]\ntype = 'simple'\nexec = {server}", probe("h", http=f"http://127.0.0.1:{port}/healthz"),
        f"[unit.w]\ntype = 'worker'\nworker = 'shop:Shop'\nworking_directory = {str(tmp_path)!r}\nstdout = 'null'",
        probe("w", rpc="is_open"),
        unit("site", requires=["e", "t", "h", "w"]),
    ]  # fmt: skip
    with daemon(tmp_path, "\n".join(text)) as parsupd:
        begun = wait_all(parsupd, "e t h w", "start-probe")
        parsupd.wait_for(
            "h@1", lambda status: "its http probe failed" in status["reason"] and "503" in status["reason"]
        )
        assert parsupd.status("site@1")["sub_state"] == "waiting"
        assert "w@1" not in parsupd.names()
        flag.touch()
        with listening(sock):
            site = wait_all(parsupd, "e t h w site", "running")["site"]
            assert "w@1" in parsupd.names()
        flag.unlink()
        found = wait_all(parsupd, "e t h w", "unready")
        assert "w@1" not in parsupd.names()
        assert found["e"]["reason"] == "its exec probe failed 2 times in a row: it exited with 1"
        assert "its rpc probe failed 2 times in a row: is_open returned False" in found["w"]["reason"]
        assert {(each["state"], each["uri"]) for each in found.values()} == {("activating", "")}
        with pytest.raises(TimeoutError):
            parsupd.call("wait", ["e"], "active", 0.2)
        (told,) = [
            each for each in parsupd.records("unit_changed") if each["unit"] == "t@1" and each["new"] == "unready"
        ]
        assert "its tcp probe failed 2 times in a row" in told["reason"]
        flag.touch()
        with listening(sock):
            again = wait_all(parsupd, "e t h w site", "running")
            assert "w@1" in parsupd.names()
        assert {name: again[name]["pid"] for name in begun} == {name: status["pid"] for name, status in begun.items()}
        assert (again["site"]["pid"], again["site"]["since"]) == (site["pid"], site["since"])
        assert not parsupd.records("unit_ended")


def test_a_start_that_does_not_pass_in_time(tmp_path: Path) -> None:
    """It has failed by its timeout, with the probe's last answer; nothing of it is left."""
    text = unit("a", timeout_start_sec=0.3, restart_sec=600) + "\n" + probe("a", exec=["/bin/sh", "-c", "exit 7"])
    with daemon(tmp_path, text) as parsupd:
        status = parsupd.wait_for("a@1", is_in("backoff"))
        assert "it timed out: not ready within 0.3 s: its exec probe failed" in status["reason"]
        assert "it exited with 7" in status["reason"]
        (why,) = parsupd.call("why", "a")
        assert (why["incarnations"][0]["kind"], why["incarnations"][0]["ready_at"]) == ("timed-out", None)


def test_what_is_known_is_kept_over_kill_9(tmp_path: Path) -> None:
    """Ready, not ready, and not yet ready: each is so with the next parsupd, and its probe goes on."""
    flags = {name: tmp_path / f"flag-{name}" for name in ("ready", "not", "yet")}
    for name, each in flags.items():
        (tmp_path / f"{name}_shop.py").write_text(WORKER.replace("FLAG", repr(str(each))))
    text = [
        f"[unit.{name}]\ntype = 'worker'\nworker = '{name}_shop:Shop'\nworking_directory = {str(tmp_path)!r}\n"
        f"stdout = 'null'\n{probe(name, rpc='is_open')}"
        for name in flags
    ]
    flags["ready"].touch()
    flags["not"].touch()
    with daemon(tmp_path, "\n".join(text)) as parsupd:
        wait_all(parsupd, "ready not", "running")
        flags["not"].unlink()
        states = {"ready@1": "running", "not@1": "unready", "yet@1": "start-probe"}
        before = {name: parsupd.wait_for(name, is_in(state)) for name, state in states.items()}
        parsupd.kill()
        parsupd.start()
        after = {name: parsupd.status(name) for name in states}
        for key in ("sub_state", "pid", "generation", "uri"):
            assert {name: each[key] for name, each in after.items()} == {name: one[key] for name, one in before.items()}
        assert parsupd.names() & set(states) == {"ready@1"}
        for each in flags.values():
            each.touch()
        wait_all(parsupd, "ready not yet", "running")
        assert set(states) <= parsupd.names()
        flags["ready"].unlink()
        wait_all(parsupd, "ready", "unready")
        assert not parsupd.records("unit_ended")


def test_a_reload_changes_the_probe_under_a_running_process(tmp_path: Path) -> None:
    """As the plan says; another question is asked at once, and without one the unit is ready."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.touch()
    text = unit("a") + "\n"
    with daemon(tmp_path, text + flag_probe("a", one)) as parsupd:
        pid = parsupd.wait_for("a@1", is_in("running"))["pid"]

        def reload(probe: str) -> None:
            (tmp_path / "parsupd.toml").write_text(text + probe)
            (planned,) = parsupd.call("plan")["units"]
            assert planned["action"] == "change"
            assert [(key["key"], key["live"]) for key in planned["keys"]] == [("readiness", True)]
            parsupd.call("reload")

        reload(flag_probe("a", other))
        parsupd.wait_for("a@1", is_in("unready"))
        reload("")
        parsupd.wait_for("a@1", is_in("running"))
        reload(flag_probe("a", other))
        parsupd.wait_for("a@1", is_in("unready"))
        other.touch()
        assert parsupd.wait_for("a@1", is_in("running"))["pid"] == pid


def test_a_rolling_restart_waits_for_the_probe(tmp_path: Path) -> None:
    """The second instance has its turn when the first is ready, not when it runs; a probe knows whom it asks for."""
    (tmp_path / "1").touch()
    (tmp_path / "2").touch()
    script = f"test -e {tmp_path}/$PARSUP_PROBED"
    with daemon(tmp_path, unit("a", instances=2) + "\n" + probe("a", exec=["/bin/sh", "-c", script])) as parsupd:
        parsupd.call("wait", ["a"], "active", 10)
        (tmp_path / "1").unlink()
        parsupd.wait_for("a@1", is_in("unready"))
        with pytest.raises(TimeoutError, match=r"under way: a@1; not touched: a@2"):
            parsupd.call("roll", ["a"], timeout_s=1)
        assert (parsupd.status("a@1")["sub_state"], parsupd.status("a@2")["generation"]) == ("start-probe", 1)
        (tmp_path / "1").touch()
        assert parsupd.call("roll", ["a"], timeout_s=10)["restarted"] == ["a@1", "a@2"]
