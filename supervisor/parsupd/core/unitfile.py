"""Unit files: TOML text to a checked `Configuration`, or every problem of every file with its place. Layer 1.

The shell reads files and expands globs; what is here sees only text. Paths in a file are relative to that file.
"""

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from parsupd.core.edges import DEPENDENCY_KEYS, EDGE_KEYS, NAME_KEYS, check_dependencies
from parsupd.core.findings import File, Found, Problem
from parsupd.core.readers import BadValueError, Reader, did_you_mean, filled, several
from parsupd.core.templates import LONGEST, Template, expanded, made, named_in, template_of
from parsupd.core.toml_lines import Path, key_lines
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

TABLES = ("parsupd", "unit", "group")
MOST_IN_GROUP = 200
"""Each unit of a group waits for all before it: the number of edges grows with the square."""
MOST_NESTED = 50
TOO_DEEP = f"tables and arrays are nested too deeply: {MOST_NESTED} levels at most"
TOO_LONG = "a whole number has 64 bits at most"
BAD_NAME = "a unit's name has letters, digits, dots, dashes and underscores, 128 at most"
DEFAULT_INCLUDE = ("units.d/*.toml",)


class ConfigurationError(Exception):
    """The configuration cannot be used; `problems` has all that is wrong, the message one line for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class UnitProblem(Protocol):
    """What is wrong with the value of a key, as its `str`; `below` says where inside the value."""

    key: str
    below: str


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
    return _daemon(File(path, file.document, file.lines, [])).include


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
    found = Found()
    loaded = [_load(path, text, problems) for path, text in files]
    read = [file for file in loaded if file is not None]
    complete = len(read) == len(loaded)
    _expand_templates(read, found)
    for file in read:
        _read_file(file, found, is_main=file.path == main)
        for spec in found.units.values():
            if found.files[spec.name] is file:
                for problem in check(spec):
                    file.complain(("unit", spec.name, problem.key), str(problem), problem.below)
    if complete:  # else a unit that is named may stand in the file that cannot be read
        check_dependencies(found)
    if problems:
        places = {path: place for place, (path, _) in enumerate(files)}
        raise ConfigurationError(sorted(problems, key=lambda problem: places[problem.file]))
    return Configuration(found.daemon, found.units, found.groups, found.templates)


def with_made(configuration: Configuration, name: str) -> Configuration:
    """The configuration with a unit made from a template, and those that it names. They are transient.

    Raises:
        ConfigurationError: It cannot be made, e.g. because of what it depends on.
    """
    problems: list[Problem] = []
    template = configuration.templates[template_of(name)]
    file = File(template.source, {}, {}, problems)
    units = configuration.units
    found = Found(dict(units), dict.fromkeys(units, file), {one: edges_of(spec) for one, spec in units.items()})
    found.groups.update(configuration.groups)
    found.group_files.update(dict.fromkeys(configuration.groups, file))
    try:
        tables = made([name], configuration.templates, units, EDGE_KEYS)
    except BadValueError as error:
        raise ConfigurationError([Problem(template.source, None, f"unit.{name}", str(error))]) from None
    for one, table in tables.items():
        found.files[one] = File(configuration.templates[template_of(one)].source, {}, {}, problems)
        _read_unit(found.files[one], one, {**table, "enabled": False}, found)
    check_dependencies(found)
    if problems:
        raise ConfigurationError(problems)
    new = {one: replace(found.units[one], transient=True) for one in tables}
    return replace(configuration, units={**units, **new})


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
    file = File(source, {"unit": {name: table}}, {}, problems)
    others = {other: spec for other, spec in others.items() if other != name}
    found = Found(dict(others), dict.fromkeys(others, file))
    for other, spec in others.items():
        found.edges[other] = edges_of(spec)
    _read_unit(file, name, dict(table), found)
    found.files[name] = file
    check_dependencies(found)
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
    found = Found(dict(units), {name: File(spec.source, {}, {}, problems) for name, spec in units.items()})
    for name, spec in units.items():
        found.edges[name] = edges_of(spec)
    check_dependencies(found)
    if problems:
        raise ConfigurationError(problems)


def parse_environment(path: str, text: str) -> dict[str, str]:
    """Reads an environment file as systemd does: KEY=VALUE lines, `#` and `;` comments, quotes, backslash at line end.

    Raises:
        ConfigurationError: A line is none of these, or a quote stays open.
    """
    found: dict[str, str] = {}
    problems = []
    number = 1
    for line in re.split(r"(?<!\\)\n", text):  # a continued line is one line, and still counts as several
        content = line.replace("\\\n", "").strip()
        name, equals, value = content.partition("=")
        name = name.strip()
        if content and content[0] not in "#;":
            if "\0" in content:
                problems.append(Problem(path, number, "", f"must not hold a NUL character: {content!r}"))
            elif not equals or not VARIABLE.fullmatch(name):
                problems.append(Problem(path, number, "", f"must be KEY=VALUE, not {content!r}"))
            elif (unquoted := _unquote(value.strip())) is None:
                problems.append(Problem(path, number, name, "has a quote that is not closed"))
            else:
                found[name] = unquoted
        number += 1 + line.count("\n")
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


def _load(path: str, text: str, problems: list[Problem]) -> File | None:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at line (\d+), column (\d+)\)$", str(error))
        line = int(place[1]) if place else text.count("\n") + 1  # without a place it is at the end of the document
        message = f"{str(error)[: place.start()]} in column {place[2]}" if place else str(error)
        problems.append(Problem(path, line, "", f"not TOML: {message}"))
        return None
    except RecursionError:
        problems.append(Problem(path, None, "", TOO_DEEP))
        return None
    except ValueError:  # of int(), for thousands of digits
        problems.append(Problem(path, None, "", TOO_LONG))
        return None
    file, before = File(path, document, key_lines(text), problems), len(problems)
    _check_bounds(file, (), "", document)
    return file if len(problems) == before else None


def _check_bounds(file: File, where: Path, below: str, value: Any, depth: int = 0) -> None:
    """Complains about what could not be shown in a message about it. TOML itself allows numbers of 64 bits only."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        file.complain(where, TOO_LONG, below)
    elif depth > MOST_NESTED:
        file.complain(where[:3], TOO_DEEP)
    elif isinstance(value, dict):
        for key, each in value.items():
            _check_bounds(file, (*where, key), below, each, depth + 1)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            _check_bounds(file, where, f"{below}[{index}]", each, depth + 1)


