"""Supervisors that keep a thousand `sleep` processes: time up, memory, idle CPU, restart after kill -9, time down.

Beside the thousand there is one unit that writes its pid into a FIFO when it starts. It is killed to measure restarts:
the time from kill() until what the successor wrote has been read, so a shell's start and this program's wake-up count.
"""

import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import (
    BIN,
    Bench,
    Budget,
    CaseError,
    Row,
    Series,
    children,
    comm,
    cpu_s,
    descendants,
    end_descendants,
    pss_mib,
    read_line,
    started,
    wait_until,
)

OURS = "parsupd"
PROBE = 'echo $$ >"{fifo}"; exec sleep 86399'


@dataclass(frozen=True)
class Result:
    """What one run of a supervisor showed."""

    up_s: float
    pss_mib: float
    idle_ms_per_s: float
    restarts_ms: tuple[float, ...]
    down_s: float
    left: int


def parsupd(folder: Path, count: int, probe: str) -> list[str]:
    keys = 'type = "simple"\nstdout = "null"\nrestart = "always"\nrestart_sec = 0\nstart_limit_burst = 0\n'
    (folder / "parsupd.toml").write_text(
        f'[unit.sleep]\n{keys}exec = ["sleep", "86400"]\ninstances = {count}\n\n'
        f"[unit.probe]\n{keys}exec = ['sh', '-c', '{probe}']\n"
    )
    argv = [str(BIN / "parsupd"), "--config", str(folder / "parsupd.toml"), "--log", "json"]
    return [*argv, "--runtime-dir", str(folder / "run"), "--state-dir", str(folder / "state")]


def supervisord(folder: Path, count: int, probe: str) -> list[str]:
    keys = "startsecs=0\nstartretries=1000\nautorestart=true\nstdout_logfile=NONE\nstderr_logfile=NONE\n"
    probe = probe.replace('"', '\\"')
    (folder / "supervisord.conf").write_text(
        f"[supervisord]\nnodaemon=true\nlogfile={folder}/log\npidfile={folder}/pid\nminfds=8192\nminprocs=500\n"
        f"[program:sleep]\ncommand=sleep 86400\nprocess_name=%(process_num)04d\nnumprocs={count}\n{keys}"
        f'[program:probe]\ncommand=sh -c "{probe}"\n{keys}'
    )
    return [str(BIN / "supervisord"), "-c", str(folder / "supervisord.conf")]


def circus(folder: Path, count: int, probe: str) -> list[str]:
    script = folder / "probe.sh"
    script.write_text(probe + "\n")
    (folder / "circus.ini").write_text(
        f"[circus]\ncheck_delay = 1\nendpoint = ipc://{folder}/e\npubsub_endpoint = ipc://{folder}/p\n"
        f"[watcher:sleep]\ncmd = sleep 86400\nnumprocesses = {count}\nwarmup_delay = 0\nmax_retry = -1\n"
        f"[watcher:probe]\ncmd = sh {script}\nwarmup_delay = 0\nmax_retry = -1\n"
    )
    return [str(BIN / "circusd"), "--log-level", "error", str(folder / "circus.ini")]


SUPERVISORS: dict[str, Callable[[Path, int, str], list[str]]] = {
    OURS: parsupd,
    "supervisord": supervisord,
    "circus": circus,
}


def p99(values: tuple[float, ...]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98] if len(values) > 1 else values[0]


def sleepers(pid: int) -> set[int]:
    return {kid for kid in children(pid) if comm(kid) == "sleep"}


