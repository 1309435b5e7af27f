"""Output of one program into log files, MB a second: a unit of each supervisor writes as fast as it is let."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import BIN, OURS, Bench, Budget, CaseError, Row, Series, started, wait_until

HEAD = len("2026-01-31T14:00:00.123456Z 1 stdout ")
"""Bytes that we write before each line of 100."""

WRITER = """
import os, sys, time
block = (b"x" * 99 + b"\\n") * 640
left = int(sys.argv[1])
began = time.monotonic()
while left > 0:
    left -= os.write(1, block)
with open(sys.argv[2] + ".new", "w") as file:
    file.write(str(began))
os.rename(sys.argv[2] + ".new", sys.argv[2])
time.sleep(600)
"""


def parsupd(folder: Path, command: str) -> tuple[list[str], str]:
    (folder / "parsupd.toml").write_text(
        f'[unit.writer]\ntype = "simple"\nexec = ["sh", "-c", "exec {command}"]\nstdout = "file"\nlog_total_size = "8G"\n'
        "log_compress = false\n"
    )
    argv = [str(BIN / "parsupd"), "--config", str(folder / "parsupd.toml"), "--log", "json"]
    return [*argv, "--runtime-dir", str(folder / "run"), "--state-dir", str(folder / "state")], "state/logs/*@1.0*"


def supervisord(folder: Path, command: str) -> tuple[list[str], str]:
    (folder / "supervisord.conf").write_text(
        f"[supervisord]\nnodaemon=true\nlogfile={folder}/log\npidfile={folder}/pid\n"
        f"[program:writer]\ncommand={command}\nstdout_logfile={folder}/out\nstdout_logfile_maxbytes=16MB\n"
        "stdout_logfile_backups=1000\n"
    )
    return [str(BIN / "supervisord"), "-c", str(folder / "supervisord.conf")], "out*"


def circus(folder: Path, command: str) -> tuple[list[str], str]:
    (folder / "circus.ini").write_text(
        f"[circus]\nendpoint = ipc://{folder}/e\npubsub_endpoint = ipc://{folder}/p\n"
        f"[watcher:writer]\ncmd = {command}\nstdout_stream.class = FileStream\nstdout_stream.filename = {folder}/out\n"
        "stdout_stream.max_bytes = 16777216\nstdout_stream.backup_count = 1000\n"
    )
    return [str(BIN / "circusd"), "--log-level", "error", str(folder / "circus.ini")], "out*"


SUPERVISORS: dict[str, Callable[[Path, str], tuple[list[str], str]]] = {
    OURS: parsupd,
    "supervisord": supervisord,
    "circus": circus,
}


def _rate(name: str, size: int) -> float:
    """Until everything is in the files. Ours has time, life and stream of each line in them; the others' have not."""
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        folder = Path(place)
        (folder / "writer.py").write_text(WRITER)
        argv, files = SUPERVISORS[name](folder, f"python3 {folder}/writer.py {size} {folder}/done")
        with started(argv, end_s=20, env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}):
            wait_until(lambda: (folder / "done").exists(), 120, f"the output of {name}")
            began = float((folder / "done").read_text())

            whole = size * (100 + (HEAD if name == OURS else 0)) // 100

            def written() -> bool:
                return sum(path.stat().st_size for path in folder.glob(files)) >= whole

            wait_until(written, 60, f"the files of {name}")
            return size / (time.monotonic() - began) / 1e6


def rows(bench: Bench) -> Iterator[Row]:
    size = (16 if bench.quick else 256) << 20
    rates: dict[str, list[float]] = {name: [] for name in SUPERVISORS}
    missing: list[str] = []
    for turn in range(1 if bench.quick else 3):
        for name in SUPERVISORS:
            if not (BIN / {OURS: "parsupd", "circus": "circusd"}.get(name, name)).exists():
                missing.append(name)
                continue
            bench.progress.step(f"log files: {name}, {turn + 1}")
            # The others take minutes for what takes us seconds.
            rates[name].append(_rate(name, size if name == OURS else size // 8))
    series = {name: Series(name, tuple(values)) for name, values in rates.items() if values}
    if OURS not in series:
        raise CaseError("parsupd is not installed")
    yield Row(
        "output into log files",
        "lines of 100 bytes; only ours have times",
        "MB/s",
        series.pop(OURS),
        None,
        tuple(series.values()),
        Budget(at_least=100),
        more_is_better=True,
        skipped=f"not installed: {', '.join(sorted(set(missing)))}" if missing else "",
    )