def _expand_templates(files: Iterable[File], found: Found) -> None:
    """Takes the templates out of the documents, and puts there what is made of them."""
    holders: dict[str, File] = {}
    units: dict[str, Any] = {}
    groups: list[Any] = []
    for file in files:
        tables = file.document.get("unit")
        if isinstance(tables, dict):
            for name in [name for name in tables if name.endswith("@")]:
                _read_template(file, name, tables.pop(name), found, holders)
            for name in [name for name in tables if "@" in name]:
                file.complain(("unit", name), BAD_NAME)
                del tables[name]
            units.update(tables)
        grouped = file.document.get("group")
        groups += grouped.values() if isinstance(grouped, dict) else ()
    for name, file in holders.items():
        if name[:-1] in units:
            file.complain(("unit", name), f"there is a unit {name[:-1]!r}: its copies have names as this makes units")
    always = [f"{name}{one}" for name, template in found.templates.items() for one in template.instantiate]
    named = [one for table in units.values() for one in named_in(table, EDGE_KEYS)]
    named += [one for table in groups for one in named_in(table, ("units",))]
    try:
        tables = made([*always, *named], found.templates, units, EDGE_KEYS)
    except BadValueError as error:
        name = next(iter(holders))
        holders[name].complain(("unit", name), str(error))
        tables = {}
    for name, table in tables.items():
        # What is only named by others comes up with them.
        more = {} if name in always else {"enabled": False}
        holders[template_of(name)].document["unit"][name] = {**table, **more}


