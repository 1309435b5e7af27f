"""Where text goes: plain into pipes; colours and rich's tables onto a terminal."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from parsupd.ctl import render
from parsupd.ctl.client import Failure


def on_terminal() -> bool:
    return sys.stdout.isatty()


def painter() -> render.Paint:
    """Colours on a terminal, unless NO_COLOR says otherwise (https://no-color.org)."""
    if not on_terminal() or os.environ.get("NO_COLOR"):
        return render.plain
    return lambda text, colour: click.style(text, fg=render.COLOURS.get(colour), bold=colour == "failed")


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], colours: Sequence[str] = ()) -> None:
    """A table; `colours` has the state that colours each row's STATE column."""
    if not on_terminal():
        click.echo(render.align(headers, rows))
        return
    from rich.console import Console  # noqa: PLC0415 - slow to import, and of use on a terminal only
    from rich.table import Table  # noqa: PLC0415 - same
    from rich.text import Text  # noqa: PLC0415 - same

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        shown.add_column(header, no_wrap=header == "NAME", overflow="fold")
    for row, state in zip(rows, colours or [""] * len(rows), strict=True):
        style = render.COLOURS.get(state, "")
        shown.add_row(
            *(Text(cell, style=style if header == "STATE" else "") for header, cell in zip(headers, row, strict=True))
        )
    Console().print(shown)


@contextmanager
def screen(live: bool) -> Iterator[None]:
    """With `live`, the terminal's other screen for the time of the block, without a cursor."""
    if not live:
        yield
        return
    sys.stdout.write("\x1b[?1049h\x1b[?25l")
    try:
        yield
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()


def top(headers: Sequence[str], rows: Sequence[Sequence[str]], colours: Sequence[str]) -> None:
    """A table that takes the place of the one before; on a terminal only as many rows as it has."""
    if on_terminal():
        fit = (os.get_terminal_size(1).lines or len(rows) + 2) - 2  # a terminal that nobody has given a size has 0
        rows, colours = rows[:fit], colours[:fit]
        sys.stdout.write("\x1b[H\x1b[J")
        sys.stdout.flush()
    table(headers, rows, colours)


def as_json(value: Any) -> None:
    """One line, or indented on a terminal. Raises Failure for what JSON has no form for."""
    import msgspec  # noqa: PLC0415 - `--help` does not pay for it

    data = _encode(value)
    if on_terminal():
        data = msgspec.json.format(data, indent=2)
    click.echo(data)


def as_json_line(value: Any) -> None:
    """One line, handed on at once. Raises Failure as `as_json` does."""
    click.echo(_encode(value))  # echo flushes


def _encode(value: Any) -> bytes:
    import msgspec  # noqa: PLC0415 - as above

    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise Failure(f"the result has no form in JSON: {error}") from None
