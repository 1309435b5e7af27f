"""What an instance wrote: in each of its runs that are over, for `parsupctl why`, and last, for `status`."""

from collections import deque
from typing import Any

import click

from parsupd.ctl import log_lines, log_reading
from parsupd.ctl.client import Failure
from parsupd.ctl.log_lines import Line
from parsupd.ctl.log_reading import Places, Wanted

AROUND_S = 1.0
"""What belongs to a run is looked for this long before and after it: a line takes a moment to the journal."""


def add(context: click.Context, found: list[dict[str, Any]], last: int) -> str:
    """Gives each run a `log`, its last lines, oldest first. Returns why there are none, if that is known."""
    why_not = ""
    for info in found:
        runs = info["incarnations"]
        for run in runs:
            run["log"] = []
        if not runs or not last:
            continue
        try:
            places = log_reading.places(context, (info["name"],))
            for run in runs:
                lines = _of_run(places, run, last, is_newest=run is runs[-1] and info["pid"] is None)
                run["log"] = [log_lines.as_object(line) for line in lines]
        except Failure as failure:
            why_not = failure.message
    return why_not


def last_of(context: click.Context, name: str, last: int) -> tuple[list[Line], str]:
    """The last lines of an instance, oldest first; and why there are none, if that is known."""
    if not last:
        return [], ""
    wanted = Wanted(follow=False, last=last, since=None, until=None, generation=None, priority=None)
    try:
        return [*log_reading.past(log_reading.places(context, (name,)), wanted)], ""
    except Failure as failure:
        return [], failure.message


def _of_run(places: Places, run: dict[str, Any], last: int, *, is_newest: bool) -> list[Line]:
    wanted = Wanted(
        follow=False,
        last=None,
        since=run["started_at"] - AROUND_S,
        until=run["ended_at"] + AROUND_S,
        generation=None,
        priority=None,
    )
    lines = log_lines.of_generation(log_reading.past(places, wanted), run["generation"])
    found = deque((line for line in lines if line.by != "parsupd"), maxlen=last)
    if not found and is_newest:
        # Lines without a time: those at the end of a file are of the last run, as long as no other one has begun.
        found = deque(
            log_reading.past(Places([], files=places.files), wanted._replace(since=None, until=None, last=last))
        )
    return [*found]
