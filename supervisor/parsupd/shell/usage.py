"""What process groups take of the machine: CPU time and memory, from one look at /proc."""

import os
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Usage(NamedTuple):
    """Of all processes of one group; `age_s` is that of the oldest."""

    processes: int = 0
    cpu_s: float = 0.0
    rss: int = 0
    age_s: float = 0.0
    tasks: int = 0  # with their threads


class Groups(NamedTuple):
    """All groups of the machine, and in which each process is."""

    usage: dict[int, Usage]
    group_of: dict[int, int]


def groups() -> Groups:
    """Looks at all processes. What ends meanwhile is left out."""
    with open("/proc/uptime", encoding="ascii") as file:  # noqa: PTH123 - pathlib alone costs 10 ms to import
        uptime_s = float(file.read().split()[0])
    usage: dict[int, Usage] = {}
    group_of: dict[int, int] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - as above
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - as above
                fields = file.read().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] in {"Z", "X"}:
            continue
        group = group_of[int(entry)] = int(fields[2])
        cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS
        rss = int(fields[21]) * _PAGE
        age_s = max(0.0, uptime_s - int(fields[19]) / _TICKS)
        sofar = usage.get(group, Usage())
        usage[group] = Usage(
            sofar.processes + 1,
            sofar.cpu_s + cpu_s,
            sofar.rss + rss,
            max(sofar.age_s, age_s),
            sofar.tasks + int(fields[17]),
        )
    return Groups(usage, group_of)


def of(found: Groups, pid: int | None) -> Usage:
    """That of the group which the process is in; nothing when there is no such process."""
    return found.usage[found.group_of[pid]] if pid in found.group_of else Usage()