def measure(name: str, count: int, kills: int, window_s: float) -> Result:
    """One run. Raises CaseError when something does not come up, or back, in time."""
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        folder = Path(place)
        os.mkfifo(folder / "fifo")
        fifo = os.open(folder / "fifo", os.O_RDWR | os.O_CLOEXEC)
        try:
            argv = SUPERVISORS[name](folder, count, PROBE.format(fifo=folder / "fifo"))
            log = os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
            began = time.monotonic()
            with started(argv, stdout=log, stderr=log, end_s=30) as process:
                os.close(log)
                pid = process.pid

                def up() -> bool:
                    if process.poll() is not None:
                        raise CaseError(f"{name} ended: {(folder / 'stderr').read_text(errors='replace')[-300:]}")
                    return len(children(pid)) > count and len(sleepers(pid)) > count

                wait_until(up, 120, f"{count} units of {name} up", pause_s=0.02)
                up_s = time.monotonic() - began
                victim = int(read_line(fifo, 20, f"the probe of {name}"))
                time.sleep(2)
                daemon = [one for one in (pid, *descendants(pid)) if one == pid or comm(one) != "sleep"]
                memory = pss_mib(daemon)
                before, at = cpu_s(daemon), time.monotonic()
                time.sleep(window_s)
                idle = (cpu_s(daemon) - before) * 1e3 / (time.monotonic() - at)
                restarts = []
                # Supervisors that look once a second are not to be met always at the same moment of it.
                longest_s = 0.1 if name == OURS else 1.0
                for _ in range(kills):
                    time.sleep(0.3 * longest_s + random.uniform(0, longest_s))
                    killed_at = time.monotonic()
                    os.kill(victim, signal.SIGKILL)
                    victim = int(read_line(fifo, 20, f"the restart by {name}"))
                    restarts.append((time.monotonic() - killed_at) * 1e3)
                time.sleep(2)  # circus loses a SIGTERM that comes while it restarts something
                began = time.monotonic()
                process.terminate()
                wait_until(lambda: process.poll() is not None, 60, f"the end of {name}")
                down_s = time.monotonic() - began
                left = end_descendants()
        finally:
            os.close(fifo)
    return Result(up_s, memory, idle, tuple(restarts), down_s, left)


def rows(bench: Bench) -> Iterator[Row]:
    count = 100 if bench.quick else 1000
    turns = 1 if bench.quick else 3
    results: dict[str, list[Result]] = {}
    trouble: list[str] = []
    for turn in range(turns):
        for name in SUPERVISORS:
            peer = name != OURS
            if peer and turn:
                continue  # they take half a minute each, and are nowhere near the budgets
            bench.progress.step(f"supervisors: {name} with {count} units, {turn + 1} of {1 if peer else turns}")
            try:
                result = measure(name, count, 3 if peer else 40, 3 if bench.quick else 10)
            except CaseError as error:
                trouble.append(str(error))
            else:
                results.setdefault(name, []).append(result)

    def row(
        what: str, unit: str, budget: Budget | None, values: Callable[[Result], tuple[float, ...]], note: str
    ) -> Row:
        series = {
            name: Series(name, tuple(value for result in all_results for value in values(result)))
            for name, all_results in results.items()
        }
        own = series.pop(OURS, None)
        return Row(what, note, unit, own, None, tuple(series.values()), budget, skipped="; ".join(trouble))

    units = f"{count} sleep units"
    yield row(f"{units} up", "s", Budget(at_most=3), lambda r: (r.up_s,), "start of the daemon to the last exec")
    yield row("daemon's memory", "MiB", Budget(at_most=40), lambda r: (r.pss_mib,), f"Pss with {units}")
    yield row("daemon's idle CPU", "ms/s", Budget(at_most=1), lambda r: (r.idle_ms_per_s,), f"with {units}")
    yield row("kill -9 to successor", "ms", Budget(at_most=10), lambda r: r.restarts_ms, "kill() to its first output")
    yield row("kill -9 to successor, p99", "ms", Budget(at_most=50), lambda r: (p99(r.restarts_ms),), f"beside {units}")
    yield row(f"{units} down", "s", None, lambda r: (r.down_s,), "SIGTERM to the daemon's exit")
    yield row("left behind", "processes", Budget(at_most=0), lambda r: (r.left,), "after the daemon's exit")
