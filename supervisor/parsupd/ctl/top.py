"""The command `top`: what the processes of units take, and how many calls workers have answered."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

from parsupd.ctl import output, render
from parsupd.ctl.client import INTERRUPTED, complete_unit, daemon
from parsupd.ctl.reading import answer_option, json_option
from parsupd.ctl.values import Seconds

if TYPE_CHECKING:
    from workerlib.blocking import Connection

ASK_S = 0.5
"""How long asking all workers may take in one round; those that are not asked have no number of calls in it."""

Row = dict[str, Any]


@click.command(short_help="Show what units take, live.")
@click.argument("units", metavar="[UNIT]...", nargs=-1, shell_complete=complete_unit)
@click.option("-n", "--rounds", metavar="N", type=click.IntRange(min=1), help="Only N rounds.  [not on a terminal: 1]")
@click.option(
    "-d",
    "--delay",
    "delay_s",
    metavar="SECONDS",
    type=Seconds(0.1),
    default=2.0,
    show_default=True,
    help="Between rounds.",
)
@answer_option
@json_option
@click.pass_context
def top(
    context: click.Context,
    units: tuple[str, ...],
    rounds: int | None,
    delay_s: float,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Show, live, what the processes of each instance take: those that use most CPU first. Ctrl-C ends it.

    CPU is in percent of one processor, since the round before; in the first one, since the processes began. RSS is
    that of all processes of the instance's group. CALLS counts those that a worker has answered.

    With --json, each round is an array on a line: name, state, pid, processes, cpu_percent, cpu_s, rss (bytes),
    restarts, calls (null where there are none).

    \b
    Examples:
      parsupctl top
      parsupctl top pricing -n 1 --json
    """
    live = output.on_terminal() and not as_json
    if rounds is None and not live:
        rounds = 1
    try:
        with _samples(context, units, timeout_s) as samples, output.screen(live and rounds != 1):
            for number, rows in enumerate(samples, 1):
                if as_json:
                    output.as_json_line(rows)
                else:
                    output.top(
                        render.TOP_HEADERS, [render.top_row(row) for row in rows], [row["state"] for row in rows]
                    )
                if number == rounds:
                    return
                time.sleep(delay_s)
    except KeyboardInterrupt:
        context.exit(INTERRUPTED if not live else 0)


@contextmanager
def _samples(context: click.Context, units: tuple[str, ...], timeout_s: float) -> Iterator[Iterator[list[Row]]]:
    with ExitStack() as opened, daemon(context, timeout_s) as connection:
        yield _rounds(connection, units, opened)


def _rounds(connection: "Connection", units: tuple[str, ...], opened: ExitStack) -> Iterator[list[Row]]:
    from parsupd.shell import usage  # noqa: PLC0415 - `--help` does not pay for it

    before: dict[tuple[int, int], float] = {}
    workers = _Workers(opened)
    at = 0.0
    while True:
        statuses: list[Row] = connection.call("status", list(units) or None)
        groups = usage.groups()
        now, was = time.monotonic(), at
        at = now
        calls = workers.calls(statuses)
        rows = []
        for info in statuses:
            taken = usage.of(groups, info["pid"])
            key = (info["pid"] or 0, info["generation"])
            if taken.processes and key in before:
                percent = max(0.0, taken.cpu_s - before[key]) / (now - was)
            else:
                percent = taken.cpu_s / taken.age_s if taken.age_s else 0.0
            before[key] = taken.cpu_s
            rows.append(
                {
                    "name": info["name"],
                    "state": info["state"],
                    "pid": info["pid"],
                    "processes": taken.processes,
                    "cpu_percent": round(100 * percent, 1),
                    "cpu_s": round(taken.cpu_s, 2),
                    "rss": taken.rss,
                    "restarts": info["restarts"],
                    "calls": calls.get(info["name"]),
                }
            )
        yield sorted(rows, key=lambda row: (-row["cpu_percent"], -row["rss"], row["name"]))


class _Workers:
    """Connections to workers, kept from round to round."""

    def __init__(self, opened: ExitStack) -> None:
        self._opened = opened
        self._open: dict[str, Connection] = {}  # by the worker's uri, which no other run has

    def calls(self, statuses: list[Row]) -> dict[str, int]:
        """How many calls each worker has answered that can say so in time."""
        give_up_at = time.monotonic() + ASK_S
        found = {}
        for info in statuses:
            left_s = give_up_at - time.monotonic()
            if info["uri"] and left_s > 0 and (calls := self._ask(info["uri"], left_s)) is not None:
                found[info["name"]] = calls
        return found

    def _ask(self, uri: str, within_s: float) -> int | None:
        from workerlib import WorkerlibError, blocking  # noqa: PLC0415 - as above
        from workerlib.core.config import CONTROL  # noqa: PLC0415 - as above

        try:
            if uri not in self._open:
                # To its control object: the worker's own `connected` need not know of us.
                location = uri.partition("@")[2]
                self._open[uri] = self._opened.enter_context(
                    blocking.connect(f"PYRO:{CONTROL}@{location}", within_s=within_s)
                )
            connection = self._open[uri]
            connection.timeout_s = within_s
            calls = connection.call("info").get("calls")
            return calls if isinstance(calls, int) else None
        except (OSError, WorkerlibError, TimeoutError):
            self._open.pop(uri, None)
            return None