def _read_template(file: File, name: str, table: Any, found: Found, holders: dict[str, File]) -> None:
    """Checks a template as its units are, so that `--check` finds what is wrong before there are any."""
    where, before = ("unit", name), len(file.problems)
    if name in holders:
        file.complain(where, f"the template is also in {holders[name].path}")
        return
    if not UNIT_NAME.fullmatch(name[:-1]):
        file.complain(where, "a template's name has letters, digits, dots, dashes and underscores before the @")
        return
    holders[name] = file
    if not isinstance(table, dict):
        file.complain(where, f"must be a table, not {table!r}")
        return
    arguments: tuple[str, ...] = ()
    try:
        arguments = several(filled)(table.get("instantiate", []))
    except BadValueError as error:
        file.complain((*where, "instantiate"), str(error), error.below)
    for index, argument in enumerate(arguments):
        if not template_of(name + argument):
            message = f"{argument!r} must be letters, digits, dots, dashes and underscores, {LONGEST} with the name"
            file.complain((*where, "instantiate"), message, f"[{index}]")
    rest = {key: value for key, value in table.items() if key != "instantiate"}
    try:
        _read_unit(file, name, {key: expanded(value, f"{name}i") for key, value in rest.items()}, Found())
    except BadValueError as error:
        file.complain(where, str(error))
    if len(file.problems) == before:
        found.templates[name] = Template(name, file.path, rest, arguments)


def _read_file(file: File, found: Found, *, is_main: bool) -> None:
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


def _tables(file: File, kind: str) -> dict[str, Any]:
    tables = file.document.get(kind, {})
    if isinstance(tables, dict):
        return tables
    file.complain((kind,), f"must be tables [{kind}.NAME], not {tables!r}")
    return {}


def _read_group(file: File, name: str, table: Any, found: Found) -> None:
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


def _daemon(file: File) -> DaemonSettings:
    values = _values(file, ("parsupd",), file.document.get("parsupd", {}), DAEMON_KEYS)
    for key in ("runtime_dir", "state_dir"):
        if key in values:
            values[key] = resolve(file.path, values[key])
    values["include"] = tuple(resolve(file.path, glob) for glob in values.get("include", DEFAULT_INCLUDE))
    return DaemonSettings(**{field_of(key): value for key, value in values.items()})


def _values(file: File, where: Path, table: Any, keys: Mapping[str, Reader]) -> dict[str, Any]:
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


def _read_unit(file: File, name: str, table: Any, found: Found) -> None:
    where = ("unit", name)
    before = len(file.problems)
    if "@" not in name and not UNIT_NAME.fullmatch(name):
        file.complain(where, BAD_NAME)
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


def _check_type(file: File, where: Path, table: Mapping[str, Any], values: Mapping[str, Any]) -> None:
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
    for key in ("readiness", "liveness"):
        if key in values and values[key].rpc and kind is not UnitType.WORKER:
            file.complain((*where, key), f"is for units of type worker only, and this one is {kind.value}", ".rpc")
    planned = [key for key in ("schedule", "schedule_every_sec") if key in table]
    if len(planned) > 1:
        file.complain((*where, planned[1]), "a unit has one schedule: this, or schedule")
    for key in ("schedule_jitter_sec", "schedule_overlap"):
        if key in table and not planned:
            file.complain((*where, key), "needs schedule or schedule_every_sec")
    policy = values.get("restart")
    if kind is UnitType.ONESHOT and policy in {RestartPolicy.ALWAYS, RestartPolicy.ON_SUCCESS}:
        file.complain((*where, "restart"), f"a oneshot that has done its work is not repeated: not {policy.value!r}")


def _fill_in(file: File, values: dict[str, Any]) -> None:
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
    _fill_in(File("", {}, {}, []), values)
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
