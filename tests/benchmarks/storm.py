"""Control while units crash all the time: how long a question about one unit takes, beside a thousand quiet ones.

Ten instances end as soon as they have begun and are restarted without delay or limit. The question is asked over a new
connection each time, as a command line does; of circus over one that stays, as its client is made.
"""

import contextlib
import http.client
import os
import socket
import statistics
import tempfile
import time
import xmlrpc.client
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import BIN, Bench, Budget, CaseError, Row, Series, children, started, wait_until
from supervisors import OURS, p99, sleepers

CRASHING = 10
PAUSE_S = 0.01

Ask = Callable[[], object]


def parsupd(folder: Path, count: int) -> list[str]:
    keys = 'type = "simple"\nrestart = "always"\nrestart_sec = 0\nstart_limit_burst = 0\nstdout = "null"\n'
    (folder / "parsupd.toml").write_text(
        f'[unit.sleep]\n{keys}exec = ["sleep", "86400"]\ninstances = {count}\n'
        f'[unit.storm]\n{keys}exec = ["true"]\ninstances = {CRASHING}\n'
    )
    argv = [str(BIN / "parsupd"), "--config", str(folder / "parsupd.toml"), "--log", "json"]
    return [*argv, "--runtime-dir", str(folder / "run"), "--state-dir", str(folder / "state")]


def supervisord(folder: Path, count: int) -> list[str]:
    keys = "startsecs=0\nstartretries=1000000\nautorestart=true\nstdout_logfile=NONE\nstderr_logfile=NONE\n"
    (folder / "supervisord.conf").write_text(
        f"[supervisord]\nnodaemon=true\nlogfile={folder}/log\npidfile={folder}/pid\nminfds=8192\nminprocs=500\n"
        f"[unix_http_server]\nfile={folder}/s\n"
        "[rpcinterface:supervisor]\nsupervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
        f"[program:sleep]\ncommand=sleep 86400\nprocess_name=%(process_num)04d\nnumprocs={count}\n{keys}"
        f"[program:storm]\ncommand=true\nprocess_name=%(process_num)04d\nnumprocs={CRASHING}\n{keys}"
    )
    return [str(BIN / "supervisord"), "-c", str(folder / "supervisord.conf")]


def circus(folder: Path, count: int) -> list[str]:
    (folder / "circus.ini").write_text(
        f"[circus]\ncheck_delay = 1\nendpoint = ipc://{folder}/e\npubsub_endpoint = ipc://{folder}/p\n"
        f"[watcher:sleep]\ncmd = sleep 86400\nnumprocesses = {count}\nwarmup_delay = 0\nmax_retry = -1\n"
        f"[watcher:storm]\ncmd = true\nnumprocesses = {CRASHING}\nwarmup_delay = 0\nmax_retry = -1\n"
    )
    return [str(BIN / "circusd"), "--log-level", "critical", str(folder / "circus.ini")]


@contextlib.contextmanager
def ask_parsupd(folder: Path) -> Iterator[Ask]:
    from workerlib import blocking

    def ask() -> object:
        with blocking.connect(f"PYRO:parsup.Supervisor@./u:{folder}/run/parsupd.sock", within_s=20) as connection:
            return connection.call("status", ["sleep@1"])

    yield ask


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = str(path)

    def make_connection(self, host: object) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("localhost", timeout=20)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(20)
        connection.sock.connect(self._path)
        return connection


@contextlib.contextmanager
def ask_supervisord(folder: Path) -> Iterator[Ask]:
    def ask() -> object:
        with xmlrpc.client.ServerProxy("http://localhost", transport=_UnixTransport(folder / "s")) as proxy:
            return proxy.supervisor.getProcessInfo("sleep:0000")

    yield ask


@contextlib.contextmanager
def ask_circus(folder: Path) -> Iterator[Ask]:
    try:
        from circus.client import CircusClient
    except ImportError as error:
        raise CaseError(str(error)) from None
    client = CircusClient(endpoint=f"ipc://{folder}/e", timeout=20)
    try:
        yield lambda: client.send_message("status", name="sleep")
    finally:
        client.stop()


CASES = {
    OURS: (parsupd, ask_parsupd),
    "supervisord": (supervisord, ask_supervisord),
    "circus": (circus, ask_circus),
}


def measure(name: str, count: int, questions: int) -> tuple[float, ...]:
    """Milliseconds of each question. Raises CaseError."""
    command, asking = CASES[name]
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        folder = Path(place)
        log = os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
        with started(command(folder, count), stdout=log, stderr=log, end_s=30) as process:
            os.close(log)

            def up() -> bool:
                if process.poll() is not None:
                    raise CaseError(f"{name} ended: {(folder / 'stderr').read_text(errors='replace')[-300:]}")
                return len(children(process.pid)) >= count and len(sleepers(process.pid)) >= count

            wait_until(up, 120, f"{count} units of {name} up", pause_s=0.02)
            time.sleep(1)
            taken = []
            with asking(folder) as ask:
                for _ in range(questions):
                    time.sleep(PAUSE_S)
                    began = time.monotonic()
                    try:
                        ask()
                    except Exception as error:
                        raise CaseError(f"{name}: {error!r}") from None
                    taken.append((time.monotonic() - began) * 1e3)
    return tuple(taken)


def rows(bench: Bench) -> Iterator[Row]:
    count = 100 if bench.quick else 1000
    turns = 1 if bench.quick else 3
    found: dict[str, list[tuple[float, ...]]] = {}
    trouble: list[str] = []
    for turn in range(turns):
        for name in CASES:
            if name != OURS and turn:
                continue  # as in `supervisors`
            bench.progress.step(f"storm: {name} with {count} units, {turn + 1} of {turns if name == OURS else 1}")
            try:
                found.setdefault(name, []).append(measure(name, count, 300 if name == OURS else 30))
            except CaseError as error:
                trouble.append(str(error))

    def row(what: str, budget: Budget | None, value: Callable[[tuple[float, ...]], float], note: str) -> Row:
        series = {name: Series(name, tuple(map(value, taken))) for name, taken in found.items() if taken}
        own = series.pop(OURS, None)
        return Row(what, note, "ms", own, None, tuple(series.values()), budget, skipped="; ".join(trouble))

    units = f"{count} units and {CRASHING} that crash all the time"
    yield row("control in a storm, median", None, statistics.median, f"status of a unit, {units}")
    yield row("control in a storm, p99", Budget(at_most=20), p99, f"status of a unit, {units}")
