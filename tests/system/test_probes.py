"""Liveness probes and memory limits with real programs and workers: what fails is ended, and nothing is leaked."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from live_daemon import PROGRAMS, daemon, simple
from support import ENGINES, alive, run_async, wait_until

from parsupd.shell.probes import ProbeFailedError, ask_http, ask_tcp

QUICK = {"interval_sec": 0.05, "timeout_sec": 5, "failure_threshold": 2}


def table(**keys: Any) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in {**QUICK, **keys}.items()]
    return "\n".join(["[unit.a.liveness]", *lines])


def unit(script: str, *tables: str, **keys: Any) -> str:
    return "\n".join(["[unit.a]", simple(script, **keys), *tables])


def in_state(*names: str) -> Any:
    return lambda status: status["sub_state"] in names


def test_what_is_not_alive_is_ended_and_restarted(tmp_path: Path) -> None:
    """A failing liveness probe ends the run with its reason, and the restart policy starts the next."""
    flag = tmp_path / "flag"
    flag.touch()
    text = unit("sleep 600", table(exec=["/usr/bin/test", "-e", str(flag)]), restart_sec=1)
    with daemon(tmp_path, text) as parsupd:
        old = parsupd.wait_for("a@1", in_state("running"))["pid"]
        flag.unlink()
        parsupd.wait_for("a@1", in_state("backoff"))
        flag.touch()
        assert parsupd.wait_for("a@1", in_state("running"))["pid"] != old
        ended = parsupd.records("unit_ended")[0]
        assert "its exec probe failed 2 times in a row: it exited with 1" in ended["cause"]


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    """No process of a probe outlives its deadline, nor what it started in its group."""
    script = f"sleep 601 & echo $! >>{tmp_path}/pids; echo $$ >>{tmp_path}/pids; wait"
    text = unit("sleep 600", table(exec=["/bin/sh", "-c", script], timeout_sec=0.5), restart_sec=600)
    with daemon(tmp_path, text) as parsupd:
        status = parsupd.wait_for("a@1", in_state("backoff"))
        assert "no answer within 0.5 s" in status["reason"]
        first = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        assert first
        wait_until(lambda: not any(map(alive, first)), what="the probe's processes are gone")


def test_a_probe_dies_with_its_parsupd_and_is_taken_up_again(tmp_path: Path) -> None:
    """After kill -9 what was being asked is swept, the unit goes on, and its probe with it."""
    flag = tmp_path / "flag"
    script = f"if test -e {flag}; then echo $$ >>{tmp_path}/pids; exec sleep 602; fi; touch {tmp_path}/asked"
    text = unit("sleep 600", table(exec=["/bin/sh", "-c", script], timeout_sec=30))
    with daemon(tmp_path, text) as parsupd:
        unit_pid = parsupd.wait_for("a@1", in_state("running"))["pid"]
        flag.touch()
        pid = int(wait_until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text().strip()))
        parsupd.kill()
        flag.unlink()
        (tmp_path / "asked").unlink(missing_ok=True)
        parsupd.start()
        wait_until(lambda: not alive(pid), what="the old probe's process is gone")
        wait_until((tmp_path / "asked").exists, what="the probe goes on")
        assert parsupd.status("a@1")["pid"] == unit_pid


ANSWERS = [
    (b"HTTP/1.1 204 No Content\r\n\r\n", ""),
    (b"HTTP/1.1 503 Busy\r\n\r\n", "status 503"),
    (b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1/\r\n\r\n", "status 301"),
    (b"hello\r\n", "that is no HTTP: b'hello'"),
    (b"HTTP/1.1 2", "the answer ended after b'HTTP/1.1 2'"),
    (b"x" * 100_000, "a line of at most 1024 bytes"),
]


@pytest.mark.parametrize("engine", ENGINES)
def test_http_and_tcp(engine: str) -> None:
    """A status from 200 to 299 passes; any other, garbage, a cut answer and an endless line fail, each with its words."""

    async def scenario() -> None:
        answer = b""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1000)
            writer.write(answer)
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            await ask_tcp(f"127.0.0.1:{port}")
            for content, words in ANSWERS:
                answer = content
                if not words:
                    await ask_http(f"http://127.0.0.1:{port}/healthz")
                    continue
                with pytest.raises(ProbeFailedError) as caught:
                    await ask_http(f"http://127.0.0.1:{port}/healthz")
                assert words in str(caught.value)
        with pytest.raises(ConnectionRefusedError):
            await ask_tcp(f"127.0.0.1:{port}")

    run_async(scenario, engine)


def test_a_worker_that_does_not_answer_is_ended(tmp_path: Path) -> None:
    """`ping` asks its process; one that is stopped keeps its connection, and is found all the same."""
    text = "\n".join(
        ["[unit.a]", "type = 'worker'", "worker = 'workers:Sum'", f"working_directory = {str(PROGRAMS)!r}",
         "timeout_stop_sec = 0.5", "restart_sec = 600", table(rpc="ping", timeout_sec=1)]
    )  # fmt: skip
    with daemon(tmp_path, text) as parsupd:
        pid = parsupd.wait_for("a@1", in_state("running"))["pid"]
        os.kill(pid, signal.SIGSTOP)
        status = parsupd.wait_for("a@1", in_state("backoff"))
        assert "its rpc probe failed 2 times in a row: no answer within 1 s" in status["reason"]


def test_rpc_is_for_workers(tmp_path: Path) -> None:
    """A program has no functions to be asked."""
    path = tmp_path / "parsupd.toml"
    path.write_text(unit("sleep 600", table(rpc="ping")))
    command = [sys.executable, "-m", "parsupd", "--config", str(path), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "unit.a.liveness.rpc: is for units of type worker only" in done.stderr


GROWING = "import time; kept = bytearray(80 << 20); time.sleep(600)"


@pytest.mark.parametrize("action", ["restart", "stop", "log"])
def test_a_unit_that_takes_too_much_memory(tmp_path: Path, action: str) -> None:
    """It is ended as its restart policy has it, or stopped, or only told of; by what its whole group takes."""
    lines = [
        "[unit.a]", "type = 'simple'", "restart_sec = 600", "max_rss = '60M'", f"max_rss_action = '{action}'",
        f"exec = {json.dumps(['/bin/sh', '-c', f'{sys.executable} -c {GROWING!r} & wait'])}",
    ]  # fmt: skip
    states = {"restart": "backoff", "stop": "dead", "log": "running"}
    with daemon(tmp_path, "\n".join(lines)) as parsupd:
        wait_until(lambda: parsupd.records("unit_takes_too_much"), within_s=20)
        status = parsupd.wait_for("a@1", in_state(states[action]))
        if action != "log":
            assert "max_rss is 60 MiB" in status["reason"]
