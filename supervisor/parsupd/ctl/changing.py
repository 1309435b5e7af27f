"""The commands that change what units there are: plan, apply, reload, scale."""

from collections.abc import Sequence
from typing import Any

import click

from parsupd.ctl import output, render
from parsupd.ctl.acting import check_up, json_option, no_wait_option, report, timeout_option
from parsupd.ctl.client import complete_unit, daemon, patient
from parsupd.ctl.reading import answer_option


def _report(done: dict[str, Any], as_json: bool, no_wait: bool) -> None:
    """Prints what was done. Raises Failure when something that was to come up has not."""
    if as_json:
        output.as_json(done)
    else:
        _print(done)
    if not no_wait:
        check_up(done["instances"])


def _print(plan: dict[str, Any]) -> None:
    rows = [render.plan_row(unit) for unit in plan["units"]]
    if rows:
        output.table(render.PLAN_HEADERS, rows)
    for line in render.plan_notes(plan):
        click.echo(line)


@click.command(short_help="Show what a reload would do.")
@answer_option
@json_option
@click.pass_context
def plan(context: click.Context, timeout_s: float, as_json: bool) -> None:
    """Show what a reload would do now to each unit: add, remove, restart, scale, start, or change under it.

    With each unit come the keys that differ, old and new. Nothing is changed. `parsupctl apply ID` does exactly what
    is shown here, and refuses when the files or the state of units have changed since.

    Exit status 1 for a broken configuration, with the place of each mistake.

    \b
    Examples:
      parsupctl plan
      parsupctl plan --json | jq -r '.units[] | select(.action == "restart") | .unit'
    """
    with daemon(context, timeout_s) as connection:
        found: dict[str, Any] = connection.call("plan")
    if as_json:
        output.as_json(found)
        return
    _print(found)
    if found["units"]:
        click.echo(f"do this: parsupctl apply {found['id']}")


@click.command(short_help="Do a plan that was shown.")
@click.argument("plan_id", metavar="ID")
@no_wait_option
@timeout_option
@json_option
@click.pass_context
def apply(context: click.Context, plan_id: str, no_wait: bool, timeout_s: float | None, as_json: bool) -> None:
    """Do the plan that `parsupctl plan` has shown with this ID, and wait as `reload` does.

    Exit status 1 when the plan does not hold any more, because files or the state of units have changed since.

    \b
    Example:
      parsupctl apply 0f3a5c7e9b12
    """
    with patient(context, timeout_s, "parsupd goes on with the change") as connection:
        done: dict[str, Any] = connection.call("apply", plan_id, wait=not no_wait, timeout_s=timeout_s)
    _report(done, as_json, no_wait)


@click.command(short_help="Read the configuration again; or have units read theirs.")
@click.argument("units", nargs=-1, metavar="[UNIT]...", shell_complete=complete_unit)
@no_wait_option
@timeout_option
@json_option
@click.pass_context
def reload(context: click.Context, units: Sequence[str], no_wait: bool, timeout_s: float | None, as_json: bool) -> None:
    """Read the configuration again and change only what differs; wait until that is up, or gone.

    With UNITs, those that run read their own configuration again instead, by the commands of their exec_reload.

    Exit status 1 for a broken configuration, which changes nothing, with the place of each mistake; and when a unit
    that was to come up has failed instead, or was not ready within --timeout.

    \b
    Examples:
      parsupctl reload
      parsupctl reload --no-wait
      parsupctl reload nginx
    """
    if units:
        with patient(context, timeout_s, "parsupd goes on with it") as connection:
            found = connection.call("reload_units", list(units), wait=not no_wait, timeout_s=timeout_s)
        report(found, as_json)
        return
    with patient(context, timeout_s, "parsupd goes on with the change") as connection:
        done: dict[str, Any] = connection.call("reload", wait=not no_wait, timeout_s=timeout_s)
    _report(done, as_json, no_wait)


MOST_DIGITS = 18
"""A number with more is as impossible when it is cut, and can be told to the daemon."""


def _numbers(texts: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in texts:
        name, equals, number = text.partition("=")
        if not (name and equals and number.isascii() and number.isdigit()):
            raise click.UsageError(f"{text}: write UNIT=NUMBER, such as pricing=4")
        if name in found:
            raise click.UsageError(f"{text}: {name} has been given a number already, {found[name]}")
        found[name] = int(number[:MOST_DIGITS])
    return found


@click.command(short_help="Set how many instances units have.")
@click.argument("numbers", metavar="UNIT=N...", nargs=-1, required=True, shell_complete=complete_unit)
@no_wait_option
@timeout_option
@json_option
@click.pass_context
def scale(
    context: click.Context, numbers: Sequence[str], no_wait: bool, timeout_s: float | None, as_json: bool
) -> None:
    """Set how many instances units have, until the next reload, which goes by the files again.

    Instances are added and stopped at the end of the row, pricing@4 after pricing@3; the others go on. New ones are
    started unless all of the unit is down.

    Exit status as that of `reload`.

    \b
    Examples:
      parsupctl scale pricing=4
      parsupctl scale pricing=4 corpus=0 --no-wait
    """
    wanted = _numbers(numbers)
    with patient(context, timeout_s, "parsupd goes on with the change") as connection:
        done: dict[str, Any] = connection.call("scale", wanted, wait=not no_wait, timeout_s=timeout_s)
    _report(done, as_json, no_wait)
