"""Finds the line of a key in the text of a TOML file, for messages: `tomllib` does not tell. Layer 0."""

import re
from collections.abc import Mapping

KEY = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
DOTTED = rf"{KEY}(?:\s*\.\s*{KEY})*"
HEADER = re.compile(rf"\s*\[\[?\s*({DOTTED})\s*\]")
ASSIGNMENT = re.compile(rf"\s*({DOTTED})\s*=")

Path = tuple[str, ...]


def key_lines(text: str) -> dict[Path, int]:
    """Line numbers, from 1, of the table headers and keys; keys inside inline tables are not found."""
    lines: dict[Path, int] = {}
    table: Path = ()
    inside: str | None = None  # the quotes that end the string of several lines that we are in
    for number, line in enumerate(text.splitlines(), 1):
        if inside is None:
            if header := HEADER.match(line):
                table = _split(header[1])
                _enter(lines, table, number)
            elif assignment := ASSIGNMENT.match(line):
                _enter(lines, (*table, *_split(assignment[1])), number)
        for quotes in ('"""', "'''"):
            if inside in {None, quotes} and line.count(quotes) % 2:
                inside = None if inside else quotes
    return lines


def line_of(lines: Mapping[Path, int], path: Path) -> int | None:
    """The line of a key, or of the nearest table around it that has one."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


def _enter(lines: dict[Path, int], path: Path, number: int) -> None:
    """A key also opens the tables above it, unless an earlier line did."""
    for length in range(1, len(path) + 1):
        lines.setdefault(path[:length], number)


def _split(dotted: str) -> Path:
    return tuple(part.strip("\"'") for part in re.findall(KEY, dotted))
