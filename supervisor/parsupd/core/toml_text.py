"""TOML as text: what `parsupctl show` prints and what `import` writes. Layer 0.

Only what unit files hold: tables of one level with strings, numbers, booleans, arrays, and inline tables.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

BARE = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f"}


def string(text: str) -> str:
    """A basic string."""
    return '"' + "".join(_ESCAPES.get(letter) or _escaped(letter) for letter in text) + '"'


def _escaped(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if letter < " " or letter == "\x7f" else letter


def key(name: str) -> str:
    """A name as a key, quoted where it must be."""
    return name if BARE.fullmatch(name) else string(name)


def value(item: Any) -> str:
    """A value. Raises TypeError for what unit files cannot hold."""
    match item:
        case bool():
            return "true" if item else "false"
        case str():
            return string(item)
        case int():
            return str(item)
        case float():
            return _number(item)
        case Mapping():
            return (
                "{ " + ", ".join(f"{key(name)} = {value(each)}" for name, each in item.items()) + " }" if item else "{}"
            )
        case list() | tuple():
            return "[" + ", ".join(map(value, item)) + "]"
        case _:
            raise TypeError(f"unit files cannot hold {item!r}")


def _number(number: float) -> str:
    if math.isinf(number):
        return "inf" if number > 0 else "-inf"
    return str(int(number)) if number.is_integer() else repr(number)
