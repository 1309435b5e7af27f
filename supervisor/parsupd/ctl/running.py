"""The command `run`: a unit that no file has."""

import os
from collections.abc import Iterable
from typing import Any

import click

from parsupd.ctl import output, render
from parsupd.ctl.acting import check_up, json_option, timeout_option
from parsupd.ctl.client import Failure, patient


def _pairs(texts: Iterable[str], option: str) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise click.UsageError(f"{option} {text}: write NAME=VALUE")
        found[name] = value
    return found


def _value(key: str, text: str) -> Any:
    """A value as a unit file has it; what is no TOML is a string, so that few quotes are needed."""
    import tomllib  # noqa: PLC0415 - `--help` does not pay for it

    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if text[:1] in {'"', "'", "[", "{"}:
            raise click.UsageError(f"--set {key}: {text} is no value of TOML") from None
        return text


def _init(text: str) -> Any:
    import msgspec  # noqa: PLC0415 - as above

    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise click.UsageError(f"--init is not JSON: {error}") from None
    if not isinstance(found, dict | list):
        raise click.UsageError(
            "--init: an object (arguments by name) or an array (by position), such as '{\"start\": 10}'"
        )
    return found


@click.command(context_settings={"ignore_unknown_options": True}, short_help="Run a program or worker as a unit.")
@click.option("--name", metavar="NAME", default="", help="The unit's name.  [default: made from the program's]")
@click.option("--type", "kind", metavar="TYPE", help="As in unit files.  [default: simple; with --wait oneshot]")
@click.option("--worker", metavar="MODULE:CLASS", help="A worker, instead of a COMMAND.")
@click.option("--init", metavar="JSON", help="The worker's init arguments: an object or an array.")
@click.option("--set", "-p", "settings", metavar="KEY=VALUE", multiple=True, help="Any key of unit files; repeatable.")
@click.option("--env", "-E", "variables", metavar="NAME=VALUE", multiple=True, help="A variable; repeatable.")
@click.option("--wait", "wait_", is_flag=True, help="Wait until it has ended, and exit with its status.")
@click.option("--no-wait", is_flag=True, help="Return at once, not when it is ready.")
@timeout_option
@json_option
@click.argument("command", metavar="[--] [COMMAND]...", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(
    context: click.Context,
    /,
    name: str,
    kind: str | None,
    worker: str | None,
    init: str | None,
    settings: tuple[str, ...],
    variables: tuple[str, ...],
    wait_: bool,
    no_wait: bool,
    timeout_s: float | None,
    as_json: bool,
    command: tuple[str, ...],
) -> None:
    """Run a program, or a worker, as a unit that no file has.

    It is checked and supervised as a unit of a file is, also over restarts of parsupd, until it is stopped or has
    ended well; then it is removed. What has failed stays, for `parsupctl why`, until it is stopped. Values of --set are
    TOML; quotes around a plain text may be left out. Relative paths are relative to the current directory.

    Exit status 1 when its first start fails; its restart policy goes on then, until it is stopped.

    With --wait, it runs once, and the exit status is its own: 128 + N when signal N ended it. Ctrl-C ends the waiting,
    not the unit.

    \b
    Examples:
      parsupctl run -- rsync -a /data backup:/data
      parsupctl run --wait -p stdout=inherit -- make -C /srv/report
      parsupctl run --name spare --worker pricing.job:Pricing --init '{"currency": "EUR"}' -p instances=2
    """
    if bool(worker) == bool(command):
        raise click.UsageError("give either a COMMAND, after --, or --worker MODULE:CLASS")
    if wait_ and no_wait:
        raise click.UsageError("--wait and --no-wait exclude each other")
    keys = {key: _value(key, text) for key, text in _pairs(settings, "--set").items()}
    if worker:
        keys |= {"type": "worker", "worker": worker}
    else:
        keys |= {"type": kind or keys.get("type") or ("oneshot" if wait_ else "simple"), "exec": list(command)}
    if init is not None:
        keys["init"] = _init(init)
    if variables:
        given = keys.get("environment", {})
        if not isinstance(given, dict):
            raise click.UsageError(f"--set environment: must be a table of strings, not {given!r}")
        keys["environment"] = {**given, **_pairs(variables, "--env")}
    wanted = "end" if wait_ else "no" if no_wait else "ready"
    work = f"the unit goes on: see `parsupctl status {name}`" if name else "the unit goes on: see `parsupctl list`"
    with patient(context, timeout_s, work) as connection:
        found: dict[str, Any] = connection.call("run", name, keys, os.getcwd(), wait=wanted, timeout_s=timeout_s)  # noqa: PTH109 - pathlib alone costs 10 ms to import
    if as_json:
        output.as_json(found)
    _end(context, found, wait_=wait_, no_wait=no_wait, quiet=as_json)


def _end(context: click.Context, found: dict[str, Any], *, wait_: bool, no_wait: bool, quiet: bool) -> None:
    """Says what came of it, and ends with the status that belongs to that."""
    ended, paint = found["ended"], output.painter()
    if not quiet:
        for info in found["instances"] or ([ended] if ended else []):
            click.echo(f"{info['name']} {paint(render.state(info), info['state'])}")
    if wait_:
        if ended and not ended["incarnations"]:
            raise Failure(f"{ended['name']} was not started: {ended['reason']}")
        context.exit(found["exit_status"] or 0)
    elif not no_wait:
        check_up(found["instances"])
