"""What callers notice of a restart of the daemon, under a real systemd: calls refused, and how much later others are."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from harness import OURS, Bench, Budget, CaseError, Row, Series

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine_process import INSTALLED, Machine, boot, why_not
from machine_service import SERVICE, installed

RESTARTS = 3
JOB = """
from workerlib import Worker, rpc

class Adder(Worker):
    @rpc
    async def add(self, n: int) -> int:
        return n + 1
"""
UNITS = '[unit.adder]\ntype = "worker"\nworker = "adder:Adder"\nworking_directory = "/srv/jobs"\ninstances = 2\n'

CALLER = """
import json, sys, time
from workerlib import ConnectionLost, blocking

by_name, seconds = sys.argv[1] == "by name", float(sys.argv[2])
uri = sys.argv[3]
took, refused, lost, due, until = [], 0, 0, time.monotonic(), time.monotonic() + seconds
while due < until:  # a call each 10 ms, also those that wait behind a slow one: each of them would have been as late
    time.sleep(max(0.0, due - time.monotonic()))
    began, due = due, due + 0.01
    try:
        if by_name:
            with blocking.connect("PYRO:Pyro.NameServer@./u:/run/parsupd/parsupd.sock", within_s=10) as names:
                found = names.call("list", "adder@1")["adder@1"]
        else:
            found = uri
        with blocking.connect(found, within_s=10) as connection:
            assert connection.call("add", 1) == 2
    except ConnectionLost:
        lost += 1
    except (OSError, KeyError):
        refused += 1
    took.append(time.monotonic() - began)
print(json.dumps([took, refused, lost]))
"""


def _calls(machine: Machine, how: str, seconds: float, uri: str, *, restart: bool) -> tuple[list[float], int, int]:
    """Seconds of each call from when it was due, how many were refused, and how many lost their connection."""
    argv = [f"{INSTALLED}/bin/python", "-c", CALLER, how, str(seconds), uri]
    command = '"$@" & caller=$!; sleep 0.5; systemctl restart ' + SERVICE + "; wait $caller" if restart else 'exec "$@"'
    out = machine.run("sh", "-c", command, "sh", *argv).stdout
    took, refused, lost = json.loads(out.splitlines()[-1])
    return took, refused, lost


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def rows(bench: Bench) -> Iterator[Row]:
    def row(what: str, note: str, unit: str, values: list[float], budget: Budget | None, skipped: str = "") -> Row:
        ours = Series(OURS, tuple(values)) if values else None
        return Row(what, note, unit, ours, None, (), budget, skipped=skipped)

    refused: list[float] = []
    added: list[float] = []
    waits: list[float] = []
    trouble = why_not() or ""
    if not trouble:
        bench.progress.step("replacement: booting a systemd")
        try:
            with boot() as machine, installed(machine, UNITS, {"adder": JOB}) as service:
                uri = next(one["uri"] for one in service.ctl("list", "--json") if one["name"] == "adder@1")
                for turn in range(1 if bench.quick else RESTARTS):
                    bench.progress.step(f"replacement: restart {turn + 1} of {RESTARTS}")
                    quiet, *_ = _calls(machine, "by uri", 2, uri, restart=False)
                    took, none, lost = _calls(machine, "by uri", 3, uri, restart=True)
                    added.append((_p99(took) - _p99(quiet)) * 1e3)
                    looked, unnamed, dropped = _calls(machine, "by name", 3, uri, restart=True)
                    waits.append(max(looked) * 1e3)
                    refused.append(none + lost + unnamed + dropped)
        except (AssertionError, OSError) as error:
            raise CaseError(f"the machine for the restarts: {error}") from error
    what = "during `systemctl restart`"
    yield row("calls refused", f"{what}, by URI and by name", "calls", refused, Budget(at_most=0), trouble)
    yield row("calls by URI, p99 later", f"new connections {what}", "ms", added, Budget(at_most=100), trouble)
    yield row("look-up, longest wait", f"name server and call {what}", "ms", waits, None, trouble)
