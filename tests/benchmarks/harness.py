"""What all benchmarks share: rows with budgets, series of repetitions, and processes that never outlive the run.

A *case* is one contestant in one discipline. Cases of a row are measured in turns, several times each, so that a slow
minute of the machine hits all of them; a ratio is the median of the ratios within the turns. Each sample is taken in a
program of its own (`program.py`), which starts and ends the other end itself.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
PYTHON = sys.executable
BIN = Path(PYTHON).parent

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)

OURS = "workerlib"


@dataclass(frozen=True)
class Series:
    """The samples of one case, one for each turn."""

    name: str
    values: tuple[float, ...]

    def named(self, name: str) -> "Series":
        return Series(name, self.values)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


@dataclass(frozen=True)
class Budget:
    """What our figure must keep; every condition that is given."""

    at_most: float | None = None
    at_least: float | None = None
    times_limit: float | None = None
    """At most so many times the limit that was measured in the same run."""
    plus: float = 0
    """What may come to that, in the row's unit."""
    ahead: bool = False
    """Better than every other case of the row."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    what: str
    unit: str
    ours: Series | None = None
    limit: Series | None = None
    others: tuple[Series, ...] = ()
    budget: Budget | None = None
    more_is_better: bool = False
    skipped: str = ""
    """Why our figure, or that of another, is missing."""

    @property
    def ratio(self) -> float | None:
        """Our figure over the limit, or over the best other: the median over the turns."""
        to = self.limit or self.best_other
        if self.ours is None or to is None:
            return None
        if 0 in to.values:
            return None
        if len(self.ours.values) != len(to.values):
            return self.ours.median / to.median
        return statistics.median(a / b for a, b in zip(self.ours.values, to.values, strict=True))

    @property
    def best_other(self) -> Series | None:
        return next(iter(self.ranked), None)

    @property
    def ranked(self) -> list[Series]:
        """The others, best first."""
        return sorted(self.others, key=lambda series: series.median, reverse=self.more_is_better)

    def failures(self) -> list[str]:
        """The conditions of the budget that our figure does not keep."""
        budget, ours = self.budget, self.ours
        if budget is None or ours is None:
            return []
        missed = []
        if budget.at_most is not None and ours.median > budget.at_most:
            missed.append(f"> {budget.at_most:g}")
        if budget.at_least is not None and ours.median < budget.at_least:
            missed.append(f"< {budget.at_least:g}")
        if budget.times_limit is not None and not self._within_limit(budget.times_limit, budget.plus):
            missed.append(f"> {budget.times_limit:g} × limit" + (f" + {budget.plus:g}" if budget.plus else ""))
        if budget.ahead and (best := self.best_other) is not None:
            behind = ours.median <= best.median if self.more_is_better else ours.median >= best.median
            if behind:
                missed.append(f"behind {best.name}")
        return missed

    def _within_limit(self, times: float, plus: float) -> bool:
        if plus and self.ours is not None and self.limit is not None:
            return self.ours.median <= times * self.limit.median + plus
        return self.ratio is not None and self.ratio <= times

    @property
    def verdict(self) -> str:
        if self.budget is None:
            return "for information"
        if self.ours is None:
            return "skipped"
        return "MISSED" if self.failures() else "met"


class CaseError(Exception):
    """A case could not be measured."""


def _last_line(text: bytes) -> str:
    return next(reversed(text.decode(errors="replace").strip().splitlines()), "")


class Progress:
    """What is being measured, on stderr: in one changing line on a terminal, else one line for each step."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._began = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._quiet = quiet

    def step(self, text: str) -> None:
        if self._quiet:
            return
        line = f"[{time.monotonic() - self._began:5.0f} s] {text}"
        print(
            f"\r\x1b[K{line}" if self._terminal else line,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def end(self) -> None:
        if self._terminal and not self._quiet:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@dataclass
class Bench:
    """One run: how thorough it is, and how its programs are started."""

    quick: bool = False
    progress: Progress = field(default_factory=Progress)

    @property
    def turns(self) -> int:
        return 3 if self.quick else 5

    @property
    def seconds(self) -> float:
        """How long one sample of a call or a stream takes."""
        return 0.15 if self.quick else 0.5

    def sample(self, subject: str, case: str, *, pinned: bool) -> float:
        """One sample of a case, taken in a fresh program. Raises CaseError."""
        argv = [PYTHON, str(HERE / "program.py"), subject, case, str(self.seconds)]
        with started(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pinned=pinned) as process:
            try:
                out, err = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                raise CaseError(f"{case}: no result after 60 s") from None
        if process.returncode:
            raise CaseError(f"{case}: {_last_line(err) or process.returncode}")
        return float(json.loads(out.decode().splitlines()[-1]))

    def turns_of(self, label: str, cases: Mapping[str, Callable[[], float]]) -> tuple[dict[str, Series], list[str]]:
        """Measures the cases in turns. A case that fails is left out from then on; the second result says why."""
        values: dict[str, list[float]] = {name: [] for name in cases}
        trouble: dict[str, str] = {}
        for turn in range(self.turns):
            for name, measure in cases.items():
                if name in trouble:
                    continue
                self.progress.step(f"{label}: {name}, {turn + 1} of {self.turns}")
                try:
                    values[name].append(measure())
                except CaseError as error:
                    trouble[name] = str(error)
        series = {name: Series(name, tuple(taken)) for name, taken in values.items() if name not in trouble}
        return series, list(trouble.values())

    def programs_in_turns(
        self, label: str, subject: str, cases: Sequence[str], *, pinned: bool
    ) -> tuple[dict[str, Series], list[str]]:
        """The same for cases of `program.py`."""

        def measure(name: str) -> Callable[[], float]:
            return lambda: self.sample(subject, name, pinned=pinned)

        return self.turns_of(f"{label}, {'pinned' if pinned else 'unpinned'}", {name: measure(name) for name in cases})


# Processes. The run is a child subreaper: whatever its programs start and leave becomes its child, and is ended by it.


def become_subreaper() -> None:
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def die_with(parent: int, signum: int = signal.SIGKILL) -> None:
    """This process gets `signum` when its parent dies, even when the parent is killed."""
    _libc.prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


@contextlib.contextmanager
def started(
    argv: Sequence[str],
    *,
    pinned: bool = False,
    env: Mapping[str, str] | None = None,
    stdout: int = subprocess.DEVNULL,
    stderr: int = subprocess.DEVNULL,
    end_s: float = 0.0,
) -> Iterator["subprocess.Popen[bytes]"]:
    """A program in a session of its own, which is ended with all its descendants when the block is left.

    It gets SIGTERM and `end_s` for an orderly end first.
    """
    parent = os.getpid()

    def prepare() -> None:
        die_with(parent, signal.SIGTERM if end_s else signal.SIGKILL)
        if pinned:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    before = children(parent)
    process = subprocess.Popen(
        argv,
        env=None if env is None else {**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=prepare,
    )
    try:
        yield process
    finally:
        if process.poll() is None and end_s:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(end_s)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        end_descendants(keep=before)
        process.poll()  # it has been reaped: Popen shall know


def children(pid: int) -> set[int]:
    """Pids of the direct children of a process, zombies included."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found.update(map(int, (task / "children").read_text().split()))
    return found


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    todo = [pid]
    while todo:
        new = sorted(children(todo.pop()))
        found += new
        todo += new
    return found


def end_descendants(keep: AbstractSet[int] = frozenset()) -> int:
    """Kills and reaps every descendant of this process but `keep`; returns how many were still alive."""
    alive = 0
    give_up_at = time.monotonic() + 20
    while (kids := children(os.getpid()) - keep) and time.monotonic() < give_up_at:
        for kid in kids:
            for pid in (kid, *descendants(kid)):
                if state(pid) not in {None, "Z"}:
                    alive += 1
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(kid, 0)
    return alive


def state(pid: int) -> str | None:
    """The state letter of /proc/PID/stat, or None when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def pss_mib(pids: Sequence[int]) -> float:
    """Memory of processes, what they share divided among its users."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total / 1024


def cpu_s(pids: Sequence[int]) -> float:
    """Seconds on a CPU, all threads together, in the scheduler's nanoseconds rather than in ticks."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def wait_until(condition: Callable[[], object], within_s: float, what: str, pause_s: float = 0.005) -> None:
    """Raises CaseError when `condition` is not true within the time."""
    give_up_at = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > give_up_at:
            raise CaseError(f"{what}: not within {within_s:g} s")
        time.sleep(pause_s)


def read_line(fd: int, within_s: float, what: str) -> bytes:
    """The next bytes from a pipe. Raises CaseError."""
    if not select.select([fd], [], [], within_s)[0]:
        raise CaseError(f"{what}: not within {within_s:g} s")
    return os.read(fd, 4096)
