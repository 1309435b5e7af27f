"""The command `call`: runs a function of a worker from the shell."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from parsupd.ctl import output
from parsupd.ctl.client import FAILED, NOT_ACTIVE, UNREACHABLE, Failure, Options, complete_unit, daemon
from parsupd.ctl.values import SECONDS

if TYPE_CHECKING:
    from workerlib.blocking import Connection


def _decode(text: str, what: str) -> Any:
    """Raises UsageError that names the argument and shows how to quote."""
    import msgspec  # noqa: PLC0415 - `--help` does not pay for it

    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise click.UsageError(
            f"{what} is not JSON: {text}\n  {error}\n"
            "Each argument is one JSON value. A text has quotes of its own, which the shell must be kept from: "
            f"""'"{text if text.isidentifier() else "text"}"' or '{{"key": [1, 2.5, true, null]}}'"""
        ) from None


def _named(texts: Iterable[str]) -> dict[str, Any]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise click.UsageError(f"--arg {text}: write NAME=JSON")
        found[name] = _decode(value, f"--arg {name}")
    return found


def _choose(found: list[dict[str, Any]], unit: str, instance: int | None) -> dict[str, Any]:
    """The instance to call. Raises Failure when there is none that can be called."""
    if instance is not None:
        found = [info for info in found if info["name"] == f"{info['unit']}@{instance}"]
        if not found:
            raise Failure(f"{unit} has no instance {instance}", 4)
    if found and found[0]["type"] != "worker":
        raise Failure(f"{unit} is of type {found[0]['type']}: only workers have functions to call", FAILED)
    ready = [info for info in found if info["uri"]]
    if not ready:
        states = ", ".join(f"{info['name']} is {info['state']} ({info['reason']})" for info in found)
        raise Failure(f"no instance of {unit} is ready: {states or 'it has none'}", NOT_ACTIVE)
    return ready[0]


@click.command(context_settings={"ignore_unknown_options": True}, short_help="Call a function of a worker.")
@click.argument("unit", shell_complete=complete_unit)
@click.argument("function")
@click.argument("arguments", metavar="[JSON]...", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--instance", metavar="N", type=click.IntRange(min=1), help="Which instance.  [default: the first ready one]"
)
@click.option("--arg", "named", metavar="NAME=JSON", multiple=True, help="An argument by name; may be repeated.")
@click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=SECONDS,
    help="Cancel the call after so long; for a pipe, after so long without an item.",
)
@click.option("--traceback", is_flag=True, help="When the function raises, show the worker's traceback.")
@click.pass_context
def call(
    context: click.Context,
    unit: str,
    function: str,
    arguments: Sequence[str],
    instance: int | None,
    named: Sequence[str],
    timeout_s: float | None,
    traceback: bool,
) -> None:
    """Call a FUNCTION of a worker and print its result as JSON.

    Each argument is one JSON value; a text needs quotes of its own: '"text"'. The worker checks the arguments against
    the function's types and refuses what does not fit with the path of the value. A pipe function prints one JSON value
    a line, each as soon as it comes, and so does a state function after its snapshot. A reverse_pipe function takes its
    items from an array, as the first argument. A one_way function prints nothing. Dates are printed as text, bytes in
    base64.

    Exit status 1 when the function raised, 3 when no instance is ready, 4 when there is no such unit.

    \b
    Examples:
      parsupctl call pricing quote '"EURUSD"' 1.5
      parsupctl call pricing book '{"symbol": "EURUSD", "amount": -5}' --instance 2
      parsupctl call pricing ticks --arg count=10 | head -3
    """
    args = [_decode(text, f"argument {number}") for number, text in enumerate(arguments, 1)]
    kwargs = _named(named)
    with daemon(context) as connection:
        chosen = _choose(connection.call("status", [unit]), unit, instance)
    _call(chosen, function, args, kwargs, context.find_object(Options) or Options(), timeout_s, traceback)


def _call(
    chosen: dict[str, Any],
    function: str,
    args: list[Any],
    kwargs: dict[str, Any],
    options: Options,
    timeout_s: float | None,
    traceback: bool,
) -> None:
    from workerlib import WorkerlibError, blocking  # noqa: PLC0415 - `--help` does not pay for it

    name = chosen["name"]
    try:
        connection = blocking.connect(chosen["uri"], within_s=options.timeout_s)
    except (OSError, WorkerlibError) as error:
        raise Failure(f"{name} cannot be reached: {error}", UNREACHABLE) from None
    with connection:
        connection.timeout_s = timeout_s
        try:
            _print_result(connection, name, function, args, kwargs)
        except Failure:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the function raises
            raise _as_failure(error, f"{name}.{function}", traceback) from None


def _print_result(connection: "Connection", name: str, function: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    from workerlib import Kind  # noqa: PLC0415 - as above
    from workerlib.core.calling import kind_of  # noqa: PLC0415 - as above

    kind = kind_of(function, connection.functions, name)
    result = connection.call(function, *args, **kwargs)
    if kind is Kind.STATE:
        snapshot, result = result
        output.as_json_line(snapshot)
    if kind in {Kind.PIPE, Kind.DIRECT_PIPE, Kind.STATE}:
        for item in result:
            output.as_json_line(item)
    elif kind is not Kind.ONE_WAY:
        output.as_json(result)


def _as_failure(error: Exception, where: str, traceback: bool) -> Failure:
    from workerlib import WorkerlibError  # noqa: PLC0415 - as above

    remote = getattr(error, "remote_traceback", "")
    if isinstance(error, WorkerlibError) or (isinstance(error, TimeoutError) and not remote):
        message = str(error)
    else:
        message = f"{where} raised {type(error).__name__}: {error}"
    if remote and traceback:
        message = f"{message}\n{remote.rstrip()}"
    return Failure(message, FAILED)
