"""`make bench`: measures this project beside its peers, and holds it to its budgets. Prints one table.

Absolute figures are this machine's; what counts are ratios within one run. Best on a machine that does nothing else.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import calls
import imports
import journaling
import logging_files
import maps
import replacement
import spawning
import storm
import streams
import supervisors
from harness import Bench, Budget, Progress, Row, Series, become_subreaper, end_descendants
from rich import box
from rich.console import Console
from rich.table import Table

from workerlib.core import compiled

SUBJECTS = {
    "calls": calls.rows,
    "streams": streams.rows,
    "maps": maps.rows,
    "imports": imports.rows,
    "spawning": spawning.rows,
    "supervisors": supervisors.rows,
    "storm": storm.rows,
    "replacement": replacement.rows,
    "journal": journaling.rows,
    "logs": logging_files.rows,
}
PACKAGES = ("parsupd", "msgspec", "uvloop", "Pyro5", "rpyc", "execnet", "loky", "supervisor", "circus")
TERMINATED = 128 + signal.SIGTERM


def machine() -> dict[str, str]:
    """What the figures depend on."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    versions = []
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    versions[0] += f" {'with' if compiled.is_there() else 'without'} its C part"
    return {
        "cpu": f"{len(os.sched_getaffinity(0))} × {names[0] if names else platform.machine()}",
        "load": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": ", ".join(versions),
    }


def figure(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def spread(series: Series | None) -> str:
    """The median, and from which lowest to which highest sample."""
    if series is None:
        return "–"
    if len(series.values) == 1:
        return figure(series.median)
    return f"{figure(series.median)} ({figure(series.low)}–{figure(series.high)})"


def budget_text(budget: Budget | None, unit: str) -> str:
    if budget is None:
        return "–"
    parts = []
    if budget.at_most is not None:
        parts.append(f"≤ {budget.at_most:g} {unit}")
    if budget.at_least is not None:
        parts.append(f"≥ {budget.at_least:g} {unit}")
    if budget.times_limit is not None:
        parts.append(f"≤ {budget.times_limit:g} × limit" + (f" + {budget.plus:g} {unit}" if budget.plus else ""))
    if budget.ahead:
        parts.append("ahead of all")
    return ", ".join(parts)


def table_of(rows: list[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("row", "measured", "unit"):
        table.add_column(heading, overflow="fold")
    for heading in ("limit", "ours", "ratio"):
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column("others, best first", overflow="fold", min_width=24)
    table.add_column("budget")
    table.add_column("verdict")
    colours = {"met": "green", "MISSED": "bold red", "skipped": "yellow", "for information": "dim"}
    for row in rows:
        others = [f"{other.name} {figure(other.median)}" for other in row.ranked]
        verdict = ", ".join((row.verdict, *row.failures()))
        table.add_row(
            row.name,
            row.what,
            row.unit,
            spread(row.limit),
            spread(row.ours),
            "–" if row.ratio is None else f"{row.ratio:.2f}",
            " · ".join(others) or "–",
            budget_text(row.budget, row.unit),
            f"[{colours[row.verdict]}]{verdict}[/]",
        )
    return table


def report(facts: dict[str, str], rows: list[Row], took_s: float) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    for key, value in facts.items():
        console.print(f"{key:9} {value}")
    console.print(table_of(rows))
    console.print(
        "Medians (lowest–highest) of samples taken in turns; pinned: both ends on one CPU; ratio: ours over the limit, or "
        "over the best\nother where there is no limit, the median of the turns."
    )
    for trouble in dict.fromkeys(row.skipped for row in rows if row.skipped):
        console.print(f"skipped: {trouble}", markup=False)
    missed = [row.name for row in rows if row.verdict == "MISSED"]
    console.print(f"{len(missed)} of {sum(row.budget is not None for row in rows)} budgets missed, in {took_s:.0f} s")


def as_json(facts: dict[str, str], rows: list[Row]) -> dict[str, Any]:
    entries = [{**dataclasses.asdict(row), "ratio": row.ratio, "verdict": row.verdict} for row in rows]
    return {"machine": facts, "rows": entries}


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__)
    parser.add_argument("subjects", nargs="*", metavar="NAME", help=f"what to measure: {', '.join(SUBJECTS)} (all)")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter samples, 100 units: to try things out")
    parser.add_argument("--json", metavar="FILE", help="also write every sample to FILE")
    parser.add_argument("--report-only", action="store_true", help="exit 0 also when a budget is missed")
    options = parser.parse_args()
    for name in options.subjects:
        if name not in SUBJECTS:
            parser.error(f"there is no {name!r}: choose from {', '.join(SUBJECTS)}")
    became = time.monotonic()
    facts = machine()
    progress = Progress()
    bench = Bench(options.quick, progress)
    rows: list[Row] = []
    for name in options.subjects or SUBJECTS:
        rows.extend(SUBJECTS[name](bench))
    progress.end()
    report(facts, rows, time.monotonic() - became)
    if options.json:
        Path(options.json).write_text(json.dumps(as_json(facts, rows), indent=1) + "\n")
    missed = any(row.verdict == "MISSED" for row in rows)
    return int(missed and not options.report_only)


def terminate(*_: object) -> None:
    sys.exit(TERMINATED)


if __name__ == "__main__":
    become_subreaper()
    signal.signal(signal.SIGTERM, terminate)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        # Programs that are ended with SIGKILL leave their temporary files; these all lie in here.
        os.environ["TMPDIR"] = tempfile.tempdir = scratch
        # Installed packages have their bytecode; a checkout must be allowed to keep its own, or each start compiles it.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        try:
            sys.exit(main())
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
        finally:
            end_descendants()
