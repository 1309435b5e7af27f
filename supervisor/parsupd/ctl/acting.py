"""The commands that change units: start, stop, restart; and wait, shutdown."""

import os
import select
import time
from collections.abc import Callable, Sequence
from typing import Any

import click

from parsupd.ctl import output, render
from parsupd.ctl.client import FAILED, Failure, complete_unit, daemon, patient
from parsupd.ctl.values import SECONDS

units_argument = click.argument("units", metavar="UNIT...", nargs=-1, required=True, shell_complete=complete_unit)
no_wait_option = click.option("--no-wait", is_flag=True, help="Return at once, not when it is done.")
timeout_option = click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=SECONDS,
    help="Give up waiting after so long, with exit status 1; what was asked for goes on.  [default: never]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, as `status --json` does.")

STATES = ("active", "inactive", "failed", "activating", "deactivating")
"""For `wait --for`; a test compares them with ActiveState."""

UP = {"oneshot": {"active", "inactive"}}
"""The states in which a start has done what it is for, where that is not `active` alone."""

Infos = list[dict[str, Any]]


def report(found: Infos, as_json: bool) -> None:
    if as_json:
        output.as_json(found)
        return
    paint = output.painter()
    for info in found:
        click.echo(f"{info['name']} {paint(render.state(info), info['state'])}")


def check_up(found: Infos) -> None:
    """Raises Failure that names what did not come up, and why.

    A oneshot that does not remain is down when it has done its work; when it has not, it has failed.
    """
    down = [info for info in found if info["state"] not in UP.get(info["type"], {"active"})]
    if down:
        lines = [f"{info['name']} is {info['state']}: {info['reason']}" for info in down]
        hint = f"see `parsupctl why {down[0]['unit']}`"
        raise Failure("\n".join([*lines, hint]), FAILED)


@click.command(short_help="Start units.")
@units_argument
@no_wait_option
@timeout_option
@json_option
@click.pass_context
def start(context: click.Context, units: Sequence[str], no_wait: bool, timeout_s: float | None, as_json: bool) -> None:
    """Start units, with the units that they require first, and wait until they are ready.

    A UNIT is the name of a unit (all its instances) or of one instance (pricing@2). What is up already stays as it is.
    A oneshot is ready when it has done its work.

    Exit status 1 when one of them has failed instead, or was not ready within --timeout.

    \b
    Examples:
      parsupctl start pricing
      parsupctl start marketdata pricing --timeout 30
      parsupctl start pricing --no-wait && parsupctl wait pricing
    """
    with patient(context, timeout_s, "parsupd goes on starting them") as connection:
        found: Infos = connection.call("start", list(units), wait=not no_wait, timeout_s=timeout_s)
    report(found, as_json)
    if not no_wait:
        check_up(found)


@click.command(short_help="Stop units.")
@units_argument
@no_wait_option
@timeout_option
@json_option
@click.pass_context
def stop(context: click.Context, units: Sequence[str], no_wait: bool, timeout_s: float | None, as_json: bool) -> None:
    """Stop units, after the units that require them, and wait until no process of them is left.

    What is down already stays so. A stopped unit is not started again by its restart policy.

    \b
    Examples:
      parsupctl stop pricing
      parsupctl stop pricing@2 --timeout 30
    """
    with patient(context, timeout_s, "parsupd goes on stopping them") as connection:
        found: Infos = connection.call("stop", list(units), wait=not no_wait, timeout_s=timeout_s)
    report(found, as_json)


