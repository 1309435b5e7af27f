"""Unit files: TOML text to a checked `Configuration`, or every problem of every file with its place. Layer 1.

The shell reads files and expands globs; what is here sees only text. Paths in a file are relative to that file.
"""

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from parsupd.core import graph
from parsupd.core.readers import BadValueError, Reader, did_you_mean
from parsupd.core.toml_lines import Path, key_lines, line_of
from parsupd.core.unit_keys import DAEMON_KEYS, GROUP_KEYS, NEEDED, ONLY_FOR, UNIT_KEYS, UNIT_NAME, VARIABLE, field_of
from parsupd.core.units import (
    Configuration,
    DaemonSettings,
    Dependency,
    GroupSpec,
    Output,
    OutputKind,
    RestartPolicy,
    UnitSpec,
    UnitType,
)
from parsupd.core.wiring import earlier_in_groups

DEFAULT_INCLUDE = ("units.d/*.toml",)
PULLING_KEYS = ("requires", "binds_to", "wants")
DEPENDENCY_KEYS = ("requires", "binds_to", "wants", "after")
NAME_KEYS = ("part_of", "conflicts", "on_failure")
TABLES = ("parsupd", "unit", "group")
MOST_IN_GROUP = 200
"""Each unit of a group waits for all before it: the number of edges grows with the square."""
ORDER_KEYS = (*DEPENDENCY_KEYS, "part_of")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a file; `str` gives `file:line: key: message`."""

    file: str
    line: int | None
    key: str  # e.g. unit.pricing.restart_sec; empty when the file as a whole is concerned
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class ConfigurationError(Exception):
    """The configuration cannot be used; `problems` has all that is wrong, the message one line for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class UnitProblem(Protocol):
    """What is wrong with the value of a key, as its `str`; `below` says where inside the value."""

    key: str
    below: str


@dataclass(slots=True)
class _File:
    """One file while it is read."""

    path: str
    document: dict[str, Any]
    lines: Mapping[Path, int]
    problems: list[Problem]

    def complain(self, where: Path, message: str, below: str = "") -> None:
        self.problems.append(Problem(self.path, line_of(self.lines, where), ".".join(where) + below, message))


@dataclass(slots=True)
class _Found:
    """What all files together hold so far."""

    units: dict[str, UnitSpec] = field(default_factory=dict)
    files: dict[str, _File] = field(default_factory=dict)  # by name of the unit
    edges: dict[str, dict[str, tuple[Dependency, ...]]] = field(default_factory=dict)  # of units with errors too
    daemon: DaemonSettings = field(default_factory=DaemonSettings)
    groups: dict[str, GroupSpec] = field(default_factory=dict)
    group_files: dict[str, _File] = field(default_factory=dict)


def include_patterns(path: str, text: str) -> tuple[str, ...]:
    """The globs of the files that the main file includes, relative ones resolved against it.

    A bad `include` gives the default here; `parse` reports it.

    Raises:
        ConfigurationError: The file is not TOML.
    """
    problems: list[Problem] = []
    file = _load(path, text, problems)
    if file is None:
        raise ConfigurationError(problems)
    return _daemon(_File(path, file.document, file.lines, [])).include


def _nothing_wrong(_: UnitSpec) -> tuple[UnitProblem, ...]:
    return ()


def parse(
    files: Sequence[tuple[str, str]],
    main: str,
    check: Callable[[UnitSpec], Iterable[UnitProblem]] = _nothing_wrong,
) -> Configuration:
    """Reads all files together.

    Args:
        files: (path, text) of each file; the order is that of the units in the result.
        main: The path of the file that may hold the `[parsupd]` table.
        check: What is wrong with a unit on this machine, which no text can tell.

    Raises:
        ConfigurationError: Something is wrong; it has all problems of all files.
    """
    problems: list[Problem] = []
    found = _Found()
    complete = True
    for path, text in files:
        file = _load(path, text, problems)
        if file is None:
            complete = False
        else:
            _read_file(file, found, is_main=path == main)
            for spec in found.units.values():
                if found.files[spec.name] is file:
                    for problem in check(spec):
                        file.complain(("unit", spec.name, problem.key), str(problem), problem.below)
    if complete:  # else a unit that is named may stand in the file that cannot be read
        _check_dependencies(found)
    if problems:
        raise ConfigurationError(problems)
    return Configuration(found.daemon, found.units, found.groups)


