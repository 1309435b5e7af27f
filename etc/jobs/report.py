"""The client of `make run`: has the corpus workers count the standard library, and prints what they found.

It asks the name server of the parsupd that started it (`$PARSUP_SOCKET`) for the workers, keeps a few batches of files
under way on each, and lets no file depend on one worker: what a dead one had not delivered goes to the others, and its
successor is asked for work as soon as parsupd has it ready.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import sys
import sysconfig
import time
from collections import Counter, deque
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

import workerlib
from corpus import Corpus, FileCounts

UNIT = "corpus"
BATCH = 16
"""Files of one call."""
UNDER_WAY = 2
"""Calls at a time on one worker: while it sends the end of one batch, it counts the next."""
PATIENCE_S = 30.0
"""How long a worker may be away before the report is given up."""
MOST_FREQUENT = 20
MOST_PROBLEMS = 5

STDLIB = Path(sysconfig.get_path("stdlib"))

STOPPED = 128 + signal.SIGTERM


class ReportError(Exception):
    """The report cannot be made; the text says why."""


@dataclass
class Result:
    """What was counted so far."""

    files: int = 0
    lines: int = 0
    bytes: int = 0
    identifiers: Counter[str] = field(default_factory=Counter)
    problems: dict[str, str] = field(default_factory=dict)
    by_worker: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    """Files that were given to another worker because theirs died."""
    seconds: float = 0.0

    def add(self, counts: FileCounts, worker: str) -> None:
        self.files += 1
        self.lines += counts.lines
        self.bytes += counts.bytes
        self.identifiers.update(counts.identifiers)
        if counts.problem:
            self.problems[counts.path] = counts.problem
        self.by_worker[worker] += 1

    def most_frequent(self) -> list[tuple[str, int]]:
        """The commonest identifiers; equally common ones in the order of the alphabet."""
        return sorted(self.identifiers.items(), key=lambda item: (-item[1], item[0]))[:MOST_FREQUENT]


@dataclass(eq=False)
class Counting:
    """One worker that can be given work."""

    name: str
    connection: workerlib.Connection
    under_way: int = 0


def python_files(folder: Path) -> list[str]:
    """All Python files in and below the folder, installed packages excepted."""
    packages = {"site-packages", "dist-packages"}
    return sorted(str(path) for path in folder.rglob("*.py") if not packages & set(path.relative_to(folder).parts))


def batches(paths: list[str]) -> Iterator[list[str]]:
    """Neighbours go into different batches, so that a folder of huge files does not end up in one."""
    count = -(-len(paths) // BATCH)
    return (paths[start::count] for start in range(count))


class Report:
    """Spreads batches over the workers until every file is counted."""

    def __init__(self, socket: str, paths: list[str], progress: Progress) -> None:
        self.result = Result()
        self._socket = socket
        self._todo = deque(batches(paths))
        self._workers: list[Counting] = []
        self._running: set[asyncio.Task[None]] = set()
        self._progress = progress
        self._bar = progress.add_task("counting", total=len(paths))

    async def run(self) -> Result:
        """Raises ReportError when a worker is away for too long, and what the workers raise."""
        began = time.monotonic()
        try:
            for name in await self._names():
                self._start(self._join(name))
            while self._running:
                done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                self._running -= done
                for task in done:
                    task.result()
                self._hand_out()
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            for worker in self._workers:
                await worker.connection.close()
        self.result.seconds = time.monotonic() - began
        return self.result

    def _start(self, work: Coroutine[None, None, None]) -> None:
        self._running.add(asyncio.ensure_future(work))

    def _hand_out(self) -> None:
        """Gives the next batch to the worker that has least to do, while there is one with room for it."""
        while self._todo and self._workers:
            worker = min(self._workers, key=lambda worker: worker.under_way)
            if worker.under_way >= UNDER_WAY:
                return
            worker.under_way += 1
            self._start(self._count(worker, self._todo.popleft()))

    async def _count(self, worker: Counting, paths: list[str]) -> None:
        missing = dict.fromkeys(paths)
        try:
            async for counts in worker.connection.run(Corpus.count_each, paths):
                del missing[counts.path]
                self.result.add(counts, worker.name)
                self._progress.advance(self._bar)
        except workerlib.ConnectionLost:
            self._todo.appendleft(list(missing))
            self.result.retried += len(missing)
            if worker in self._workers:  # the first of its calls to notice
                self._workers.remove(worker)
                self._start(self._join(worker.name))
        finally:
            worker.under_way -= 1

    # Workers

    async def _names(self) -> list[str]:
        async with await workerlib.connect(f"PYRO:Pyro.NameServer@./u:{self._socket}") as names:
            found: dict[str, str] = await names.call("list", prefix=f"{UNIT}@")
        if not found:
            raise ReportError(f"no worker of unit {UNIT!r} is ready")
        return sorted(found)

    async def _join(self, name: str) -> None:
        """Connects to a worker as soon as parsupd has it ready. Raises ReportError after PATIENCE_S."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                async with await workerlib.connect(f"PYRO:parsup.Supervisor@./u:{self._socket}") as supervisor:
                    while not await self._connect(name, supervisor):  # noqa: ASYNC110 - nothing tells of that moment
                        await asyncio.sleep(0.05)  # it has just died, and parsupd is about to hear of it
        except TimeoutError:
            raise ReportError(f"{name} was not ready within {PATIENCE_S:g} s") from None

    async def _connect(self, name: str, supervisor: workerlib.Connection) -> bool:
        [instance] = await supervisor.call("wait", [name], "active")
        try:
            connection = await workerlib.connect(instance["uri"])
        except (OSError, workerlib.HandshakeError, workerlib.ConnectionLost):
            return False
        self._workers.append(Counting(name, connection))
        return True


