"""The command `logs`: its options, and when it ends."""

import os
import signal
import sys
from typing import Any, NoReturn

import click

from parsupd.ctl import output
from parsupd.ctl.client import complete_unit
from parsupd.ctl.reading import answer_option
from parsupd.ctl.values import COUNT

SIGTERM_STATUS = 128 + signal.SIGTERM


class _Time(click.ParamType):  # type: ignore[type-arg]  # not generic at run time
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        import time  # noqa: PLC0415 - as below

        from parsupd.ctl.log_lines import TIME_FORMS, parse_time  # noqa: PLC0415 - same

        try:
            return parse_time(str(value), time.time())
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time: {TIME_FORMS}", param, ctx)


class _Priority(click.ParamType):  # type: ignore[type-arg]  # not generic at run time
    name = "prio"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from parsupd.ctl.log_lines import PRIORITIES  # noqa: PLC0415 - as below

        names = {**{name: number for number, name in enumerate(PRIORITIES)}, "error": 3, "warn": 4}
        names |= {str(number): number for number in range(len(PRIORITIES))}
        if (found := names.get(str(value))) is None:
            self.fail(f"{value!r} is no priority: 0 to 7, or {', '.join(PRIORITIES)}", param, ctx)
        return found


@click.command(short_help="Show what units have said.")
@click.argument("units", metavar="UNIT...", nargs=-1, required=True, shell_complete=complete_unit)
@click.option("-f", "--follow", is_flag=True, help="Go on showing new lines, until Ctrl-C.")
@click.option("-n", "--lines", "last", metavar="N", type=COUNT, help="Only the last N lines.  [with -f: 10]")
@click.option("--since", metavar="TIME", type=_Time(), help="Nothing before TIME.")
@click.option("--until", metavar="TIME", type=_Time(), help="Nothing after TIME.")
@click.option(
    "--generation",
    "--incarnation",
    metavar="G",
    type=click.IntRange(min=1),
    help="Only of the Gth life of each instance.",
)
@click.option("-p", "--priority", metavar="PRIO", type=_Priority(), help="Only of this syslog priority and worse.")
@answer_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, with stable keys.")
@click.pass_context
def logs(context: click.Context, /, units: tuple[str, ...], timeout_s: float, as_json: bool, **options: Any) -> None:
    """Show what units have printed and logged, and what parsupd says about them, oldest first.

    From the journal, and for units with stdout=file or append from their files. A line of a file that a unit appends
    to has a time only when workerlib wrote it; others count as of the line before them. When parsupd is not there, the
    journal is read all the same.

    A TIME is "2026-01-31 14:00", "14:00", today, yesterday, now, "-1h", "5min ago" or @SECONDS. A PRIO is 0 to 7,
    or emerg, alert, crit, err, warning, notice, info, debug.

    With --json, each line is an object: time (Unix time or null), name, unit, generation, pid, priority, by
    ("parsupd": what it says about the unit), message, fields.

    \b
    Examples:
      parsupctl logs pricing -n 50
      parsupctl logs pricing@1 marketdata -f -p warning
      parsupctl logs pricing --since "5min ago" --json | jq -r .message
    """
    from parsupd.ctl import log_lines, log_reading  # noqa: PLC0415 - `--help` does not pay for subprocess and json

    wanted = log_reading.Wanted(**options)
    if wanted.follow and wanted.generation is not None:
        raise click.UsageError("--generation is about what has been: it does not go with --follow")
    if wanted.follow and wanted.until is not None:
        raise click.UsageError("--until is about what has been: it does not go with --follow")
    paint = output.painter()
    signal.signal(signal.SIGTERM, _end)  # so that what was started here is ended, too
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    places = log_reading.places(context, units, timeout_s)

    def show(line: log_lines.Line) -> None:
        sys.stdout.write(f"{log_lines.as_json(line) if as_json else log_lines.as_text(line, paint)}\n")
        if wanted.follow:
            sys.stdout.flush()

    try:
        if wanted.follow:
            log_reading.follow(places, wanted, show)
        else:
            for line in log_reading.past(places, wanted):
                show(line)
            sys.stdout.flush()
    except BrokenPipeError:  # nobody reads any more: that is no failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where Python flushes what it has when it ends


def _end(_signal: int, _frame: object) -> NoReturn:
    sys.exit(SIGTERM_STATUS)
