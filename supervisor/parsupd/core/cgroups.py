"""Control groups, version 2: where parsupd's own is, how those below it are named, what their files tell. Layer 1.

Below the group that is delegated to parsupd:

    parsupd.daemon      parsupd itself: a group that shares out memory or tasks can hold no processes of its own
    web@1.7             the 7th run of web@1, and all that it started
    web@1.7.command     a command of that run, such as exec_stop: what it leaves behind can be told from the run

A run has a group of its own, not an instance: what an earlier run has left is not taken for the next one's, and what
the kernel counts begins at nothing. No name needs to be escaped: those of units have only letters, digits and `_.-@`,
and each has a number behind its last `@`, which none of the kernel's own files in that directory has.
"""

import re
from typing import NamedTuple

from parsupd.core.units import InstanceName

LEAF = "parsupd.daemon"
CONTROL = ".control"
"""Where systemd puts the commands of a service whose group is delegated, such as that of ExecStopPost=."""

_NAME = re.compile(r"(.+@[1-9][0-9]*)\.([0-9]{1,18})(\.command)?", re.ASCII)
_ESCAPE = re.compile(r"\\([0-7]{3})")


class Counts(NamedTuple):
    """What the kernel has done to the processes of a group."""

    oom_kills: int = 0
    refused_forks: int = 0


class GroupName(NamedTuple):
    """What a group is for."""

    instance: InstanceName
    generation: int
    is_command: bool = False

    def __str__(self) -> str:
        return f"{self.instance}.{self.generation}{'.command' if self.is_command else ''}"


def parse_name(text: str) -> GroupName | None:
    """What the group of this name is for; None for one that is not parsupd's, or its own."""
    found = _NAME.fullmatch(text)
    if found is None:
        return None
    return GroupName(InstanceName.parse(found[1]), int(found[2]), found[3] is not None)


def own_path(own: str, mounts: str) -> str:
    """The directory of a process's control group; empty where there is no version 2, or no mount that shows it.

    Args:
        own: The process's /proc/PID/cgroup. Beside groups of version 1, that of version 2 is there, too.
        mounts: Its /proc/PID/mountinfo.
    """
    path = next((line[3:] for line in own.splitlines() if line.startswith("0::/")), "")
    if not path or ".." in path.split("/"):  # it is outside of what this namespace shows
        return ""
    for line in mounts.splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            root, where = (_ESCAPE.sub(lambda code: chr(int(code[1], 8)), field) for field in fields.split(" ")[3:5])
            root, where = root.rstrip("/"), where.rstrip("/")
            if path == root or path.startswith(f"{root}/"):
                return f"{where}{path[len(root) :]}".rstrip("/") or "/"
    return ""


def tree_of(path: str) -> str:
    """The group that would be delegated, for a process in the group at this path."""
    above, _, name = path.rpartition("/")
    return above if name in {LEAF, CONTROL} else path


def counts(memory_events: str, pids_events: str) -> Counts:
    """Reads memory.events and pids.events of a group; of a file that is not there, the text is empty."""
    return Counts(_count(memory_events, "oom_kill"), _count(pids_events, "max"))


def _count(text: str, key: str) -> int:
    found = dict(line.partition(" ")[::2] for line in text.splitlines())
    number = found.get(key, "")
    return int(number) if number.isascii() and number.isdigit() else 0
