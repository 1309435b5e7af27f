"""parsupd, the daemon: reads the configuration, takes the lock, and runs until everything is down."""

import asyncio
import glob
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from parsupd.control import Supervisor
from parsupd.core import events as told
from parsupd.core.addresses import SOCKET, SUPERVISOR
from parsupd.core.fleet import Fleet
from parsupd.core.unitfile import ConfigurationError, include_patterns, parse
from parsupd.core.units import Configuration, LogFormat
from parsupd.executor import Executor, Place
from parsupd.install import install, uninstall
from parsupd.shell import journal, leftovers, nameserver
from parsupd.shell.children import Children
from parsupd.shell.journal_stream import JournalStreams
from parsupd.shell.store import Lock, read_config_text, runtime_dir, state_dir
from workerlib import Master, RpcSettings, UsageError, __version__
from workerlib.core.uri import UnixLocation, Uri
from workerlib.launchers.local import LocalLauncher
from workerlib.server import Server
from workerlib.shell.environment import effective_settings
from workerlib.shell.loop import run
from workerlib.shell.private_dir import make_private, remove_sockets

MASTER = "parsup.Master"
DEFAULT_CONFIG = "/etc/parsupd/parsupd.toml"

USAGE = 2
"""Exit status for a configuration or a command line that cannot be used."""


def load(path: Path) -> Configuration:
    """Reads the main file and those that it includes. Raises UsageError and ConfigurationError."""
    main = str(path)
    text = read_config_text(path)
    included = sorted(
        {found for pattern in include_patterns(main, text) for found in glob.glob(pattern)}  # noqa: PTH207 - absolute
    )
    files = [(main, text), *((name, read_config_text(Path(name))) for name in included if name != main)]
    return parse(files, main)


@dataclass(frozen=True)
class Daemon:
    """One run of the daemon."""

    configuration: Configuration
    place: Place
    log: Any
    to_journal: bool
    """Whether the log goes to journald; then the output of units does so, too."""

    async def run(self) -> int:
        """Runs until everything is down; returns the exit status."""
        runtime = self.place.runtime_dir
        token = leftovers.token_of(runtime)
        early: list[str] = []
        self._follow_signals(early.append)  # before anything takes time: the default action would leave things behind
        if found := leftovers.find(token):
            self.log.warning("ending_leftovers", pids=found, reason="an earlier parsupd on this directory left them")
        for pid in await leftovers.end(token):
            self.log.warning("leftover_ended", pid=pid, reason="an earlier parsupd on this runtime directory left it")
        children = Children()
        server = Server(effective_settings(RpcSettings()))
        try:
            names = nameserver.Names()
            socket = UnixLocation(str(runtime / SOCKET))
            workers = make_private(runtime / "workers")
            master = Master(server, Uri(MASTER, socket), workers, launcher=LocalLauncher(children.watch))
            streams = JournalStreams(self.log) if self.to_journal else None
            executor = Executor(Fleet(self.configuration), children, names, master, self.place, self.log, streams)
            server.add(nameserver.OBJECT, names)
            server.add(SUPERVISOR, Supervisor(executor, runtime))
            for name in (nameserver.OBJECT, SUPERVISOR):
                names.publish(name, str(Uri(name, socket)), ["kind:parsupd"])
            await server.listen(socket)
            self._follow_signals(lambda name: executor.feed(told.ShutdownRequested(f"{name} received")))
            self.log.info("started", version=__version__, pid=os.getpid(), socket=socket.path)
            executor.feed(told.ShutdownRequested(f"{early[0]} received") if early else told.StartDefault())
            status = await executor.done
            for pid in await children.end_strays(lambda pid: leftovers.carries(pid, token), within_s=2.0):
                self.log.warning("stray_ended", pid=pid, reason="it had left its unit's process group")
            executor.close()
        finally:
            await server.close()
            children.close()
            remove_sockets(runtime / "workers")
        self.log.info("stopped", status=status)
        return status

    def _follow_signals(self, on_signal: Callable[[str], None]) -> None:
        """Gives the names of the signals that ask for an end to `on_signal`; replaces an earlier one."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # SIGHUP: a closed terminal must not leave units behind, and there is nothing to reload yet.
            loop.add_signal_handler(signum, on_signal, signal.Signals(signum).name)


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
    if context.invoked_subcommand is not None:
        return
    try:
        configuration = load(Path(config).absolute())
        if check:
            count = len(configuration.units)
            click.echo(f"{config}: {count} unit{'' if count == 1 else 's'}, no problem found")
            return
        sys.exit(_run(configuration, runtime_dir, state_dir, log_format))
    except (UsageError, ConfigurationError) as error:
        click.echo(f"parsupd: {error}", err=True)
        sys.exit(USAGE)


cli.add_command(install)
cli.add_command(uninstall)


def _run(configuration: Configuration, given_runtime: str | None, given_state: str | None, form: str | None) -> int:
    daemon = configuration.daemon
    runtime = runtime_dir(given_runtime, daemon.runtime_dir, os.environ)
    state = state_dir(given_state, daemon.state_dir, os.environ, runtime)
    lock = Lock(runtime)
    try:
        log_format = journal.resolve(LogFormat(form) if form else daemon.log)
        log = journal.configure(log_format)
        return run(Daemon(configuration, Place(runtime, state), log, log_format is LogFormat.JOURNAL).run())
    finally:
        lock.release()


def main() -> None:
    """The console script `parsupd`."""
    cli(prog_name="parsupd")
