"""The entry point `parsupctl`: global options, the commands, and what ends the program."""

import signal
import sys

import click

from parsupd.ctl import acting, calling, changing, importing, inspecting, logs, reading, running, top, watching
from parsupd.ctl.client import INTERRUPTED, Failure, Options
from parsupd.ctl.shells import SHELLS, completion_script
from parsupd.ctl.values import SECONDS
from workerlib import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--socket", metavar="PATH", help="The daemon's socket.  [env: PARSUP_SOCKET]")
@click.option("--runtime-dir", metavar="DIR", help="The daemon's runtime directory.  [env: PARSUP_RUNTIME_DIR]")
@click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=SECONDS,
    default=5.0,
    show_default=True,
    help="How long connecting may take.",
)
@click.version_option(__version__, prog_name="parsupctl")
@click.pass_context
def cli(context: click.Context, socket: str | None, runtime_dir: str | None, timeout_s: float) -> None:
    """Control parsupd: see what its units do, start and stop them, call workers.

    The daemon's socket is parsupd.sock in, first that has one: /run/parsupd (as root), $XDG_RUNTIME_DIR/parsupd,
    ./.parsupd; --socket or --runtime-dir name another place.

    Exit status: 0 done, 1 failed, 2 wrong usage, 3 a unit is not active, 4 no such unit, 69 no daemon there.

    \b
    Examples:
      parsupctl status
      parsupctl restart pricing --timeout 30
      parsupctl call pricing quote '"EURUSD"'
    """
    context.obj = Options(socket, runtime_dir, timeout_s)


@click.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script that completes parsupctl's commands, options and unit names in a shell.

    \b
    Examples:
      parsupctl completion bash > ~/.local/share/bash-completion/completions/parsupctl
      parsupctl completion zsh > "${fpath[1]}/_parsupctl"
      parsupctl completion fish > ~/.config/fish/completions/parsupctl.fish
    """
    click.echo(completion_script("parsupctl", shell))


for _command in (
    reading.status,
    reading.list_,
    acting.start,
    acting.stop,
    acting.restart,
    running.run,
    changing.plan,
    changing.apply,
    changing.reload,
    changing.scale,
    calling.call,
    reading.why,
    logs.logs,
    inspecting.show,
    inspecting.kill,
    inspecting.leaks,
    top.top,
    watching.events,
    reading.names,
    acting.wait,
    acting.shutdown,
    acting.reexec,
    importing.import_,
    reading.info,
    completion,
):
    cli.add_command(_command)


def main() -> None:
    """The console script. Ends with the statuses that `cli` documents, or 130 after Ctrl-C."""
    # `parsupctl list | head -1`: end as other programs do when nobody reads any more. The client's own sockets do not
    # raise this signal.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        status = cli.main(prog_name="parsupctl", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Failure as failure:
        click.echo(f"parsupctl: {failure.message}", err=True)
        sys.exit(failure.status)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)