# Output


def show(result: Result, folder: Path, console: Console) -> None:
    """Prints the result for people."""
    workers = f"{len(result.by_worker)} worker{'' if len(result.by_worker) == 1 else 's'}"
    what = f"The standard library of Python {platform.python_version()}" if folder == STDLIB else str(folder)
    console.print(f"\n{what}, counted by {workers} in {result.seconds:.1f} s", style="bold", highlight=False)
    console.print(_totals(result))
    console.print(_identifiers(result.most_frequent()))
    if result.problems:
        console.print("Counted only as far as they are valid Python:")
    for path, problem in sorted(result.problems.items())[:MOST_PROBLEMS]:
        line = f"  {os.path.relpath(path, folder)}: {problem}"
        console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)
    if len(result.problems) > MOST_PROBLEMS:
        console.print(f"  and {len(result.problems) - MOST_PROBLEMS} more, which --json lists", style="dim")
    console.print()


def _totals(result: Result) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    rows = [("files", result.files), ("lines", result.lines), ("bytes", result.bytes)]
    rows += [(f"files by {name}", done) for name, done in sorted(result.by_worker.items())]
    if result.retried:
        rows.append(("files given to another worker", result.retried))
    for label, number in rows:
        table.add_row(f"  {label}", f"{number:,}")
    return table


def _identifiers(ranked: list[tuple[str, int]]) -> Table:
    """Two columns of pairs, read downwards."""
    table = Table(box=SIMPLE_HEAD)
    half = -(-len(ranked) // 2)
    for _ in range(2):
        table.add_column("identifier")
        table.add_column("count", justify="right")
    cells = [(name, f"{count:,}") for name, count in ranked]
    for left, right in zip_longest(cells[:half], cells[half:], fillvalue=("", "")):
        table.add_row(*left, *right)
    return table


def as_json(result: Result) -> str:
    """The result for programs."""
    return json.dumps(
        {
            "files": result.files,
            "lines": result.lines,
            "bytes": result.bytes,
            "identifiers": dict(result.most_frequent()),
            "problems": result.problems,
            "by_worker": dict(sorted(result.by_worker.items())),
            "retried": result.retried,
            "seconds": round(result.seconds, 3),
        },
        indent=2,
    )


def columns() -> tuple[ProgressColumn, ...]:
    return TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()


async def report(options: argparse.Namespace) -> int:
    """Makes the report; returns the exit status."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    errors = Console(stderr=True)
    paths = await asyncio.to_thread(python_files, options.folder)
    if not paths:
        raise ReportError(f"there is no Python file in {str(options.folder)!r}")
    # The bar goes away when the work is done, and is not drawn at all where nobody watches it.
    with Progress(*columns(), console=errors, transient=True, disable=not errors.is_terminal) as progress:
        result = await Report(options.socket, paths, progress).run()
    if options.json:
        sys.stdout.write(f"{as_json(result)}\n")
    else:
        show(result, options.folder, Console())
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Has the corpus workers of parsupd count Python files.")
    parser.add_argument("folder", nargs="?", type=Path, default=STDLIB,
                        help="where the files are [default: the standard library of this Python]")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--socket", default=os.environ.get("PARSUP_SOCKET"), help="parsupd's [default: $PARSUP_SOCKET]")
    options = parser.parse_args()
    if not options.socket:
        parser.error("which parsupd? Units find its socket in $PARSUP_SOCKET; elsewhere, name it with --socket")
    try:
        return asyncio.run(report(options))
    except (ReportError, workerlib.WorkerlibError, OSError) as error:
        sys.stderr.write(f"report: {error}\n")
        return 1
    except asyncio.CancelledError:
        return STOPPED


if __name__ == "__main__":
    sys.exit(main())
