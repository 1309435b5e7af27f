"""parsupd, the daemon: reads the configuration, takes the lock, and runs until everything is down."""

import contextlib
import errno
import faulthandler
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parsupd.core.snapshot import decode as decode_snapshot
from parsupd.core.unitfile import ConfigurationError
from parsupd.core.units import Configuration, DaemonSettings, LogFormat
from parsupd.install import install, uninstall
from parsupd.shell import cgroup, leftovers
from parsupd.shell.config_files import load
from parsupd.shell.notify_socket import BARRIER_S, Notifier, inherited_fds
from parsupd.shell.state_file import StateFile
from parsupd.shell.store import Lock, runtime_dir, state_dir
from workerlib import UsageError, __version__
from workerlib.shell import process
from workerlib.shell.loop import run

if TYPE_CHECKING:
    from parsupd.daemon import Successor

DEFAULT_CONFIG = "/etc/parsupd/parsupd.toml"

SWEEP_S = 0.5
"""How long what is swept has from SIGTERM to SIGKILL: it was asked to end before, and systemd is waiting."""

CRASHED = {"exit-code", "signal", "core-dump", "watchdog", "oom-kill"}
"""What systemd says in SERVICE_RESULT when it starts another one; see systemd.exec(5)."""

LOCK_FD = "lock"
"""The lock on the runtime directory, when an earlier program of this process has taken it."""

USAGE = 2
"""Exit status for a configuration or a command line that cannot be used."""


@dataclass(frozen=True)
class Options:
    """What the command line says, for the daemon and for the other commands."""

    config: str
    runtime_dir: str | None
    state_dir: str | None
    log_format: str | None

    @property
    def path(self) -> Path:
        """The main file."""
        return Path(self.config).absolute()

    def runtime(self, daemon: DaemonSettings) -> Path:
        """The runtime directory that it means."""
        return runtime_dir(self.runtime_dir, daemon.runtime_dir, os.environ)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", default=DEFAULT_CONFIG, show_default=True, help="Main configuration file (TOML).")
@click.option("--check", is_flag=True, help="Check the configuration, and exit.")
@click.option("--runtime-dir", help="Directory of the sockets [see the manual for the default].")
@click.option("--state-dir", help="Directory of what must survive a restart, and of units' output files.")
@click.option("--log", "log_format", type=click.Choice([form.value for form in LogFormat]), help="Form of the log.")
@click.version_option(__version__, prog_name="parsupd")
@click.pass_context
def cli(
    context: click.Context,
    config: str,
    check: bool,
    runtime_dir: str | None,
    state_dir: str | None,
    log_format: str | None,
) -> None:
    """Supervises units: workers, programs and one-off jobs. Stays in the foreground; stop it with SIGTERM or Ctrl-C.

    Exit status: that of the unit with exit_with, else 0; 1 when something unforeseen went wrong; 2 for a bad
    configuration, an unusable directory, or when another parsupd runs there.
    """
    context.obj = Options(config, runtime_dir, state_dir, log_format)
    if context.invoked_subcommand is not None:
        return
    notifier = Notifier(os.environ)
    try:
        configuration = load(Path(config).absolute())
        if check:
            count = len(configuration.units)
            click.echo(f"{config}: {count} unit{'' if count == 1 else 's'}, no problem found")
            return
        sys.exit(_run(configuration, context.obj, notifier))
    except (UsageError, ConfigurationError, OSError) as error:
        click.echo(f"parsupd: {error}", err=True)
        number = error.errno if isinstance(error, OSError) and error.errno else errno.EINVAL
        notifier.send(f"STATUS={error}", f"ERRNO={number}")
        notifier.barrier(BARRIER_S)  # else it may be lost with this process
        sys.exit(1 if isinstance(error, OSError) else USAGE)


cli.add_command(install)
cli.add_command(uninstall)


