"""Limits of runs as a whole: who holds them, what is written where, how an end by them is told, when to look."""

import pytest

from parsupd.core.attributes import Holder, Limit
from parsupd.core.bounds import FAR_S, NEAR_S, Bound, Taken, bounds, complaint, interval_s
from parsupd.core.cgroups import Counts, GroupName, counts, own_path, parse_name, tree_of
from parsupd.core.limits import contents, explained, holders, wanted
from parsupd.core.units import SIGKILL, SIGTERM, ExitCause, InstanceName, MaxRssAction, UnitSpec

CGROUP, RLIMIT, WATCH = Holder.CGROUP, Holder.RLIMIT, Holder.WATCH
ALONE = UnitSpec(name="a", user="pricing", memory_max=64 << 20, tasks_max=50)
SAME_USER = UnitSpec(name="b", user="pricing")
OTHER_USER = UnitSpec(name="b", user="web")


def spec(**keys: object) -> UnitSpec:
    return UnitSpec(name="a", **keys)  # type: ignore[arg-type]


HOLDERS = [
    (spec(), {"memory", "pids"}, [], {}),
    (ALONE, {"memory", "pids"}, [], {"memory_max": CGROUP, "tasks_max": CGROUP}),
    (ALONE, {"memory"}, [ALONE, OTHER_USER], {"memory_max": CGROUP, "tasks_max": RLIMIT}),
    (ALONE, set(), [ALONE, SAME_USER], {"memory_max": WATCH, "tasks_max": WATCH}),
    (spec(tasks_max=5), set(), [], {"tasks_max": WATCH}),
    (spec(tasks_max=5, user="root"), set(), [], {"tasks_max": WATCH}),
    (spec(tasks_max=5, user="pricing", instances=2), set(), [], {"tasks_max": WATCH}),
    (spec(tasks_max=5, user="pricing", limit_nproc=Limit(9, 9)), set(), [], {"tasks_max": WATCH}),
]


@pytest.mark.parametrize(("unit", "enabled", "others", "expected"), HOLDERS)
def test_who_holds_what(unit: UnitSpec, enabled: set[str], others: list[UnitSpec], expected: dict[str, Holder]) -> None:
    """The kernel for a control group, else for a user that is only one run's, and not root; else parsupd watches."""
    assert holders(unit, enabled, others) == expected


def test_what_is_written() -> None:
    """Only for controllers that there are; a limit that is no more is written, too."""
    assert wanted(ALONE) == {"memory", "pids"}
    assert wanted(spec(tasks_max=1)) == {"pids"}
    assert contents(ALONE, {"memory", "pids"}) == {"memory.max": str(64 << 20), "pids.max": "50"}
    assert contents(spec(), {"memory", "pids"}) == {"memory.max": "max", "pids.max": "max"}
    assert contents(ALONE, {"pids"}) == {"pids.max": "50"}
    assert contents(ALONE, ()) == {}


def test_what_the_kernel_counts() -> None:
    """The lines that count, of files as they are; nothing for files that are not there, or of another form."""
    assert counts("low 0\nhigh 3\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n", "max 7\n") == Counts(1, 7)
    assert counts("", "") == Counts(0, 0)
    assert counts("oom_kill\nx", "max many") == Counts(0, 0)


KILLED = ExitCause.signaled(SIGKILL)
EXPLAINED = [
    (KILLED, Counts(2, 0), "was killed by SIGKILL: the kernel's OOM killer, memory_max is 64 MiB"),
    (KILLED, Counts(0, 0), "was killed by SIGKILL"),
    (ExitCause.signaled(SIGTERM), Counts(1, 0), "was killed by SIGTERM"),
    (ExitCause.exited(1), Counts(1, 3), "exited with 1: it was refused a new process or thread 3 times, tasks_max is 50"),
    (ExitCause.exited(0), Counts(1, 3), "exited with 0"),
    (ExitCause.unknown("gone"), Counts(1, 1), "ended in an unknown way: gone"),
]  # fmt: skip


@pytest.mark.parametrize(("cause", "counted", "expected"), EXPLAINED)
def test_how_an_end_is_told(cause: ExitCause, counted: Counts, expected: str) -> None:
    """An end that the kernel has brought about is told as that; any other as it was."""
    assert str(explained(cause, counted, ALONE)) == expected


def test_an_unlimited_unit_may_be_killed_for_want_of_memory_too() -> None:
    """The machine, or the service as a whole, may have too little."""
    assert str(explained(KILLED, Counts(1, 0), spec())) == "was killed by SIGKILL: the kernel's OOM killer"


