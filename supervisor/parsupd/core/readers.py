"""What reads the values of keys: plain types, and what is made of them. Layer 0.

A reader takes the value that TOML gave and returns the value that the spec holds, or raises BadValueError.
"""

import difflib
import enum
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Reader = Callable[[Any], Any]
E = TypeVar("E", bound=enum.Enum)


class BadValueError(ValueError):
    """A value is not what its key needs; the message completes the sentence "the key ...".

    Attributes:
        below: Where inside the value: an index such as `[1]` or a key such as `.TZ`.
    """

    def __init__(self, message: str, below: str = "") -> None:
        super().__init__(message)
        self.below = below


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest valid one, or nothing."""
    near = difflib.get_close_matches(word, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadValueError(f"must be a string, not {value!r}")
    if "\0" in value:
        raise BadValueError(f"must not hold a NUL character: {value!r}")
    return value


def filled(value: Any) -> str:
    if not text(value):
        raise BadValueError("must not be empty")
    return str(value)


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadValueError(f"must be true or false, not {value!r}")
    return value


def whole(low: int, high: int) -> Reader:
    """Reads an integer from `low` to `high`."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise BadValueError(f"must be a whole number from {low} to {high}, not {value!r}")
        return value

    return read


def seconds(*, endless: bool = False) -> Reader:
    """Reads a duration in seconds; `inf` only where a timeout may be switched off."""
    allowed = "a number of seconds, 0 or more" + (", or inf" if endless else "")

    def read(value: Any) -> float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not (0 <= value <= 1e9 or (endless and value == math.inf)):
            raise BadValueError(f"must be {allowed}, not {value!r}")
        return float(value)

    return read


def choice(words: type[E]) -> Reader:
    """Reads one of the values of an enum."""
    names = [word.value for word in words]

    def read(value: Any) -> E:
        if text(value) not in names:
            raise BadValueError(f"must be one of {', '.join(names)}, not {value!r}{did_you_mean(value, names)}")
        return words(value)

    return read


def one_of(*words: str) -> Reader:
    """Reads one of these words."""

    def read(value: Any) -> str:
        if text(value) not in words:
            raise BadValueError(f"must be one of {', '.join(words)}, not {value!r}{did_you_mean(value, words)}")
        return str(value)

    return read


_BYTES = re.compile(r"(\d{1,15})([KMGT]?)", re.ASCII)
_TIMES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size(low: int) -> Reader:
    """Reads a number of bytes, `low` or more: 1048576, "1024K" or "1M"."""

    def read(value: Any) -> int:
        found = _BYTES.fullmatch(value) if isinstance(value, str) else None
        number = int(found[1]) * _TIMES[found[2]] if found is not None else value
        if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= 1 << 60:
            raise BadValueError(f'must be a number of bytes, {low} or more, or such as "16M", not {value!r}')
        return number

    return read


def several(read_one: Reader, *, at_least: int = 0) -> Reader:
    """Reads an array, each element by `read_one`."""

    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise BadValueError(f"must be an array, not {value!r}")
        if len(value) < at_least:
            raise BadValueError("must not be empty")
        found = []
        for index, element in enumerate(value):
            try:
                found.append(read_one(element))
            except BadValueError as error:
                raise BadValueError(str(error), f"[{index}]{error.below}") from None
        return tuple(found)

    return read