def _run(configuration: Configuration, options: Options, notifier: Notifier) -> int:
    # Here: `sweep` stands between the end of one daemon and the start of the next, and has no use for all that.
    from parsupd.daemon import Daemon  # noqa: PLC0415
    from parsupd.executor import Place  # noqa: PLC0415
    from parsupd.shell import journal  # noqa: PLC0415

    faulthandler.enable()  # a watchdog's SIGABRT finds out where the loop was stuck
    daemon = configuration.daemon
    runtime = options.runtime(daemon)
    state = state_dir(options.state_dir, daemon.state_dir, os.environ, runtime)
    inherited = inherited_fds(os.environ)
    lock = Lock(runtime, inherited.pop(LOCK_FD, None))
    try:
        log_format = journal.resolve(LogFormat(options.log_format) if options.log_format else daemon.log)
        log = journal.configure(log_format)
        place = Place(runtime, state)
        reread = partial(load, options.path)
        one = Daemon(configuration, reread, place, notifier, inherited, log, log_format)
        status = run(one.run())
        if one.successor is not None:
            _become(one.successor, lock, notifier, log)
            return 1
        return status
    finally:
        lock.release()


def _become(successor: "Successor", lock: Lock, notifier: Notifier, log: Any) -> None:
    """Goes on as another program in this process. Returns when neither that nor this one can be executed any more."""
    from parsupd.shell import replacement  # noqa: PLC0415 - as above

    env = {**os.environ, **notifier.variables}
    fds = {**successor.fds, LOCK_FD: lock.fileno()}
    for argv in (successor.argv, replacement.same_command("")):
        try:
            replacement.execute(argv, env, fds)
        except OSError as error:
            log.exception("not_replaced", program=argv[0], reason=str(error))


@cli.command(hidden=True)
@click.pass_obj
def takeover(options: Options) -> None:
    """Says whether this parsupd can take over from the one that runs: `parsupctl reexec` asks it before."""
    import parsupd.daemon  # noqa: PLC0415, F401 - all that a start needs can be loaded

    runtime = options.runtime(load(options.path).daemon)
    if not any(decode_snapshot(data, process.boot_id()) for data in StateFile(runtime / "state").candidates()):
        raise UsageError(
            f"the state in {str(runtime / 'state')!r} is not there, or of a form that this parsupd cannot read"
        )
    click.echo(f"parsupd {__version__}")


@cli.command()
@click.pass_obj
def sweep(options: Options) -> None:
    """Ends what a stopped parsupd has left, for ExecStopPost= of its service.

    After a hand-over or a crash, units are to go on without a parsupd for a while: then this does nothing. It ends the
    processes of units only when their parsupd had begun to end them, or has forgotten them.
    """
    try:
        runtime = options.runtime(load(options.path).daemon)
    except (UsageError, ConfigurationError):  # it may have become unreadable since the start
        runtime = options.runtime(DaemonSettings())
    decoded = (decode_snapshot(data, process.boot_id()) for data in StateFile(runtime / "state").candidates())
    left = [taken for taken in decoded if taken is not None]
    token = leftovers.token_of(runtime)
    tree = None
    with contextlib.suppress(cgroup.NotDelegatedError):
        tree = cgroup.delegated(token)
        tree.release()  # the next parsupd is started into the group above
    find = partial(leftovers.find, token, tree)
    if any(not taken.shutting_down for taken in left):
        return
    if not left and os.environ.get("SERVICE_RESULT") in CRASHED:
        return  # the record is lost, but not to the next one, which is handed a copy of it by the service manager
    for pid in run(leftovers.end_all(find(), find, within_s=SWEEP_S)):
        click.echo(f"parsupd: process {pid} was left by a unit, and has been ended", err=True)


def main() -> None:
    """The console script `parsupd`."""
    try:
        cli(prog_name="parsupd")
    except (UsageError, ConfigurationError) as error:  # of a command
        click.echo(f"parsupd: {error}", err=True)
        sys.exit(USAGE)
