"""Records a second into a real journald, from one process: workerlib's logger beside other ways to get there."""

import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from harness import OURS, Bench, CaseError, Row, Series

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine_process import INSTALLED, Machine, boot, why_not

COUNT = 20_000
TURNS = 3

SENDER = """
import logging, os, socket, subprocess, sys, time

which, count = sys.argv[1], int(sys.argv[2])
if which == "workerlib":
    import workerlib
    from workerlib.shell import journal
    journal.configure_worker("bench", "bench-1")
    log = workerlib.get_logger(desk="rates"); log.info("loads structlog")
    def send(number): log.info("filled", order=number)
elif which == "cysystemd":
    from cysystemd.journal import JournaldLogHandler
    logger = logging.getLogger("bench")
    logger.addHandler(JournaldLogHandler()); logger.setLevel(20)
    def send(number): logger.info("filled", extra={"desk": "rates", "order": number})
elif which == "logging and a socket":
    class Handler(logging.Handler):
        def __init__(self):
            super().__init__()
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.socket.connect("/run/systemd/journal/socket")
        def emit(self, record):
            fields = {"MESSAGE": record.getMessage(), "PRIORITY": 6, "LOGGER": record.name, "CODE_FILE": record.pathname,
                      "CODE_LINE": record.lineno, "CODE_FUNC": record.funcName, "DESK": record.desk, "ORDER": record.order}
            self.socket.send("".join(f"{name}={value}\\n" for name, value in fields.items()).encode())
    logger = logging.getLogger("bench")
    logger.addHandler(Handler()); logger.setLevel(20)
    def send(number): logger.info("filled", extra={"desk": "rates", "order": number})
else:
    cat = subprocess.Popen(["systemd-cat", "-t", "bench"], stdin=subprocess.PIPE)
    def send(number): cat.stdin.write(b"filled desk=rates order=%d\\n" % number)
    cat.stdin.write(b"")
began = time.perf_counter()
for number in range(count):
    send(number)
if which == "systemd-cat":
    cat.stdin.close(); cat.wait()
took = time.perf_counter() - began
with open("/run/bench-result", "w") as file:
    file.write(str(count / took))
"""


def _rate(machine: Machine, which: str, count: int) -> float:
    """Records a second until the last one was handed over; journald must have each of them."""
    outside = sysconfig.get_path(
        "purelib"
    )  # cysystemd is not installed inside; the checkout's environment is seen there
    machine.run(
        *("systemd-run", "--quiet", "--wait", "--collect", "--unit=bench", f"--setenv=PYTHONPATH={outside}"),
        *("-p", "LogRateLimitIntervalSec=1s", "-p", "LogRateLimitBurst=100000000"),
        *(f"{INSTALLED}/bin/python", "/srv/sender.py", which, str(count)),
    )
    machine.run("journalctl", "--sync")
    arrived = machine.run(
        "sh",
        "-c",
        "journalctl -q --no-pager -o cat --output-fields=MESSAGE _SYSTEMD_UNIT=bench.service | grep -c filled",
    )
    if int(arrived.stdout) != count:
        raise CaseError(f"{which}: {arrived.stdout.strip()} of {count} records are in the journal")
    machine.run("journalctl", "--rotate", "--vacuum-size=1M")
    return float(machine.read("/run/bench-result"))


def rows(bench: Bench) -> Iterator[Row]:
    names = {OURS: "workerlib"} | {name: name for name in ("logging and a socket", "cysystemd", "systemd-cat")}
    rates: dict[str, list[float]] = {name: [] for name in names}
    trouble = why_not() or ""
    if not trouble:
        bench.progress.step("journal: booting a systemd")
        try:
            with boot() as machine:
                machine.write("/srv/sender.py", SENDER)
                for turn in range(1 if bench.quick else TURNS):
                    for name, which in names.items():
                        bench.progress.step(f"journal: {name}, {turn + 1} of {TURNS}")
                        rates[name].append(_rate(machine, which, COUNT // (10 if bench.quick else 1)))
        except (AssertionError, OSError) as error:
            raise CaseError(f"the machine for the journal: {error}") from error
    series = {name: Series(name, tuple(values)) for name, values in rates.items() if values}
    yield Row(
        "records into journald",
        "fields, code location; systemd-cat: lines only",
        "/s",
        series.pop(OURS, None),
        None,
        tuple(series.values()),
        more_is_better=True,
        skipped=trouble,
    )