def parse_one(name: str, table: Mapping[str, Any], source: str, others: Mapping[str, UnitSpec]) -> UnitSpec:
    """Reads one unit that no file holds, beside `others` that there are.

    Args:
        name: Its name.
        table: Its keys, as TOML has them.
        source: What stands for a file: relative paths are relative to its folder.
        others: The units that it may depend on.

    Raises:
        ConfigurationError: Something is wrong; it has all problems.
    """
    problems: list[Problem] = []
    file = _File(source, {"unit": {name: table}}, {}, problems)
    others = {other: spec for other, spec in others.items() if other != name}
    found = _Found(dict(others), dict.fromkeys(others, file))
    for other, spec in others.items():
        found.edges[other] = edges_of(spec)
    _read_unit(file, name, dict(table), found)
    found.files[name] = file
    _check_dependencies(found)
    if problems:
        raise ConfigurationError(problems)
    return found.units[name]


def edges_of(spec: UnitSpec) -> dict[str, tuple[Dependency, ...]]:
    """All other units that a unit names, by key."""
    return {key: getattr(spec, key) for key in DEPENDENCY_KEYS} | {
        key: tuple(map(Dependency, getattr(spec, key))) for key in NAME_KEYS
    }


def check_edges(units: Mapping[str, UnitSpec]) -> None:
    """Checks the dependencies of units that were read at different times. Raises ConfigurationError."""
    problems: list[Problem] = []
    found = _Found(dict(units), {name: _File(spec.source, {}, {}, problems) for name, spec in units.items()})
    for name, spec in units.items():
        found.edges[name] = edges_of(spec)
    _check_dependencies(found)
    if problems:
        raise ConfigurationError(problems)


def parse_environment(path: str, text: str) -> dict[str, str]:
    """Reads an environment file as systemd does: KEY=VALUE lines, `#` and `;` comments, quotes, backslash at line end.

    Raises:
        ConfigurationError: A line is none of these, or a quote stays open.
    """
    found: dict[str, str] = {}
    problems = []
    joined = re.sub(r"\\\n", "\0", text)  # a continued line is one line, and still counts as several
    number = 1
    for line in joined.split("\n"):
        content = line.replace("\0", "").strip()
        name, equals, value = content.partition("=")
        name = name.strip()
        if content and content[0] not in "#;":
            if not equals or not VARIABLE.fullmatch(name):
                problems.append(Problem(path, number, "", f"must be KEY=VALUE, not {content!r}"))
            elif (unquoted := _unquote(value.strip())) is None:
                problems.append(Problem(path, number, name, "has a quote that is not closed"))
            else:
                found[name] = unquoted
        number += 1 + line.count("\0")
    if problems:
        raise ConfigurationError(problems)
    return found


def _unquote(value: str) -> str | None:
    """The value without its quotes; None when one stays open. A backslash means itself inside single quotes."""
    parts = re.compile(r"""'([^']*)'|"((?:[^"\\]|\\.)*)"|\\(.)|([^'"\\]+)""", re.DOTALL)
    found, at = [], 0
    while at < len(value):
        match = parts.match(value, at)
        if match is None:
            return None
        single, double, escaped, plain = match.groups()
        if double is not None:
            found.append(re.sub(r"\\([\"\\`$])", r"\1", double))
        else:
            found.append(next(part for part in (single, escaped, plain) if part is not None))
        at = match.end()
    return "".join(found)


def _load(path: str, text: str, problems: list[Problem]) -> _File | None:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at line (\d+), column (\d+)\)$", str(error))
        line = int(place[1]) if place else text.count("\n") + 1  # without a place it is at the end of the document
        message = f"{str(error)[: place.start()]} in column {place[2]}" if place else str(error)
        problems.append(Problem(path, line, "", f"not TOML: {message}"))
        return None
    return _File(path, document, key_lines(text), problems)


def _read_file(file: _File, found: _Found, *, is_main: bool) -> None:
    for key in file.document:
        if key not in TABLES:
            file.complain((key,), f"unknown table or key{did_you_mean(key, TABLES)}")
    if is_main:
        found.daemon = _daemon(file)
    elif "parsupd" in file.document:
        file.complain(("parsupd",), "only the main file may have this table")
    for name, table in _tables(file, "group").items():
        if name in found.group_files:
            file.complain(("group", name), f"the group is also in {found.group_files[name].path}")
            continue
        found.group_files[name] = file
        _read_group(file, name, table, found)
    for name, table in _tables(file, "unit").items():
        where = ("unit", name)
        if name in found.files:
            file.complain(where, f"the unit is also in {found.files[name].path}")
            continue
        found.files[name] = file
        _read_unit(file, name, table, found)


def _tables(file: _File, kind: str) -> dict[str, Any]:
    tables = file.document.get(kind, {})
    if isinstance(tables, dict):
        return tables
    file.complain((kind,), f"must be tables [{kind}.NAME], not {tables!r}")
    return {}


