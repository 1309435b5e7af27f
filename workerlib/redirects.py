"""Where a released daemon's output goes. Purely a value: `workerlib.shell.detach` opens the file."""

import enum
from dataclasses import dataclass
from typing import Self


class Target(enum.Enum):
    """The kinds of place that output can go to."""

    DEV_NULL = "dev_null"
    APPEND = "append"
    TRUNCATE = "truncate"


@dataclass(frozen=True, slots=True)
class Redirect:
    """Where stdout or stderr goes. Make one with `dev_null()`, `append(path)` or `truncate(path)`.

    A relative path is resolved in the daemon's working directory. A missing file is made, mode 0666 less the umask.
    """

    target: Target
    path: str = ""

    def __post_init__(self) -> None:
        if (self.target is Target.DEV_NULL) is bool(self.path):
            raise ValueError(f"a redirect to {self.target.value} {'takes no' if self.path else 'needs a'} path")

    @classmethod
    def dev_null(cls) -> Self:
        """Output is thrown away."""
        return cls(Target.DEV_NULL)

    @classmethod
    def append(cls, path: str) -> Self:
        """Output is added to the end of the file."""
        return cls(Target.APPEND, path)

    @classmethod
    def truncate(cls, path: str) -> Self:
        """The file is emptied when the redirect is made; from then on output is added to its end."""
        return cls(Target.TRUNCATE, path)
