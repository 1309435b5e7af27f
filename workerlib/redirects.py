"""Where a released daemon's output goes. Purely a value: `workerlib.shell.detach` opens the file."""

import enum
from typing import Self

import msgspec


class Target(enum.Enum):
    """The kinds of place that output can go to."""

    DEV_NULL = "dev_null"
    APPEND = "append"
    TRUNCATE = "truncate"
    DESCRIPTOR = "descriptor"


class Redirect(msgspec.Struct, frozen=True):
    """Where stdout or stderr goes. Make one with `dev_null()`, `append(path)`, `truncate(path)` or `descriptor(fd)`.

    A relative path is resolved in the daemon's working directory. A missing file is made, mode 0666 less the umask.
    """

    target: Target
    path: str = ""
    fd: int = -1

    def __post_init__(self) -> None:
        if (self.target in {Target.APPEND, Target.TRUNCATE}) is not bool(self.path):
            raise ValueError(f"a redirect to {self.target.value} {'takes no' if self.path else 'needs a'} path")
        if (self.target is Target.DESCRIPTOR) is not (self.fd >= 0):
            raise ValueError(f"a redirect to {self.target.value} cannot have descriptor {self.fd}")

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

    @classmethod
    def descriptor(cls, fd: int) -> Self:
        """Output goes to an open descriptor of the process that says this, which a worker then shares."""
        return cls(Target.DESCRIPTOR, fd=fd)
