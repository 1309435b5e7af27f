"""What several options take: numbers of seconds, and numbers of things."""

from typing import Any

import click

LONGEST_S = 1e9
"""30 years: more is a mistake, and more than the system calls take."""


class Seconds(click.ParamType):  # type: ignore[type-arg]  # not generic at run time
    """A duration. click's own range lets `nan` through, and calls what is no number "not a valid float range"."""

    name = "seconds"

    def __init__(self, least: float = 0.0) -> None:
        """More than nothing, and not less than `least`."""
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            found = float(value)
        except ValueError:
            found = 0.0
        if not (max(self._least, 0.0) <= found <= LONGEST_S and found):
            least = f"{self._least:g} or more" if self._least else "more than 0"
            self.fail(
                f"{value!r} is no number of seconds, {least} and {LONGEST_S:g} at most: such as 0.5 or 30", param, ctx
            )
        return found


SECONDS = Seconds()

COUNT = click.IntRange(0, 2**63 - 1)
"""As many as there can be."""