def _read_group(file: _File, name: str, table: Any, found: _Found) -> None:
    where = ("group", name)
    before = len(file.problems)
    if not UNIT_NAME.fullmatch(name):
        file.complain(where, "a group's name has letters, digits, dots, dashes and underscores, 128 at most")
    values = _values(file, where, table, GROUP_KEYS)
    if isinstance(table, dict) and "units" not in table:
        file.complain(where, "needs the key 'units'")
    if len(values.get("units", ())) > MOST_IN_GROUP:
        file.complain((*where, "units"), f"a group has {MOST_IN_GROUP} units at most")
    if len(file.problems) == before:
        fields = {field_of(key): value for key, value in values.items()}
        found.groups[name] = GroupSpec(name=name, source=file.path, **fields)


def _daemon(file: _File) -> DaemonSettings:
    values = _values(file, ("parsupd",), file.document.get("parsupd", {}), DAEMON_KEYS)
    for key in ("runtime_dir", "state_dir"):
        if key in values:
            values[key] = resolve(file.path, values[key])
    values["include"] = tuple(resolve(file.path, glob) for glob in values.get("include", DEFAULT_INCLUDE))
    return DaemonSettings(**{field_of(key): value for key, value in values.items()})


def _values(file: _File, where: Path, table: Any, keys: Mapping[str, Reader]) -> dict[str, Any]:
    """Reads the keys of a table by their readers; complains about what is unknown or bad, and leaves it out."""
    values: dict[str, Any] = {}
    if not isinstance(table, dict):
        file.complain(where, f"must be a table, not {table!r}")
        return values
    for key, value in table.items():
        reader = keys.get(key)
        if reader is None:
            file.complain((*where, key), f"unknown key{did_you_mean(key, keys)}")
            continue
        try:
            values[key] = reader(value)
        except BadValueError as error:
            file.complain((*where, key), str(error), error.below)
    return values


def _read_unit(file: _File, name: str, table: Any, found: _Found) -> None:
    where = ("unit", name)
    before = len(file.problems)
    if not UNIT_NAME.fullmatch(name):
        file.complain(where, "a unit's name has letters, digits, dots, dashes and underscores, 128 at most")
    values = _values(file, where, table, UNIT_KEYS)
    if isinstance(table, dict):
        _check_type(file, where, table, values)
    found.edges[name] = {key: values.get(key, ()) for key in DEPENDENCY_KEYS} | {
        key: tuple(map(Dependency, values.get(key, ()))) for key in NAME_KEYS
    }
    if len(file.problems) == before:
        _fill_in(file, values)
        fields = {field_of(key): value for key, value in values.items()}
        found.units[name] = UnitSpec(name=name, source=file.path, **fields)


