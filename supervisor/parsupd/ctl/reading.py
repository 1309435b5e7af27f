"""The commands that only look: status, list, why, names, info."""

import time
from typing import Any

import click

from parsupd.core.addresses import NAME_SERVER
from parsupd.ctl import output, render
from parsupd.ctl.client import ANSWER_S, NOT_ACTIVE, Options, complete_unit, daemon, find_socket
from parsupd.ctl.values import COUNT, SECONDS

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, with stable keys.")
answer_option = click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=SECONDS,
    default=ANSWER_S,
    show_default=True,
    help="How long the daemon may take to answer.",
)


@click.command(short_help="Show the state of units, and why.")
@click.argument("units", metavar="[UNIT]...", nargs=-1, shell_complete=complete_unit)
@click.option(
    "-n",
    "--lines",
    metavar="N",
    type=COUNT,
    default=10,
    show_default=True,
    help="So many of the last lines of one instance.",
)
@answer_option
@json_option
@click.pass_context
def status(context: click.Context, units: tuple[str, ...], lines: int, timeout_s: float, as_json: bool) -> None:
    """Show the state of units and why they are in it.

    A UNIT is the name of a unit (all its instances) or of one instance (pricing@2). One instance is shown in detail,
    with its last lines, as systemctl does; several as a table; without UNIT, all of them.

    Exit status 3 when a named unit has an instance that is not active, 4 when there is no such unit.

    \b
    Examples:
      parsupctl status
      parsupctl status pricing
      parsupctl status pricing@1 --json
    """
    unit = None
    with daemon(context, timeout_s) as connection:
        found: list[dict[str, Any]] = connection.call("status", list(units) or None)
        if len(found) == 1 and not as_json:
            unit = connection.call("show", found[0]["unit"])
    now = time.time()
    if as_json:
        output.as_json(found)
    elif len(found) == 1:
        _in_detail(context, found[0], unit, lines)
    else:
        output.table(
            render.STATUS_HEADERS, [render.status_row(info, now) for info in found], [info["state"] for info in found]
        )
    if units and any(info["state"] != "active" for info in found):
        context.exit(NOT_ACTIVE)


def _in_detail(context: click.Context, info: dict[str, Any], unit: dict[str, Any] | None, lines: int) -> None:
    from parsupd.ctl import log_lines, run_lines  # noqa: PLC0415 - `--help` does not pay for subprocess and json
    from parsupd.shell import usage  # noqa: PLC0415 - same

    paint = output.painter()
    click.echo(render.status(info, time.time(), paint, unit, usage.of(usage.groups(), info["pid"])))
    last, why_not = run_lines.last_of(context, info["name"], lines)
    if last:
        click.echo("\n" + "\n".join(log_lines.as_text(line, paint) for line in last))
    if why_not:
        click.echo(f"parsupctl: no lines of it: {why_not}", err=True)


@click.command(name="list", short_help="List all instances.")
@answer_option
@json_option
@click.pass_context
def list_(context: click.Context, timeout_s: float, as_json: bool) -> None:
    """List all instances of all units.

    With --json, an array with one object an instance: name, unit, type, state, sub_state, pid, generation, restarts,
    since (Unix time; null when it was never touched), uri (empty unless a worker is ready).

    \b
    Examples:
      parsupctl list
      parsupctl list --json | jq -r '.[] | select(.state == "failed") | .name'
    """
    with daemon(context, timeout_s) as connection:
        found: list[dict[str, Any]] = connection.call("status")
    if as_json:
        output.as_json([render.only_listed(info) for info in found])
        return
    now = time.time()
    output.table(render.LIST_HEADERS, [render.list_row(info, now) for info in found], [info["state"] for info in found])


@click.command(short_help="Tell what happened to a unit.")
@click.argument("unit", shell_complete=complete_unit)
@click.option(
    "-n",
    "--lines",
    metavar="N",
    type=COUNT,
    default=20,
    show_default=True,
    help="So many of the last lines that it wrote in each run.",
)
@answer_option
@json_option
@click.pass_context
def why(context: click.Context, unit: str, lines: int, timeout_s: float, as_json: bool) -> None:
    """Tell what happened to a unit: how its last runs ended, what was decided then, and for which reason.

    For each run: exit code or signal, whether a core was dumped or memory ran out, how long it took, its last lines
    from the journal or its files, the stack that the watchdog asked for, whether it was restarted and why, and when.

    \b
    Examples:
      parsupctl why pricing
      parsupctl why pricing@2 --lines 0 --json
    """
    with daemon(context, timeout_s) as connection:
        found: list[dict[str, Any]] = connection.call("why", unit)
    from parsupd.ctl import run_lines  # noqa: PLC0415 - `--help` does not pay for subprocess and json

    why_not = run_lines.add(context, found, lines)
    if as_json:
        output.as_json(found)
        return
    now, paint = time.time(), output.painter()
    click.echo("\n\n".join(render.why(info, now, paint) for info in found))
    if why_not:
        click.echo(f"parsupctl: no lines of its runs: {why_not}", err=True)


@click.command(short_help="List the name server's entries.")
@answer_option
@json_option
@click.pass_context
def names(context: click.Context, timeout_s: float, as_json: bool) -> None:
    """List the entries of the name server: workers that are ready, and what other programs have registered.

    Any Pyro5 client can look these names up; a worker's entry is there exactly while it is ready.

    \b
    Examples:
      parsupctl names
      parsupctl names --json
    """
    with daemon(context, timeout_s) as connection:
        found = connection.call("list", target=NAME_SERVER, return_metadata=True)
    entries = [{"name": name, "uri": uri, "metadata": tags} for name, (uri, tags) in sorted(found.items())]
    if as_json:
        output.as_json(entries)
    else:
        output.table(render.NAME_HEADERS, [render.name_row(entry) for entry in entries])


@click.command(short_help="Show the daemon itself.")
@answer_option
@json_option
@click.pass_context
def info(context: click.Context, timeout_s: float, as_json: bool) -> None:
    """Show the daemon itself: version, pid, runtime directory, socket, and since when it runs.

    \b
    Example:
      parsupctl info --json
    """
    with daemon(context, timeout_s) as connection:
        found: dict[str, Any] = connection.call("info")
        found["socket"] = find_socket(context.find_object(Options) or Options())
    if as_json:
        output.as_json(found)
        return
    started = f"{render.instant(found['started'])}; {render.ago(found['started'], time.time())}"
    for label, value in {**found, "started": started}.items():
        if value != "":  # such as the storm that there is not
            click.echo(f"{label.replace('_', ' '):>12}: {value}")
