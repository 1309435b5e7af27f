"""Start-up: importing workerlib, and the control program."""

import subprocess
import time
from collections.abc import Callable, Iterator

from harness import BIN, PYTHON, Bench, Budget, CaseError, Row, started

BASE = "import asyncio, msgspec"
FACADE = "from workerlib import Worker, rpc, connect"
TIMED = "import time; began = time.perf_counter(); {}; print((time.perf_counter() - began) * 1e3)"


def run_ms(*argv: str) -> float:
    """Milliseconds from start to exit. Raises CaseError when it fails."""
    began = time.perf_counter()
    with started(argv, stderr=subprocess.PIPE) as process:
        _, error = process.communicate(timeout=30)
        took = time.perf_counter() - began
    if process.returncode:
        lines = error.decode().strip().splitlines() or [f"exit status {process.returncode}"]
        raise CaseError(f"{' '.join(argv[-2:])}: {lines[-1]}")
    return took * 1e3


def import_ms(statement: str) -> Callable[[], float]:
    """Milliseconds that an import takes in a fresh interpreter, whose own start does not count."""

    def measure() -> float:
        with started([PYTHON, "-c", TIMED.format(statement)], stdout=subprocess.PIPE) as process:
            out, _ = process.communicate(timeout=30)
        return float(out)

    return measure


def rows(bench: Bench) -> Iterator[Row]:
    statements = (
        BASE,
        "import workerlib",
        FACADE,
        "import Pyro5.api",
        "import rpyc",
        "import multiprocessing.managers",
    )
    series, _ = bench.turns_of("imports", {statement: import_ms(statement) for statement in statements})
    base = series.pop(BASE)
    ours = [series.pop("import workerlib"), series.pop(FACADE)]
    for own in ours:
        yield Row(
            name=own.name,
            what=f"over `{BASE}`",
            unit="ms",
            ours=own,
            limit=base,
            others=tuple(series.values()) if own.name == FACADE else (),
            budget=Budget(times_limit=1.3),
        )
    cases = {
        "parsupctl --help": lambda: run_ms(str(BIN / "parsupctl"), "--help"),
        "python -c pass": lambda: run_ms(PYTHON, "-c", "pass"),
        "supervisorctl --help": lambda: run_ms(str(BIN / "supervisorctl"), "--help"),
        "circusctl --help": lambda: run_ms(str(BIN / "circusctl"), "--help"),
    }
    series, trouble = bench.turns_of("command line", cases)
    own, limit = series.pop("parsupctl --help", None), series.pop("python -c pass", None)
    yield Row(
        name="parsupctl --help",
        what="start to exit, over `python -c pass`",
        unit="ms",
        ours=own,
        limit=limit,
        others=tuple(series.values()),
        budget=Budget(at_most=120),
        skipped="; ".join(trouble),
    )