def test_what_is_watched() -> None:
    """What the kernel does not hold, and max_rss, which it never does."""
    unit = spec(memory_max=1 << 20, tasks_max=2, max_rss=5, max_rss_action=MaxRssAction.LOG)
    found = bounds(unit, {"memory_max": WATCH, "tasks_max": CGROUP})
    assert found == (Bound("memory_max", 1 << 20, kills=True), Bound("max_rss", 5, MaxRssAction.LOG))
    assert bounds(ALONE, {"memory_max": CGROUP, "tasks_max": RLIMIT}) == ()


def test_complaints_name_value_and_bound() -> None:
    """At its bound a run is not above it."""
    memory, tasks = Bound("memory_max", 64 << 20, kills=True), Bound("tasks_max", 50, kills=True)
    assert complaint(Taken(64 << 20, 50), memory) == complaint(Taken(64 << 20, 50), tasks) == ""
    assert complaint(Taken(80 << 20, 0), memory) == (
        "it takes 80 MiB of memory, and memory_max is 64 MiB; killed by parsupd, as no memory controller is delegated to it"
    )
    assert complaint(Taken(0, 51), tasks) == (
        "it has 51 processes and threads, and tasks_max is 50; killed by parsupd, as no pids controller is delegated to it"
    )
    assert complaint(Taken(80 << 20, 0), Bound("max_rss", 60 << 20)) == (
        "it takes 80 MiB of memory, and max_rss is 60 MiB"
    )


def test_looks_are_frequent_near_a_bound_and_in_the_beginning() -> None:
    """The nearest bound counts; a run that is far from all of them is looked at rarely once it is some time old."""
    memory, tasks = Bound("memory_max", 100), Bound("tasks_max", 10)
    assert interval_s(Taken(0, 0), [memory, tasks], 1000) == FAR_S
    assert interval_s(Taken(100, 0), [memory, tasks], 1000) == NEAR_S
    assert interval_s(Taken(0, 12), [memory, tasks], 1000) == NEAR_S
    assert NEAR_S < interval_s(Taken(70, 0), [memory, tasks], 1000) < FAR_S
    assert interval_s(Taken(0, 0), [memory, tasks], 0) == NEAR_S
    assert interval_s(Taken(0, 0), [memory, tasks], 3) == 3


V1 = "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n"
V2 = "41 31 0:38 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n"
HYBRID = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
PART = "41 31 0:38 /docker/1 /sys/fs/cgroup rw - cgroup2 cgroup rw\n"
BLANK = "41 31 0:38 / /my\\040groups rw - cgroup2 cgroup2 rw\n"
PATHS = [
    ("0::/system.slice/parsupd.service\n", V2, "/sys/fs/cgroup/system.slice/parsupd.service"),
    ("8:pids:/a\n0::/b\n", HYBRID, "/sys/fs/cgroup/unified/b"),
    ("0::/\n", V2, "/sys/fs/cgroup"),
    ("0::/docker/1/x\n", PART, "/sys/fs/cgroup/x"),
    ("0::/docker/1\n", PART, "/sys/fs/cgroup"),
    ("0::/docker/12\n", PART, ""),
    ("0::/a\n", BLANK, "/my groups/a"),
    ("0::/../a\n", V2, ""),
    ("8:pids:/a\n", V2, ""),
    ("0::/a\n", V1, ""),
    ("", "", ""),
]


@pytest.mark.parametrize(("own", "mounts", "expected"), PATHS)
def test_where_the_own_group_is(own: str, mounts: str, expected: str) -> None:
    """As the two files of /proc say it, also beside version 1, in a namespace, and for a mount that shows a part."""
    assert own_path(own, mounts) == expected


def test_the_tree_is_above_what_is_made_in_it() -> None:
    """parsupd's own group, and where systemd puts the commands of a service, are below what is delegated."""
    assert tree_of("/x/parsupd.service") == "/x/parsupd.service"
    assert tree_of("/x/parsupd.service/parsupd.daemon") == "/x/parsupd.service"
    assert tree_of("/x/parsupd.service/.control") == "/x/parsupd.service"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("web@1.7", GroupName(InstanceName("web", 1), 7)),
        ("web@1.7.command", GroupName(InstanceName("web", 1), 7, True)),
        ("mail@eu.x@12.345", GroupName(InstanceName("mail@eu.x", 12), 345)),
    ],
)
def test_names_of_groups(text: str, name: GroupName) -> None:
    """Names are read as they are written."""
    assert str(name) == text
    assert parse_name(text) == name


@pytest.mark.parametrize(
    "text", ["parsupd.daemon", ".control", "cgroup.procs", "web@1", "web@0.1", "web.7", "web@1.x", ""]
)
def test_other_groups_are_nobodys(text: str) -> None:
    """What is not of the form of a run's group is left alone."""
    assert parse_name(text) is None
