"""Templates: `[unit."mail@"]` describes units `mail@ARGUMENT`, with `%i`, `%n` and `%%` in its strings. Layer 0.

`mail@eu` is a unit as any other, and its copies are `mail@eu@1`, `mail@eu@2`. So a name with a number at its end can
mean one copy of a unit or what a template makes; both at once is refused: beside a template `mail@` there is no unit
`mail`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from parsupd.core.readers import BadValueError

ARGUMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
LONGEST = 128
"""Characters of a whole name."""
MOST = 10_000
"""Units that templates make; one that names itself with a longer argument each time would make them without end."""
SPECIFIER = re.compile(r"%(.?)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Template:
    """A unit to be made once for each argument."""

    name: str  # with the @
    source: str  # path of the file that holds it
    table: Mapping[str, Any]  # as TOML has it
    instantiate: tuple[str, ...] = ()  # arguments of the units that there always are


def template_of(name: str) -> str:
    """The template that a unit of this name would be made from; empty when it is none."""
    prefix, at, argument = name.partition("@")
    return f"{prefix}@" if at and ARGUMENT.fullmatch(argument) and len(name) <= LONGEST else ""


def expanded(value: Any, name: str) -> Any:
    """A value with the specifiers of all strings in it replaced. Raises BadValueError for an unknown one."""
    match value:
        case str():
            return SPECIFIER.sub(lambda found: _replacement(found[0], value, name), value)
        case list():
            return [expanded(one, name) for one in value]
        case dict():
            return {key: expanded(one, name) for key, one in value.items()}
        case _:
            return value


def _replacement(specifier: str, text: str, name: str) -> str:
    match specifier:
        case "%i":
            return name.partition("@")[2]
        case "%n":
            return name
        case "%%":
            return "%"
        case _:
            raise BadValueError(f"has {specifier!r} in {text!r}; there are %i, the argument, %n, the name, and %%")


def named_in(table: Any, keys: Iterable[str]) -> Iterator[str]:
    """The names of units in the values of these keys, before anything is checked."""
    if isinstance(table, Mapping):
        for key in keys:
            values = table.get(key)
            if isinstance(values, list):
                yield from (value.partition(":")[0] for value in values if isinstance(value, str))


def made(
    names: Iterable[str], templates: Mapping[str, Template], present: Iterable[str], keys: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """The tables of the units of these names, and of those that they name, as far as there are templates for them.

    `present` are the units that there are. Raises BadValueError for an unknown specifier, and for too many of them.
    """
    found: dict[str, dict[str, Any]] = {}
    known, todo = set(present), list(names)
    while todo:
        name = todo.pop(0)
        template = templates.get(template_of(name))
        if name in known or template is None:
            continue
        known.add(name)
        if len(found) == MOST:
            raise BadValueError(f"makes more than {MOST} units; the last is {name!r}")
        table = found[name] = expanded(dict(template.table), name)
        todo += named_in(table, keys)
    return found
