"""`parsupd install` and `parsupd uninstall`: put the files of deploy/ in their places, and take them away."""

import os
import shlex
import sys
from collections.abc import Callable
from difflib import unified_diff
from pathlib import Path
from typing import Any

import click

from parsupd.core.installation import (
    Action,
    File,
    Step,
    Target,
    files,
    own_directories,
    sources,
    to_install,
    to_uninstall,
)
from parsupd.shell import deployment
from workerlib import UsageError

FAILED, USAGE = 1, 2

UPDATE_CATALOG = ["journalctl", "--update-catalog"]


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--root", type=click.Path(), help="Work below this directory instead of /, for packages."),
        click.option(
            "--commands", metavar="DIR", help="Where parsupd and parsupctl are.  [default: where this one is]"
        ),
        click.option("--prefix", metavar="DIR", help="Above lib/ and share/.  [default: /usr/local, ~/.local]"),
        click.option("--dry-run", is_flag=True, help="Show each file with its text or its changes; do nothing."),
        click.option("--user", is_flag=True, help="For the user who calls this, not for the system."),
    ):
        command = option(command)
    return command


@click.command(short_help="Install the service, for the system or for a user.")
@_options
def install(**given: Any) -> None:
    r"""Install what systemd needs to run parsupd: unit files, configuration, manuals, completions.

    What is there already is brought up to date; a configuration that was changed stays as it is. Nothing is started.

    \b
    Examples:
      sudo parsupd install && sudo systemctl enable --now parsupd
      parsupd install --user --dry-run
    """
    _carry_out(_install, **given)


@click.command(short_help="Remove what install put in place.")
@_options
def uninstall(**given: Any) -> None:
    """Remove what `parsupd install` put in place, given the same options.

    A configuration that was changed stays, and so do unit files beside it, and the state directory.
    """
    _carry_out(_uninstall, **given)


def _carry_out(
    command: Callable[[Path, Target, tuple[File, ...], bool], None],
    *,
    user: bool,
    dry_run: bool,
    prefix: str | None,
    commands: str | None,
    root: str | None,
) -> None:
    try:
        home = Path.home()
        target = Target(
            user,
            str(Path(prefix).absolute()) if prefix else (str(home / ".local") if user else "/usr/local"),
            (os.environ.get("XDG_CONFIG_HOME") or str(home / ".config")) if user else "/etc",
            str(Path(commands).absolute()) if commands else deployment.commands(),
        )
        if not (user or dry_run or root) and os.geteuid() != 0:
            called = [f"{target.commands}/parsupd", *sys.argv[1:]]
            raise UsageError(
                f"only root can do that for the whole system: sudo {shlex.join(called)}\n"
                f"         for yourself alone: {shlex.join([*called, '--user'])}"
            )
        try:
            wanted = files(target, deployment.texts(sources(target)))
        except ValueError as error:
            raise UsageError(f"{target.commands!r}: {error}; install parsupd elsewhere") from None
        command(Path(root or "/").absolute(), target, wanted, dry_run)
    except UsageError as error:
        click.echo(f"parsupd: {error}", err=True)
        sys.exit(USAGE)


def _install(root: Path, target: Target, wanted: tuple[File, ...], dry_run: bool) -> None:
    steps = to_install(wanted, deployment.read(root, [file.path for file in wanted]))
    _each(root, steps, dry_run)
    manager = ["systemctl", *(["--user"] if target.user else [])]
    if root != Path("/"):
        return
    paths = {file.source: file.path for file in wanted}
    told = [[*manager, "daemon-reload"]]
    if not target.user:
        told.insert(0, ["systemd-sysusers", paths["sysusers.d/parsupd.conf"]])
        told.insert(1, ["systemd-tmpfiles", "--create", paths["tmpfiles.d/parsupd.conf"]])
        told.append(UPDATE_CATALOG)
    if not target.user and (writers := deployment.writers(target.commands)):
        click.echo(f"parsupd: {writers}, and so can become root through the service: move parsupd elsewhere", err=True)
    running = deployment.systemd_runs() and "parsupd.service" in deployment.units_in_use(user=target.user)
    _tell(told, dry_run)
    # A restart leaves the units alone, so there is no reason to wait with an upgrade.
    click.echo(f"next: {shlex.join([*manager, *(['restart'] if running else ['enable', '--now']), 'parsupd'])}")


def _uninstall(root: Path, target: Target, wanted: tuple[File, ...], dry_run: bool) -> None:
    manager = ["systemctl", *(["--user"] if target.user else [])]
    here = root == Path("/") and deployment.systemd_runs()
    if here and (used := deployment.units_in_use(user=target.user)):
        message = f"still in use: {', '.join(used)}; first: {shlex.join([*manager, 'disable', '--now', *used])}"
        if not dry_run:
            raise UsageError(message)
        click.echo(message)
    steps = to_uninstall(wanted, deployment.read(root, [file.path for file in wanted]))
    _each(root, steps, dry_run)
    if dry_run:
        return
    for directory in deployment.remove_empty(root, own_directories(wanted)):
        click.echo(f"{'keep':9}  {deployment.below(root, directory)}: it is not empty")
    if here:
        _tell([[*manager, "daemon-reload"], *([] if target.user else [UPDATE_CATALOG])], dry_run)


def _each(root: Path, steps: tuple[Step, ...], dry_run: bool) -> None:
    if not steps:
        click.echo("nothing is installed there")
    for step in steps:
        why = ": it was changed" if step.action is Action.KEEP else ""
        click.echo(f"{step.action.value:9}  {deployment.below(root, step.file.path)}{why}")
        if dry_run:
            _show(step)
        else:
            deployment.carry_out(root, step)


def _show(step: Step) -> None:
    if step.action is Action.CREATE:
        lines = [f"| {line}" for line in step.file.text.splitlines()]
    elif step.action in {Action.UPDATE, Action.KEEP}:
        there = (step.before or "").splitlines()
        lines = list(unified_diff(there, step.file.text.splitlines(), "there", "parsupd's", lineterm=""))
    else:
        lines = []
    for line in lines:
        click.echo(f"    {line}")


def _tell(told: list[list[str]], dry_run: bool) -> None:
    """Has systemd read what changed. Where it does not run, it will read everything when it starts."""
    for command in told if deployment.systemd_runs() else ():
        click.echo(f"{'run':9}  {shlex.join(command)}")
        if not dry_run and (failed := deployment.tell(command)):
            click.echo(f"parsupd: {shlex.join(command)}: {failed}", err=True)
            sys.exit(FAILED)
