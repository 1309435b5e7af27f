"""What is read from unit files while they are read, and what is wrong with it. Layer 0."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from parsupd.core.templates import Template, template_of
from parsupd.core.toml_lines import Path, line_of
from parsupd.core.units import DaemonSettings, Dependency, GroupSpec, UnitSpec

LONGEST_SHOWN = 1000
"""Characters of a key or a message that are shown: a value may be as long as it likes."""


def _shown(text: str) -> str:
    """Its beginning, where a message says what is wrong, and its end, where it may say what would be right."""
    half = LONGEST_SHOWN // 2
    return text if len(text) <= LONGEST_SHOWN else f"{text[:half]} [...] {text[-half:]}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a file; `str` gives `file:line: key: message`."""

    file: str
    line: int | None
    key: str  # e.g. unit.pricing.restart_sec; empty when the file as a whole is concerned
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return (
            f"{place}: {_shown(self.key)}: {_shown(self.message)}" if self.key else f"{place}: {_shown(self.message)}"
        )


@dataclass(slots=True)
class File:
    """One file while it is read."""

    path: str
    document: dict[str, Any]
    lines: Mapping[Path, int]
    problems: list[Problem]

    def complain(self, where: Path, message: str, below: str = "") -> None:
        place = where
        if len(where) > 1 and where not in self.lines and (template := template_of(where[1])):
            place = (where[0], template, *where[2:])
        self.problems.append(Problem(self.path, line_of(self.lines, place), ".".join(where) + below, message))


@dataclass(slots=True)
class Found:
    """What all files together hold so far."""

    units: dict[str, UnitSpec] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)  # by name of the unit
    edges: dict[str, dict[str, tuple[Dependency, ...]]] = field(default_factory=dict)  # of units with errors too
    daemon: DaemonSettings = field(default_factory=DaemonSettings)
    groups: dict[str, GroupSpec] = field(default_factory=dict)
    group_files: dict[str, File] = field(default_factory=dict)
    templates: dict[str, Template] = field(default_factory=dict)