@click.command(short_help="Stop and start units.")
@units_argument
@click.option("--rolling", is_flag=True, help="One instance after the other, each when the one before is ready.")
@click.option(
    "--surge",
    metavar="N",
    type=click.IntRange(1, 1000),
    help="With --rolling: start N more instances first, restart N at a time, and stop those N at the end.",
)
@no_wait_option
@timeout_option
@json_option
@click.pass_context
def restart(
    context: click.Context,
    units: Sequence[str],
    rolling: bool,
    surge: int | None,
    no_wait: bool,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Stop and start units, and wait until they are ready again. What was down is started.

    With --rolling, units go on serving: what was down stays down, and the first instance that does not come up ends
    it, with exit status 1 and without touching the others. So do Ctrl-C and --timeout; what is being restarted then
    comes up.

    Exit status as that of `start`.

    \b
    Examples:
      parsupctl restart pricing
      parsupctl restart pricing@1 --timeout 30
      parsupctl restart --rolling --surge 1 pricing
    """
    if rolling:
        if no_wait:
            raise click.UsageError("--rolling waits for each instance: not with --no-wait")
        _roll(context, units, surge or 0, timeout_s, as_json)
        return
    if surge:
        raise click.UsageError("--surge needs --rolling")
    with patient(context, timeout_s, "parsupd goes on restarting them") as connection:
        found: Infos = connection.call("restart", list(units), wait=not no_wait, timeout_s=timeout_s)
    report(found, as_json)
    if not no_wait:
        check_up(found)


def _roll(context: click.Context, units: Sequence[str], surge: int, timeout_s: float | None, as_json: bool) -> None:
    with patient(context, timeout_s, "what was being restarted comes up, what was left is not touched") as connection:
        done = connection.call("roll", list(units), surge=surge, timeout_s=timeout_s)
    if as_json:
        output.as_json(done)
    else:
        report([info for info in done["instances"] if info["name"] in done["restarted"]], as_json)
    if done["failed"]:
        name, left = done["failed"]["name"], ", ".join(done["left"]) or "none"
        lines = [f"{name} did not come up: {done['failed']['reason']}", f"stopped there; not touched: {left}"]
        raise Failure("\n".join([*lines, f"see `parsupctl why {name}`"]), FAILED)


@click.command(short_help="Wait for a state of units.")
@units_argument
@click.option("--for", "state", type=click.Choice(STATES), default="active", show_default=True, help="Which state.")
@timeout_option
@json_option
@click.pass_context
def wait(context: click.Context, units: Sequence[str], state: str, timeout_s: float | None, as_json: bool) -> None:
    """Wait until every instance of the units is in a state.

    Nothing is started or stopped. Exit status 1, at once, when one has failed for good and another state was asked for:
    it would take somebody's command to leave that. Without --timeout, what may still come is waited for without limit.

    \b
    Examples:
      parsupctl wait pricing --timeout 60
      parsupctl wait report --for inactive
    """
    with patient(context, timeout_s, "nothing else was changed") as connection:
        found: Infos = connection.call("wait", list(units), state=state, timeout_s=timeout_s)
    report(found, as_json)


@click.command(short_help="Stop everything.")
@click.option(
    "--exit-code",
    metavar="N",
    type=click.IntRange(0, 255),
    default=0,
    show_default=True,
    help="Exit status of the daemon.",
)
@click.option("--wait", "wait_", is_flag=True, help="Return when the daemon has gone.")
@timeout_option
@click.pass_context
def shutdown(context: click.Context, exit_code: int, wait_: bool, timeout_s: float | None) -> None:
    """Stop all units in reverse order, then the daemon.

    Under systemd, prefer `systemctl stop parsupd`, which knows that this is wanted.

    \b
    Examples:
      parsupctl shutdown --wait
      parsupctl shutdown --exit-code 3
    """
    with patient(context, timeout_s, "parsupd goes on stopping everything") as connection:
        gone = _watch(connection.peer_pid) if wait_ else None
        connection.call("shutdown", exit_code)
        if gone is None:
            return
        connection.timeout_s = timeout_s
        began = time.monotonic()
        connection.wait_closed()
    left_s = None if timeout_s is None else timeout_s - (time.monotonic() - began)
    if not gone(left_s):
        raise Failure(f"the daemon has not gone within {timeout_s:g} s")


@click.command(short_help="Replace parsupd in place.")
@click.option("--python", metavar="PATH", help="Interpreter of another installation.  [default: the same]")
@click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=SECONDS,
    default=60.0,
    show_default=True,
    help="How long the other version may take to answer.",
)
@json_option
@click.pass_context
def reexec(context: click.Context, python: str | None, timeout_s: float, as_json: bool) -> None:
    """Replace the running daemon by the version that is installed now, in the same process.

    Units go on, with their processes, sockets and states; whoever connects meanwhile waits a moment. The other version
    is asked first whether it starts, and can read the configuration and the state; when it does not, the running one
    goes on, with exit status 1. Calls that wait for something at the daemon are ended.

    \b
    Examples:
      parsupctl reexec
      parsupctl reexec --python /opt/parsupd-2/bin/python
    """
    path = os.path.abspath(python) if python and "/" in python else python or ""  # noqa: PTH100 - pathlib alone costs 10 ms to import
    give_up_at = time.monotonic() + timeout_s
    with patient(context, timeout_s, "parsupd may go on to replace itself") as connection:
        before = connection.call("info")["started"]
        found: dict[str, Any] = connection.call("reexec", path)
        connection.wait_closed()
    while True:
        try:
            with daemon(context, max(0.1, give_up_at - time.monotonic())) as connection:
                now = connection.call("info")
        except Failure:  # between two programs: it hears who connects, and ends the connection
            now = None
        if now is not None and now["started"] != before:
            break
        if time.monotonic() > give_up_at:
            raise Failure(f"the other version has not answered within {timeout_s:g} s")
        time.sleep(0.02)
    found = {"version": now["version"], "pid": now["pid"], "started": now["started"]}
    if as_json:
        output.as_json(found)
    else:
        click.echo(f"parsupd {found['version']} goes on as pid {found['pid']}")


def _watch(pid: int | None) -> Callable[[float | None], bool]:
    """A function that waits for the end of a process; of one that is not visible from here, it knows nothing."""
    try:
        pidfd = os.pidfd_open(pid or -1)
    except OSError:
        return lambda _: True

    def wait_for_end(within_s: float | None) -> bool:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(None if within_s is None else max(0.0, within_s) * 1000))

    return wait_for_end
