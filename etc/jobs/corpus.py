"""The worker of `make run`: counts lines, bytes and identifiers of Python files.

A unit names it as `worker = "corpus:Corpus"`; parsupd starts it in this folder.
"""

import keyword
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import workerlib


@dataclass
class FileCounts:
    """What is in one file."""

    path: str
    lines: int
    bytes: int
    identifiers: dict[str, int]
    """How often each name occurs; keywords are not names."""
    problem: str = ""
    """Why it could not be read to its end; the counts are those of the part before."""


@dataclass
class Totals:
    """What is in several files together."""

    files: int
    lines: int
    bytes: int
    identifiers: dict[str, int]
    problems: dict[str, str]
    """By path: the files that could not be read to their end."""


def count_file(path: str) -> FileCounts:
    """Never raises: a file with bad syntax, a bad encoding or no permission is counted as far as it can be read."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        return FileCounts(path, 0, 0, {}, f"{type(error).__name__}: {error.strerror}")
    identifiers: Counter[str] = Counter()
    problem = ""
    try:
        for token in tokenize.tokenize(BytesIO(data).readline):
            if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                identifiers[token.string] += 1
    except (SyntaxError, UnicodeDecodeError, tokenize.TokenError) as error:
        problem = f"{type(error).__name__}: {error}"
    return FileCounts(path, len(data.splitlines()), len(data), dict(identifiers), problem)


class Corpus(workerlib.Worker):
    """Counts Python files. Its functions are plain `def`: they run in threads, so that it answers while it counts."""

    @workerlib.rpc
    def count(self, path: str) -> FileCounts:
        """Counts one file."""
        return count_file(path)

    @workerlib.rpc
    def count_all(self, paths: list[str]) -> Totals:
        """Counts a batch of files; the answer comes when all are counted."""
        totals, identifiers = Totals(0, 0, 0, {}, {}), Counter[str]()
        for counts in map(count_file, paths):
            totals.files += 1
            totals.lines += counts.lines
            totals.bytes += counts.bytes
            identifiers.update(counts.identifiers)
            if counts.problem:
                totals.problems[counts.path] = counts.problem
        totals.identifiers = dict(identifiers)
        return totals

    @workerlib.pipe
    def count_each(self, paths: list[str]) -> Iterator[FileCounts]:
        """Counts a batch of files; each one's counts come as soon as they are there."""
        yield from map(count_file, paths)
