"""The commands that look behind units: show, kill, leaks."""

import os
import time
from typing import TYPE_CHECKING, Any

import click

from parsupd.ctl import output, render
from parsupd.ctl.client import FAILED, NOT_ACTIVE, Failure, complete_unit, daemon
from parsupd.ctl.reading import answer_option, json_option

if TYPE_CHECKING:
    from parsupd.core.recovery import Found

WITHOUT_RUN = frozenset({"dead", "waiting", "exited", "backoff", "failed"})
"""The fine states in which an instance has no processes of its own."""


@click.command(short_help="Show a unit's description, with defaults.")
@click.argument("unit", shell_complete=complete_unit)
@answer_option
@json_option
@click.pass_context
def show(context: click.Context, unit: str, timeout_s: float, as_json: bool) -> None:
    """Show all keys of a unit as they are in force, the file they come from, and its instances.

    The text is a unit file: keys that are as without a line in the file are comments.

    With --json: unit, source, keys, defaults (names of keys that are as without a line), instances (as in `status`).

    \b
    Examples:
      parsupctl show pricing
      parsupctl show pricing --json | jq .keys.restart_sec
    """
    with daemon(context, timeout_s) as connection:
        found: dict[str, Any] = connection.call("show", unit)
    if as_json:
        output.as_json(found)
    else:
        click.echo(render.show(found, time.time()))


def _signal(text: str) -> int:
    """Raises UsageError."""
    from parsupd.core.units import SIGNALS  # noqa: PLC0415 - `--help` does not pay for dataclasses

    word = text.upper()
    numbers = {str(number): number for number in SIGNALS.values()}
    found = SIGNALS.get(word) or SIGNALS.get(f"SIG{word}") or numbers.get(word)
    if found is None:
        raise click.UsageError(f"{text!r} is no signal: such as TERM, SIGKILL or 9")
    return found


@click.command(short_help="Send a signal to processes of units.")
@click.argument("units", metavar="UNIT...", nargs=-1, required=True, shell_complete=complete_unit)
@click.option(
    "-s", "--signal", "signal_name", metavar="SIGNAL", default="SIGTERM", show_default=True, help="Which one."
)
@click.option("--main", "main_only", is_flag=True, help="Only to the main process, not to its whole group.")
@answer_option
@json_option
@click.pass_context
def kill(
    context: click.Context,
    units: tuple[str, ...],
    signal_name: str,
    main_only: bool,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Send a signal to all processes of units. What follows is up to their restart policies; `stop` ends them for good.

    Exit status 3 when an instance has no process.

    \b
    Examples:
      parsupctl kill pricing -s HUP
      parsupctl kill pricing@2 -s KILL
    """
    number = _signal(signal_name)
    with daemon(context, timeout_s) as connection:
        found: list[dict[str, Any]] = connection.call("kill", list(units), number, main_only=main_only)
    if as_json:
        output.as_json(found)
    without = [info["name"] for info in found if not info["signalled"]]
    if without:
        raise Failure(f"no process: {', '.join(without)}", NOT_ACTIVE)


@click.command(short_help="List processes of units that nobody owns.")
@answer_option
@json_option
@click.pass_context
def leaks(context: click.Context, timeout_s: float, as_json: bool) -> None:
    """List processes that a unit of this parsupd has started and that belong to no run of a unit any more.

    They are found by their control group, or by what parsupd puts into the environment, whatever they did to their
    session or parent: daemons that a program has detached, and what is left of a run that is over.

    Exit status 1 when there are some.

    \b
    Examples:
      parsupctl leaks
      parsupctl leaks --json | jq -r '.[].pid' | xargs -r kill
    """
    from pathlib import Path  # noqa: PLC0415 - as below

    from parsupd.core.recovery import strays  # noqa: PLC0415 - as below
    from parsupd.core.units import InstanceName  # noqa: PLC0415 - as below
    from parsupd.shell import leftovers  # noqa: PLC0415 - `--help` does not pay for asyncio
    from parsupd.shell.cgroup import Tree  # noqa: PLC0415 - as above

    with daemon(context, timeout_s) as connection:
        info = connection.call("info")
        tree = Tree(Path(info["control_groups"])) if info["control_groups"] else None
        found = leftovers.find(info["token"], tree)
        # Asked for afterwards: what was started meanwhile has an owner.
        statuses: list[dict[str, Any]] = connection.call("status")
    runs = [
        (InstanceName.parse(one["name"]), one["generation"]) for one in statuses if one["sub_state"] not in WITHOUT_RUN
    ]
    left = [one for one in strays(found, runs) if leftovers.lives(one)]  # and what has ended meanwhile has gone
    rows = [_process(one) for one in left]
    if as_json:
        output.as_json(rows)
    elif rows:
        output.table(render.LEAK_HEADERS, [render.leak_row(row) for row in rows])
    if rows:
        context.exit(FAILED)


def _process(one: "Found") -> dict[str, Any]:
    try:
        with open(f"/proc/{one.pid}/cmdline", "rb") as file:  # noqa: PTH123 - pathlib alone costs 10 ms to import
            command = file.read().decode(errors="backslashreplace").split("\0")[:-1]
    except OSError:
        command = []
    since = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + one.started / os.sysconf("SC_CLK_TCK")
    return {
        "pid": one.pid,
        "instance": "" if one.instance is None else str(one.instance),
        "generation": one.generation,
        "since": round(since, 2),
        "command": command,
    }
