"""What the kernel is told of a unit's processes before they run their program: limits, user, priority. Layer 0.

Keys and readers are here, with the fields that `UnitSpec` inherits; `shell.preparing` carries them out.
"""

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from parsupd.core.readers import BadValueError, Reader, several, size, text, whole

INFINITY = -1
"""A limit that is none, as the kernel and `resource` write it."""

MAX_LIMIT = 2**63 - 1

# Names as in systemd, and numbers of Linux on x86 and ARM; a test compares them with the `resource` module.
LIMITS = {
    "limit_cpu": 0, "limit_fsize": 1, "limit_data": 2, "limit_stack": 3, "limit_core": 4, "limit_rss": 5,
    "limit_nproc": 6, "limit_nofile": 7, "limit_memlock": 8, "limit_as": 9, "limit_locks": 10,
    "limit_sigpending": 11, "limit_msgqueue": 12, "limit_nice": 13, "limit_rtprio": 14, "limit_rttime": 15,
}  # fmt: skip
IN_BYTES = frozenset(f"limit_{name}" for name in ("fsize", "data", "stack", "core", "rss", "memlock", "as", "msgqueue"))


CONTROLLERS = {"memory_max": "memory", "tasks_max": "pids"}
"""Limits that hold for all processes of a run together, and the controllers of control groups that can hold them."""


class Holder(enum.Enum):
    """Who holds one of these limits; the value is the word for it in `status`."""

    CGROUP = "cgroup"  # the kernel, for the run's control group
    RLIMIT = "rlimit"  # the kernel, for all processes of the run's user
    WATCH = "watched"  # parsupd, which looks from time to time


class Limit(NamedTuple):
    """A limit of a process: what holds, and how far the process may raise that itself."""

    soft: int
    hard: int

    def __str__(self) -> str:
        soft, hard = ("infinity" if value == INFINITY else str(value) for value in self)
        return soft if soft == hard else f"[{soft}, {hard}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """The part of a unit's description that is about its processes; what is not set is as in parsupd itself."""

    memory_max: int = 0  # bytes that all of them together may take; 0: any number
    tasks_max: int = 0  # so many of them, and of their threads; 0: any number
    limit_cpu: Limit | None = None  # seconds
    limit_fsize: Limit | None = None
    limit_data: Limit | None = None
    limit_stack: Limit | None = None
    limit_core: Limit | None = None
    limit_rss: Limit | None = None
    limit_nproc: Limit | None = None
    limit_nofile: Limit | None = None
    limit_memlock: Limit | None = None
    limit_as: Limit | None = None
    limit_locks: Limit | None = None
    limit_sigpending: Limit | None = None
    limit_msgqueue: Limit | None = None
    limit_nice: Limit | None = None
    limit_rtprio: Limit | None = None
    limit_rttime: Limit | None = None  # microseconds
    nice: int | None = None
    cpu_affinity: tuple[int, ...] = ()
    oom_score_adj: int | None = None
    user: str = ""  # a name, or a number
    group: str = ""  # empty: the first group of the user
    supplementary_groups: tuple[str, ...] = ()  # besides those that the user is in

    @property
    def limits(self) -> dict[str, Limit]:
        """The limits that are set, by key."""
        return {key: limit for key in LIMITS if (limit := getattr(self, key)) is not None}

    @property
    def changes_user(self) -> bool:
        """Whether user or groups are not simply those of parsupd."""
        return bool(self.user or self.group or self.supplementary_groups)


def _one_limit(value: Any, *, in_bytes: bool) -> int:
    if value == "infinity":
        return INFINITY
    try:
        return int((size(0) if in_bytes else whole(0, MAX_LIMIT))(value))
    except BadValueError:
        wanted = 'a number of bytes such as 1024 or "512M"' if in_bytes else "a whole number, 0 or more"
        message = f'must be {wanted}, "infinity", or [soft, hard], not {value!r}'
        raise BadValueError(message) from None


def limit(*, in_bytes: bool) -> Reader:
    """Reads a limit: one value for both, or [soft, hard]."""

    def read(value: Any) -> Limit:
        if not isinstance(value, list):
            both = _one_limit(value, in_bytes=in_bytes)
            return Limit(both, both)
        if len(value) != 2:
            raise BadValueError(f"must be [soft, hard], not {value!r}")
        soft, hard = (_one_limit(each, in_bytes=in_bytes) for each in value)
        if hard != INFINITY and (soft == INFINITY or soft > hard):
            raise BadValueError(f"the soft limit cannot be above the hard one: {value!r}")
        return Limit(soft, hard)

    return read


_CPUS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
MAX_CPU = 8191
"""The kernel is built for at most so many."""


def _cpus(value: Any) -> tuple[int, ...]:
    parts = _CPUS.fullmatch(text(value)) if isinstance(value, str) else None
    if parts is not None:
        first, last = int(parts[1]), int(parts[2] or parts[1])
        if first <= last <= MAX_CPU:
            return tuple(range(first, last + 1))
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_CPU:
        return (value,)
    raise BadValueError(f'must be the number of a processor, or a range such as "0-3", not {value!r}')


def cpu_affinity(value: Any) -> tuple[int, ...]:
    """Reads an array of processors and ranges of them; in order, each once."""
    found = several(_cpus, at_least=1)(value)
    return tuple(sorted({cpu for cpus in found for cpu in cpus}))


_ACCOUNT = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,255}\$?")
MAX_ID = 2**32 - 2
"""The number after it, which would be the highest, means "unchanged" to the kernel."""


def account(value: Any) -> str:
    """Reads the name of a user or group, or its number; whether there is such a one is asked on the machine."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ID:
        return str(value)
    if isinstance(value, str) and (_ACCOUNT.fullmatch(value) or (value.isascii() and value.isdigit())):
        if value.isdigit() and int(value) > MAX_ID:
            raise BadValueError(f"must be a name, or a number up to {MAX_ID}, not {value!r}")
        return value
    raise BadValueError(f"must be a name, or a number, not {value!r}")


ATTRIBUTE_KEYS: Mapping[str, Reader] = {
    **{key: limit(in_bytes=key in IN_BYTES) for key in LIMITS},
    "nice": whole(-20, 19),
    "cpu_affinity": cpu_affinity,
    "oom_score_adj": whole(-1000, 1000),
    "user": account,
    "group": account,
    "supplementary_groups": several(account),
}
