"""The command `events`: what has happened, and what happens."""

import time
from collections.abc import Callable
from typing import Any

import click

from parsupd.ctl import output, render
from parsupd.ctl.client import ANSWER_S, INTERRUPTED, UNREACHABLE, Failure, complete_unit, daemon
from parsupd.ctl.reading import answer_option, json_option
from parsupd.ctl.values import COUNT

FOLLOW_FROM = 10
"""So many events are shown first when following."""

RECONNECT_S = 5.0
"""How long one who follows looks for the next parsupd when the one that it follows has gone."""
LOOK_EVERY_S = 0.1

ENDS = "shutting_down"
"""The event after which parsupd ends for good."""

Event = dict[str, Any]


@click.command(short_help="Show what has happened.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option("--since", metavar="N", type=COUNT, help="Only events after number N.")
@click.option("-n", "--lines", "last", metavar="N", type=COUNT, help="Only the last N.  [with -f: 10]")
@click.option(
    "-u",
    "--unit",
    "units",
    metavar="UNIT",
    multiple=True,
    shell_complete=complete_unit,
    help="Only of UNIT; repeatable.",
)
@answer_option
@json_option
@click.pass_context
def events(
    context: click.Context,
    follow: bool,
    since: int | None,
    last: int | None,
    units: tuple[str, ...],
    timeout_s: float,
    as_json: bool,
) -> None:
    """Show what has happened to units and to parsupd, oldest first, each with its number.

    Numbers grow by one and go on when parsupd is restarted. The last 4096 events are kept: with --since N come all
    after N, and what is not kept any more is one line that says how many are missing. So does whoever follows too
    slowly learn it. With --follow, a parsupd that is replaced is waited for, and its events come from where the last
    ones ended.

    With --json, one object a line: number, at (Unix time), event, unit, instance, and what belongs to the event;
    missing ones are an event "gap" with "lost".

    \b
    Examples:
      parsupctl events --follow --unit pricing
      parsupctl events --since 1200 --json | jq -r 'select(.event == "unit_ended") | .cause'
    """
    paint = output.painter()

    def show(event: Event) -> None:
        output.as_json_line(event) if as_json else click.echo(render.event(event, paint))

    if not follow:
        with daemon(context, timeout_s) as connection:
            for event in connection.call("events", since=since, names=list(units), last=last):
                show(event)
        return
    try:
        _follow(context, since, FOLLOW_FROM if last is None and since is None else last, units, show)
    except KeyboardInterrupt:
        context.exit(INTERRUPTED)


def _follow(
    context: click.Context, since: int | None, last: int | None, units: tuple[str, ...], show: Callable[[Event], None]
) -> None:
    """Shows events until parsupd has gone and no other one comes: then Failure."""
    lost_at: float | None = None  # when the last connection ended
    while True:
        try:
            with daemon(context, ANSWER_S) as connection:
                known = connection.call("info")["last_event"]
                connection.timeout_s = None
                lost_at = None
                ending = False
                for event in connection.call("events", since=since, follow=True, names=list(units), last=last):
                    show(event)
                    since, last = event["number"], None
                    ending = ending or event["event"] == ENDS
                if ending:
                    return
                since, last = since if since is not None else known, None
        except Failure as failure:
            if failure.status != UNREACHABLE or (lost_at is None and since is None):
                raise
            if lost_at is not None and time.monotonic() - lost_at > RECONNECT_S:
                raise Failure("parsupd has gone, and no other one has come", UNREACHABLE) from None
        if lost_at is None:
            lost_at = time.monotonic()
        time.sleep(LOOK_EVERY_S)