def _check_type(file: _File, where: Path, table: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Complains about keys that do not go together."""
    kind = values.get("type")
    if "type" not in table:
        names = ", ".join(each.value for each in UnitType)
        file.complain(where, f"needs a type: {names}")
    if kind is None:
        return
    if NEEDED[kind] not in table:
        file.complain(where, f"a unit of type {kind.value} needs the key {NEEDED[kind]!r}")
    for key, kinds in ONLY_FOR.items():
        if key in table and kind not in kinds:
            names = " and ".join(each.value for each in UnitType if each in kinds)
            file.complain((*where, key), f"is for units of type {names} only, and this one is {kind.value}")
    policy = values.get("restart")
    if kind is UnitType.ONESHOT and policy in {RestartPolicy.ALWAYS, RestartPolicy.ON_SUCCESS}:
        file.complain((*where, "restart"), f"a oneshot that has done its work is not repeated: not {policy.value!r}")


def _fill_in(file: _File, values: dict[str, Any]) -> None:
    """Defaults that depend on other keys, and paths."""
    if values["type"] is UnitType.ONESHOT:
        values.setdefault("restart", RestartPolicy.NO)
        values.setdefault("timeout_start_sec", float("inf"))
    for key in ("stdout", "stderr"):
        if key in values and values[key].kind is OutputKind.APPEND:
            values[key] = Output(OutputKind.APPEND, resolve(file.path, values[key].path))
    if "stdout" in values:
        values.setdefault("stderr", values["stdout"])
    if "environment_file" in values:
        values["environment_file"] = tuple(
            "-" * path.startswith("-") + resolve(file.path, path.removeprefix("-"))
            for path in values["environment_file"]
        )
    if "pid_file" in values:
        values["pid_file"] = resolve(file.path, values["pid_file"])
    if values.get("working_directory", "~") != "~":
        values["working_directory"] = resolve(file.path, values["working_directory"])
    if "/" in values.get("python", ""):  # a bare name is looked up in PATH
        values["python"] = resolve(file.path, values["python"])


def defaults_of(kind: UnitType) -> UnitSpec:
    """A unit of that type of which a file would say nothing else."""
    values: dict[str, Any] = {"type": kind}
    _fill_in(_File("", {}, {}, []), values)
    return UnitSpec(name="", **{field_of(key): value for key, value in values.items()})


def resolve(source: str, path: str) -> str:
    """`path` as seen from the folder of file `source`, without `.` and `..`; symbolic links are not followed."""
    joined = path if path.startswith("/") else f"{source.rpartition('/')[0]}/{path}"
    absolute = source.startswith("/") or path.startswith("/")
    parts: list[str] = []
    for part in joined.split("/"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part not in {"", "."} and not (part == ".." and absolute):
            parts.append(part)
    return ("/" if absolute else "") + "/".join(parts) or "."


def _check_dependencies(found: _Found) -> None:
    """Complains about names that no file has, about conditions that do not fit, and about a cycle."""
    before: dict[str, list[str]] = {}
    _check_groups(found)
    earlier = earlier_in_groups(found.groups.values())
    for name, edges in found.edges.items():
        before[name] = [edge.unit for key in ORDER_KEYS for edge in edges[key]]
        before[name] += earlier.get(name, ())
        for key, named in edges.items():
            for index, edge in enumerate(named):
                message = _bad_edge(found, edge, key)
                if key == "conflicts" and edge.unit == name:
                    message = "a unit cannot conflict with itself"
                if message:
                    found.files[name].complain(("unit", name, key), message, f"[{index}]")
    cycle = graph.find_cycle(before)
    if cycle:
        message = f"units wait for each other in a cycle: {' -> '.join(cycle)}"
        found.files[cycle[0]].complain(("unit", cycle[0]), message)
    else:
        _check_failures(found)
    _check_conflicts(found)


def _check_groups(found: _Found) -> None:
    """Complains about units that no file has, that are in two groups, or that have a start limit of their own.

    The others get none: what counts restarts is their group.
    """
    taken: dict[str, str] = {}
    for group in list(found.groups.values()):
        file, where = found.group_files[group.name], ("group", group.name, "units")
        for index, name in enumerate(group.units):
            if name not in found.edges:
                file.complain(where, f"there is no unit {name!r}{did_you_mean(name, found.edges)}", f"[{index}]")
            elif name in taken:
                file.complain(where, f"{name} is already in group {taken[name]}", f"[{index}]")
                found.groups[group.name] = replace(group, units=())  # else it would also be told of a cycle
                continue
            taken[name] = group.name
            if name in found.units:
                own = found.files[name].document["unit"][name]
                for key in ("start_limit_burst", "start_limit_interval_sec"):
                    if key in own:
                        message = f"restarts of {name} are counted by its group {group.name}: set intensity there"
                        found.files[name].complain(("unit", name, key), message)
                found.units[name] = replace(found.units[name], start_limit_burst=0)


def _check_failures(found: _Found) -> None:
    """Complains when what is started for a failure would start what has failed."""
    starts = {
        name: [edge.unit for key in (*PULLING_KEYS, "on_failure") for edge in edges[key]]
        for name, edges in found.edges.items()
    }
    cycle = graph.find_cycle(starts)
    if cycle:
        message = f"a failure would start what has failed: {' -> '.join(cycle)}"
        found.files[cycle[0]].complain(("unit", cycle[0]), message)


def _check_conflicts(found: _Found) -> None:
    """Complains about conflicts of units that are both started with parsupd, or that one unit needs both."""
    needed = {name: [other for other in spec.needed if other in found.units] for name, spec in found.units.items()}
    needed_by = graph.turned(needed)
    for name, spec in found.units.items():
        for index, other in enumerate(spec.conflicts):
            if other == name or other not in found.units:
                continue
            one, two = (graph.closure([each], needed_by) for each in (name, other))
            both = next((each for each in found.units if each in one and each in two), None)
            first, second = (
                next((each for each in found.units if each in some and found.units[each].enabled), None)
                for some in (one, two)
            )
            message = ""
            if both is not None:
                message = f"{both} needs {name} and {other}, and they conflict"
                if both in {name, other}:
                    message = f"{both} needs {other if both == name else name}, with which it conflicts"
            elif first is not None and second is not None:
                message = f"{name} and {other} conflict, and both are started with parsupd"
                through = [f"{one} for {by}" for one, by in ((name, first), (other, second)) if one != by]
                message += f" ({', '.join(through)})" if through else ""
            if message:
                found.files[name].complain(("unit", name, "conflicts"), message, f"[{index}]")


def _bad_edge(found: _Found, edge: Dependency, key: str) -> str:
    if edge.unit not in found.edges:
        return f"there is no unit {edge.unit!r}{did_you_mean(edge.unit, found.edges)}"
    other = found.units.get(edge.unit)  # None when that unit has errors of its own
    if edge.completed and other is not None and other.type is not UnitType.ONESHOT:
        return f"only a oneshot is ever completed, and {edge.unit!r} is of type {other.type.value}"
    if key == "requires" and other is not None and not other.remain_after_exit:
        return f"{edge.unit!r} does not stay active after it has exited: name it in `wants` or `after`"
    return ""
